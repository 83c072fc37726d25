"""The elimination rule: the ways to make one.

A rule is a table of decisions, made once from a predictor. So it is small, it is the same on every
worker, it needs no model to decide, and what is loaded from disk cannot run code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from transfer_pruner.pairs import pair_columns
from transfer_pruner.rule.calibration import calibrate
from transfer_pruner.rule.decided import DecidedPairs
from transfer_pruner.rule.decision import Decision, Decisions
from transfer_pruner.rule.ranking import (
    Predictor,
    affordable,
    check_number,
    check_predictor,
    check_whole,
    ranked_candidates,
    task_codes,
    warn_of_unscored,
)
from transfer_pruner.rule.reranking import check_scores, rerank

__all__ = ["Decision", "EliminationRule", "Predictor"]


class EliminationRule(DecidedPairs):
    """Decide which pairs are eliminated before they train.

    Made by `top_k`, `fraction`, `min_gain`, `budget` or `calibrate`. It does not change once it is
    made. It fails open: a pair that it does not know is kept, warned about once and remembered in
    `unknown_pairs`.

    Parameters
    ----------
    decisions : mapping of (source, target) to Decision
        Another rule's `decisions` are shared.
    settings : mapping of str to JSON values
        How the decisions were made, for provenance.
    scoring_seconds : float
        What the proxy scores took that it was re-ranked by. Records and savings tell of them by
        themselves. No part of the fingerprint: the same scores take other seconds each time.

    Attributes
    ----------
    unknown_pairs : set of (source, target)
        Pairs that were asked for and not known, in this process.

    Raises
    ------
    ValueError
        If a parameter is something else.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> rule.kept("news")
    ['advice']
    >>> rule.decide("weather", "news").eliminated
    True
    >>> rule.save("rule")
    >>> EliminationRule.load("rule").decide("advice", "news").eliminated
    False
    """

    @classmethod
    def top_k(
        cls, predictor: Predictor, k: int = 3, *, pairs: pd.DataFrame | None = None
    ) -> EliminationRule:
        """Keep the k best-scored sources of every target.

        Parameters
        ----------
        predictor : TransferPredictor
            Or anything with its `tasks`, `predict` and `predict_proba`.
        k : int
            Sources kept for each target, 0 or more. Equal scores are ordered by source name.
        pairs : DataFrame, optional
            The candidate pairs, columns source and target. Every ordered pair of the predictor's
            tasks if left out.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import EliminationRule, TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
        >>> EliminationRule.top_k(predictor, k=1, pairs=pairs).kept("news")
        ['advice']
        """
        check_predictor(predictor)
        k = check_whole("k", k)

        def keep(ranked: pd.DataFrame) -> tuple[pd.Series, str]:
            return ranked["rank"] <= k, f"the rule keeps {k}"

        return cls._decide_all(predictor, pairs, keep, {"rule": "top_k", "k": k})

    @classmethod
    def fraction(
        cls, predictor: Predictor, fraction: float = 0.8, *, pairs: pd.DataFrame | None = None
    ) -> EliminationRule:
        """Eliminate a fraction of every target's sources, the worst-scored first.

        Parameters
        ----------
        predictor, pairs
            As for `top_k`.
        fraction : float in [0, 1]
            Eliminated share, rounded down to whole sources of each target.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import EliminationRule, TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
        >>> EliminationRule.fraction(predictor, 0.5, pairs=pairs).kept("news")
        ['advice', 'rescue']
        """
        check_predictor(predictor)
        fraction = check_number("fraction", fraction)
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1 but got {fraction}.")

        def keep(ranked: pd.DataFrame) -> tuple[pd.Series, str]:
            # The tolerance keeps 0.7 * 10 from being rounded down to 6.
            eliminated = np.floor(fraction * ranked["candidates"] + 1e-9)
            return (
                ranked["rank"] <= ranked["candidates"] - eliminated,
                f"the rule eliminates {fraction:.0%}",
            )

        return cls._decide_all(predictor, pairs, keep, {"rule": "fraction", "fraction": fraction})

    @classmethod
    def min_gain(
        cls, predictor: Predictor, min_gain: float = 0.0, *, pairs: pd.DataFrame | None = None
    ) -> EliminationRule:
        """Eliminate the pairs whose predicted gain is below a threshold.

        Parameters
        ----------
        predictor, pairs
            As for `top_k`; the predictor must be fitted, since attributions alone give an order and
            no gain.
        min_gain : float
            In units of the score.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import EliminationRule, TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
        >>> EliminationRule.min_gain(predictor, 0.02, pairs=pairs).kept("news")
        ['advice']
        """
        check_predictor(predictor)
        min_gain = check_number("min_gain", min_gain)
        if not math.isfinite(min_gain):
            raise ValueError(f"min_gain must be a number but got {min_gain}.")
        if not hasattr(predictor, "measured_") and hasattr(predictor, "embeddings"):
            raise ValueError(
                "min_gain needs a predictor that learnt from measured gains: call its fit(), or "
                "use top_k, fraction or budget, which need only an order."
            )

        def keep(ranked: pd.DataFrame) -> tuple[pd.Series, str]:
            return ranked["score"] >= min_gain, f"the rule asks for a gain of {min_gain:g}"

        return cls._decide_all(predictor, pairs, keep, {"rule": "min_gain", "min_gain": min_gain})

    @classmethod
    def budget(
        cls,
        predictor: Predictor,
        seconds: float,
        *,
        seconds_per_pair: float | Mapping[tuple[str, str], float],
        pairs: pd.DataFrame | None = None,
    ) -> EliminationRule:
        """Keep the best sources of every target, rank by rank, while the training time lasts.

        All targets' first choices come before any second choice; within a rank, cheap pairs come
        first. A pair that no longer fits is eliminated.

        Parameters
        ----------
        predictor, pairs
            As for `top_k`.
        seconds : float
            Seconds of training that all kept pairs together may take.
        seconds_per_pair : float or mapping of (source, target) to float
            Seconds that a pair takes with all its hyperparameter settings.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import EliminationRule, TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
        >>> rule = EliminationRule.budget(predictor, seconds=120, seconds_per_pair=60, pairs=pairs)
        >>> rule.kept("news")
        ['advice', 'rescue']
        """
        check_predictor(predictor)
        seconds = check_number("seconds", seconds)
        if not 0 <= seconds < math.inf:
            kind = "must be finite" if seconds > 0 else "cannot be negative"
            raise ValueError(f"seconds {kind} but got {seconds:g}.")
        if not isinstance(seconds_per_pair, Mapping):
            seconds_per_pair = check_number("seconds_per_pair", seconds_per_pair)
            if not seconds_per_pair > 0:
                raise ValueError(f"seconds_per_pair must be positive but got {seconds_per_pair:g}.")

        def keep(ranked: pd.DataFrame) -> tuple[pd.Series, str]:
            paid = affordable(ranked, seconds, seconds_per_pair)
            return paid, f"the budget is {seconds:g} seconds"

        settings = {"rule": "budget", "seconds": seconds}
        return cls._decide_all(predictor, pairs, keep, settings)

    @classmethod
    def calibrate(
        cls,
        predictor: Predictor,
        pairs: pd.DataFrame,
        gains: ArrayLike,
        risk: float = 0.1,
        *,
        tolerance: float = 0.0,
        candidates: pd.DataFrame | None = None,
    ) -> EliminationRule:
        r"""Keep as many sources of every target as bounds the risk of losing its best source.

        .. math:: P(t \text{ loses every source within } \tau \text{ of its best gain}) \le r

        for a target t that is exchangeable with the n calibration targets, on average over sets of
        such. A poor predictor costs more sources, not more risk. Every target keeps the
        :math:`k = d_{(\lceil (n + 1)(1 - r) \rceil)}` best-ranked sources, where the depth
        :math:`d` of a calibration target is the rank of its first source within :math:`\tau` of
        its best gain, and 0 where no gain exceeds :math:`\tau`: the single-task baseline is never
        eliminated, so there is nothing to lose. This is conformal risk control (Angelopoulos et al.
        2022, arXiv 2208.02814) of a 0/1 loss; targets are its unit, since pairs that share a task
        are not exchangeable.

        The bound is exact for a predictor that did not learn from the calibration targets. One that
        did (they are in the `measured_` of a `TransferPredictor`) would flatter itself: it is used
        for the rule, but each such target is scored by a clone fitted without it. Then the bound is
        approximate, as that of the jackknife, and ``settings["leave_target_out"]`` is true.

        Parameters
        ----------
        predictor
            As for `top_k`. Targets that it cannot score at all are left out with a warning.
        pairs : DataFrame of n_pairs rows
            Measured transfers of the calibration targets, columns source and target. Of a target
            that was measured with some of its sources only, the best of those is what is bounded.
        gains : array of shape (n_pairs,)
            Measured gains; the mean of a pair that occurs more than once. NaN gains are left out
            with a warning.
        risk : float in (0, 1)
            r, the probability that a target loses its best source. It takes at least
            :math:`\lceil 1 / r \rceil - 1` calibration targets: 9 for 0.1, 19 for 0.05.
        tolerance : float
            :math:`\tau`, 0 or more, in units of the score: a best source is not lost while one
            that is worse by no more than this is kept.
        candidates : DataFrame, optional
            The pairs that the rule decides on. Every ordered pair of the predictor's tasks if left
            out. Calibration ranks among them too.

        Raises
        ------
        ValueError
            If a parameter is out of range, or there are too few calibration targets for the risk.

        Examples
        --------
        >>> import numpy as np
        >>> from transfer_pruner import EliminationRule, TransferPredictor
        >>> from transfer_pruner.pairs import ordered_pairs
        >>> pairs = ordered_pairs([f"task {i}" for i in range(10)])
        >>> quality = pairs["source"].str[-1].astype(float)
        >>> gains = quality / 100 + np.random.default_rng(0).normal(0, 0.001, len(pairs))
        >>> predictor = TransferPredictor().fit(pairs, gains)
        >>> rule = EliminationRule.calibrate(predictor, pairs, gains, risk=0.2)
        >>> rule.kept("task 0")
        ['task 9']
        """
        check_predictor(predictor)
        found = calibrate(predictor, pairs, gains, risk, tolerance, candidates)
        lost = f"best source by more than {tolerance:g}" if tolerance else "best source"
        at_most = "at most about" if found.leave_target_out else "at most"
        why = (
            f"the rule keeps {found.k}, which loses a target's {lost} with probability {at_most} "
            f"{risk:g}"
        )

        def keep(ranked: pd.DataFrame) -> tuple[pd.Series, str]:
            return ranked["rank"] <= found.k, why

        settings = {"rule": "calibrate", "risk": float(risk), "tolerance": float(tolerance)}
        return cls._decide_all(predictor, candidates, keep, settings | asdict(found))

    @classmethod
    def _decide_all(
        cls,
        predictor: Predictor,
        pairs: pd.DataFrame | None,
        keep: Callable[[pd.DataFrame], tuple[pd.Series, str]],
        settings: dict[str, Any],
    ) -> EliminationRule:
        ranked = ranked_candidates(predictor, pairs)
        kept, why = keep(ranked)
        scored = ranked["score"].notna().to_numpy()
        warn_of_unscored(predictor, ranked, stacklevel=4)
        tasks, (sources, targets) = task_codes(*pair_columns(ranked))
        columns = {
            "source": sources,
            "target": targets,
            "eliminated": scored & ~kept.to_numpy(dtype=bool),
            "score": ranked["score"].to_numpy(),
            "probability": ranked["probability"].to_numpy(),
            "rank": np.where(scored, ranked["rank"], 0),
            "candidates": np.where(scored, ranked["candidates"], 0),
            "why": scored.astype(int),
        }
        return cls(Decisions(tasks, ["no score: kept", f"; {why}"], columns), settings)

    def refine(
        self, scores: Callable[[str, str], float] | pd.DataFrame, k: int = 1
    ) -> EliminationRule:
        """Re-rank the pairs that are kept by a proxy score, and keep the k best of every target.

        For what says more of a pair than attributions and costs less than a trial, but too much to
        be done for every pair: the score of the source's model on the target's dev examples before
        any training, a few training steps, `transferability.logme`. Ours.

        Parameters
        ----------
        scores : callable of (source, target) to float, or DataFrame
            Higher is better, within a target. A callable is called once for every pair that this
            rule knows and keeps, a source's pairs one after another, so that it may hold on to one
            model at a time. A table, such as that of `transfer_pruner.score_pairs`, has the columns
            source, target and score; its rows of pairs that this rule eliminates are ignored. A
            pair whose score is NaN, fails or is missing stays kept, and is counted in one warning.
        k : int
            Sources kept for each target, 0 or more. Equal scores are ordered by source name.

        Returns
        -------
        EliminationRule
            A new rule: what this one eliminates stays eliminated, with its reason. Its
            `scoring_seconds` are the table's column ``seconds``, or what the calls took, beside
            this rule's own: `estimate_savings` counts them by itself.

        Raises
        ------
        ValueError
            If a parameter is something else, or a table has a pair twice.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import EliminationRule, TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
        >>> rule = EliminationRule.top_k(predictor, k=2, pairs=pairs)
        >>> scores = pairs.assign(score=[0.4, 0.1, 0.7])
        >>> rule.refine(scores, k=1).kept("news")
        ['rescue']
        """
        check_scores(scores)
        k = check_whole("k", k)
        settings = {"rule": "refine", "k": k, "first": self.settings}
        decisions, seconds = rerank(self._decisions, scores, k)
        return type(self)(decisions, settings, scoring_seconds=self.scoring_seconds + seconds)
