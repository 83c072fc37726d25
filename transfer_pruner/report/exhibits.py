"""The figures of a report, each with the table that it is drawn from, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from transfer_pruner import plotting, progress, tables
from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.records import TrialRecord
from transfer_pruner.report.html import link, svg
from transfer_pruner.rule.elimination import EliminationRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_RANKINGS = 4
MOST_TASKS = 80


@dataclass(frozen=True)
class Exhibit:
    """A figure, or several, with the table that it is drawn from."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    draw: Callable[[], Sequence[Figure]]
    why_not: str = ""

    def html(self, folder: str) -> str:
        """Draw it, or say why not, with a link to its table in `folder`."""
        if self.data.empty or self.why_not:
            body = f"<p>No figure: {escape(self.why_not or 'there is nothing to draw.')}</p>"
        else:
            drawn = [
                svg(figure, f"{self.name}-{at}", self.title)
                for at, figure in enumerate(self.draw())
            ]
            caption = f"<figcaption>{escape(self.caption)}</figcaption>"
            body = f"<figure>{''.join(drawn)}{caption}</figure>"
        return body + link(folder, self.name)


NAMES = (
    *("answer", "best_over_time", "pairs_tried"),
    *("pairs", "savings_over_time", "calibration_curve", "predicted_and_measured"),
    *("pair_heatmap", "savings_regret_curve", "task_map", "source_ranking"),
)
_NO_GAIN = (
    "no pair has both a {} and a measured gain. A gain takes a trial with a source and a baseline "
    "trial of the same target."
)


def best_over_time(records: Sequence[TrialRecord], maximize: bool) -> Exhibit:
    """Show what the search had found when."""
    data = progress.best_over_time_data(records, maximize=maximize)
    ways: list[plotting.Vertical] = ["value"]
    if data["share_of_gain"].notna().any():
        ways.append("share_of_gain")
    return Exhibit(
        "best_over_time",
        "Best score as the search went on",
        "In order of the trials' numbers; of single trials, measured. Shares are of the gain over "
        "the single-task baseline that the search itself ended with, of the targets that have "
        "one: what it did not find, they do not know.",
        data,
        lambda: [plotting.best_over_time(data, y=y) for y in ways],
        "" if len(data) else "no finished trial has a score.",
    )


def pairs_tried(records: Sequence[TrialRecord]) -> Exhibit:
    """Show which pairs were tried when."""
    data = progress.pairs_tried_data(records)
    tasks = max(data["source"].nunique(), data["target"].nunique())
    return Exhibit(
        "pairs_tried",
        "Which pairs were tried when",
        "The first trial of each pair that ran, counted among all that did, in order of the "
        "trials' numbers. Grey: never proposed; a cross: proposed and eliminated every time.",
        data,
        lambda: [plotting.pairs_tried(data)],
        f"{tasks} tasks are too many to be read; their numbers are in the table."
        if tasks > MOST_TASKS
        else "",
    )


def savings_over_time(records: Sequence[TrialRecord], before: Mapping[str, Any]) -> Exhibit:
    """Show what was spent and saved as the search went on; `before` names seconds before it."""
    data = tables.savings_over_time_data(records, **before)
    return Exhibit(
        "savings_over_time",
        "Seconds spent and saved as the search went on",
        "At each point, what was measured and what is estimated from the trials up to there. "
        "Attribution and proxy scores are paid for at the start.",
        data,
        lambda: [plotting.savings_over_time(data)],
    )


def predicted_and_measured(records: Sequence[TrialRecord], maximize: bool) -> Exhibit:
    """Show what was predicted of each pair that ran."""
    data = tables.predicted_and_measured_data(records, maximize=maximize)
    return Exhibit(
        "predicted_and_measured",
        "Predicted and measured gain",
        "One mark a pair: what was predicted when its first trial ran, and the mean measured "
        "gain of its trials. Eliminated pairs are there as far as audit trials ran them. "
        "Joint trials are left out; so are, where a rule learnt as the search ran, pairs that "
        "it had scored by attributions before.",
        data,
        lambda: [plotting.predicted_and_measured(data)],
        "" if len(data) else _NO_GAIN.format("score"),
    )


