"""The rule that learns while the search runs: decisions as a function of measured transfers.

What it must satisfy: the same transfers give the same decisions in every process and after every
restart, whenever and however often they are asked for. So nothing is kept from one refit to the
next, and what is known at any time is in the host's storage.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.autologging import unlogged
from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.pairs import pair_columns, pair_features
from transfer_pruner.probability import expected_improvement, probability_to_exceed
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.ranking import (
    Ordered,
    candidate_pairs,
    finite_or_nan,
    ranked,
    task_columns,
)
from transfer_pruner.rule.reranking import scored_too, table_seconds
from transfer_pruner.tasks import FloatArray, is_baseline

if TYPE_CHECKING:
    from transfer_pruner.predictor import TransferPredictor

_PAIR = ["source", "target"]
_SCORE = "attribution_score"
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
    of a target without a measured transfer, the best-scored pair is kept. Ours.

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
        Finished trials from one refit to the next; in a long search a fiftieth of those that have
        finished, if that is more. More than 1, it is also the transfers that the
        elimination by the posterior takes, which are 20 else.
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
        candidates = _candidates(predictor, pairs)
        self._columns = task_columns(predictor)
        self._pairs = list(candidates[self._columns].itertuples(index=False, name=None))
        # What attributions say of the pairs stays the same: computed once, and kept instead of the
        # embeddings, so that the rule is small where a host pickles it.
        self._predictor, self._candidates = _tabulated(predictor, candidates)
        self._rows = {pair: row for row, pair in enumerate(self._pairs)}
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
        """
        measured = _measured(transfers)
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

    def refine(self, scores: pd.DataFrame) -> LearningRule:
        """Order pairs by a proxy score too, until what is measured teaches better.

        Where there is a proxy score, what attributions say of a target's sources has half the
        weight of it, and `start` eliminates the last ones by both. Ours.

        Parameters
        ----------
        scores : DataFrame
            As that of `transfer_pruner.score_pairs`: columns source, target and score, higher is
            better within a target; and seconds, if they are to be counted. All pairs, or those that
            are worth a look. A pair without a score keeps its place by attributions.

        Returns
        -------
        LearningRule
            A new rule. Its `scoring_seconds` are the table's beside this rule's own.

        Raises
        ------
        ValueError
            If `scores` is no such table, has a pair twice or none of the rule's pairs.
        """
        if not isinstance(scores, pd.DataFrame):
            raise ValueError(
                "scores must be a DataFrame with the columns source, target and score, such as "
                f"score_pairs() makes, but got {scores!r}."
            )
        order = scored_too(self._candidates, self._columns, _SCORE, scores)
        refined = copy.copy(self)
        refined.unknown_pairs, refined._thetas, refined._warned = set(), {}, False
        refined.scoring_seconds = self.scoring_seconds + table_seconds(scores)
        refined._candidates = self._candidates.assign(**{_SCORE: order})
        # A worker that only decides loads no scikit-learn.
        from sklearn.base import clone

        refined._predictor = clone(self._predictor)
        columns = dict.fromkeys([_SCORE, *self._predictor.feature_columns])
        refined._predictor.set_params(feature_columns=[*columns])
        pairs = self._candidates[self._columns]
        first = EliminationRule.fraction(
            Ordered(dict(zip(self._pairs, order, strict=True)), self._columns),
            self.start,
            pairs=pairs,
        )
        refined._start_rule = refined._ours(
            refined._ordered(first, refined._first_priorities()), {}
        )
        return refined

    def _ours(self, rule: EliminationRule, more: dict[str, Any]) -> EliminationRule:
        # Shared, so that an unknown pair is warned about once in a search, not after each refit.
        rule = rule.with_settings(self.settings | more, unknown_pairs=self.unknown_pairs)
        rule.scoring_seconds = self.scoring_seconds
        return rule

    def _starting(self, predictor: TransferPredictor, pairs: pd.DataFrame) -> EliminationRule:
        if predictor.embeddings:
            return EliminationRule.fraction(predictor, self.start, pairs=pairs)
        return self._all_kept("no embeddings, and too few transfers to learn from: kept")

    def _all_kept(self, reason: str) -> EliminationRule:
        kept = {pair: Decision(False, math.nan, math.nan, reason) for pair in self._pairs}
        return EliminationRule(kept, {})

    def _ordered(self, rule: EliminationRule, priorities: FloatArray) -> EliminationRule:
        """Make a rule that decides like another one and has these priorities."""
        priority = dict(zip(self._pairs, priorities.tolist(), strict=True))
        pairs = rule.table()[_PAIR].itertuples(index=False, name=None)
        return EliminationRule(
            {pair: replace(rule.decide(*pair), priority=priority[pair]) for pair in pairs}, {}
        )

    def _first_priorities(self) -> FloatArray:
        """Order pairs before anything was measured: by the attribution score, if there is one."""
        if _SCORE not in self._predictor.feature_columns:
            return np.ones(len(self._pairs))
        from transfer_pruner.predictor.process import SCORE_WEIGHT

        score = self._candidates[_SCORE].astype(float)
        within = score - score.groupby(self._candidates[self._columns[1]]).transform("mean")
        spread = float(within.std(ddof=0))
        standard = (within / (spread if spread > 0 else 1.0)).fillna(0.0).to_numpy()
        return expected_improvement(SCORE_WEIGHT * standard, 1.0)

    def _fitted(self, measured: pd.DataFrame) -> TransferPredictor:
        """Fit a clone to transfers; its variances are those of the last fixed count of them."""
        # A worker that only decides loads no scikit-learn.
        from sklearn.base import clone

        rows = [
            self._rows.get(pair, -1) for pair in zip(*(measured[x] for x in _PAIR), strict=True)
        ]
        known = self._candidates.reindex(rows).reset_index(drop=True)
        known[self._columns] = measured[_PAIR].to_numpy()

        def fit(count: int, theta: FloatArray | None) -> TransferPredictor:
            fitted: TransferPredictor = clone(self._predictor)
            gains = measured["gain"].iloc[:count]
            with unlogged():
                return fitted.fit(
                    known.iloc[:count], gains, candidates=self._candidates, theta=theta
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
        columns = self._columns
        fitted = self._fitted(measured)
        mean, std = fitted.predict(self._candidates, return_std=True)
        table = self._candidates[columns].set_axis(_PAIR, axis=1)
        table["score"], table["std"] = finite_or_nan(mean), std
        table["priority"] = expected_improvement(
            mean, std, table["target"].map(_best_so_far(measured)).fillna(0.0)
        )
        if len(measured) < self._first or measured["target"].nunique() < self.min_targets:
            return self._ordered(self._start_rule, table["priority"].to_numpy())
        table["probability"] = probability_to_exceed(table["score"], std)
        table = ranked(table)
        means = measured.groupby(_PAIR)["gain"].mean()
        best = means.groupby("target").max()
        table["best"] = table["target"].map(best)
        table["chance"] = probability_to_exceed(
            table["score"], table["std"], table["best"].fillna(0).clip(lower=0)
        )
        average = table[_PAIR].join(means, on=_PAIR)["gain"]
        table["is_best"] = (average == table["best"]) & (average > 0)
        pairs = zip(table["source"], table["target"], strict=True)
        rows = table.itertuples(index=False)
        return EliminationRule(
            {
                pair: self._decision(row, len(measured))
                for pair, row in zip(pairs, rows, strict=True)
            },
            {},
        )

    @property
    def _first(self) -> int:
        return self.refit_every if self.refit_every > 1 else _FIRST

    def _decision(self, row: Any, n_transfers: int) -> Decision:
        learnt = f"learnt from {n_transfers} transfers"
        if math.isnan(row.score):
            return Decision(False, math.nan, math.nan, f"no score: kept; {learnt}")
        what = (
            f"the best of {row.best:.3f} measured for {row.target}"
            if row.best > 0
            else f"the single-task baseline of {row.target}"
        )
        likely = row.chance >= self.min_probability
        reason = (
            f"predicted gain {row.score:.3f}; exceeds {what} with probability {row.chance:.2g} "
            f"({'at least' if likely else 'below'} {self.min_probability:g})"
        )
        eliminated = False
        if row.is_best:
            reason = f"the best of {row.best:.3f} measured for {row.target}: kept"
        elif math.isnan(row.best) and row.rank == 1:
            reason += f"; rank 1 of {row.candidates} for a target not measured yet: kept"
        else:
            eliminated = not likely
        reason = f"{reason}; {learnt}; priority {round(row.priority, 6):.2g}"
        return Decision(eliminated, row.score, row.probability, reason, row.priority)

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items() if k != "rule")
        return f"LearningRule({settings})"


