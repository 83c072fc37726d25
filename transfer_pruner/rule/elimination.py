"""The elimination rule: which ordered pairs train, and why not the others.

A rule is a table of decisions, made once from a predictor. So it is small, it is the same on every
worker, it needs no model to decide, and what is loaded from disk cannot run code.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.files import write_atomically
from transfer_pruner.rule.calibration import calibrate
from transfer_pruner.rule.decision import Decision, encode_decisions, read_decisions
from transfer_pruner.rule.ranking import (
    Predictor,
    affordable,
    finite_or_nan,
    ranked,
    ranked_candidates,
)
from transfer_pruner.tasks import is_baseline, task_name

__all__ = ["Decision", "EliminationRule", "Predictor"]

FILE = "rule.json"

_BASELINE = Decision(False, math.nan, math.nan, "single-task baseline: never eliminated")


class EliminationRule:
    """Decide which pairs are eliminated before they train.

    Made by `top_k`, `fraction`, `min_gain`, `budget` or `calibrate`. It fails open: a pair that it
    does not know is kept, warned about once and remembered in `unknown_pairs`.

    Parameters
    ----------
    decisions : mapping of (source, target) to Decision
    settings : mapping of str to JSON values
        How the decisions were made, for provenance.

    Attributes
    ----------
    unknown_pairs : set of (source, target)
        Pairs that were asked for and not known, in this process.
    """

    def __init__(
        self, decisions: Mapping[tuple[str, str], Decision], settings: Mapping[str, Any]
    ) -> None:
        self._decisions = {
            (str(task_name(source)), str(task_name(target))): decision
            for (source, target), decision in decisions.items()
        }
        self.settings = dict(settings)
        self.unknown_pairs: set[tuple[Hashable, Hashable]] = set()

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
        """
        if k < 0:
            raise ValueError(f"k cannot be negative but got {k}.")

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
        """
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
        """
        if math.isnan(min_gain):
            raise ValueError("min_gain must be a number but got nan.")
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
        """
        if not seconds >= 0:
            raise ValueError(f"seconds cannot be negative but got {seconds}.")
        if not isinstance(seconds_per_pair, Mapping) and not seconds_per_pair > 0:
            raise ValueError(f"seconds_per_pair must be positive but got {seconds_per_pair}.")

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
            Measured gains; the mean of a pair that stands more than once. NaN gains are left out
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
        """
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
        decisions = {}
        for (source, target), score, probability, rank, candidates, keeps in zip(
            zip(ranked["source"], ranked["target"], strict=True),
            ranked["score"].tolist(),
            ranked["probability"].tolist(),
            ranked["rank"],
            ranked["candidates"],
            kept,
            strict=True,
        ):
            scored = not math.isnan(score)
            ranking = f"rank {rank} of {candidates} for {target}; {why}"
            decisions[source, target] = Decision(
                eliminated=scored and not keeps,
                score=score,
                probability=probability,
                reason=ranking if scored else "no score: kept",
            )
        unscored = int(ranked["score"].isna().sum())
        if unscored:
            warnings.warn(
                f"{unscored} of {len(ranked)} pairs have no score and are kept.",
                TransferPrunerWarning,
                stacklevel=3,
            )
        return cls(decisions, settings)

    def decide(self, source: str | Sequence[str] | None, target: str) -> Decision:
        """Say whether s -> t is eliminated.

        Parameters
        ----------
        source : str, sequence of str or None
            None, NaN, an empty string or the target itself is the single-task baseline. Several
            sources, of joint transfer, are eliminated if one of them is.
        target : str

        Returns
        -------
        Decision
            An unknown pair is kept; the first one warns. Of several sources it is that of the
            first eliminated one, else that of the lowest-scored.
        """
        if isinstance(source, (tuple, list)):
            return self._decide_jointly(source, target)
        if is_baseline(source, target):
            return _BASELINE
        source, target = str(task_name(source)), str(task_name(target))
        decision = self._decisions.get((source, target))
        if decision is not None:
            return decision
        if not self.unknown_pairs:
            warnings.warn(
                f"the rule does not know the pair {source!r} -> {target!r} and keeps it; further "
                "unknown pairs are kept too and counted in rule.unknown_pairs.",
                TransferPrunerWarning,
                stacklevel=2,
            )
        self.unknown_pairs.add((source, target))
        return Decision(False, math.nan, math.nan, "unknown pair: kept")

    def _decide_jointly(self, sources: Sequence[str], target: str) -> Decision:
        decisions = {s: self.decide(s, target) for s in sources if not is_baseline(s, target)}
        if not decisions:
            return _BASELINE

        def first(source: str) -> tuple[bool, float]:
            score = decisions[source].score
            return not decisions[source].eliminated, math.inf if math.isnan(score) else score

        worst = min(decisions, key=first)
        if len(decisions) == 1:
            return decisions[worst]
        return replace(decisions[worst], reason=f"{worst}: {decisions[worst].reason}")

    def refine(self, look: Callable[[str, str], float], k: int = 1) -> EliminationRule:
        """Look again at the pairs that are kept, and keep the k best of every target.

        For what says more of a pair than attributions and costs less than a trial, but too much to
        be done for every pair: the score of the source's model on the target's dev examples before
        any training, a few training steps, `transferability.logme`. Ours.

        Parameters
        ----------
        look : callable of (source, target) to float
            Called once for every pair that this rule knows and keeps, a source's pairs one after
            another, so that `look` may hold on to one model at a time; higher is better, within a
            target. NaN, or a look that fails, keeps the pair.
        k : int
            Sources kept for each target, 0 or more. Equal looks are ordered by source name.

        Returns
        -------
        EliminationRule
            A new rule: what this one eliminates stays eliminated, with its reason. The seconds of
            the looks are the caller's to count, with those of attribution.
        """
        if k < 0:
            raise ValueError(f"k cannot be negative but got {k}.")
        kept = [pair for pair, decision in self._decisions.items() if not decision.eliminated]
        kept.sort(key=lambda pair: [str(task) for task in pair])  # names may be numbers too
        settings = {"rule": "refine", "k": k, "first": self.settings}
        decisions = dict(self._decisions)
        if not kept:
            return EliminationRule(decisions, settings)
        looks = self._looks(look, kept)
        table = ranked(
            pd.DataFrame(
                {
                    "source": [source for source, _ in kept],
                    "target": [target for _, target in kept],
                    "score": finite_or_nan(np.array(looks)),
                }
            )
        )
        for source, target, score, rank, candidates in zip(
            table["source"],
            table["target"],
            table["score"].tolist(),
            table["rank"].tolist(),
            table["candidates"].tolist(),
            strict=True,
        ):
            if not math.isnan(score):
                why = f"rank {rank} of {candidates} for {target} by a second look"
                decisions[source, target] = replace(
                    decisions[source, target],
                    eliminated=rank > k,
                    score=score,
                    reason=f"{why}; the rule keeps {k}",
                )
        return EliminationRule(decisions, settings)

    @staticmethod
    def _looks(look: Callable[[str, str], float], pairs: Sequence[tuple[str, str]]) -> list[float]:
        looks, failures = [], []
        for source, target in pairs:
            try:
                looks.append(float(look(source, target)))
            except Exception as error:
                # Fail open, as everywhere: one source that cannot be loaded costs only itself.
                looks.append(math.nan)
                failures.append(f"{source!r} -> {target!r}: {type(error).__name__}: {error}")
        if failures:
            warnings.warn(
                f"{len(failures)} of {len(pairs)} looks failed and their pairs are kept, the first "
                f"of them {failures[0]}",
                TransferPrunerWarning,
                stacklevel=3,
            )
        return looks

    def keeps_any(self, target: str | None = None) -> bool:
        """Whether some pair, of the target if one is named, is kept, or none is known."""
        known = [d for (_, to), d in self._decisions.items() if target is None or to == target]
        return not known or not all(decision.eliminated for decision in known)

    def kept(self, target: str) -> list[str]:
        """Name the sources that are kept for a target, the best-scored first."""
        kept = [
            (-decision.score if not math.isnan(decision.score) else math.inf, source)
            for (source, to), decision in self._decisions.items()
            if to == target and not decision.eliminated
        ]
        return [source for _, source in sorted(kept)]

    def table(self) -> pd.DataFrame:
        """Every decision: source, target, eliminated, score, probability, reason."""
        return pd.DataFrame(
            [
                {"source": source, "target": target, **asdict(decision)}
                for (source, target), decision in self._decisions.items()
            ],
            columns=["source", "target", *Decision.__dataclass_fields__],
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the decisions and settings: equal rules decide equally."""
        return hashlib.sha256(self._encode()).hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the rule into a directory as JSON; a rule that is there is replaced whole."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / FILE, self._encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> EliminationRule:
        """Read a rule that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If the directory holds no rule.
        ValueError
            If the file is damaged or of another format.
        """
        return cls(*read_decisions(Path(directory) / FILE))

    def _encode(self) -> bytes:
        return encode_decisions(self._decisions, self.settings)

    def __len__(self) -> int:
        return len(self._decisions)

    def __repr__(self) -> str:
        eliminated = sum(decision.eliminated for decision in self._decisions.values())
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"EliminationRule({settings}: {eliminated} of {len(self)} pairs eliminated)"
