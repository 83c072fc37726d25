"""How far a search had come when: the best score of every target, and which pairs had been tried.

What it must satisfy: a line ends at what the search found, and never falls; what a target gained is
comparable with what another did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from transfer_pruner.records import TrialRecord, is_maximizing
from transfer_pruner.tasks import source_name

_BEST = {
    "target": object,
    "mean": bool,
    "trials": int,
    "seconds_spent": float,
    "number": float,
    "source": object,
    "value": float,
    "share_of_gain": float,
}
_TRIED = {
    "source": object,
    "target": object,
    "joint": bool,
    "first_tried": float,
    "number": float,
    "trials_trained": int,
    "trials_eliminated": int,
    "trials_failed": int,
    "highest_value": float,
    "lowest_value": float,
}


def best_over_time_data(
    records: Iterable[TrialRecord],
    *,
    maximize: bool | None = None,
    order: Callable[[TrialRecord], Any] | None = None,
) -> pd.DataFrame:
    r"""Tabulate the best score of every target as the search went on, wherever it changes.

    With b(t) the best single-task baseline of the whole search and v(t) the best score,

    .. math:: \text{share of gain}(t, n) = \max(0, v_n(t) - b(t)) / (v(t) - b(t))

    after n trials, from 0 to 1: of the gain that the search ended with, not of what an exhaustive
    one would have found. NaN where there is no baseline or no gain.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.
    order : callable, optional
        Sorts the records, such as by when they finished; left out, their numbers do.

    Returns
    -------
    DataFrame
        target, mean (whether it is the row of the mean over targets, whose target is empty), trials
        (how many had trained by then), seconds_spent (of all trials together, measured), number and
        source (of the trial; a baseline's source is empty), value (best so far, of single trials),
        share_of_gain. Each line ends with a row at the search's end. The mean value is over all
        targets that have one in the end, from when they all do; the mean share over those with a
        gain, from the start.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import best_over_time_data
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> table = best_over_time_data(records)
    >>> table.loc[~table["mean"], ["target", "trials", "value"]]
      target  trials  value
    0   news       1   0.61
    2   news       2   0.66
    4   news       2   0.66
    """
    records = list(records)
    sign = 1.0 if is_maximizing(records, maximize) else -1.0
    finished = [r for r in records if r.outcome == "trained" and math.isfinite(r.value)]
    last = {t: max(sign * r.value for r in finished if r.target == t) for t in _targets(finished)}
    alone = [r for r in finished if r.source is None]
    base = {t: max(sign * r.value for r in alone if r.target == t) for t in _targets(alone)}
    gain = {t: last[t] - base[t] for t in last if t in base and last[t] > base[t]}
    best: dict[str, float] = {}
    rows: list[tuple[Any, ...]] = []
    trials, seconds = 0, 0.0

    def share(target: str) -> float:
        if target not in gain:
            return math.nan
        found = best.get(target, -math.inf) - base[target]
        return max(0.0, found) / gain[target]

    def mean_row(number: float) -> tuple[Any, ...]:
        value = sign * sum(best.values()) / len(best) if len(best) == len(last) else math.nan
        shared = sum(map(share, gain)) / len(gain) if gain else math.nan
        return "", True, trials, seconds, number, "", value, shared

    for record in sorted(records, key=order or (lambda record: record.number)):
        trials += record.outcome == "trained"
        seconds += record.seconds
        if record.outcome != "trained" or not math.isfinite(record.value):
            continue
        target, value = record.target, sign * record.value
        if value > best.get(target, -math.inf):
            best[target] = value
            place = trials, seconds, record.number, source_name(record.source)
            rows.append((target, False, *place, record.value, share(target)))
            rows.append(mean_row(record.number))
    for target in sorted(best):
        end = target, False, trials, seconds, math.nan, "", sign * best[target], share(target)
        rows.append(end)
    if best:
        rows.append(mean_row(math.nan))
    return pd.DataFrame(rows, columns=list(_BEST)).astype(_BEST)


def pairs_tried_data(
    records: Iterable[TrialRecord], *, order: Callable[[TrialRecord], Any] | None = None
) -> pd.DataFrame:
    """Tabulate which pairs were tried when.

    Parameters
    ----------
    records : iterable of TrialRecord
    order : callable, optional
        As for `best_over_time_data`.

    Returns
    -------
    DataFrame
        By when they were first tried, and then by name: source (empty for the baseline), target,
        joint, first_tried (the first trial of the pair that ran was the n-th of the search that
        did; NaN if none did), number (of that trial), trials_trained, trials_eliminated,
        trials_failed, highest_value, lowest_value (NaN where none was measured).

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import pairs_tried_data
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> pairs_tried_data(records)[["source", "target", "first_tried"]]
        source target  first_tried
    0            news          1.0
    1   advice   news          2.0
    2  weather   news          NaN
    """
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    ran = 0
    for record in sorted(records, key=order or (lambda record: record.number)):
        pair = source_name(record.source), record.target, isinstance(record.source, tuple)
        row = found.setdefault(pair, dict.fromkeys(_TRIED, math.nan) | _NONE)
        row |= dict(zip(("source", "target", "joint"), pair, strict=True))
        row[f"trials_{record.outcome}"] += 1
        if record.outcome != "eliminated":
            ran += 1
            if math.isnan(row["first_tried"]):
                row["first_tried"], row["number"] = ran, record.number
        if record.outcome == "trained" and math.isfinite(record.value):
            row["highest_value"] = max(record.value, _known(row["highest_value"], -math.inf))
            row["lowest_value"] = min(record.value, _known(row["lowest_value"], math.inf))
    table = pd.DataFrame(list(found.values()), columns=list(_TRIED)).astype(_TRIED)
    return table.sort_values(["first_tried", "target", "source"], kind="stable", ignore_index=True)


def is_milestone(count: int) -> bool:
    """Whether a costly step is due: at every count up to 10, then 18 times in each power of ten.

    Examples
    --------
    >>> from transfer_pruner.progress import is_milestone
    >>> [count for count in range(1, 31) if is_milestone(count)]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30]
    """
    return count <= 10 or count % (10 ** (len(str(count)) - 1) // 2) == 0


_NONE = dict.fromkeys(("trials_trained", "trials_eliminated", "trials_failed"), 0)


def _known(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def _targets(records: Iterable[TrialRecord]) -> list[str]:
    return sorted({record.target for record in records})
