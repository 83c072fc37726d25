"""Figures of pairs: predicted beside measured gains, and the sources of one target."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.plotting.style import (
    BASELINE,
    ELIMINATED,
    GAINS,
    KEPT,
    MISSING,
    NEUTRAL,
    bare,
    check_columns,
    new_figure,
    say_why_empty,
    written,
)
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.ranking import Predictor, ranked, ranked_candidates, task_columns
from transfer_pruner.tasks import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SOURCES = 40


def pair_heatmap(
    predicted: pd.DataFrame,
    measured: pd.DataFrame,
    *,
    title: str | None = None,
    cluster: bool | pd.DataFrame = False,
    eliminated: pd.DataFrame | None = None,
) -> Figure:
    """Draw predicted and measured gain of every pair side by side, sources down, targets across.

    Parameters
    ----------
    predicted, measured : DataFrame of shape (n_sources, n_targets)
        Index: source tasks; columns: target tasks; NaN cells (a task with itself) stay grey. The
        prediction is coloured by its rank within the target, since only that order means something
        before the predictor has learnt from measured gains; the measured gain around zero.
    title : str, optional
    cluster : bool or DataFrame
        False: sources by their mean measured gain. True: tasks beside those with similar measured
        gains. A table of similarities of tasks, such as `task_similarity`: beside those.
    eliminated : DataFrame of bool, optional
        Pairs to cross out, in the shape of `predicted`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the tables are not of the same pairs, or `cluster` lacks one of the tasks.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.plotting import pair_heatmap
    >>> tasks = ["news", "advice", "weather"]
    >>> predicted = pd.DataFrame([[None, 3, 2], [2, None, 1], [1, 2, None]], tasks, tasks, float)
    >>> measured = predicted / 100 - 0.01
    >>> figure = pair_heatmap(predicted, measured)
    >>> figure.savefig("pairs.png")
    """
    order, columns = _arranged(predicted, measured, cluster)
    ranks = predicted.rank(ascending=False).loc[order, columns].to_numpy(dtype=float)
    gains = measured.loc[order, columns].to_numpy(dtype=float)
    limit = float(np.nanmax(np.abs(gains), initial=0.0, where=np.isfinite(gains))) or 1.0
    size = max(len(order), len(columns))
    height = float(np.clip(0.2 * len(order) + 2.5, 6.8, 13))
    figure = new_figure(width=13, height=height)
    left, right = figure.subplots(1, 2, sharey=True)
    images = (
        left.imshow(ranks, cmap="viridis_r", aspect="auto", vmin=1, vmax=max(2, len(order) - 1)),
        right.imshow(gains, cmap=GAINS, vmin=-limit, vmax=limit, aspect="auto"),
    )
    labels = ("predicted rank within the target (1 = best)", "measured transfer gain")
    font: dict[str, Any] = {
        "parse_math": False,
        "fontsize": float(np.clip(320 / max(size, 1), 5, 11)),
    }
    for axes, image, label in zip((left, right), images, labels, strict=True):
        axes.set_facecolor(MISSING)
        axes.set_title(label)
        slanted: dict[str, Any] = {"rotation": 55, "ha": "right"}
        upright: dict[str, Any] = {"rotation": 90, "ha": "center"}
        axes.set_xticks(
            range(len(columns)),
            list(map(written, columns)),
            **(slanted if len(columns) <= 25 else upright),
            **font,
        )
        axes.set_yticks(range(len(order)), list(map(written, order)), **font)
        axes.set_xlabel("target task", fontsize=12)
        figure.colorbar(image, ax=axes, shrink=0.8, aspect=3 * height)
    how = "by mean measured gain" if cluster is False else "similar ones side by side"
    left.set_ylabel(f"source task, {how}", fontsize=12)
    if eliminated is not None:
        rows, across = np.nonzero(eliminated.loc[order, columns].to_numpy(dtype=bool))
        for axes in (left, right):
            # Outlined in white, to be seen on the darkest cells.
            for colour, width in (("white", 2.6), ("black", 1.0)):
                axes.scatter(across, rows, marker="x", s=1800 / size, c=colour, linewidth=width)
        right.set_title("measured transfer gain (x = eliminated)")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def pair_heatmap_data(
    predicted: pd.DataFrame, measured: pd.DataFrame, *, cluster: bool | pd.DataFrame = False
) -> pd.DataFrame:
    """Tabulate what `pair_heatmap` draws, in its order.

    Returns
    -------
    DataFrame
        One row a cell but those without both numbers: source, target, predicted, predicted_rank,
        measured_gain.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.plotting import pair_heatmap_data
    >>> tasks = ["news", "advice", "weather"]
    >>> predicted = pd.DataFrame([[None, 3, 2], [2, None, 1], [1, 2, None]], tasks, tasks, float)
    >>> measured = predicted / 100 - 0.01
    >>> pair_heatmap_data(predicted, measured).head(2)
      source   target  predicted  predicted_rank  measured_gain
    0   news   advice        3.0             1.0           0.02
    1   news  weather        2.0             1.0           0.01
    """
    order, columns = _arranged(predicted, measured, cluster)
    tables = {
        "predicted": predicted,
        "predicted_rank": predicted.rank(ascending=False),
        "measured_gain": measured,
    }
    cells = {name: table.loc[order, columns] for name, table in tables.items()}
    table = pd.DataFrame(
        {
            "source": np.repeat(np.array(order, dtype=object), len(columns)),
            "target": np.tile(np.array(columns, dtype=object), len(order)),
            **{name: values.to_numpy(dtype=float).ravel() for name, values in cells.items()},
        }
    )
    return table.dropna(subset=["predicted", "measured_gain"], how="all", ignore_index=True)


def source_ranking(
    rule: EliminationRule | Predictor | pd.DataFrame,
    target: str,
    *,
    predictor: Predictor | None = None,
    pairs: pd.DataFrame | None = None,
    confidence: float = 0.9,
) -> Figure:
    """Draw the sources of a target as bars, best-scored first, with what was decided of each.

    Parameters
    ----------
    rule : EliminationRule, TransferPredictor, or what `source_ranking_data` made of them
    target : str
    predictor, pairs, confidence
        As for `source_ranking_data`.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import TransferPredictor
    >>> from transfer_pruner.plotting import source_ranking
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
    >>> figure = source_ranking(predictor, "news", pairs=pairs)
    >>> figure.savefig("ranking.png")
    """
    data = rule
    if not isinstance(data, pd.DataFrame):
        data = source_ranking_data(
            data, target, predictor=predictor, pairs=pairs, confidence=confidence
        )
    check_columns(data, ("source", "score", "decision", "low", "high"), "source_ranking_data")
    drawn = data.head(MOST_SOURCES).reset_index(drop=True)
    figure = new_figure(0.3 * len(drawn) + 1.9)
    axes = figure.subplots()
    if drawn.empty:
        return say_why_empty(figure, axes, "There is no source.")
    bare(axes)
    looks = {"kept": (KEPT, ""), "eliminated": (ELIMINATED, "//"), "not decided": (NEUTRAL, "")}
    for decision, (colour, hatch) in looks.items():
        rows = drawn[drawn["decision"] == decision]
        if len(rows):
            axes.barh(
                rows.index.to_numpy(),
                rows["score"].fillna(0).to_numpy(dtype=float),
                color=colour,
                hatch=hatch,
                edgecolor="white",
                label=decision,
            )
    bounded = drawn.dropna(subset=["low", "high"])
    if len(bounded):
        widths = np.abs(bounded[["low", "high"]].sub(bounded["score"], axis=0).to_numpy().T)
        axes.errorbar(
            bounded["score"],
            bounded.index.to_numpy(),
            xerr=widths,
            fmt="none",
            ecolor="black",
            capsize=3,
            label=f"{confidence:.0%} of gains, by the predicted spread",
        )
    names = [written(name) for name in drawn["source"]]
    axes.set_yticks(range(len(drawn)), names, parse_math=False, fontsize=11)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.axvline(0, color=BASELINE, linewidth=0.8)
    beside = axes.get_yaxis_transform()
    for at, (score, probability) in enumerate(
        zip(drawn["score"], drawn["probability"], strict=True)
    ):
        said = "no score" if np.isnan(score) else f"{probability:.0%}"
        if np.isnan(score) or not np.isnan(probability):
            axes.text(1.01, at, said, transform=beside, va="center", fontsize=10)
    learnt = drawn["probability"].notna().any()
    if learnt:
        text = "estimated\nprobability\nof a gain"
        axes.text(1.01, -0.7, text, transform=beside, va="bottom", fontsize=9)
    axes.set_xlabel(
        "estimated transfer gain, in units of the score"
        if learnt
        else "attribution score: only the order means something",
        fontsize=12,
    )
    more = f" (the best {len(drawn)} of {len(data)})" if len(drawn) < len(data) else ""
    axes.set_title(f"Sources for {written(target)}{more}", parse_math=False, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def source_ranking_data(
    rule: EliminationRule | Predictor,
    target: str,
    *,
    predictor: Predictor | None = None,
    pairs: pd.DataFrame | None = None,
    confidence: float = 0.9,
) -> pd.DataFrame:
    """Rank the sources of a target, with the decision on each.

    Parameters
    ----------
    rule : EliminationRule or TransferPredictor
        Of a predictor the sources are not decided.
    target : str
    predictor : TransferPredictor, optional
        The fitted one that the rule was made from: its spread gives the intervals.
    pairs : DataFrame, optional
        The candidate pairs of a predictor, as for `EliminationRule.top_k`.
    confidence : float in (0, 1)
        Probability that a measured gain is in the interval.

    Returns
    -------
    DataFrame
        source, rank, score, low, high, probability, decision, the best first. The interval is NaN
        where the predictor tells no spread.

    Raises
    ------
    ValueError
        If `target` is not one of the targets, or `confidence` out of range.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import TransferPredictor
    >>> from transfer_pruner.plotting import source_ranking_data
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
    >>> table = source_ranking_data(predictor, "news", pairs=pairs)
    >>> table[["source", "rank", "decision"]]
        source  rank     decision
    0   advice     1  not decided
    1   rescue     2  not decided
    2  weather     3  not decided
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 but got {confidence}.")
    if isinstance(rule, EliminationRule):
        decisions = rule.table()
        table = ranked(decisions)
        table["decision"] = np.where(table["eliminated"].astype(bool), "eliminated", "kept")
    else:
        predictor = rule if predictor is None else predictor
        table = ranked_candidates(rule, pairs).assign(decision="not decided")
    targets = sorted(map(str, set(table["target"])))
    table = table[table["target"] == target].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"target {target!r} has no sources; there are: {', '.join(targets)}.")
    std = _spread(predictor, table, pairs) if table["probability"].notna().any() else np.nan
    half = float(NormalDist().inv_cdf((1 + confidence) / 2)) * std
    table["low"], table["high"] = table["score"] - half, table["score"] + half
    return table[["source", "rank", "score", "low", "high", "probability", "decision"]]


