"""Candidate pairs, scored by a predictor and ranked within their target.

A rule decides by these ranks and calibration measures them: they must be the same, so both take
them from here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pandas as pd

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.pairs import ordered_pairs, pair_columns
from transfer_pruner.tasks import FloatArray, is_baseline


class Predictor(Protocol):
    """What a rule needs of a predictor; `TransferPredictor` is one."""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that pairs can be made of."""

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        """Score each pair, shape (n_pairs,)."""

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        """Probability of a positive gain of each pair, shape (n_pairs,)."""


def task_columns(predictor: Predictor) -> list[str]:
    """Name the two columns, source and target, as the predictor reads them."""
    return [getattr(predictor, f"{side}_column", side) for side in ("source", "target")]


def candidate_pairs(predictor: Predictor, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Take the candidate pairs, their two columns named as the predictor reads them.

    Every ordered pair of the predictor's tasks if `pairs` is None; columns that come first and are
    called source and target are renamed.
    """
    if pairs is None:
        tasks = predictor.tasks
        if len(tasks) < 2:
            raise ValueError(
                f"predictor must know at least two tasks but knows {len(tasks)}; pass pairs=, or "
                "give it embeddings."
            )
        pairs = ordered_pairs(tasks)
    columns = task_columns(predictor)
    if isinstance(pairs, pd.DataFrame) and list(pairs.columns[:2]) == ["source", "target"]:
        pairs = pairs.rename(columns=dict(zip(["source", "target"], columns, strict=True)))
    pair_columns(pairs, *columns)
    if not len(pairs):
        raise ValueError("pairs must hold at least one pair but is empty.")
    return pairs


def ranked_candidates(predictor: Predictor, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Score the candidate pairs and rank them within their target.

    Returns
    -------
    DataFrame
        As of `ranked`, with the column probability too. NaN scores if the predictor fails.
    """
    pairs = candidate_pairs(predictor, pairs)
    sources, targets = pair_columns(pairs, *task_columns(predictor))
    table = pd.DataFrame({"source": sources, "target": targets})
    table["score"], table["probability"] = _scores(predictor, pairs)
    return ranked(table)


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Rank scored pairs within their target, 1 the best.

    Equal scores are ordered by source name, NaN scores come last; baselines and repeated pairs are
    left out.

    Parameters
    ----------
    table : DataFrame
        Columns source, target and score.

    Returns
    -------
    DataFrame
        Sorted by target and rank, with two more columns: rank, and candidates, the number of the
        target's pairs.
    """
    pairs = zip(table["source"], table["target"], strict=True)
    table = table[[not is_baseline(*pair) for pair in pairs]]
    table = table.drop_duplicates(["source", "target"]).sort_values(
        ["target", "score", "source"], ascending=[True, False, True], ignore_index=True
    )
    table["rank"] = table.groupby("target").cumcount() + 1
    table["candidates"] = table.groupby("target")["source"].transform("size")
    return table


def affordable(
    table: pd.DataFrame, seconds: float, seconds_per_pair: float | Mapping[tuple[str, str], float]
) -> pd.Series:
    """Tell which ranked pairs a number of seconds pays for, rank by rank, cheap pairs first.

    Parameters
    ----------
    table : DataFrame
        As `ranked` returns it.
    seconds : float
        For all pairs together.
    seconds_per_pair : float or mapping of (source, target) to float

    Returns
    -------
    Series of bool
        With the index of `table`; False where there is no score.
    """
    keys = list(zip(table["source"], table["target"], strict=True))
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
    scored = table["score"].notna().to_numpy()
    # Unscored pairs are kept whatever they cost, so their seconds are spent first.
    left = seconds - cost[~scored].sum()
    paid = np.zeros(len(keys), dtype=bool)
    for row in np.lexsort((table["target"], cost, table["rank"])):
        if scored[row] and cost[row] <= left:
            paid[row] = True
            left -= cost[row]
    return pd.Series(paid, index=table.index)


def finite_or_nan(values: FloatArray) -> FloatArray:
    """Turn infinite values into NaN: neither says anything of a pair."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _scores(predictor: Predictor, pairs: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    try:
        scores, probabilities = predictor.predict(pairs), predictor.predict_proba(pairs)
        return finite_or_nan(scores), finite_or_nan(probabilities)
    except Exception as error:
        # Fail open: a search must not stop, or lose pairs, over a predictor.
        warnings.warn(
            f"the predictor failed and every pair is kept: {type(error).__name__}: {error}",
            TransferPrunerWarning,
            stacklevel=5,
        )
        return np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
