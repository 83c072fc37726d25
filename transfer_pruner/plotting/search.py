"""Figures of a search's trials: what was saved, and whether predictions came true.

What is drawn as measured was measured; what is an estimate is named one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.plotting.style import (
    AUDITED,
    BASELINE,
    KEPT,
    NEUTRAL,
    SAVED,
    bare,
    check_columns,
    new_figure,
    say_why_empty,
)
from transfer_pruner.records import TrialRecord
from transfer_pruner.tables import (
    calibration_curve_data,
    predicted_and_measured_data,
    rank_correlations,
    savings_over_time_data,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Records = Iterable[TrialRecord] | pd.DataFrame


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

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import savings_over_time
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> figure = savings_over_time(records)
    >>> figure.savefig("savings.png")
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
    axes.axhline(0, color=BASELINE, linewidth=0.8)
    axes.set_xlabel("trials so far, in order of number", fontsize=12)
    axes.set_ylabel("seconds, all trials together", fontsize=12)
    axes.set_title("Seconds spent and estimated seconds saved", loc="left")
    axes.legend(frameon=False, fontsize=11)
    return figure


def calibration_curve(
    records: Records, *, maximize: bool | None = None, bins: int = 10, confidence: float = 0.9
) -> Figure:
    """Draw the probability of a positive gain that was predicted against how often it came true.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `calibration_curve_data` made of them
    maximize, bins, confidence
        As for `calibration_curve_data`.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import calibration_curve
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, 0.66, score=0.04, probability=0.9),
    ...     TrialRecord(2, "weather", "news", "trained", 64.0, 0.58, score=-0.01, probability=0.4),
    ... ]
    >>> figure = calibration_curve(records, bins=2)
    >>> figure.savefig("calibration.png")
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


def predicted_and_measured(records: Records, *, maximize: bool | None = None) -> Figure:
    """Draw what was predicted of each pair that ran against its measured gain.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `predicted_and_measured_data` made of them
    maximize
        As for `predicted_and_measured_data`.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import predicted_and_measured
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, 0.66, score=0.04, probability=0.9),
    ...     TrialRecord(2, "weather", "news", "trained", 64.0, 0.58, score=-0.01, probability=0.4),
    ... ]
    >>> figure = predicted_and_measured(records)
    >>> figure.savefig("predicted.png")
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
        ("eliminated, ran as an audit trial", data[audit], "D", AUDITED, "none"),
    ):
        if len(rows):
            axes.scatter(
                rows["predicted"],
                rows["gain"],
                s=42,
                marker=marker,
                facecolors=face,
                edgecolors=colour,
                linewidths=1.8 if face == "none" else 0,
                alpha=0.85,
                label=f"{label} ({len(rows)} pairs)",
                # As a picture within the drawing: thousands of marks make a slow page.
                rasterized=len(rows) > 2000,
            )
    axes.axhline(0, color=BASELINE, linewidth=0.8)
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
    _, within = rank_correlations(data)
    if len(within):
        said = f"Spearman within targets {within.mean():.2f} (mean of {len(within)})"
        beside: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        axes.text(1, 1.01, said, fontsize=10, **beside)
    return figure