def _tabulated(
    predictor: TransferPredictor, candidates: pd.DataFrame
) -> tuple[TransferPredictor, pd.DataFrame]:
    """Turn embeddings into columns of the candidate pairs: the predictor learns the same."""
    from sklearn.base import clone

    slim = clone(predictor)
    if not predictor.embeddings:
        return slim, candidates
    from transfer_pruner.predictor.design import alike_tasks

    source, target = task_columns(predictor)
    features = pair_features(
        candidates,
        predictor.embeddings,
        predictor.target_embeddings,
        source=source,
        target=target,
    )
    slim.set_params(
        embeddings=None,
        target_embeddings=None,
        feature_columns=[*features.columns, *predictor.feature_columns],
        similarity=alike_tasks(
            predictor.similarity, predictor.embeddings, predictor.target_embeddings
        ),
    )
    return slim, pd.concat([candidates, features], axis=1)


def _candidates(predictor: TransferPredictor, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Take the candidate pairs once each, with the predictor's columns and no others."""
    table = candidate_pairs(predictor, pairs)
    columns = task_columns(predictor)
    features = list(predictor.feature_columns)
    missing = [feature for feature in features if feature not in table]
    if missing:
        raise ValueError(
            f"pairs lacks {missing[0]!r}, which the predictor's feature_columns names: pass pairs= "
            "with a value of it for every candidate pair."
        )
    keys = zip(*(table[column] for column in columns), strict=True)
    ordered = table.loc[[not is_baseline(*key) for key in keys], [*columns, *features]]
    return ordered.drop_duplicates(columns, ignore_index=True)


def _fixed_count(count: int) -> int:
    """Take the largest count, up to this one, at which variances are fitted; 0 before the first."""
    fixed = 0
    following = FITTED_AT
    while following <= count:
        fixed, following = following, following * 3 // 2
    return fixed


def _best_so_far(measured: pd.DataFrame) -> pd.Series:
    """Take every target's best gain so far: what the next trial has to exceed."""
    return measured.groupby("target")["gain"].max().clip(lower=0.0)


def _measured(transfers: pd.DataFrame | None) -> pd.DataFrame:
    """Take what can be learnt from: source, target and a finite gain.

    Where scores and baselines are told, a gain is that over the target's best baseline. Over the
    baseline of its own hyperparameters a trial gains most where training alone fails, which brings
    the target's best no further.
    """
    columns = [*_PAIR, "gain"]
    if transfers is None:
        return pd.DataFrame(columns=columns)
    missing = [column for column in columns if column not in transfers]
    if missing:
        raise ValueError(
            f"transfers lacks the column {missing[0]!r}; it has: "
            f"{', '.join(map(str, transfers.columns)) or 'none'}."
        )
    gains = transfers["gain"].to_numpy(dtype=float)
    keys = zip(transfers["source"], transfers["target"], strict=True)
    usable = np.isfinite(gains) & np.array([not is_baseline(*key) for key in keys], dtype=bool)
    more = [column for column in ("score", "baseline") if column in transfers]
    table: pd.DataFrame = transfers.loc[usable, [*columns, *more]].reset_index(drop=True)
    sources, targets = pair_columns(table)
    table = table.assign(source=sources, target=targets)
    table = table.astype(dict.fromkeys(["gain", *more], float))
    if len(more) == 2:
        over_best = table["score"] - table.groupby("target")["baseline"].transform("max")
        table["gain"] = over_best.where(np.isfinite(over_best), table["gain"])
    return table
