"""The elimination rule: which ordered pairs train, and why not the others.

A rule is a table of decisions, made once from a predictor. So it is small, it is the same on every
worker, it needs no model to decide, and what is loaded from disk cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from transfer_pruner.embedding import TransferPrunerWarning, write_atomically
from transfer_pruner.pairs import FloatArray, is_baseline, ordered_pairs, pair_columns

FORMAT = 1
FILE = "rule.json"


@dataclass(frozen=True)
class Decision:
    """What the rule says of a pair.

    Attributes
    ----------
    eliminated : bool
        True: do not train it. False: it is kept.
    score : float
        What the predictor said; NaN if it said nothing. Comparable within a target.
    probability : float
        Probability of a positive gain; NaN before the predictor has learnt from measured gains.
    reason : str
        One line for a person.
    """

    eliminated: bool
    score: float
    probability: float
    reason: str


class Predictor(Protocol):
    """What a rule needs of a predictor; `TransferPredictor` is one."""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that pairs can be made of."""

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        """Score each pair, shape (n_pairs,)."""

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        """Probability of a positive gain of each pair, shape (n_pairs,)."""


_BASELINE = Decision(False, math.nan, math.nan, "single-task baseline: never eliminated")


class EliminationRule:
    """Decide which pairs are eliminated before they train.

    Made by `top_k`, `fraction`, `min_gain` or `budget`. It fails open: a pair that it does not know
    is kept, warned about once and remembered in `unknown_pairs`.

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
        self._decisions = dict(decisions)
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
            keys = list(zip(ranked["source"], ranked["target"], strict=True))
            if isinstance(seconds_per_pair, Mapping):
                missing = [key for key in keys if key not in seconds_per_pair]
                if missing:
                    raise ValueError(
                        f"seconds_per_pair lacks {len(missing)} of {len(keys)} pairs, "
                        f"{missing[0]!r} among them."
                    )
                cost = np.array([seconds_per_pair[key] for key in keys], dtype=float)
            else:
                cost = np.full(len(keys), float(seconds_per_pair))
            # Unscored pairs are kept whatever they cost, so their seconds are spent first.
            left = seconds - cost[ranked["score"].isna().to_numpy()].sum()
            kept = np.zeros(len(keys), dtype=bool)
            for row in np.lexsort((ranked["target"], cost, ranked["rank"])):
                if not math.isnan(ranked["score"].iloc[row]) and cost[row] <= left:
                    kept[row] = True
                    left -= cost[row]
            return pd.Series(kept, index=ranked.index), f"the budget is {seconds:g} seconds"

        settings = {"rule": "budget", "seconds": seconds}
        return cls._decide_all(predictor, pairs, keep, settings)

    @classmethod
    def _decide_all(
        cls,
        predictor: Predictor,
        pairs: pd.DataFrame | None,
        keep: Callable[[pd.DataFrame], tuple[pd.Series, str]],
        settings: dict[str, Any],
    ) -> EliminationRule:
        ranked = _ranked(predictor, pairs)
        kept, why = keep(ranked)
        decisions = {}
        for (source, target), score, probability, rank, candidates, keeps in zip(
            _keys(ranked),
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

    def decide(self, source: str | None, target: str) -> Decision:
        """Say whether s -> t is eliminated.

        Parameters
        ----------
        source : str or None
            None, NaN, an empty string or the target itself is the single-task baseline.
        target : str

        Returns
        -------
        Decision
            An unknown pair is kept; the first one warns.
        """
        if is_baseline(source, target):
            return _BASELINE
        decision = self._decisions.get((source, target))  # type: ignore[arg-type]
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
        path = Path(directory) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(path)!r} does not exist: write a rule there with EliminationRule.save()."
            )
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
            decisions = {
                (source, target): Decision(
                    bool(eliminated), _from_json(score), _from_json(probability), str(reason)
                )
                for source, target, eliminated, score, probability, reason in content["decisions"]
            }
            return cls(decisions, content["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is not a whole elimination rule ({error}).") from error

    def _encode(self) -> bytes:
        rows = [
            [
                source,
                target,
                decision.eliminated,
                _to_json(decision.score),
                _to_json(decision.probability),
                decision.reason,
            ]
            for (source, target), decision in sorted(self._decisions.items())
        ]
        content = {"format": FORMAT, "settings": self.settings, "decisions": rows}
        return json.dumps(content, allow_nan=False).encode()

    def __len__(self) -> int:
        return len(self._decisions)

    def __repr__(self) -> str:
        eliminated = sum(decision.eliminated for decision in self._decisions.values())
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"EliminationRule({settings}: {eliminated} of {len(self)} pairs eliminated)"


def _ranked(predictor: Predictor, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Score the candidate pairs and rank them within their target, 1 the best."""
    if pairs is None:
        tasks = predictor.tasks
        if len(tasks) < 2:
            raise ValueError(
                f"predictor must know at least two tasks but knows {len(tasks)}; pass pairs=, or "
                "give it embeddings."
            )
        pairs = ordered_pairs(tasks)
    # The predictor's own names for the two columns; the rule's table always says source, target.
    columns = [getattr(predictor, f"{side}_column", side) for side in ("source", "target")]
    if list(pairs.columns[:2]) == ["source", "target"]:
        pairs = pairs.rename(columns=dict(zip(["source", "target"], columns, strict=True)))
    sources, targets = pair_columns(pairs, *columns)
    if not len(pairs):
        raise ValueError("pairs must hold at least one pair but is empty.")
    ranked = pd.DataFrame({"source": sources, "target": targets})
    ranked["score"], ranked["probability"] = _scores(predictor, pairs)
    ranked = ranked[[not is_baseline(*pair) for pair in _keys(ranked)]]
    ranked = ranked.drop_duplicates(["source", "target"]).sort_values(
        ["target", "score", "source"], ascending=[True, False, True], ignore_index=True
    )
    ranked["rank"] = ranked.groupby("target").cumcount() + 1
    ranked["candidates"] = ranked.groupby("target")["source"].transform("size")
    return ranked


def _keys(table: pd.DataFrame) -> Iterable[tuple[str, str]]:
    return zip(table["source"], table["target"], strict=True)


def _scores(predictor: Predictor, pairs: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    try:
        scores, probabilities = predictor.predict(pairs), predictor.predict_proba(pairs)
        return _finite(scores), _finite(probabilities)
    except Exception as error:
        # Fail open: a search must not stop, or lose pairs, over a predictor.
        warnings.warn(
            f"the predictor failed and every pair is kept: {type(error).__name__}: {error}",
            TransferPrunerWarning,
            stacklevel=5,
        )
        return np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)


def _finite(values: FloatArray) -> FloatArray:
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _from_json(value: float | None) -> float:
    return math.nan if value is None else float(value)
