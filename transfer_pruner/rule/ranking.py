"""Candidate pairs, scored by a predictor and ranked within their target.

A rule decides by these ranks and calibration measures them: they must be the same, so both take
them from here.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.exceptions import TransferPrunerWarning, some_of
from transfer_pruner.pairs import ordered_pairs, pair_columns
from transfer_pruner.tasks import FloatArray, task_name


class Predictor(Protocol):
    """What a rule needs of a predictor; `TransferPredictor` is one.

    Examples
    --------
    Anything with these three can rank the pairs of a rule:

    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule
    >>> class ByName:
    ...     tasks = ["advice", "news", "weather"]
    ...     def predict(self, pairs):
    ...         return pairs["source"].str.len().to_numpy(float)
    ...     def predict_proba(self, pairs):
    ...         return pairs["source"].str.len().to_numpy(float) * float("nan")
    >>> EliminationRule.top_k(ByName(), k=1).kept("news")
    ['weather']
    """

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that pairs can be made of."""

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        """Score each pair, shape (n_pairs,)."""

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        """Probability of a positive gain of each pair, shape (n_pairs,)."""


class Ordered:
    """Scores of candidate pairs, as what they are ranked by.

    Parameters
    ----------
    scores : array of shape (n_pairs,)
        Of the pairs that are asked for, in their order; NaN where nothing is known, which keeps the
        pair and does not warn.
    tasks : sequence of str
    columns : sequence of two str
        Of source and target in tables of pairs.
    """

    def __init__(self, scores: FloatArray, tasks: Sequence[str], columns: Sequence[str]) -> None:
        self._scores = scores
        self.tasks = list(tasks)
        self.source_column, self.target_column = columns

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        """Say the scores."""
        return self._scores

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        """Say nothing of probabilities."""
        return np.full(len(pairs), np.nan)


def check_predictor(predictor: Any) -> None:
    """Refuse what cannot score pairs, whatever it was mistaken for.

    Raises
    ------
    ValueError
        If it lacks `tasks`, `predict` or `predict_proba`.
    """
    wanted = "predictor must be a TransferPredictor, or have its tasks, predict and predict_proba,"
    if isinstance(predictor, type):
        raise ValueError(
            f"{wanted} but got the class {predictor.__name__}: pass an instance, such as "
            f"{predictor.__name__}(...)."
        )
    lacking = [x for x in ("tasks", "predict", "predict_proba") if not hasattr(predictor, x)]
    if not lacking:
        return
    if hasattr(predictor, "best_estimator_"):
        remedy = "pass its best_estimator_"
    elif hasattr(predictor, "estimator"):
        remedy = "fit it, and pass its best_estimator_"
    else:
        remedy = "pass the predictor first, as in EliminationRule.top_k(predictor, k=3)"
    raise ValueError(
        f"{wanted} but got {_short(predictor)}, which lacks {', '.join(lacking)}: {remedy}."
    )


def check_whole(name: str, value: Any) -> int:
    """Take a whole number from 0, or refuse it.

    Raises
    ------
    ValueError
        If it is something else.
    """
    try:
        number = operator.index(value)
    except TypeError:
        hint = ": pass tables by name, as pairs=" if isinstance(value, pd.DataFrame) else ""
        raise ValueError(
            f"{name} must be a whole number, 0 or more, but got {_short(value)}{hint}."
        ) from None
    if number < 0:
        raise ValueError(f"{name} cannot be negative but got {number}.")
    return number


def check_number(name: str, value: Any) -> float:
    """Take a number, or refuse what is none.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if not isinstance(value, Real):
        hint = ": pass tables by name, as pairs=" if isinstance(value, pd.DataFrame) else ""
        raise ValueError(f"{name} must be a number but got {_short(value)}{hint}.")
    return int(value) if isinstance(value, Integral) else float(value)


def _short(value: object) -> str:
    if isinstance(value, (pd.DataFrame, pd.Series, np.ndarray)):
        return f"a {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def task_columns(predictor: Predictor) -> list[str]:
    """Name the two columns, source and target, as the predictor reads them."""
    return [getattr(predictor, f"{side}_column", side) for side in ("source", "target")]


def candidate_pairs(predictor: Predictor, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Take the candidate pairs, their two columns named as the predictor reads them.

    Every ordered pair of the predictor's tasks if `pairs` is None; columns that come first and are
    called source and target are renamed. Tasks are named by text, as `task_name` names them.
    """
    check_predictor(predictor)
    if pairs is None:
        tasks = _names_of_tasks(predictor)
        if len(tasks) < 2:
            raise ValueError(
                f"predictor must know at least two tasks but knows {len(tasks)}; pass pairs=, or "
                "give it embeddings."
            )
        pairs = ordered_pairs(tasks)
    columns = task_columns(predictor)
    if isinstance(pairs, pd.DataFrame) and list(pairs.columns[:2]) == ["source", "target"]:
        pairs = pairs.rename(columns=dict(zip(["source", "target"], columns, strict=True)))
    names = pair_columns(pairs, *columns)
    if not len(pairs):
        raise ValueError("pairs must hold at least one pair but is empty.")
    return pairs.assign(
        **{
            column: pd.Series(tasks, index=pairs.index, dtype=object, copy=False)
            for column, tasks in zip(columns, names, strict=True)
        }
    )


