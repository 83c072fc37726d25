"""Figures of how far a study had come when, in the manner of `optuna.visualization`.

What they must satisfy: all that is drawn was measured, and a study that has nothing to show gives
an empty figure that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import optuna
import pandas as pd

from transfer_pruner.plotting import style
from transfer_pruner.progress import best_over_time_data, pairs_tried_data
from transfer_pruner.records import TrialRecord
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna.figure_tables import Horizontal, places, why_no_pair
from transfer_pruner_optuna.plotly_parts import add_marks, empty, pair_name, plotly
from transfer_pruner_optuna.records import check_objective, records_from_trials

if TYPE_CHECKING:
    import plotly.graph_objects as go

Vertical = Literal["value", "share_of_gain"]
_HIGH = {"value": "best score so far", "share_of_gain": "share of the gain at the end"}


def plot_best(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
    x: Horizontal = "trial",
    y: Vertical = "value",
) -> go.Figure:
    """Plot the best score of every target as the search went on, and their mean.

    Parameters
    ----------
    study : optuna.Study
    source_param, target_param, target, objective_index
        As for `gate`.
    x : {"trial", "seconds"}
        Count the trials that have trained, or the seconds from the start of the first one, in the
        order in which they finished.
    y : {"value", "share_of_gain"}
        The score; or the share of the gain over the single-task baseline that the search ended
        with, of the targets that have one.

    Returns
    -------
    plotly.graph_objects.Figure
        Empty, with a note, if no trial with a pair finished with a score, or there is no gain to
        have a share of.

    Raises
    ------
    ImportError
        If plotly is not installed.
    ValueError
        If `x` or `y` is neither of the two, or the study has several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import plot_best
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> plot_best(study, target="news").write_html("best.html", include_plotlyjs="cdn")
    """
    go = plotly()
    if x not in get_args(Horizontal):
        raise ValueError(f"x must be 'trial' or 'seconds' but got {x!r}.")
    if y not in get_args(Vertical):
        raise ValueError(f"y must be 'value' or 'share_of_gain' but got {y!r}.")
    pair_of = PairParams(source_param, target_param, target)
    label = "trials that have trained" if x == "trial" else "seconds since the search began"
    figure = go.Figure(
        layout={
            "title": {"text": "Best Score of Every Target"},
            "xaxis": {"title": {"text": label}},
            "yaxis": {"title": {"text": _HIGH[y]}},
        }
    )
    records, at, order = _finished(study, pair_of, objective_index, x)
    table = best_over_time_data(records, order=order)
    drawn = table[table[y].notna()].copy()
    if drawn["mean"].all():
        if table.empty:
            why = "No finished trial has a score."
            return empty(figure, why if records else why_no_pair(study, pair_of))
        return empty(figure, "No target has a gain over a single-task baseline.")
    end = max(at.values())
    drawn["x"] = drawn["trials"] if x == "trial" else drawn["number"].map(at).fillna(end)
    names = sorted(set(table.loc[~table["mean"], "target"]))
    # Where colours repeat, the mean is what is read.
    faint = 0.5 if len(names) > len(style.LINES) else 1.0
    for position, name in enumerate(names):
        rows = drawn[(drawn["target"] == name) & ~drawn["mean"]]
        if len(rows):
            colour = style.LINES[position % len(style.LINES)]
            _add_line(figure, name, rows, y, {"color": colour, "width": 1.5}, faint)
    if len(names) > 1:
        _add_line(figure, "mean", drawn[drawn["mean"]], y, {"color": style.BASELINE, "width": 3})
    if y == "share_of_gain":
        figure.update_yaxes(tickformat=".0%")
    return figure


def plot_tried(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
) -> go.Figure:
    """Plot which pairs were tried when, sources down and targets across.

    A cell has the colour of the pair's first trial that ran, counted among all that did in the
    order in which they finished. A cross marks a pair that was eliminated in every trial. A pair
    that was never proposed stays blank.

    Parameters
    ----------
    study : optuna.Study
    source_param, target_param, target, objective_index
        As for `gate`.

    Returns
    -------
    plotly.graph_objects.Figure
        Empty, with a note, if no finished trial has the pair.

    Raises
    ------
    ImportError
        If plotly is not installed.
    ValueError
        If the study has several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import plot_tried
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> plot_tried(study, target="news").write_html("tried.html", include_plotlyjs="cdn")
    """
    go = plotly()
    pair_of = PairParams(source_param, target_param, target)
    axis = {"type": "category", "showgrid": False}
    figure = go.Figure(
        layout={
            "title": {"text": "Which Pairs Were Tried When"},
            "xaxis": {"title": {"text": "target task"}, **axis},
            "yaxis": {"title": {"text": "source task"}, "autorange": "reversed", **axis},
            "plot_bgcolor": style.MISSING,
            # Above the picture: to the right stands the colour bar.
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        }
    )
    records, _, order = _finished(study, pair_of, objective_index, "seconds")
    table = pairs_tried_data(records, order=order)
    if table.empty:
        return empty(figure, why_no_pair(study, pair_of))
    table["hover"] = [_tried_hover(row) for row in table.to_dict("records")]
    table["source"] = table["source"].replace("", "(no source)")
    sources, targets = sorted(set(table["source"])), sorted(set(table["target"]))
    figure.update_xaxes(categoryorder="array", categoryarray=targets)
    figure.update_yaxes(categoryorder="array", categoryarray=sources)
    first, hover = (
        table.pivot(index="source", columns="target", values=column).reindex(
            index=sources, columns=targets
        )
        for column in ("first_tried", "hover")
    )
    figure.add_heatmap(
        x=targets,
        y=sources,
        z=first.to_numpy(dtype=float),
        text=hover.fillna("").to_numpy().tolist(),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "first tried"}},
        name="first tried",
    )
    marker = {"symbol": "x", "color": style.BASELINE, "size": 9}
    gone = table[table["first_tried"].isna()]
    add_marks(figure, "eliminated, never tried", gone, x="target", y="source", marker=marker)
    figure.update_layout(showlegend=True)
    return figure


def _finished(
    study: optuna.Study, pair_of: PairParams, objective_index: int | str | None, x: Horizontal
) -> tuple[list[TrialRecord], dict[int, float], Callable[[TrialRecord], tuple[float, int]]]:
    """Read the finished trials, where they stand on the axis, and what sorts them."""
    trials = study.get_trials(deepcopy=False)
    objective = check_objective(study, objective_index)
    records = records_from_trials(study, trials, pair_of, None, objective)
    at = places(trials, pair_of, x)
    ended = places(trials, pair_of, "seconds")
    return records, at, lambda record: (ended[record.number], record.number)


def _add_line(
    figure: go.Figure,
    name: str,
    rows: pd.DataFrame,
    y: str,
    line: dict[str, Any],
    opacity: float = 1.0,
) -> None:
    figure.add_scatter(
        x=rows["x"].tolist(),
        y=rows[y].tolist(),
        mode="lines",
        opacity=opacity,
        line={"shape": "hv", **line},
        name=name,
        text=[_best_hover(row) for row in rows.to_dict("records")],
        hovertemplate="%{text}<extra>%{fullData.name}</extra>",
    )


def _best_hover(row: dict[Any, Any]) -> str:
    lines = [f"best score {row['value']:.4g}"]
    if not math.isnan(row["share_of_gain"]):
        lines.append(f"{row['share_of_gain']:.0%} of the gain at the end")
    if not row["mean"] and not math.isnan(row["number"]):
        source = row["source"] or "no source"
        lines.append(f"trial {row['number']:.0f}, {source}")
    lines.append(f"after {row['trials']} trials, {row['seconds_spent']:.1f} s of all together")
    return "<br>".join(lines)


def _tried_hover(row: dict[Any, Any]) -> str:
    lines = [pair_name(row["source"] or "(no source)", row["target"])]
    if math.isnan(row["first_tried"]):
        lines.append("never tried")
    else:
        lines.append(f"first tried in trial {row['number']:.0f}, the {row['first_tried']:.0f}. run")
    counts = (f"{row[f'trials_{what}']} {what}" for what in ("trained", "eliminated", "failed"))
    lines.append(f"trials: {', '.join(counts)}")
    return "<br>".join(lines)
