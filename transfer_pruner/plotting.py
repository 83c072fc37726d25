"""Figures. Each function returns a matplotlib figure and leaves saving it to the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pair_heatmap(
    predicted: pd.DataFrame, measured: pd.DataFrame, *, title: str | None = None
) -> Figure:
    """Draw predicted and measured gain of every pair side by side, sources down, targets across.

    Parameters
    ----------
    predicted, measured : DataFrame of shape (n_sources, n_targets)
        Index: source tasks; columns: target tasks; NaN cells (a task with itself) stay grey. The
        prediction is coloured by its rank within the target, since only that order means something
        before the predictor has learnt from measured gains; the measured gain around zero.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'transfer-pruner[plot]'."
        ) from error

    if list(predicted.index) != list(measured.index) or list(predicted) != list(measured):
        raise ValueError("predicted and measured must have the same sources and targets.")
    order = measured.mean(axis=1).sort_values(ascending=False).index
    # One order of tasks for both pictures and, where the tasks are the same, for both axes.
    columns = list(order) if set(order) == set(measured) else list(measured)
    ranks = predicted.rank(ascending=False).loc[order, columns]
    gains = measured.loc[order, columns]
    limit = float(np.nanmax(np.abs(gains.to_numpy()))) or 1.0
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    images = (
        left.imshow(ranks, cmap="viridis_r", aspect="auto"),
        right.imshow(gains, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto"),
    )
    labels = ("predicted rank within the target (1 = best)", "measured transfer gain")
    for axes, image, label in zip((left, right), images, labels, strict=True):
        axes.set_facecolor("0.85")
        axes.set_title(label)
        axes.set_xticks(range(len(columns)), columns, rotation=55, ha="right")
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel("target task")
        figure.colorbar(image, ax=axes, shrink=0.8)
    left.set_ylabel("source task, by mean measured gain")
    if title:
        figure.suptitle(title)
    return figure