def _names_of_tasks(predictor: Predictor) -> list[str]:
    return list(dict.fromkeys(str(task_name(task)) for task in predictor.tasks))


def warn_of_unscored(predictor: Predictor, table: pd.DataFrame, *, stacklevel: int) -> None:
    """Count the pairs without a score, and name the tasks that the predictor does not know.

    One that makes do without embeddings scores tasks that it has never met; one that has some, and
    none of a task, was likely given another name. An order says for itself what it leaves open.
    """
    if isinstance(predictor, Ordered):
        return
    unscored = table["score"].isna()
    named = table if getattr(predictor, "embeddings", None) else table[unscored]
    unknown = {*named["source"], *named["target"]} - {*_names_of_tasks(predictor)}
    problems = []
    if unscored.any():
        problems.append(f"{int(unscored.sum())} of {len(table)} pairs have no score and are kept")
    if unknown:
        count = f"{len(unknown)} of {len({*table['source'], *table['target']})} tasks"
        problems.append(f"the predictor does not know {count}: {some_of(unknown)}")
    if problems:
        warnings.warn("; ".join(problems) + ".", TransferPrunerWarning, stacklevel=stacklevel)


def ranked_candidates(predictor: Predictor, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Score the candidate pairs and rank them within their target.

    Returns
    -------
    DataFrame
        As of `ranked`, with the column probability too. NaN scores if the predictor fails.
    """
    pairs = candidate_pairs(predictor, pairs)
    sources, targets = pair_columns(pairs, *task_columns(predictor))
    table = pd.DataFrame({"source": sources, "target": targets}, dtype=object, copy=False)
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
    _, (source, target) = task_codes(*pair_columns(table))
    rows = np.flatnonzero((source >= 0) & (target >= 0) & (source != target))
    keys = source[rows] * (target.max(initial=0) + 1) + target[rows]
    rows = rows[~pd.Series(keys).duplicated().to_numpy()]
    score = table["score"].to_numpy(dtype=float)[rows]
    # NaN is sorted last.
    rows = rows[np.lexsort((source[rows], -score, target[rows]))]
    target = target[rows]
    candidates = np.bincount(target, minlength=1)
    first = np.cumsum(candidates) - candidates
    table = table.iloc[rows].reset_index(drop=True)
    table["rank"] = np.arange(1, len(rows) + 1) - first[target]
    table["candidates"] = candidates[target]
    return table


def task_codes(
    *columns: NDArray[np.object_],
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Give tasks numbers in the order of their names, -1 where there is none."""
    factorized = [pd.factorize(column) for column in columns]
    names = sorted({str(name) for _, found in factorized for name in found})
    code_of = {name: code for code, name in enumerate(names)}
    return names, [
        np.array([*(code_of[str(name)] for name in found), -1])[codes]
        for codes, found in factorized
    ]


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
    if isinstance(seconds_per_pair, Mapping):
        keys = list(zip(table["source"], table["target"], strict=True))
        seconds_per_pair = {
            (str(task_name(source)), str(task_name(target))): value
            for (source, target), value in seconds_per_pair.items()
        }
        missing = [key for key in keys if key not in seconds_per_pair]
        if missing:
            raise ValueError(
                f"seconds_per_pair lacks {len(missing)} of {len(keys)} pairs, "
                f"{missing[0]!r} among them."
            )
        cost = np.array([seconds_per_pair[key] for key in keys], dtype=float)
    else:
        cost = np.full(len(table), float(seconds_per_pair))
    scored = table["score"].notna().to_numpy()
    # Unscored pairs are kept whatever they cost, so their seconds are spent first.
    left = seconds - cost[~scored].sum()
    paid = np.zeros(len(table), dtype=bool)
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