def _spread(
    predictor: Predictor | None, table: pd.DataFrame, pairs: pd.DataFrame | None
) -> FloatArray | float:
    """Find the standard deviations of ranked pairs; NaN of a predictor that tells none."""
    if predictor is None or not hasattr(predictor, "theta_"):
        return np.nan
    columns = task_columns(predictor)
    known = table[["source", "target"]].set_axis(columns, axis=1)
    facts = [*getattr(predictor, "feature_columns", ())]
    if facts:
        if pairs is None:
            return np.nan
        known = known.merge(pairs[[*columns, *facts]].drop_duplicates(columns), "left", columns)
    _, std = predictor.predict(known, return_std=True)  # type: ignore[call-arg]
    return np.asarray(std, dtype=float)


def _arranged(
    predicted: pd.DataFrame, measured: pd.DataFrame, cluster: bool | pd.DataFrame
) -> tuple[list[str], list[str]]:
    """Order sources and targets; alike if the tasks are the same, so that the diagonal is one."""
    if list(predicted.index) != list(measured.index) or list(predicted) != list(measured):
        raise ValueError("predicted and measured must have the same sources and targets.")
    sources, targets = [*measured.index], [*measured.columns]
    same = set(sources) == set(targets)
    if cluster is False:
        order = list(measured.mean(axis=1).sort_values(ascending=False, kind="stable").index)
        return order, order if same else targets
    if isinstance(cluster, pd.DataFrame):
        missing = [task for task in (*sources, *targets) if task not in cluster.index]
        if missing:
            raise ValueError(f"cluster has no similarity of the task {missing[0]!r}.")
        order = _side_by_side(sources, 1 - cluster.loc[sources, sources].to_numpy(dtype=float))
        if same:
            return order, order
        return order, _side_by_side(targets, 1 - cluster.loc[targets, targets].to_numpy())
    gains = measured.fillna(measured.mean()).fillna(0.0)
    if same:
        gains = pd.concat([gains, measured.T.fillna(measured.T.mean()).fillna(0.0)], axis=1)
    order = _side_by_side(sources, _distances(gains))
    return order, order if same else _side_by_side(targets, _distances(gains.T))


def _distances(profiles: pd.DataFrame) -> FloatArray:
    values = profiles.to_numpy(dtype=float)
    distances: FloatArray = np.linalg.norm(values[:, None] - values[None], axis=2)
    return distances


def _side_by_side(names: Sequence[str], distances: FloatArray) -> list[str]:
    """Order names as the leaves of a hierarchical clustering, average linkage."""
    if len(names) < 3:
        return list(names)
    from scipy.cluster.hierarchy import leaves_list, linkage

    distances = (distances + distances.T) / 2
    condensed = np.clip(distances[np.triu_indices(len(names), 1)], 0, None)
    leaves = leaves_list(linkage(condensed, "average", optimal_ordering=True))
    return [names[leaf] for leaf in leaves]
