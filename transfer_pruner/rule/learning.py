"""The rule that learns while the search runs: decisions as a function of measured transfers.

What it must satisfy: the same transfers give the same decisions in every process and after every
restart, whenever and however often they are asked for. So nothing is kept from one refit to the
next, and what is known at any time is in the host's storage.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.autologging import unlogged
from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.probability import expected_improvement
from transfer_pruner.rule.candidates import SCORE, Candidates, tabulated
from transfer_pruner.rule.decision import Decisions
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learnt import best_so_far, decisions, measured_transfers
from transfer_pruner.rule.ranking import Ordered, check_whole, finite_or_nan
from transfer_pruner.rule.reranking import check_scores, look, scored_too
from transfer_pruner.tasks import FloatArray

if TYPE_CHECKING:
    from transfer_pruner.predictor import TransferPredictor

_FIRST = 20
"""Transfers that a posterior has to rest on before it eliminates, where nothing else is said."""
FITTED_AT = 10
"""Transfers that the model's variances are first fitted to; again at every half as many more."""


class LearningRule:
    r"""Eliminate by attributions, then by what was measured, and say which pair comes next.

    It makes an `EliminationRule` of the transfers measured so far. A clone of the predictor learns
    from them, from the first one on. The `Decision.priority` of a pair is the improvement over its
    target's best that is expected of its next trial. With little evidence the rule eliminates as
    `EliminationRule.fraction` does by attributions. With enough, s -> t is eliminated if

    .. math:: P(g(s, t) > b(t)) < p, \quad b(t) = \max(0, \max_{s'} \bar g(s', t))

    where :math:`\bar g` are the pairs' mean measured gains and 0 is the single-task baseline: if
    its next trial hardly can be better than what the target has already. So more is eliminated as
    predictions sharpen and as good pairs are found, and what a later refit thinks better of comes
    back. The pair that is the target's best is kept, since its hyperparameters are still searched;
    of a target without a measured transfer, the best-scored pair is kept. Priorities compare
    targets, so the scores of all have to be on one scale, not of some in percent. Ours.

    The variances of the model are fitted to the first 10 transfers, again to the first 15, 22, 33
    and so on; between, only its posterior is new.

    Parameters
    ----------
    predictor : TransferPredictor
        Not fitted. Without embeddings and `feature_columns` it learns from measured transfers only.
    start : float in [0, 1)
        Share of every target's sources that attributions eliminate before there is evidence. A
        predictor without embeddings eliminates none.
    min_probability : float in [0, 1)
        p.
    refit_every : int
        Finished trials from one refit to the next; in a large search a fiftieth of those that have
        finished, or one for every 100,000 pairs, if that is more. More than 1, it is also the
        transfers that the elimination by the posterior takes, which are 20 else.
    min_targets : int
        Targets with a measured transfer that the elimination by the posterior takes.
    pairs : DataFrame, optional
        The candidate pairs: columns source and target, and the predictor's `feature_columns`.
        Every ordered pair of the predictor's tasks if left out.

    Attributes
    ----------
    settings : dict of str to JSON values
    unknown_pairs : set of (source, target)
        Pairs that were asked for and not known, in this process, by all rules made here.

    Raises
    ------
    ValueError
        If a parameter is out of range, the predictor is fitted, or `pairs` is needed and not given.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> rule = LearningRule(TransferPredictor(embeddings))
    >>> measured = pd.DataFrame({"source": ["weather"], "target": ["news"], "gain": [-0.02]})
    >>> now = rule.refitted(measured)
    >>> now.decide("advice", "news").priority > now.decide("weather", "news").priority
    True
    """

    def __init__(
        self,
        predictor: TransferPredictor,
        *,
        start: float = 0.25,
        min_probability: float = 0.05,
        refit_every: int = 1,
        min_targets: int = 1,
        pairs: pd.DataFrame | None = None,
    ) -> None:
        if not hasattr(predictor, "fit"):
            raise ValueError(
                f"predictor must be a TransferPredictor, not fitted, but got {predictor!r}."
            )
        if hasattr(predictor, "measured_"):
            raise ValueError(
                f"predictor must not be fitted but learnt from {len(predictor.measured_)} "
                "transfers: the rule fits clones to the search's own. Pass "
                "sklearn.base.clone(predictor)."
            )
        if not 0 <= start < 1:
            raise ValueError(
                f"start must be from 0 to below 1 but got {start}; where every pair is eliminated, "
                "nothing is measured to learn from."
            )
        if not 0 <= min_probability < 1:
            raise ValueError(
                f"min_probability must be from 0 to below 1 but got {min_probability}."
            )
        for parameter, value in (("refit_every", refit_every), ("min_targets", min_targets)):
            if value < 1 or value != int(value):
                raise ValueError(f"{parameter} must be a whole number from 1 but got {value}.")
        self.min_probability = float(min_probability)
        self.refit_every = int(refit_every)
        self.min_targets = int(min_targets)
        self.start = float(start)
        self.unknown_pairs: set[tuple[Hashable, Hashable]] = set()
        self.scoring_seconds = 0.0
        candidates = Candidates.of(predictor, pairs)
        # What attributions say of the pairs stays the same: computed once, and kept instead of the
        # embeddings, so that the rule is small where a host pickles it.
        self._predictor, self._candidates = tabulated(predictor, candidates)
        first = self._starting(predictor, candidates)
        self._start_rule = self._ours(self._ordered(first, self._first_priorities()), {})
        self._thetas: dict[str, FloatArray] = {}
        self._warned = False

    @property
    def settings(self) -> dict[str, Any]:
        """What the rule was made with, for provenance."""
        names = ("start", "min_probability", "refit_every", "min_targets")
        return {"rule": "learning", **{name: getattr(self, name) for name in names}}

    def refitted(self, transfers: pd.DataFrame | None = None) -> EliminationRule:
        """Make the rule that these transfers teach: equal transfers, equal decisions.

        Parameters
        ----------
        transfers : DataFrame, optional
            Columns source, target and gain. With score and baseline too, what is learnt is the
            gain over the target's best baseline. Others are ignored, `feature_columns` are those
            of `pairs`. A pair may stand more than once. Baselines, and gains that are NaN or
            infinite, are left out. None measured if left out.

        Returns
        -------
        EliminationRule
            Its ``settings["transfers"]``, if there, is how many transfers it learnt from. If the
            predictor fails it keeps every pair; the first failure warns.

        Raises
        ------
        ValueError
            If `transfers` lacks a column.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
        >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
        >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
        >>> rule = LearningRule(TransferPredictor(embeddings))
        >>> measured = pd.DataFrame({"source": ["weather"], "target": ["news"], "gain": [-0.02]})
        >>> rule.refitted(measured).kept("news")
        ['advice', 'weather']
        """
        measured = measured_transfers(transfers)
        if not len(measured):
            return self._start_rule
        try:
            rule = self._learnt(measured)
        except Exception as error:
            # Fail open, and not to the rule of the last refit: a process that has just started has
            # none, and would decide otherwise than the others.
            failure = f"{type(error).__name__}: {error}"
            rule = self._all_kept(f"the predictor failed and every pair is kept: {failure}")
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the predictor failed on {len(measured)} transfers and every pair is kept "
                    f"until a refit succeeds: {failure}",
                    TransferPrunerWarning,
                    stacklevel=2,
                )
        return self._ours(rule, {"transfers": len(measured)})

    def refine(
        self, scores: Callable[[str, str], float] | pd.DataFrame, k: int | None = None
    ) -> LearningRule:
        """Order pairs by a proxy score too, until what is measured teaches better.

        Where there is a proxy score, what attributions say of a target's sources has half the
        weight of it, and `start` eliminates the last ones by both. Ours.

        Parameters
        ----------
        scores : callable of (source, target) to float, or DataFrame
            Higher is better, within a target. A callable is called once for every pair, a source's
            pairs one after another, so that it may hold on to one model at a time. A table, such as
            that of `transfer_pruner.score_pairs`, has the columns source, target and score; and
            seconds, if they are to be counted. It may hold some of the pairs only. A pair whose
            score is NaN, fails or is missing keeps its place by attributions; those of a callable
            are counted in one warning.
        k : int, optional
            Sources of each target that are scored, 0 or more: those that come first by what the
            rule knows so far, equal ones by name. All of them if left out. The rule eliminates none
            for it, other than `EliminationRule.refine`, which keeps k.

        Returns
        -------
        LearningRule
            A new rule. Its `scoring_seconds` are the table's, or what the calls took, beside this
            rule's own: `estimate_savings` counts them by itself.

        Raises
        ------
        ValueError
            If a parameter is something else, or a table has a pair twice or none of those that are
            scored.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
        >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
        >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
        >>> rule = LearningRule(TransferPredictor(embeddings))
        >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
        >>> scores = pairs.assign(score=[0.2, 0.7])
        >>> now = rule.refine(scores).refitted()
        >>> now.decide("weather", "news").priority > now.decide("advice", "news").priority
        True

        A function of your own scores the best source of each target only:

        >>> def on_dev_examples(source, target):
        ...     print(f"{source} on {target}")
        ...     return 0.7
        >>> looked = rule.refine(on_dev_examples, k=1)
        advice on news
        advice on weather
        news on advice
        """
        check_scores(scores)
        k = None if k is None else check_whole("k", k)
        candidates = self._candidates
        looked = look(scores, candidates, self._first_priorities(), k)
        refined = copy.copy(self)
        refined.unknown_pairs, refined._thetas, refined._warned = set(), {}, False
        refined.scoring_seconds = self.scoring_seconds + looked.seconds
        if np.isnan(looked.values).all():
            refined._start_rule = refined._ours(self._start_rule, {})
            return refined
        order = scored_too(candidates, SCORE, looked.values)
        refined._candidates = candidates.with_features(order.fillna(0.0).to_frame(SCORE))
        # A worker that only decides loads no scikit-learn.
        from sklearn.base import clone

        refined._predictor = clone(self._predictor)
        columns = dict.fromkeys([SCORE, *self._predictor.feature_columns])
        refined._predictor.set_params(feature_columns=[*columns])
        ordered = Ordered(order.to_numpy(), candidates.tasks, candidates.columns)
        first = EliminationRule.fraction(ordered, self.start, pairs=candidates.pairs)
        refined._start_rule = refined._ours(
            refined._ordered(first, refined._first_priorities()), {}
        )
        return refined

    def _ours(self, rule: EliminationRule, more: dict[str, Any]) -> EliminationRule:
        # Shared, so that an unknown pair is warned about once in a search, not after each refit.
        rule = rule.with_settings(self.settings | more, unknown_pairs=self.unknown_pairs)
        rule.scoring_seconds = self.scoring_seconds
        return rule

    def _starting(self, predictor: TransferPredictor, candidates: Candidates) -> EliminationRule:
        if predictor.embeddings:
            return EliminationRule.fraction(predictor, self.start, pairs=candidates.table)
        return self._all_kept("no embeddings, and too few transfers to learn from: kept")

    def _all_kept(self, reason: str) -> EliminationRule:
        return EliminationRule(self._candidates.decided([reason], {}), {})

    def _ordered(self, rule: EliminationRule, priorities: FloatArray) -> EliminationRule:
        """Make a rule that decides like another one and has these priorities."""
        ordered = Decisions.of(rule.decisions).with_priority(priorities[self._candidates.order()])
        return EliminationRule(ordered, {})

    def _first_priorities(self) -> FloatArray:
        """Order pairs before anything was measured: by the attribution score, if there is one."""
        candidates = self._candidates
        if SCORE not in self._predictor.feature_columns:
            return np.ones(len(candidates.table))
        from transfer_pruner.predictor.process import SCORE_WEIGHT

        score = candidates.table[SCORE].astype(float)
        within = score - score.groupby(candidates.target).transform("mean")
        spread = float(within.std(ddof=0))
        standard = (within / (spread if spread > 0 else 1.0)).fillna(0.0).to_numpy()
        return expected_improvement(SCORE_WEIGHT * standard, 1.0)

    def _rows_of(self, measured: pd.DataFrame) -> NDArray[np.int64]:
        """Find the candidates that were measured; -1 where a pair is none of them."""
        first, order = Decisions.of(self._start_rule.decisions), self._candidates.order()
        found = map(first.row, measured["source"], measured["target"])
        return np.array([-1 if row is None else order[row] for row in found], dtype=np.int64)

    def _fitted(self, measured: pd.DataFrame, rows: NDArray[np.int64]) -> TransferPredictor:
        """Fit a clone to transfers; its variances are those of the last fixed count of them."""
        # A worker that only decides loads no scikit-learn.
        from sklearn.base import clone

        known = self._candidates.known(rows, measured)

        def fit(count: int, theta: FloatArray | None) -> TransferPredictor:
            fitted: TransferPredictor = clone(self._predictor)
            gains = measured["gain"].iloc[:count]
            with unlogged():
                return fitted.fit(
                    known.iloc[:count], gains, candidates=self._candidates.table, theta=theta
                )

        fixed = _fixed_count(len(measured))
        if self._predictor.regressor is not None or fixed == len(measured):
            return fit(len(measured), None)
        if not fixed:
            return fit(len(measured), np.zeros(0))
        digest = hashlib.sha256(
            pd.util.hash_pandas_object(measured[:fixed]).to_numpy().tobytes()
        ).hexdigest()
        if digest not in self._thetas:
            self._thetas = {digest: fit(fixed, None).theta_}
        return fit(len(measured), self._thetas[digest])

    def _learnt(self, measured: pd.DataFrame) -> EliminationRule:
        candidates, rows = self._candidates, self._rows_of(measured)
        fitted = self._fitted(measured, rows)
        mean, std = fitted.predict(candidates.table, return_std=True)
        best = np.nan_to_num(candidates.by_target(best_so_far(measured)))
        priority = expected_improvement(mean, std, best)
        if len(measured) < self._first or measured["target"].nunique() < self.min_targets:
            return self._ordered(self._start_rule, priority)
        said = decisions(
            candidates, measured, rows, finite_or_nan(mean), std, priority, self.min_probability
        )
        return EliminationRule(said, {})

    @property
    def _first(self) -> int:
        return self.refit_every if self.refit_every > 1 else _FIRST

    def __len__(self) -> int:
        """How many pairs it decides on."""
        return len(self._start_rule)

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items() if k != "rule")
        return f"LearningRule({settings})"


def _fixed_count(count: int) -> int:
    """Take the largest count, up to this one, at which variances are fitted; 0 before the first."""
    fixed = 0
    following = FITTED_AT
    while following <= count:
        fixed, following = following, following * 3 // 2
    return fixed
