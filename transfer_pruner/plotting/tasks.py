"""The figure of tasks: which ones have similar attributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.autologging import unlogged
from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.pairs import ordered_pairs, pair_features
from transfer_pruner.plotting.style import (
    KEPT,
    bare,
    check_columns,
    new_figure,
    say_why_empty,
    written,
)
from transfer_pruner.tasks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


def task_map(embeddings: Mapping[str, TaskEmbedding] | pd.DataFrame) -> Figure:
    """Draw tasks as points, those with similar attributions close together.

    Parameters
    ----------
    embeddings : mapping of str to TaskEmbedding, or what `task_map_data` made of them.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.plotting import task_map
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> figure = task_map(embeddings)
    >>> figure.savefig("tasks.png")
    """
    data = embeddings if isinstance(embeddings, pd.DataFrame) else task_map_data(embeddings)
    check_columns(data, ("task", "x", "y"), "task_map_data")
    figure = new_figure(7.5)
    axes = figure.subplots()
    if data.empty:
        return say_why_empty(figure, axes, "There is no task.")
    bare(axes)
    axes.scatter(data["x"], data["y"], s=45, color=KEPT, zorder=3)
    shares = data.attrs.get("shares", (np.nan, np.nan))
    for name, share, label in zip(("x", "y"), shares, ("first", "second"), strict=True):
        part = "" if np.isnan(share) else f", {share:.0%} of squared distances"
        getattr(axes, f"set_{name}label")(f"{label} axis of the similarity{part}", fontsize=12)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.12)
    axes.set_title("Tasks by the similarity of their attributions")
    _place_names(figure, axes, data)
    return figure


def task_map_data(embeddings: Mapping[str, TaskEmbedding]) -> pd.DataFrame:
    r"""Place tasks in the plane by classical scaling of `task_similarity`.

    The distances are :math:`\sqrt{2 (1 - \mathrm{similarity})}`, those of the unit vectors whose
    inner product the similarity is.

    Returns
    -------
    DataFrame
        task, x, y; ``attrs["shares"]`` holds the share of the squared distances that each axis
        shows.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.plotting import task_map_data
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> task_map_data(embeddings)["task"].tolist()
    ['advice', 'news', 'weather']
    """
    from sklearn.decomposition import KernelPCA

    similarity = task_similarity(embeddings)
    places, sizes = np.zeros((len(similarity), 2)), np.zeros(2)
    if len(similarity) > 1:
        kernel = similarity.to_numpy()
        # Means over different layers need be no inner products: the least that makes them some.
        kernel = kernel - min(0.0, np.linalg.eigvalsh(kernel)[0]) * np.eye(len(kernel))
        scaling = KernelPCA(kernel="precomputed", eigen_solver="dense")
        with unlogged():
            found = scaling.fit_transform(kernel)[:, :2]
        places[:, : found.shape[1]] = found
        sizes = np.append(scaling.eigenvalues_, [0.0, 0.0])
    table = pd.DataFrame({"task": list(similarity.index), "x": places[:, 0], "y": places[:, 1]})
    total = float(sizes.sum())
    table.attrs["shares"] = tuple(float(s) / total if total > 1e-12 else np.nan for s in sizes[:2])
    return table


def task_similarity(embeddings: Mapping[str, TaskEmbedding]) -> pd.DataFrame:
    """Compute how alike the attributions of tasks are, as a square table with 1 on its diagonal.

    The mean over layers of CKA, or of the vectors' cosine unless all tasks were embedded on the
    same probe examples (see `pairs.pair_features`).

    Raises
    ------
    ValueError
        If two of the tasks have no layer that can be compared.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.plotting import task_similarity
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> task_similarity(embeddings).round(2)
             advice  news  weather
    advice     1.00  0.95     0.32
    news       0.95  1.00     0.00
    weather    0.32  0.00     1.00
    """
    tasks = sorted(embeddings)
    pairs = ordered_pairs(tasks)
    table = pd.DataFrame(np.eye(len(tasks)), tasks, tasks)
    if not len(pairs):
        return table
    features = pair_features(pairs, embeddings)
    alike = features.filter(regex=r"^cka\[").mean(axis=1)
    if alike.isna().any():
        alike = features.filter(regex=r"^cosine\[").mean(axis=1)
    if alike.isna().any():
        one, other = sorted(pairs.loc[alike.isna(), ["source", "target"]].iloc[0])
        raise ValueError(
            f"embeddings of {one!r} and {other!r} have no layer of one name "
            "and width: leave one of them out, or embed both models at the same layers."
        )
    for source, target, value in zip(pairs["source"], pairs["target"], alike, strict=True):
        table.loc[source, target] = value
    return (table + table.T) / 2


def _place_names(figure: Figure, axes: Axes, data: pd.DataFrame) -> None:
    """Write each name at the first place around its point that is still free."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()
    # From here on the layout stays: places that were free would move.
    figure.set_layout_engine("none")
    pixel = 72 / figure.dpi
    points = axes.transData.transform(data[["x", "y"]].to_numpy(dtype=float)) * pixel
    inside = axes.get_window_extent(renderer)
    frame = Bbox(inside.get_points() * pixel)
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    style: dict[str, Any] = {"fontsize": 10, "parse_math": False, "ha": "center", "va": "center"}
    for name, at, place in zip(data["task"], points, data[["x", "y"]].to_numpy(), strict=True):
        probe = axes.text(place[0], place[1], written(name), **style)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        size = np.array([extent.width, extent.height]) * pixel
        boxes = [(move, _box(at + move, size)) for move in _moves(size)]
        free = [
            (move, box)
            for move, box in boxes
            if not any(box.overlaps(other) for other in taken)
            and frame.contains(*box.p0)
            and frame.contains(*box.p1)
        ]
        move, box = free[0] if free else boxes[0]
        taken.append(box)
        line = {"arrowstyle": "-", "color": "0.55", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            written(name),
            tuple(place),
            tuple(move),
            textcoords="offset points",
            # A name beside its point needs no line to it.
            arrowprops=None if np.abs(move).max() <= size.max() / 2 + 9 else line,
            **style,
        )


def _moves(size: FloatArray) -> list[FloatArray]:
    """Offsets from a point to the middle of its name, the nearest first."""
    sides = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])
    return [side * (size / 2 + far) for far in (6, 14, 24, 38, 56, 80) for side in sides]


def _box(middle: FloatArray, size: FloatArray) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox([middle - size / 2, middle + size / 2])