def calibration_curve(records: Sequence[TrialRecord], maximize: bool) -> Exhibit:
    """Show whether the probabilities came true."""
    data = tables.calibration_curve_data(records, maximize=maximize)
    return Exhibit(
        "calibration_curve",
        "Did the probabilities come true?",
        "Each pair that ran counts once, with the probability said when its first trial ran. "
        "The intervals are those of independent pairs; pairs that share a task are not quite. "
        "Pairs that ran are not a random sample: the rule kept them, or an audit drew them.",
        data,
        lambda: [plotting.calibration_curve(data)],
        "" if len(data) else _NO_GAIN.format("probability"),
    )


def pair_heatmap(pairs: pd.DataFrame, decided: EliminationRule | None) -> Exhibit:
    """Show every pair: what was predicted, measured and eliminated."""
    single = pairs[~pairs["joint"] & (pairs["source"] != "")]
    scores = single if decided is None else decided.table()
    # Attribution scores and predicted gains have no common order.
    learnt = scores["probability"].notna()
    scores = scores[learnt] if learnt.any() else scores
    tasks = sorted({*single["source"], *single["target"], *scores["source"], *scores["target"]})

    def square(rows: pd.DataFrame, column: str) -> pd.DataFrame:
        wide = rows.pivot(index="source", columns="target", values=column)
        return wide.reindex(index=tasks, columns=tasks)

    predicted, measured = square(scores, "score"), square(single, "mean_gain")
    gone = single.assign(gone=single["decision"].str.startswith("eliminated"))
    crossed = square(gone, "gone").eq(True)
    data = plotting.pair_heatmap_data(predicted.astype(float), measured.astype(float))
    why_not = "no pair has a score or a measured gain." if data.empty else ""
    if len(tasks) > MOST_TASKS:
        why_not = f"{len(tasks)} tasks are too many to be read; their numbers are in the table."
    return Exhibit(
        "pair_heatmap",
        "Every pair",
        "A cross marks a pair that was eliminated in every trial; where it has a measured gain "
        "too, an audit trial ran it. Grey: not scored, or not measured.",
        data,
        lambda: [
            plotting.pair_heatmap(
                predicted.astype(float), measured.astype(float), eliminated=crossed
            )
        ],
        why_not,
    )


def savings_regret_curve(
    trials: pd.DataFrame,
    pairs: pd.DataFrame,
    decided: EliminationRule | None,
    seconds_before: float,
) -> Exhibit:
    """Show on an exhaustive search what keeping fewer sources saves and loses."""
    single = pairs[~pairs["joint"] & (pairs["source"] != "")]
    paid = seconds_before if "seconds" in trials else 0.0
    ways = {"the search's last scores": single} if decided is None else {"the rule": decided}
    data = plotting.savings_regret_curve_data(trials, ways, attribution_seconds=paid)
    return Exhibit(
        "savings_regret_curve",
        "What keeping fewer sources saves, and what it loses",
        "Measured on an exhaustive search's trials: each target's best trial is chosen on the dev "
        "split and reported on the test split, so a share can exceed 100%. A rule that learnt "
        "from these same targets flatters itself here.",
        data,
        lambda: [plotting.savings_regret_curve(data)],
    )


def task_map(embeddings: Mapping[str, TaskEmbedding]) -> Exhibit:
    """Show which tasks are alike."""
    data = plotting.task_map_data(embeddings)
    return Exhibit(
        "task_map",
        "Tasks by the similarity of their attributions",
        "Classical scaling: what the two axes do not show, their labels say.",
        data,
        lambda: [plotting.task_map(data)],
    )


def source_ranking(decided: EliminationRule, records: Iterable[TrialRecord]) -> Exhibit:
    """Show the sources of the targets with most trials."""
    targets = list(dict.fromkeys(decided.table()["target"]))
    count = pd.Series([record.target for record in records]).value_counts()
    targets.sort(key=lambda target: (-count.get(target, 0), str(target)))
    by_target = {target: plotting.source_ranking_data(decided, target) for target in targets}
    drawn = targets[:MOST_RANKINGS]
    some = f"The {len(drawn)} targets with most trials of {len(targets)}. "
    return Exhibit(
        "source_ranking",
        "Sources of a target",
        (some if len(drawn) < len(targets) else "") + "As the rule ranks and decides them.",
        pd.concat([table.assign(target=target) for target, table in by_target.items()])
        if by_target
        else pd.DataFrame(columns=["source", "target"]),
        lambda: [plotting.source_ranking(by_target[target], target) for target in drawn],
    )
