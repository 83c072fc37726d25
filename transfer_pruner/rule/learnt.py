"""From what was measured and what is predicted to decisions.

What it must satisfy: equal transfers, equal decisions; and very many pairs are decided at once.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.pairs import pair_columns
from transfer_pruner.probability import probability_to_exceed
from transfer_pruner.rule.candidates import Candidates
from transfer_pruner.rule.decision import Decisions
from transfer_pruner.rule.reasons import BEST, PREDICTED, WHY
from transfer_pruner.tasks import FloatArray, is_baseline

_PAIR = ["source", "target"]


def measured_transfers(transfers: pd.DataFrame | None) -> pd.DataFrame:
    """Take what can be learnt from: source, target and a finite gain.

    Where scores and baselines are told, a gain is that over the target's best baseline. Over the
    baseline of its own hyperparameters a trial gains most where training alone fails, which brings
    the target's best no further.

    Raises
    ------
    ValueError
        If `transfers` lacks a column.
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
    # Of several sources no pair can be learnt of.
    of_pairs = [not (isinstance(key[0], tuple) or is_baseline(*key)) for key in keys]
    usable = np.isfinite(gains) & np.array(of_pairs, dtype=bool)
    more = [column for column in ("score", "baseline") if column in transfers]
    table: pd.DataFrame = transfers.loc[usable, [*columns, *more]].reset_index(drop=True)
    sources, targets = pair_columns(table)
    table = table.assign(source=sources, target=targets)
    table = table.astype(dict.fromkeys(["gain", *more], float))
    if len(more) == 2:
        over_best = table["score"] - table.groupby("target")["baseline"].transform("max")
        table["gain"] = over_best.where(np.isfinite(over_best), table["gain"])
    return table


def best_so_far(measured: pd.DataFrame) -> pd.Series:
    """Take every target's best gain so far: what the next trial has to exceed."""
    return measured.groupby("target")["gain"].max().clip(lower=0.0)


def decisions(
    candidates: Candidates,
    measured: pd.DataFrame,
    rows: NDArray[np.int64],
    score: FloatArray,
    std: FloatArray,
    priority: FloatArray,
    min_probability: float,
) -> Decisions:
    """Eliminate the pairs that hardly can be better than what their target has already.

    Parameters
    ----------
    candidates : Candidates
    measured : DataFrame
        As of `measured_transfers`.
    rows : array of shape (n_measured,)
        Where the measured pairs stand among the candidates, -1 where they do not.
    score, std, priority : array of shape (n_candidates,)
        Predicted gains, their standard deviations, and what the next trials are worth.
    min_probability : float
        To exceed the target's best, below which a pair is eliminated.
    """
    means = measured.groupby(_PAIR)["gain"].transform("mean").to_numpy()
    best = candidates.by_target(pd.Series(means).groupby(measured["target"]).max())
    chance = probability_to_exceed(score, std, np.maximum(np.nan_to_num(best), 0.0))
    average = np.full(len(score), np.nan)
    average[rows[rows >= 0]] = means[rows >= 0]
    is_best = (average == best) & (average > 0)
    # Of a target that is not measured yet, the best-scored source; equal scores by its name.
    target = candidates.target
    order = np.lexsort((candidates.source, -score, target))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(target[order]) > 0
    is_first = np.zeros(len(order), dtype=bool)
    is_first[order[first]] = True
    is_first &= np.isnan(best)
    scored = ~np.isnan(score)
    # Of what cannot be told (NaN) nothing is eliminated.
    unlikely = chance < min_probability
    learnt = f"learnt from {len(measured)} transfers"
    bounds = [f" ({word} {min_probability:g})" for word in ("at least", "below")]
    whys = [f"no score: kept; {learnt}", f": kept; {learnt}", *(f"{x}; {learnt}" for x in bounds)]
    why = np.where(scored, np.where(is_best, 1, 2 + unlikely), 0)
    counts = np.bincount(target)[target]
    for count in np.unique(counts[is_first & scored]).tolist():
        for below, bound in enumerate(bounds):
            here = scored & is_first & (counts == count) & (unlikely == bool(below))
            why[here] = len(whys)
            known = f"rank 1 of {count} for a target not measured yet: kept"
            whys.append(f"{bound}; {known}; {learnt}")
    return candidates.decided(
        whys,
        {
            "eliminated": scored & unlikely & ~is_best & ~is_first,
            "score": score,
            "probability": np.where(scored, probability_to_exceed(score, std), np.nan),
            "priority": np.where(scored, priority, np.nan),
            "why": why,
            "form": np.where(scored, np.where(is_best, BEST, PREDICTED), WHY),
            "best": best,
            "chance": chance,
        },
    )
