"""The tables of one search, made once, for figures, report, MLflow and terminal.

What they must satisfy: what is called measured was measured and an estimate is named one; a
positive gain is an improvement, whichever way the search goes; and a column means the same in every
table.

| column | what it holds |
|---|---|
| `number` | the host's number of a trial |
| `source`, `target` | tasks; an empty source is the baseline, joint sources are in one cell |
| `joint` | whether there are several sources |
| `decision` | what became of a pair, in words |
| `score`, `probability`, `priority`, `reason` | what the rule said; of a pair, what it said last |
| `predicted` | the score, or the probability, that was said before a pair's first trial ran |
| `gain` | measured, of a trial; in a table of pairs that ran, the mean over their trials |
| `mean_gain` | the same in a table of all pairs; empty where nothing was measured |
| `highest_value`, `lowest_value` | of the objective, over a pair's trials |
| `trials`, `trials_trained`, `trials_eliminated`, `trials_failed` | how many |
| `trials_audited` | how many of the trained ones had been eliminated |
| `audit` | whether the pair was eliminated and the trial ran all the same |
| `seconds`, `seconds_spent` | wall-clock, measured |
| `value` | of the objective, of one trial or as the text says |
| `first_tried` | the how-manieth trial that ran was the pair's first |
| `share_of_gain` | of the gain that the search ended with, from 0 to 1 |
| `estimated_seconds_saved` | an estimate; with `_low` and `_high`, its interval |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd

from transfer_pruner.audit import share_interval
from transfer_pruner.records import TrialRecord, is_maximizing
from transfer_pruner.savings import estimate_savings
from transfer_pruner.tasks import source_name
from transfer_pruner.transfers import transfers_from_records

PAIR = ["source", "target"]
CHECKPOINTS = 40

_PAIR = [*PAIR, "joint"]
_PAIRS = [
    *(*PAIR, "decision", "score", "probability", "priority", "reason", "trials", "trials_trained"),
    *("trials_eliminated", "trials_audited", "trials_failed", "mean_gain", "highest_value"),
    *("lowest_value", "seconds", "joint"),
]
_GAINS = [
    *("number", *PAIR, "gain", "score", "probability", "seconds", "audit", "joint"),
]
_TYPES = {
    **dict.fromkeys(("value", "score", "probability", "priority", "seconds"), float),
    **dict.fromkeys(("audit", "joint", "maximize"), bool),
    "number": int,
}


def trials_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """Tabulate the trials of a search: with it every other table can be redone.

    Returns
    -------
    DataFrame
        One row a record, in their order: its attributes, as `TrialRecord` says, and joint.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.tables import trials_table
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> trials_table(records)[["number", "target", "outcome", "seconds"]]
       number target     outcome  seconds
    0       0   news     trained     60.0
    1       1   news     trained     64.0
    2       2   news  eliminated      0.0
    """
    names = [field.name for field in fields(TrialRecord)]
    rows = [
        {name: getattr(record, name) for name in names}
        | {"source": source_name(record.source), "joint": isinstance(record.source, tuple)}
        for record in records
    ]
    return pd.DataFrame(rows, columns=[*names, "joint"]).astype(_TYPES)


def pairs_table(records: Iterable[TrialRecord], *, maximize: bool | None = None) -> pd.DataFrame:
    """Tabulate what became of each pair of a search; joint sources are one row.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.

    Returns
    -------
    DataFrame
        By target and score, the single-task baseline first: source (empty for the baseline),
        target, decision, score, probability, priority, reason (what was last said of the pair),
        trials, trials_trained, trials_eliminated, trials_audited (of the trained ones),
        trials_failed, mean_gain, highest_value, lowest_value, seconds (all measured), joint.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.report import pairs_table
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> pairs_table(records)[["source", "target", "decision", "mean_gain"]].round(2)
        source target              decision  mean_gain
    0            news  single-task baseline        NaN
    1   advice   news                  kept       0.05
    2  weather   news            eliminated        NaN
    """
    records = sorted(records, key=lambda record: record.number)
    trials = trials_table(records)
    outcome, audit = trials["outcome"], trials["audit"]
    counted: dict[str, Any] = {"trials": 1}
    counted |= {f"trials_{x}": outcome == x for x in ("trained", "eliminated", "failed")}
    counted["trials_audited"] = counted["trials_trained"] & audit
    trials = trials.assign(
        **counted,
        kept=(outcome != "eliminated") & ~audit,
        # What came with a score counts, else what came with a reason, else what is there.
        weight=np.where(trials["score"].notna(), 2, trials["reason"] != ""),
    )
    last = trials.sort_values("weight", kind="stable").drop_duplicates(_PAIR, keep="last")
    table = last.set_index(_PAIR)[["score", "probability", "priority", "reason"]]
    pairs = trials.groupby(_PAIR, sort=False)
    all_kept = pairs["kept"].all()
    decision = np.select(
        [all_kept, pairs["kept"].any(), pairs["audit"].any()],
        ["kept", "kept in some trials, eliminated in others", "eliminated, audited"],
        "eliminated",
    )
    table["decision"] = pd.Series(decision, all_kept.index, dtype=object)
    table[list(counted)] = pairs[list(counted)].sum()
    table["mean_gain"] = measured_gains(records, maximize=maximize).groupby(_PAIR)["gain"].mean()
    table["highest_value"], table["lowest_value"] = pairs["value"].max(), pairs["value"].min()
    table["seconds"] = pairs["seconds"].sum()
    table = table.reset_index()
    table["pair"] = table["source"] != ""
    table.loc[~table["pair"], "decision"] = "single-task baseline"
    table = table.sort_values(
        ["target", "pair", "score", "source"], ascending=[True, True, False, True], kind="stable"
    )
    return table[_PAIRS].reset_index(drop=True)


def measured_gains(records: Iterable[TrialRecord], *, maximize: bool | None = None) -> pd.DataFrame:
    """Tabulate the measured gain of every trial that has one.

    Gains are those of `transfers_from_records`; where less is better, positive is better all the
    same. A joint trial's gain is measured as any other's, its sources taken for one.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.

    Returns
    -------
    DataFrame
        One row for each trial that trained with a source, has a value, and whose target has a
        baseline trial: number, source (of a joint trial all of them in one cell), target, gain,
        score, probability, seconds, audit, joint. If there is none,
        ``table.attrs["why_empty"]`` says why.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import measured_gains
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> measured_gains(records)[["source", "target", "gain"]].round(2)
       source target  gain
    0  advice   news  0.05
    """
    records = list(records)
    better = is_maximizing(records, maximize)
    # A name that is no task's: the sources of a joint trial may read as its target does.
    named = [r if r.source is None else replace(r, source=f"to {r.target}") for r in records]
    known, why_empty = pd.DataFrame({"target": [], "gain": []}), ""
    try:
        known = transfers_from_records(named, maximize=better)
    except ValueError as error:
        why_empty = str(error)
    targets = set(known["target"])
    measured = [
        record
        for record in records
        if record.outcome == "trained"
        and math.isfinite(record.value)
        and record.source is not None
        and record.target in targets
    ]
    table = trials_table(measured).assign(gain=known["gain"].astype(float))[_GAINS]
    table.attrs["why_empty"] = why_empty
    return table


def savings_over_time_data(
    records: Iterable[TrialRecord],
    *,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    scoring_seconds: float = 0.0,
    confidence: float = 0.9,
    checkpoints: int = CHECKPOINTS,
    order: Callable[[TrialRecord], Any] | None = None,
) -> pd.DataFrame:
    """Say at some points of a search what `estimate_savings` says of the trials up to there.

    Parameters
    ----------
    records : iterable of TrialRecord
    single_task_seconds, attribution_seconds, scoring_seconds, confidence
        As for `estimate_savings`.
    checkpoints : int
        How many points at most.
    order : callable, optional
        Sorts the records, such as by when they finished; left out, their numbers do.

    Returns
    -------
    DataFrame
        trials (how many, in that order), number (of the last one), seconds_spent (measured),
        estimated_seconds_saved and its interval's _low and _high, trials_eliminated. The last row
        is what is said of the whole search; estimates are NaN until a trial has trained.

    Raises
    ------
    ValueError
        If `checkpoints` is below 1.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import savings_over_time_data
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> savings_over_time_data(records)[["trials", "seconds_spent", "estimated_seconds_saved"]]
       trials  seconds_spent  estimated_seconds_saved
    0       1           60.0                      0.0
    1       2          124.0                      0.0
    2       3          124.0                     62.0
    """
    if checkpoints < 1:
        raise ValueError(f"checkpoints must be a whole number from 1 but got {checkpoints}.")
    ordered = sorted(records, key=order or (lambda record: record.number))
    rows = []
    # From the end, which is there however few checkpoints there are.
    counts = np.linspace(len(ordered), min(1, len(ordered)), checkpoints).round().astype(int)
    for count in np.unique(counts[counts > 0]):
        savings = estimate_savings(
            ordered[:count],
            single_task_seconds=single_task_seconds,
            attribution_seconds=attribution_seconds,
            scoring_seconds=scoring_seconds,
            confidence=confidence,
        )
        spent, saved = savings.seconds_spent, savings.estimated_seconds_saved
        interval = savings.estimated_seconds_saved_interval
        number = ordered[count - 1].number
        rows.append((int(count), number, spent, saved, *interval, savings.trials_eliminated))
    estimate = "estimated_seconds_saved"
    names = ["trials", "number", "seconds_spent", estimate, f"{estimate}_low", f"{estimate}_high"]
    return pd.DataFrame(rows, columns=[*names, "trials_eliminated"])


def calibration_curve_data(
    records: Iterable[TrialRecord],
    *,
    maximize: bool | None = None,
    bins: int = 10,
    confidence: float = 0.9,
) -> pd.DataFrame:
    """Count how often the predicted probabilities of a positive gain came true.

    A pair counts once: the mean gain of its trials, and what was predicted when the first of them
    ran, before a rule that learns could know the pair's own gain. Joint trials are left out, for
    the probability is of one of their sources.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.
    bins : int
        Of equal width; those without a pair are left out.
    confidence : float in (0, 1)
        Of Clopper and Pearson's interval, as if pairs were independent.

    Returns
    -------
    DataFrame
        bin_low, bin_high, predicted (mean probability), pairs, positive, observed (their share),
        low, high.

    Raises
    ------
    ValueError
        If `bins` is below 1, or `confidence` out of range.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import calibration_curve_data
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, 0.66, score=0.04, probability=0.9),
    ...     TrialRecord(2, "weather", "news", "trained", 64.0, 0.58, score=-0.01, probability=0.4),
    ... ]
    >>> calibration_curve_data(records, bins=2)[["predicted", "pairs", "positive"]]
       predicted  pairs  positive
    0        0.4      1         0
    1        0.9      1         1
    """
    if bins < 1:
        raise ValueError(f"bins must be a whole number from 1 but got {bins}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 but got {confidence}.")
    pairs = _foretold(records, maximize)
    pairs = pairs[pairs["probability"].notna()]
    # The tolerance keeps 0.3 of ten bins out of the bin below, where 0.3 * 10 would round to.
    bin_of = np.floor(pairs["probability"] * bins + 1e-9).clip(0, bins - 1).astype(int)
    rows = []
    for at, group in pairs.groupby(bin_of):
        count, positive = len(group), int((group["gain"] > 0).sum())
        bounds = share_interval(positive, count, confidence)
        edges = (int(at) / bins, (int(at) + 1) / bins)
        mean = group["probability"].mean()
        rows.append((*edges, mean, count, positive, positive / count, *bounds))
    names = ["bin_low", "bin_high", "predicted", "pairs", "positive", "observed", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def predicted_and_measured_data(
    records: Iterable[TrialRecord], *, maximize: bool | None = None
) -> pd.DataFrame:
    """Tabulate prediction and mean measured gain of the pairs that ran.

    The prediction is that of a pair's first trial, as in `calibration_curve_data`. Joint trials are
    left out. Where a rule learnt as the search ran, so are the pairs that it had scored by
    attributions before: the two scores have no common unit.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.

    Returns
    -------
    DataFrame
        source, target, predicted, probability, gain, trials, audit (whether one of its trials ran
        though the pair was eliminated).

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import predicted_and_measured_data
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, 0.66, score=0.04, probability=0.9),
    ...     TrialRecord(2, "weather", "news", "trained", 64.0, 0.58, score=-0.01, probability=0.4),
    ... ]
    >>> predicted_and_measured_data(records)[["source", "predicted", "gain"]].round(2)
        source  predicted  gain
    0   advice       0.04  0.05
    1  weather      -0.01 -0.03
    """
    pairs = _foretold(records, maximize)
    pairs = pairs[np.isfinite(pairs["predicted"])]
    learnt = pairs["probability"].notna()
    table: pd.DataFrame = pairs[learnt] if learnt.any() else pairs
    return table.reset_index(drop=True)


def _foretold(records: Iterable[TrialRecord], maximize: bool | None) -> pd.DataFrame:
    """Put the mean gain of each single-source pair beside what was predicted before it ran."""
    gains = measured_gains(records, maximize=maximize)
    gains = gains[~gains["joint"]].sort_values("number", kind="stable")
    grouped = gains.groupby(PAIR)
    table = gains.drop_duplicates(PAIR).set_index(PAIR)[["score", "probability"]]
    table = table.rename(columns={"score": "predicted"}).sort_index()
    table["gain"], table["trials"] = grouped["gain"].mean(), grouped.size()
    table["audit"] = grouped["audit"].any()
    return table.reset_index()


def rank_correlations(pairs: pd.DataFrame, predicted: str = "predicted") -> tuple[float, pd.Series]:
    """Say how well the order of pairs was predicted: Spearman's correlation with the gain.

    Parameters
    ----------
    pairs : DataFrame
        One row a pair: target, gain and the column `predicted`.
    predicted : str

    Returns
    -------
    over_all, within : float, Series
        Over all pairs, and of each target with three pairs or more: two are always in perfect order
        or in its reverse. NaN, and left out, where all are alike.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.tables import rank_correlations
    >>> gains = [0.05, 0.01, -0.02]
    >>> pairs = pd.DataFrame({"target": "news", "predicted": [3, 2, 1], "gain": gains})
    >>> over_all, within = rank_correlations(pairs)
    >>> bool(over_all > 0.9)
    True
    """

    def spearman(rows: pd.DataFrame) -> float:
        ranks = rows[predicted].rank(), rows["gain"].rank()
        return ranks[0].corr(ranks[1]) if all(rank.nunique() > 1 for rank in ranks) else math.nan

    within = {name: spearman(rows) for name, rows in pairs.groupby("target") if len(rows) > 2}
    return spearman(pairs), pd.Series(within, dtype=float).dropna()
