"""Figures of a search's trials: what was saved, and whether predictions came true.

What is drawn as measured was measured; what is an estimate is named one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.audit import share_interval
from transfer_pruner.plotting.style import (
    ELIMINATED,
    KEPT,
    NEUTRAL,
    SAVED,
    bare,
    check_columns,
    new_figure,
    say_why_empty,
)
from transfer_pruner.records import TrialRecord
from transfer_pruner.savings import estimate_savings
from transfer_pruner.tasks import plain_source, source_name
from transfer_pruner.transfers import transfers_from_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Records = Iterable[TrialRecord] | pd.DataFrame

_PAIR = ["source", "target"]
_GAINS: dict[str, Any] = {
    "number": int,
    "source": object,
    "target": object,
    "gain": float,
    "score": float,
    "probability": float,
    "seconds": float,
    "audit": bool,
    "joint": bool,
}
CHECKPOINTS = 40


def measured_gains(records: Iterable[TrialRecord], *, maximize: bool = True) -> pd.DataFrame:
    """Tabulate the measured gain of every trial that has one.

    Gains are those of `transfers_from_records`; where less is better, positive is better all the
    same.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool
        Whether a higher value is better.

    Returns
    -------
    DataFrame
        One row for each trial that trained with a source, has a value, and whose target has a
        baseline trial: number, source (of a joint trial all of them in one cell), target, gain,
        score, probability, seconds, audit, joint. Empty if there is none.
    """
    plain = [replace(r, source=plain_source(r.source, r.target)) for r in records]
    # A joint trial's gain is measured as any other's, its sources taken for one.
    named = [replace(r, source=source_name(r.source) or None) for r in plain]
    try:
        known = transfers_from_records(named, maximize=maximize)
    except ValueError:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _GAINS.items()})
    targets = set(known["target"])
    measured = [
        record
        for record in plain
        if record.outcome == "trained"
        and math.isfinite(record.value)
        and record.source is not None
        and record.target in targets
    ]
    columns = ("number", "source", "target", "score", "probability", "seconds", "audit")
    rows = [[getattr(record, column) for column in columns] for record in measured]
    table = pd.DataFrame(rows, columns=list(columns))
    table["joint"] = [isinstance(record.source, tuple) for record in measured]
    table["source"] = [source_name(record.source) for record in measured]
    table.insert(3, "gain", known["gain"].to_numpy(dtype=float))
    return table


def savings_over_time(
    records: Records,
    *,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    confidence: float = 0.9,
) -> Figure:
    """Draw the seconds spent and the estimated seconds saved as the search went on.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `savings_over_time_data` made of them
    single_task_seconds, attribution_seconds, confidence
        As for `estimate_savings`.
    """
    data = records
    if not isinstance(data, pd.DataFrame):
        data = savings_over_time_data(
            data,
            single_task_seconds=single_task_seconds,
            attribution_seconds=attribution_seconds,
            confidence=confidence,
        )
    columns = ("trials", "seconds_spent", "estimated_seconds_saved")
    check_columns(data, columns, "savings_over_time_data")
    figure = new_figure()
    axes = figure.subplots()
    if data.empty:
        return say_why_empty(figure, axes, "There is no trial.")
    bare(axes)
    low, high = (data[f"estimated_seconds_saved_{side}"] for side in ("low", "high"))
    interval = f"{confidence:.0%} interval of the estimate"
    axes.fill_between(data["trials"], low, high, color=SAVED, alpha=0.22, lw=0, label=interval)
    for column, label, colour, line in (
        ("estimated_seconds_saved", "estimated seconds saved", SAVED, "--"),
        ("seconds_spent", "seconds spent (measured)", NEUTRAL, "-"),
    ):
        axes.plot(data["trials"], data[column], line, color=colour, lw=2.2, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("trials so far, in order of number", fontsize=12)
    axes.set_ylabel("seconds, all trials together", fontsize=12)
    axes.set_title("Seconds spent and estimated seconds saved", loc="left")
    axes.legend(frameon=False, fontsize=11)
    return figure


def savings_over_time_data(
    records: Iterable[TrialRecord],
    *,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    confidence: float = 0.9,
    checkpoints: int = CHECKPOINTS,
) -> pd.DataFrame:
    """Say at some points of a search what `estimate_savings` says of the trials up to there.

    Returns
    -------
    DataFrame
        trials (how many, in order of number), number (of the last one), seconds_spent (measured),
        estimated_seconds_saved and its interval's _low and _high, trials_eliminated. The last row
        is what is said of the whole search; estimates are NaN until a trial has trained.
    """
    if checkpoints < 1:
        raise ValueError(f"checkpoints must be a whole number from 1 but got {checkpoints}.")
    ordered = sorted(records, key=lambda record: record.number)
    rows = []
    for count in np.unique(np.linspace(1, len(ordered), checkpoints).round().astype(int)):
        if not ordered:
            break
        savings = estimate_savings(
            ordered[:count],
            single_task_seconds=single_task_seconds,
            attribution_seconds=attribution_seconds,
            confidence=confidence,
        )
        spent, saved = savings.seconds_spent, savings.estimated_seconds_saved
        interval = savings.estimated_seconds_saved_interval
        number = ordered[count - 1].number
        rows.append((int(count), number, spent, saved, *interval, savings.trials_eliminated))
    estimate = "estimated_seconds_saved"
    names = ["trials", "number", "seconds_spent", estimate, f"{estimate}_low", f"{estimate}_high"]
    return pd.DataFrame(rows, columns=[*names, "trials_eliminated"])


def calibration_curve(
    records: Records, *, maximize: bool = True, bins: int = 10, confidence: float = 0.9
) -> Figure:
    """Draw the probability of a positive gain that was predicted against how often it came true.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `calibration_curve_data` made of them
    maximize, bins, confidence
        As for `calibration_curve_data`.
    """
    data = records
    if not isinstance(data, pd.DataFrame):
        data = calibration_curve_data(data, maximize=maximize, bins=bins, confidence=confidence)
    check_columns(data, ("predicted", "observed", "low", "high"), "calibration_curve_data")
    figure = new_figure(6.5)
    axes = figure.subplots()
    if data.empty:
        return say_why_empty(figure, axes, "No pair has both a probability and a measured gain.")
    bare(axes)
    axes.plot([0, 1], [0, 1], "--", color=NEUTRAL, lw=1.2, label="calibrated")
    errors = np.array([data["observed"] - data["low"], data["high"] - data["observed"]])
    axes.errorbar(
        data["predicted"],
        data["observed"],
        yerr=np.clip(errors, 0, None),
        fmt="o",
        color=KEPT,
        capsize=4,
        markersize=8,
        label=f"pairs that ran, {confidence:.0%} Clopper-Pearson interval",
    )
    for row in data.to_dict("records"):
        axes.annotate(
            f"{row['positive']} of {row['pairs']}",
            (row["predicted"], row["observed"]),
            (7, 6 if row["observed"] < 0.97 else -14),
            textcoords="offset points",
            fontsize=10,
        )
    axes.set_xlim(-0.02, 1.08)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("estimated probability of a positive gain", fontsize=12)
    axes.set_ylabel("share of pairs with a positive measured gain", fontsize=12)
    axes.set_title("Did the probabilities come true?", loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


def calibration_curve_data(
    records: Iterable[TrialRecord],
    *,
    maximize: bool = True,
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
    maximize : bool
        Whether a higher value is better.
    bins : int
        Of equal width; those without a pair are left out.
    confidence : float in (0, 1)
        Of Clopper and Pearson's interval, as if pairs were independent.

    Returns
    -------
    DataFrame
        bin_low, bin_high, predicted (mean probability), pairs, positive, observed (their share),
        low, high.
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


def predicted_and_measured(records: Records, *, maximize: bool = True) -> Figure:
    """Draw what was predicted of each pair that ran against its measured gain.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `predicted_and_measured_data` made of them
    maximize : bool
        Whether a higher value is better.
    """
    data = records
    if not isinstance(data, pd.DataFrame):
        data = predicted_and_measured_data(data, maximize=maximize)
    columns = ("target", "predicted", "probability", "gain", "audit")
    check_columns(data, columns, "predicted_and_measured_data")
    figure = new_figure(6.5)
    axes = figure.subplots()
    if data.empty:
        return say_why_empty(figure, axes, "No pair has both a score and a measured gain.")
    bare(axes)
    audit = data["audit"].astype(bool)
    for label, rows, marker, colour, face in (
        ("kept", data[~audit], "o", KEPT, KEPT),
        ("eliminated, ran as an audit trial", data[audit], "D", ELIMINATED, "none"),
    ):
        if len(rows):
            axes.scatter(
                rows["predicted"],
                rows["gain"],
                s=42,
                marker=marker,
                facecolors=face,
                edgecolors=colour,
                alpha=0.8,
                label=f"{label} ({len(rows)} pairs)",
                # As a picture within the drawing: thousands of marks make a slow page.
                rasterized=len(rows) > 2000,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    learnt = data["probability"].notna().any()
    if learnt:
        axes.axline((0, 0), slope=1, color=NEUTRAL, ls="--", lw=1.2, label="predicted = measured")
    axes.set_xlabel(
        "estimated (predicted) transfer gain, in units of the score"
        if learnt
        else "attribution score: its order within a target means something, its size does not",
        fontsize=12,
    )
    axes.set_ylabel("measured transfer gain, in units of the score", fontsize=12)
    axes.set_title("Predicted and measured gain of the pairs that ran", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    axes.text(
        1,
        1.01,
        _correlation(data),
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=10,
    )
    return figure


def predicted_and_measured_data(
    records: Iterable[TrialRecord], *, maximize: bool = True
) -> pd.DataFrame:
    """Tabulate prediction and mean measured gain of the pairs that ran.

    The prediction is that of a pair's first trial, as in `calibration_curve_data`. Joint trials are
    left out. Where a rule learnt as the search ran, so are the pairs that it had scored by
    attributions before: the two scores have no common unit.

    Returns
    -------
    DataFrame
        source, target, predicted, probability, gain, trials, audit (whether one of its trials ran
        though the pair was eliminated).
    """
    pairs = _foretold(records, maximize)
    pairs = pairs[np.isfinite(pairs["predicted"])]
    learnt = pairs["probability"].notna()
    table: pd.DataFrame = pairs[learnt] if learnt.any() else pairs
    return table.reset_index(drop=True)


def _foretold(records: Iterable[TrialRecord], maximize: bool) -> pd.DataFrame:
    """Put the mean gain of each single-source pair beside what was predicted before it ran."""
    gains = measured_gains(records, maximize=maximize)
    gains = gains[~gains["joint"]].sort_values("number", kind="stable")
    grouped = gains.groupby(_PAIR)
    table = gains.drop_duplicates(_PAIR).set_index(_PAIR)[["score", "probability"]]
    table = table.rename(columns={"score": "predicted"}).sort_index()
    table["gain"], table["trials"] = grouped["gain"].mean(), grouped.size()
    table["audit"] = grouped["audit"].any()
    return table.reset_index()


def _correlation(data: pd.DataFrame) -> str:
    """Say how well the order within targets was predicted: mean Spearman over targets."""
    found = [
        rows["predicted"].rank().corr(rows["gain"].rank())
        for _, rows in data.groupby("target")
        if rows["predicted"].nunique() > 1 and rows["gain"].nunique() > 1 and len(rows) > 2
    ]
    if not found:
        return ""
    return f"Spearman within targets {np.mean(found):.2f} (mean of {len(found)})"
