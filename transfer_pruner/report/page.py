"""A report of a search as one HTML file that renders offline and prints.

What it must satisfy: nothing in it is fetched or run, whatever tasks are called; measured and
estimated figures are told apart; and every figure's numbers lie beside it as CSV.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from transfer_pruner import plotting
from transfer_pruner.audit import AuditEstimate, estimate_audit
from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.files import write_atomically
from transfer_pruner.records import TrialRecord
from transfer_pruner.report.html import encoded, link, number, page, section, svg, table
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.savings import Savings, estimate_savings
from transfer_pruner.tasks import plain_source, source_name
from transfer_pruner.transfers import transfers_from_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_RANKINGS = 4
MOST_TASKS = 80
LIBRARIES = ("transfer-pruner", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib")


def write_report(
    records: Iterable[TrialRecord],
    path: str | os.PathLike[str],
    *,
    maximize: bool = True,
    rule: EliminationRule | LearningRule | None = None,
    title: str | None = None,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    trials: pd.DataFrame | None = None,
    embeddings: Mapping[str, TaskEmbedding] | None = None,
) -> None:
    """Write what a search's elimination saved and lost as one self-contained HTML file.

    Each figure's data is written beside it, as CSV in the folder ``<name of the file>-data``. What
    stood there under the same names is replaced.

    Parameters
    ----------
    records : iterable of TrialRecord
        The search's trials.
    path : path-like
        Of the HTML file; its folder is made if need be.
    maximize : bool
        Whether a higher value is better.
    rule : EliminationRule or LearningRule, optional
        What eliminated; its rankings are drawn and its settings stated. One that learns is drawn as
        it decides after all of `records`.
    title : str, optional
    single_task_seconds, attribution_seconds
        As for `estimate_savings`.
    trials : DataFrame, optional
        An exhaustive search's trials, as for `regret`, columns dev and test: what elimination lost
        is then measured.
    embeddings : mapping of str to TaskEmbedding, optional
        Of the tasks: they are drawn as a map.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is no record, `path` is a folder, or `trials` lacks a column or a baseline trial.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must name a file but {str(path)!r} is a folder: add report.html.")
    records = [replace(r, source=plain_source(r.source, r.target)) for r in records]
    if not records:
        raise ValueError("records must hold at least one trial but is empty.")
    costs = (single_task_seconds, attribution_seconds)
    decided = _as_of_now(rule, records, maximize)
    savings = estimate_savings(
        records, single_task_seconds=single_task_seconds, attribution_seconds=attribution_seconds
    )
    audit = estimate_audit(records, maximize=maximize)
    pairs = pairs_table(records, maximize=maximize)
    exhibits = [
        *_of_search(records, maximize, costs),
        _heatmap(pairs, decided),
        *([] if trials is None else [_tradeoff(trials, pairs, decided, attribution_seconds)]),
        *([] if embeddings is None else [_map(embeddings)]),
        *([] if decided is None else [_rankings(decided, records)]),
    ]
    folder = path.parent / f"{path.stem}-data"
    data = {"pairs": pairs} | {exhibit.name: exhibit.data for exhibit in exhibits}
    html = page(
        title or "What elimination saved, and what it cost",
        [
            section("Headline", _headline(savings)),
            *([section("Audit", _audited(audit))] if audit.trials_audited else []),
            *(section(exhibit.title, exhibit.html(folder.name)) for exhibit in exhibits),
            section("Pairs", _pairs_html(pairs, folder.name)),
            section("What is estimated, and how", _HOW),
            section("Provenance", _provenance(rule, decided, records)),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in data.items():
        write_atomically(folder / f"{name}.csv", encoded(rows.to_csv(index=False)))
    # Of an earlier report that had more to show: numbers that belong to no figure mislead.
    for name in set(_NAMES) - set(data):
        (folder / f"{name}.csv").unlink(missing_ok=True)
    write_atomically(path, encoded(html))


def pairs_table(records: Iterable[TrialRecord], *, maximize: bool = True) -> pd.DataFrame:
    """Tabulate what became of each pair of a search; joint sources are one row.

    Returns
    -------
    DataFrame
        By target and score: source (empty for the single-task baseline), target, joint, decision,
        score, probability, reason (what was last said of the pair), trials_trained,
        trials_eliminated, trials_failed, mean_gain (measured), seconds (measured).
    """
    records = sorted(records, key=lambda record: record.number)
    gains = plotting.measured_gains(records, maximize=maximize)
    mean = gains.groupby(["source", "target", "joint"])["gain"].mean().to_dict()
    groups: dict[tuple[str, str, bool], list[TrialRecord]] = {}
    for record in records:
        source = plain_source(record.source, record.target)
        key = (source_name(source), record.target, isinstance(source, tuple))
        groups.setdefault(key, []).append(record)
    rows = []
    for key, group in groups.items():
        scored = [record for record in group if not math.isnan(record.score)]
        said = (scored or [record for record in group if record.reason] or group)[-1]
        outcomes = [record.outcome for record in group]
        rows.append(
            {
                **dict(zip(("source", "target", "joint"), key, strict=True)),
                "decision": _decision(group) if key[0] else "single-task baseline",
                "score": said.score,
                "probability": said.probability,
                "reason": said.reason,
                "trials_trained": outcomes.count("trained"),
                "trials_eliminated": outcomes.count("eliminated"),
                "trials_failed": outcomes.count("failed"),
                "mean_gain": mean.get(key, math.nan),
                "seconds": sum(record.seconds for record in group),
            }
        )
    table = pd.DataFrame(rows).sort_values(
        ["target", "score", "source"], ascending=[True, False, True], kind="stable"
    )
    first = table["decision"] != "single-task baseline"
    return (
        table.assign(_first=first)
        .sort_values(["target", "_first"], kind="stable", ignore_index=True)
        .drop(columns="_first")
    )


def _decision(group: Sequence[TrialRecord]) -> str:
    eliminated = any(record.outcome == "eliminated" or record.audit for record in group)
    kept = any(record.outcome != "eliminated" and not record.audit for record in group)
    if kept and eliminated:
        return "kept in some trials, eliminated in others"
    if kept:
        return "kept"
    return "eliminated, audited" if any(record.audit for record in group) else "eliminated"


@dataclass(frozen=True)
class _Exhibit:
    """A figure, or several, with the table that it is drawn from."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    draw: Callable[[], Sequence[Figure]]
    why_not: str

    def html(self, folder: str) -> str:
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


_NAMES = (
    *("pairs", "savings_over_time", "calibration_curve", "predicted_and_measured"),
    *("pair_heatmap", "savings_regret_curve", "task_map", "source_ranking"),
)


def _of_search(
    records: list[TrialRecord], maximize: bool, costs: tuple[float, float]
) -> list[_Exhibit]:
    over_time = plotting.savings_over_time_data(
        records, single_task_seconds=costs[0], attribution_seconds=costs[1]
    )
    calibration = plotting.calibration_curve_data(records, maximize=maximize)
    predicted = plotting.predicted_and_measured_data(records, maximize=maximize)
    no_gain = (
        "no pair has both a {} and a measured gain. A gain takes a trial with a source and a "
        "baseline trial of the same target."
    )
    return [
        _Exhibit(
            "savings_over_time",
            "Seconds spent and saved as the search went on",
            "At each point, what was measured and what is estimated from the trials up to there. "
            "Attribution is paid for at the start.",
            over_time,
            lambda: [plotting.savings_over_time(over_time)],
            "",
        ),
        _Exhibit(
            "predicted_and_measured",
            "Predicted and measured gain",
            "One mark a pair: what was predicted when its first trial ran, and the mean measured "
            "gain of its trials. Eliminated pairs are there as far as audit trials ran them. "
            "Joint trials are left out; so are, where a rule learnt as the search ran, pairs that "
            "it had scored by attributions before.",
            predicted,
            lambda: [plotting.predicted_and_measured(predicted)],
            "" if len(predicted) else no_gain.format("score"),
        ),
        _Exhibit(
            "calibration_curve",
            "Did the probabilities come true?",
            "Each pair that ran counts once, with the probability said when its first trial ran. "
            "The intervals are those of independent pairs; pairs that share a task are not quite. "
            "Pairs that ran are not a random sample: the rule kept them, or an audit drew them.",
            calibration,
            lambda: [plotting.calibration_curve(calibration)],
            "" if len(calibration) else no_gain.format("probability"),
        ),
    ]


def _heatmap(pairs: pd.DataFrame, decided: EliminationRule | None) -> _Exhibit:
    single = pairs[~pairs["joint"] & (pairs["source"] != "")]
    scores = single if decided is None else decided.table()
    # Attribution scores and predicted gains have no common order.
    learnt = scores["probability"].notna()
    scores = scores[learnt] if learnt.any() else scores
    tasks = sorted({*single["source"], *single["target"], *scores["source"], *scores["target"]})

    def square(table: pd.DataFrame, column: str) -> pd.DataFrame:
        wide = table.pivot(index="source", columns="target", values=column)
        return wide.reindex(index=tasks, columns=tasks)

    predicted, measured = square(scores, "score"), square(single, "mean_gain")
    gone = single.assign(gone=single["decision"].str.startswith("eliminated"))
    crossed = square(gone, "gone").eq(True)
    data = plotting.pair_heatmap_data(predicted.astype(float), measured.astype(float))
    why_not = "no pair has a score or a measured gain." if data.empty else ""
    if len(tasks) > MOST_TASKS:
        why_not = f"{len(tasks)} tasks are too many to be read; their numbers are in the table."
    return _Exhibit(
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


def _tradeoff(
    trials: pd.DataFrame,
    pairs: pd.DataFrame,
    decided: EliminationRule | None,
    attribution_seconds: float,
) -> _Exhibit:
    single = pairs[~pairs["joint"] & (pairs["source"] != "")]
    paid = attribution_seconds if "seconds" in trials else 0.0
    ways = {"the search's last scores": single} if decided is None else {"the rule": decided}
    data = plotting.savings_regret_curve_data(trials, ways, attribution_seconds=paid)
    return _Exhibit(
        "savings_regret_curve",
        "What keeping fewer sources saves, and what it loses",
        "Measured on an exhaustive search's trials: each target's best trial is chosen on the dev "
        "split and reported on the test split, so a share can exceed 100%. A rule that learnt "
        "from these same targets flatters itself here.",
        data,
        lambda: [plotting.savings_regret_curve(data)],
        "",
    )


def _map(embeddings: Mapping[str, TaskEmbedding]) -> _Exhibit:
    data = plotting.task_map_data(embeddings)
    return _Exhibit(
        "task_map",
        "Tasks by the similarity of their attributions",
        "Classical scaling: what the two axes do not show, their labels say.",
        data,
        lambda: [plotting.task_map(data)],
        "",
    )


def _rankings(decided: EliminationRule, records: Iterable[TrialRecord]) -> _Exhibit:
    targets = list(dict.fromkeys(decided.table()["target"]))
    count = pd.Series([record.target for record in records]).value_counts()
    targets.sort(key=lambda target: (-count.get(target, 0), str(target)))
    by_target = {target: plotting.source_ranking_data(decided, target) for target in targets}
    drawn = targets[:MOST_RANKINGS]
    some = f"The {len(drawn)} targets with most trials of {len(targets)}. "
    return _Exhibit(
        "source_ranking",
        "Sources of a target",
        (some if len(drawn) < len(targets) else "") + "As the rule ranks and decides them.",
        pd.concat([table.assign(target=target) for target, table in by_target.items()])
        if by_target
        else pd.DataFrame(columns=["source", "target"]),
        lambda: [plotting.source_ranking(by_target[target], target) for target in drawn],
        "",
    )


def _as_of_now(
    rule: EliminationRule | LearningRule | None, records: list[TrialRecord], maximize: bool
) -> EliminationRule | None:
    if not isinstance(rule, LearningRule):
        return rule
    try:
        return rule.refitted(transfers_from_records(records, maximize=maximize))
    except ValueError:
        return rule.refitted()


def _headline(savings: Savings) -> str:
    low, high = savings.estimated_seconds_saved_interval
    interval = f"{savings.confidence:.0%} interval {number(low)} to {number(high)}"
    rows = [
        ("seconds spent", number(savings.seconds_spent), "measured"),
        ("    training of trials", number(savings.training_seconds), "measured"),
        ("        of these, audit trials", number(savings.audit_seconds), "measured"),
        ("    single-task models", number(savings.single_task_seconds), "measured, as given"),
        ("    attribution", number(savings.attribution_seconds), "measured, as given"),
        ("    deciding", number(savings.deciding_seconds), "measured"),
        (
            "seconds of the exhaustive search",
            number(savings.estimated_exhaustive_seconds),
            "estimated",
        ),
        ("seconds saved", number(savings.estimated_seconds_saved), f"estimated, {interval}"),
        ("share saved", number(savings.estimated_fraction_saved, "{:.1%}"), "estimated"),
        ("trials trained", str(savings.trials_trained), "counted"),
        ("    of these, audit trials", str(savings.trials_audited), "counted"),
        ("trials eliminated", str(savings.trials_eliminated), "counted"),
        ("trials failed", str(savings.trials_failed), "counted"),
        ("pairs trained", str(savings.pairs_trained), "counted"),
        ("pairs eliminated", str(savings.pairs_eliminated), "counted"),
    ]
    return f'<p class="headline">{escape(savings.headline())}</p>' + table(
        ("", "value", "how it is known"), rows, numeric=(1,)
    )


def _audited(audit: AuditEstimate) -> str:
    low, high = audit.missed_gain_interval
    known = (
        "" if math.isnan(low) else f" Interval of the mean gain missed: {low:.4f} to {high:.4f}."
    )
    return (
        f'<p class="headline">{escape(audit.headline())}</p><p>Audit trials are eliminated trials '
        f"that ran all the same, drawn at random: {audit.trials_audited} of "
        f"{audit.trials_eliminated}, {number(audit.audit_seconds)} s, measured. What they say of "
        f"the other eliminated trials is an estimate.{known}</p>"
    )


def _pairs_html(pairs: pd.DataFrame, folder: str) -> str:
    header = (
        *("source", "target", "decision", "score", "estimated probability", "trials trained"),
        *("trials eliminated", "trials failed", "mean measured gain", "seconds", "reason"),
    )
    rows = [
        (
            row["source"] or "(no source)",
            row["target"],
            row["decision"],
            number(row["score"], "{:.4f}", ""),
            number(row["probability"], "{:.2f}", ""),
            *(str(row[f"trials_{what}"]) for what in ("trained", "eliminated", "failed")),
            number(row["mean_gain"], "{:+.4f}", ""),
            number(row["seconds"]),
            row["reason"],
        )
        for row in pairs.to_dict("records")
    ]
    return (
        "<p>Score and probability are estimated; trials, gain and seconds are measured. Seconds of "
        "an eliminated trial are what deciding took.</p>"
        + table(header, rows, numeric=range(3, 10), classes="pairs")
        + link(folder, "pairs")
    )


_HOW = """<ul>
<li><b>Seconds spent</b> are measured: wall-clock seconds of every trial, audit trials and failed
ones too, of single-task training and of attribution.</li>
<li><b>Seconds saved</b> are estimated. An eliminated trial never ran; it is taken to cost what
trained trials like it cost. A regression tree over the hyperparameters groups trials of similar
duration, and the mean of its group stands in. The interval is a bootstrap over those trials.
Attribution and deciding are paid for.</li>
<li><b>Measured gain</b> of a pair: its trials' values minus the mean value of the target's
baseline trials with the same hyperparameters, else of all of them; positive is better.</li>
<li><b>Score</b> and <b>probability</b> are predictions. Where there is a probability, the score is
an estimated gain; where there is none, it ranks the sources of a target by attributions alone.</li>
<li><b>False-elimination rate</b>: measured on audit trials, an estimate for the others, with
Clopper and Pearson's interval.</li>
<li><b>Regret and share of attainable gain kept</b> need an exhaustive search and are measured on
it. Without one, the audit is what says what was missed.</li>
</ul>"""


def _provenance(
    rule: EliminationRule | LearningRule | None,
    decided: EliminationRule | None,
    records: Sequence[TrialRecord],
) -> str:
    rows = [
        ("written", datetime.now(UTC).isoformat(timespec="seconds")),
        (
            "trials",
            f"{len(records)}, numbers {min(r.number for r in records)} to "
            f"{max(r.number for r in records)}",
        ),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in LIBRARIES),
    ]
    if rule is None or decided is None:
        return table(("", ""), [("rule", "not given"), *rows])
    settings = json.dumps(decided.settings, indent=1, default=str, ensure_ascii=False)
    said = "" if decided is rule else ", refitted to the measured transfers of all these trials"
    rows = [
        ("rule", repr(rule) + said),
        ("settings", settings),
        ("pairs it decides", str(len(decided))),
        ("fingerprint", decided.fingerprint),
        *rows,
    ]
    return table(("", ""), rows)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
