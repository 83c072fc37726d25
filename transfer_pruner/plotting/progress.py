"""Figures of how far a search had come when; all that they show was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from transfer_pruner.plotting.style import (
    BASELINE,
    LINES,
    MISSING,
    NEUTRAL,
    bare,
    check_columns,
    new_figure,
    say_why_empty,
    written,
)
from transfer_pruner.progress import best_over_time_data, pairs_tried_data
from transfer_pruner.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Records = Iterable[TrialRecord] | pd.DataFrame

Vertical = Literal["value", "share_of_gain"]
ALONE = "(no source)"
MOST_NUMBERS = 14
_HIGH = {
    "value": "best score so far",
    "share_of_gain": "share of the gain that the search ended with",
}
_WIDE = {
    "trials": "trials that have finished",
    "seconds_spent": "seconds, all trials together",
}


def best_over_time(
    records: Records, *, y: Vertical = "value", maximize: bool | None = None
) -> Figure:
    """Draw the best score of every target against finished trials and seconds, and their mean.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `best_over_time_data` made of them
    y : {"value", "share_of_gain"}
        The score; or the share of the gain that the search ended with, which is comparable over
        targets, and drawn of those that have a gain.
    maximize
        As for `best_over_time_data`.

    Raises
    ------
    ValueError
        If `y` is neither of the two.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import best_over_time
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> figure = best_over_time(records)
    >>> figure.savefig("best.png")
    """
    if y not in get_args(Vertical):
        raise ValueError(f"y must be 'value' or 'share_of_gain' but got {y!r}.")
    data = records
    if not isinstance(data, pd.DataFrame):
        data = best_over_time_data(data, maximize=maximize)
    check_columns(data, ("target", "mean", *_WIDE, *_HIGH), "best_over_time_data")
    figure = new_figure()
    drawn = data[data[y].notna()]
    if drawn["mean"].all():
        why = "No trial finished with a score."
        if data["value"].notna().any():
            why = "No target has a gain over a single-task baseline."
        return say_why_empty(figure, figure.subplots(), why)
    # A target has one colour, whether others are drawn or not.
    names = sorted(set(data.loc[~data["mean"], "target"]))
    colours = {name: LINES[at % len(LINES)] for at, name in enumerate(names)}
    for axes, x in zip(figure.subplots(1, 2, sharey=True), _WIDE, strict=True):
        bare(axes)
        _draw_lines(axes, drawn, colours, x, y)
        axes.set_xlabel(_WIDE[x], fontsize=12)
        axes.set_xlim(left=0)
        if y == "share_of_gain":
            axes.yaxis.set_major_formatter("{x:.0%}")
    figure.axes[0].set_ylabel(_HIGH[y], fontsize=12)
    figure.axes[0].set_title("What the search had found when", loc="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    return figure


def _draw_lines(axes: Axes, data: pd.DataFrame, colours: Mapping[str, str], x: str, y: str) -> None:
    targets = list(dict.fromkeys(data.loc[~data["mean"], "target"]))
    told_apart = len(colours) <= len(LINES)
    for at, target in enumerate(targets):
        rows = data[(data["target"] == target) & ~data["mean"]]
        colour = colours[target] if told_apart else NEUTRAL
        label = written(target).replace("$", r"\$") if told_apart else f"{len(targets)} targets"
        axes.step(
            rows[x],
            rows[y],
            where="post",
            color=colour,
            lw=1.8 if told_apart else 0.8,
            alpha=1 if told_apart else 0.45,
            label=label if told_apart or at == 0 else None,
        )
    mean = data[data["mean"]]
    if len(targets) > 1 and len(mean):
        label = f"mean of {len(targets)} targets"
        axes.step(mean[x], mean[y], where="post", color=BASELINE, lw=2.8, label=label)


def pairs_tried(records: Records) -> Figure:
    """Draw which pairs were tried when: sources down, targets across, early ones dark.

    A cross marks a pair that was eliminated in every trial; where no trial of a pair was proposed
    the cell is grey. With up to 14 tasks a side, a cell says the how-manieth trial that ran was the
    pair's first one.

    Parameters
    ----------
    records : iterable of TrialRecord, or what `pairs_tried_data` made of them

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner.plotting import pairs_tried
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> figure = pairs_tried(records)
    >>> figure.savefig("tried.png")
    """
    data = records if isinstance(records, pd.DataFrame) else pairs_tried_data(records)
    check_columns(data, ("source", "target", "first_tried"), "pairs_tried_data")
    sources = sorted(set(data["source"]))  # the baseline's empty name stands first
    targets = sorted(set(data["target"]))
    figure = new_figure(min(max(3.0 + 0.3 * len(sources), 4.8), 16.0))
    axes = figure.subplots()
    if data.empty:
        return say_why_empty(figure, axes, "There is no trial.")
    square = data.pivot(index="source", columns="target", values="first_tried")
    first = square.reindex(index=sources, columns=targets).to_numpy(dtype=float)
    axes.set_facecolor(MISSING)
    image = axes.imshow(np.ma.masked_invalid(first), cmap="viridis", aspect="auto", vmin=1)
    gone = data[data["first_tried"].isna()]
    axes.scatter(
        [targets.index(name) for name in gone["target"]],
        [sources.index(name) for name in gone["source"]],
        marker="x",
        color=BASELINE,
        s=28,
        label="eliminated, never tried",
    )
    small = 8 if max(len(sources), len(targets)) > 30 else 10
    names = [written(name).replace("$", r"\$") if name else ALONE for name in sources]
    axes.set_yticks(range(len(sources)), names, fontsize=small)
    shown = [written(name).replace("$", r"\$") for name in targets]
    axes.set_xticks(range(len(targets)), shown, fontsize=small, rotation=45, ha="right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if max(len(sources), len(targets)) <= MOST_NUMBERS:
        latest = np.nanmax(first) if np.isfinite(first).any() else 1.0
        for (row, column), value in np.ndenumerate(first):
            if np.isfinite(value):
                light = "black" if value > 0.6 * latest else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=light)
    axes.set_xlabel("target task", fontsize=12)
    axes.set_ylabel("source task", fontsize=12)
    axes.set_title("Which pairs were tried when", loc="left")
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("first tried: n-th trial that ran", fontsize=11)
    if len(gone):
        figure.legend(loc="outside lower center", frameon=False, fontsize=11)
    return figure
