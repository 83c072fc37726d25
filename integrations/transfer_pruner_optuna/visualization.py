"""Figures of a study, in the manner of `optuna.visualization`.

What they must satisfy: what is drawn as measured was measured, what is an estimate is named one,
and a study that has nothing to show gives an empty figure that says why, not an exception.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, get_args

import optuna
import pandas as pd

from transfer_pruner.plotting import style
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tables import (
    PAIR,
    measured_gains,
    pairs_table,
    rank_correlations,
    savings_over_time_data,
)
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna.figure_tables import (
    Horizontal,
    places,
    scored_records,
    why_no_pair,
)
from transfer_pruner_optuna.plotly_parts import add_marks, empty, pair_name, plotly
from transfer_pruner_optuna.records import records_from_trials

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_gains", "plot_pairs", "plot_savings"]

_logger = logging.getLogger(__name__)


def plot_gains(
    study: optuna.Study,
    rule: EliminationRule | LearningRule | None = None,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
    per_pair: bool = False,
) -> go.Figure:
    """Plot what was predicted of the pairs that trained against the gain that was measured.

    Eliminated pairs are there as far as audit trials ran them, marked otherwise. The title holds
    Spearman correlations over the pairs' mean gains. Scores of a predictor that has not learnt from
    measured gains are comparable within a target only: of the two correlations, read the one
    within targets.

    Parameters
    ----------
    study : optuna.Study
    rule : EliminationRule or LearningRule, optional
        Scores the trials that our adapters did not mark with a score.
    source_param, target_param, target, objective_index
        As for `gate`. Joint trials of several sources have no gain and are left out.
    per_pair : bool
        One point a pair, the means of its trials, in place of one a trial.

    Returns
    -------
    plotly.graph_objects.Figure
        Empty, with a note, if no trial has both a predicted score and a measured gain.

    Raises
    ------
    ImportError
        If plotly is not installed.
    ValueError
        If the study has several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_optuna import plot_gains
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.min_gain(predictor, 0.0, pairs=pairs)
    >>> plot_gains(study, rule, target="news").write_html("gains.html", include_plotlyjs="cdn")
    """
    go = plotly()
    pair_of = PairParams(source_param, target_param, target)
    records = scored_records(study, rule, pair_of, objective_index)
    table = measured_gains(records)
    figure = go.Figure(
        layout={
            "title": {"text": "Predicted and Measured Transfer Gain"},
            "xaxis": {"title": {"text": "predicted score"}},
            "yaxis": {"title": {"text": "measured transfer gain"}},
        }
    )
    if table.empty:
        why = table.attrs["why_empty"] if records else why_no_pair(study, pair_of)
        return empty(figure, why)
    scored = table[table["score"].notna()]
    if scored.empty:
        return empty(figure, "No trial with a gain has a predicted score: pass rule=.")
    if len(scored) < len(table):
        _logger.warning(
            "%d of %d trials have no predicted score and are not drawn: pass rule=.",
            len(table) - len(scored),
            len(table),
        )
    if per_pair:
        # A pair that was audited and later kept has a point for each.
        points = scored.groupby([*PAIR, "audit"], as_index=False).agg(
            score=("score", "mean"), gain=("gain", "mean"), trials=("gain", "size")
        )
    else:
        settings = {r.number: r.hyperparameters for r in records if r.outcome == "trained"}
        points = scored.assign(hyperparameters=scored["number"].map(settings))
    points["hover"] = [_gain_hover(row) for row in points.to_dict("records")]
    audited = points["audit"]
    for name, rows, colour, symbol, outline in (
        ("kept", points[~audited], style.KEPT, "circle", 0),
        ("eliminated, audit trial", points[audited], style.AUDITED, "diamond-open", 2),
    ):
        marker = {"color": colour, "symbol": symbol, "size": 8, "line": {"width": outline}}
        add_marks(figure, name, rows, x="score", y="gain", marker=marker)
    figure.add_hline(y=0, line={"color": style.BASELINE, "width": 1})
    figure.update_layout(showlegend=True, title_subtitle_text=_correlation(scored))
    return figure


def plot_savings(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    x: Horizontal = "trial",
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    confidence: float = 0.9,
) -> go.Figure:
    """Plot, as the search went on, the seconds spent and the estimated seconds saved.

    At about 40 points of the search, what `transfer_pruner.estimate_savings` says of the trials up
    to there; the last point is what it says of the whole study. Eliminated trials are the marks
    below.

    Parameters
    ----------
    study : optuna.Study
    source_param, target_param, target
        As for `gate`.
    x : {"trial", "seconds"}
        Count the search's trials by their numbers, or its seconds from the start of the first one,
        in the order in which they finished.
    single_task_seconds, attribution_seconds, confidence
        As for `transfer_pruner.estimate_savings`.

    Returns
    -------
    plotly.graph_objects.Figure
        Empty, with a note, if no finished trial has the pair.

    Raises
    ------
    ImportError
        If plotly is not installed.
    ValueError
        If `x` is neither of the two, or `confidence` out of range.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import plot_savings
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> plot_savings(study, target="news").write_html("savings.html", include_plotlyjs="cdn")
    """
    go = plotly()
    if x not in get_args(Horizontal):
        raise ValueError(f"x must be 'trial' or 'seconds' but got {x!r}.")
    pair_of = PairParams(source_param, target_param, target)
    label = "trial" if x == "trial" else "seconds since the start of the search"
    figure = go.Figure(
        layout={
            "title": {"text": "Seconds Spent and Estimated Seconds Saved"},
            "xaxis": {"title": {"text": label}, "anchor": "y2"},
            "yaxis": {"title": {"text": "seconds, all trials together"}, "domain": [0.12, 1]},
            "yaxis2": {"domain": [0, 0.08], "visible": False, "fixedrange": True},
            "legend": {"traceorder": "normal"},
        }
    )
    trials = study.get_trials(deepcopy=False)
    records = records_from_trials(study, trials, pair_of, None, None)
    if not records:
        return empty(figure, why_no_pair(study, pair_of))
    at = places(trials, pair_of, x)

    def order(record: TrialRecord) -> tuple[float, int]:
        return at[record.number], record.number

    table = savings_over_time_data(
        records,
        single_task_seconds=single_task_seconds,
        attribution_seconds=attribution_seconds,
        confidence=confidence,
        order=order,
    )
    table["x"] = table["number"].map(at)
    band = table.dropna()
    low, high = (band[f"estimated_seconds_saved_{side}"].tolist() for side in ("low", "high"))
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(x=band["x"].tolist(), y=high, showlegend=False, **edge)
    figure.add_scatter(
        x=band["x"].tolist(),
        y=low,
        fill="tonexty",
        fillcolor=_translucent(style.SAVED),
        name=f"{confidence:.0%} interval of the estimate",
        **edge,
    )
    for name, column, colour, dash in (
        ("seconds spent (measured)", "seconds_spent", style.NEUTRAL, "solid"),
        ("estimated seconds saved", "estimated_seconds_saved", style.SAVED, "dash"),
    ):
        figure.add_scatter(
            x=table["x"].tolist(),
            y=table[column].tolist(),
            mode="lines",
            line={"color": colour, "dash": dash},
            name=name,
        )
    eliminated = sorted((r for r in records if r.outcome == "eliminated"), key=order)
    rows = {
        "x": [at[record.number] for record in eliminated],
        "y": 0,
        "hover": [pair_name(record.source, record.target) for record in eliminated],
    }
    colour = style.ELIMINATED
    marker = {"symbol": "line-ns-open", "color": colour, "size": 9, "line": {"width": 2}}
    add_marks(figure, "eliminated trials", pd.DataFrame(rows), marker=marker, yaxis="y2")
    return figure


def plot_pairs(
    study: optuna.Study,
    rule: EliminationRule | LearningRule | None = None,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
) -> go.Figure:
    """Plot the mean measured gain of every pair, sources down and targets across.

    A cross marks a pair of which trials were eliminated; where it has a colour too, other trials
    ran, such as audit trials. A dot marks a pair that ran and has no measured gain: it failed, was
    stopped early, or its target has no baseline trial. A pair that was never proposed stays blank.

    Parameters
    ----------
    study : optuna.Study
    rule : EliminationRule or LearningRule, optional
        Scores the trials that our adapters did not mark with a score.
    source_param, target_param, target, objective_index
        As for `gate`. Joint trials of several sources are left out.

    Returns
    -------
    plotly.graph_objects.Figure
        Empty, with a note, if no finished trial has one source and a target.

    Raises
    ------
    ImportError
        If plotly is not installed.
    ValueError
        If the study has several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import plot_pairs
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> plot_pairs(study, target="news").write_html("pairs.html", include_plotlyjs="cdn")
    """
    go = plotly()
    pair_of = PairParams(source_param, target_param, target)
    records = scored_records(study, rule, pair_of, objective_index)
    table = pairs_table(records)
    table = table[table["source"] != ""].reset_index(drop=True)
    figure = go.Figure(
        layout={
            "title": {"text": "Measured Transfer Gain of Pairs"},
            "xaxis": {
                "title": {"text": "target task"},
                "type": "category",
                "showgrid": False,
            },
            "yaxis": {
                "title": {"text": "source task, by mean measured gain"},
                "type": "category",
                "autorange": "reversed",
                "showgrid": False,
            },
            # Pairs that were never proposed: unlike any gain.
            "plot_bgcolor": style.MISSING,
            # Above the picture: to the right stands the colour bar.
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        }
    )
    if table.empty:
        one = "The study has no finished trials with one source and a target."
        return empty(figure, one if records else why_no_pair(study, pair_of))
    table["hover"] = [_pair_hover(row) for row in table.to_dict("records")]
    by_gain = (
        table.groupby("source")["mean_gain"].mean().sort_values(ascending=False, kind="stable")
    )
    sources, targets = list(by_gain.index), sorted(table["target"].unique())
    figure.update_xaxes(categoryorder="array", categoryarray=targets)
    figure.update_yaxes(categoryorder="array", categoryarray=sources)
    measured = table["mean_gain"].notna()
    if measured.any():
        gains, hover = (
            table.pivot(index="source", columns="target", values=column).reindex(
                index=sources, columns=targets
            )
            for column in ("mean_gain", "hover")
        )
        limit = float(table["mean_gain"].abs().max()) or 1.0
        figure.add_heatmap(
            x=targets,
            y=sources,
            z=gains.to_numpy(dtype=float),
            text=hover.fillna("").to_numpy().tolist(),
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorscale=style.GAINS,
            zmin=-limit,
            zmax=limit,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "mean gain"}},
            name="mean measured gain",
        )
    else:
        _logger.warning("No pair has a measured gain: there are only marks to draw.")
    gone, ran = table["trials_eliminated"] > 0, table["trials"] > table["trials_eliminated"]
    for name, rows, symbol in (
        ("eliminated", table[gone], "x"),
        ("ran, no gain measured", table[ran & ~measured], "circle"),
    ):
        # Outlined in white, to be seen on the darkest cells.
        outline = {"color": "white", "width": 1}
        marker = {"symbol": symbol, "color": "black", "size": 10, "line": outline}
        add_marks(figure, name, rows, x="target", y="source", marker=marker)
    figure.update_layout(showlegend=True)
    return figure


def _correlation(gains: pd.DataFrame) -> str:
    pairs = gains.groupby(PAIR, as_index=False)[["score", "gain"]].mean()
    over_all, within = rank_correlations(pairs, "score")
    text = f"Spearman correlation over {len(pairs)} pairs: {_number(over_all)}"
    if len(within):
        text += f"; within targets: {_number(within.mean())} (mean of {len(within)})"
    return text


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.2f}"


def _translucent(colour: str) -> str:
    """Write a colour as plotly takes one that shows what is behind it."""
    red, green, blue = bytes.fromhex(colour[1:])
    return f"rgba({red}, {green}, {blue}, 0.22)"


def _gain_hover(row: dict[Any, Any]) -> str:
    """Write a point's text: its pair, its trial and hyperparameters or how many trials it is of."""
    lines = [pair_name(row["source"], row["target"])]
    if "trials" in row:
        lines.append(f"mean of {row['trials']} trials")
    else:
        lines.append(f"trial {row['number']}")
        lines += [f"{name} = {value}" for name, value in row["hyperparameters"].items()]
    lines.append(f"predicted score {row['score']:.4g}, measured gain {row['gain']:.4g}")
    return "<br>".join(lines)


def _pair_hover(row: dict[Any, Any]) -> str:
    lines = [
        pair_name(row["source"], row["target"]),
        f"{row['trials']} trials: {row['trials_eliminated']} eliminated, "
        f"{row['trials_audited']} audited",
    ]
    if not math.isnan(row["score"]):
        lines.append(f"predicted score {row['score']:.4g}")
    if not math.isnan(row["mean_gain"]):
        lines.append(f"mean measured gain {row['mean_gain']:.4g}")
    return "<br>".join(lines)
