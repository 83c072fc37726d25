"""A report of a search as one HTML file that renders offline and prints.

What it must satisfy: what was found comes first, then what that cost; nothing in it is fetched or
run, whatever tasks are called; measured and estimated figures are marked as such; and the numbers
of every figure lie beside it as CSV.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from transfer_pruner.answer import SHOWN, SHOWN_NUMBERS, Answer, find_answer
from transfer_pruner.audit import AuditEstimate, estimate_audit
from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.files import write_atomically
from transfer_pruner.records import TrialRecord, is_maximizing
from transfer_pruner.report import exhibits
from transfer_pruner.report.html import encoded, link, number, page, section, table
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.savings import Savings, estimate_savings
from transfer_pruner.tables import pairs_table
from transfer_pruner.transfers import transfers_from_records
from transfer_pruner.trust import RankingTrust, trust_of_search

LIBRARIES = ("transfer-pruner", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib")


def write_report(
    records: Iterable[TrialRecord],
    path: str | os.PathLike[str],
    *,
    maximize: bool | None = None,
    rule: EliminationRule | LearningRule | None = None,
    title: str | None = None,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    scoring_seconds: float = 0.0,
    trials: pd.DataFrame | None = None,
    embeddings: Mapping[str, TaskEmbedding] | None = None,
    dev_sizes: int | Mapping[str, int] | None = None,
    exhaustive_trials: int | None = None,
    stopped: str | None = None,
) -> None:
    """Write what a search found, and what elimination saved and lost, as one self-contained page.

    Each figure's data is written beside it, as CSV in the folder ``<name of the file>-data``. What
    stood there under the same names is replaced.

    Parameters
    ----------
    records : iterable of TrialRecord
        The search's trials.
    path : path-like
        Of the HTML file; its folder is made if need be.
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.
    rule : EliminationRule or LearningRule, optional
        What eliminated; its rankings are drawn and its settings stated, and how far its ranking
        holds, if it has not learnt from these trials. One that learns is drawn as it decides after
        all of `records`.
    title : str, optional
    single_task_seconds, attribution_seconds, scoring_seconds
        As for `estimate_savings`.
    trials : DataFrame, optional
        An exhaustive search's trials, as for `regret`, columns dev and test: what elimination lost
        is then measured. Where less is better in the search, so it is there.
    embeddings : mapping of str to TaskEmbedding, optional
        Of the tasks: they are drawn as a map.
    dev_sizes : int or mapping of target to int, optional
        How many examples a target's values were measured on.
    exhaustive_trials, stopped
        As for `estimate_savings`: how many trials the exhaustive search has, and why this one
        ended. Of an Optuna study `transfer_pruner_optuna.ending_from_study` gives both, of
        an experiment of Ray Tune's `transfer_pruner_ray.ending_from_results`.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is no record, some maximize and some minimize, `path` is a folder, or `trials`
        lacks a column or a baseline trial.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, write_report
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> write_report(records, "report.html", title="Sources for news")
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must name a file but {str(path)!r} is a folder: add report.html.")
    records = list(records)
    if not records:
        raise ValueError("records must hold at least one trial but is empty.")
    better = is_maximizing(records, maximize)
    if rule is not None:
        scoring_seconds = max(scoring_seconds, rule.scoring_seconds)
    before: dict[str, Any] = {
        "single_task_seconds": single_task_seconds,
        "attribution_seconds": attribution_seconds,
        "scoring_seconds": scoring_seconds,
    }
    answer = find_answer(records, maximize=better, dev_sizes=dev_sizes)
    savings = estimate_savings(
        records,
        **before,
        exhaustive_trials=exhaustive_trials,
        stopped=stopped,
    )
    decided = _as_of_now(rule, records, better)
    ranked_by = rule if rule is not None else embeddings
    trust = None if ranked_by is None else trust_of_search(records, ranked_by, maximize=better)
    audit = estimate_audit(records, maximize=better)
    pairs = pairs_table(records, maximize=better)
    shown = [
        exhibits.best_over_time(records, better),
        exhibits.pairs_tried(records),
        exhibits.savings_over_time(records, before),
        exhibits.predicted_and_measured(records, better),
        exhibits.calibration_curve(records, better),
        exhibits.pair_heatmap(pairs, decided),
    ]
    if trials is not None:
        trials = trials if better else _negated(trials)
        paid = savings.attribution_seconds + savings.scoring_seconds
        shown.append(exhibits.savings_regret_curve(trials, pairs, decided, paid))
    if embeddings is not None:
        shown.append(exhibits.task_map(embeddings))
    if decided is not None:
        shown.append(exhibits.source_ranking(decided, records))
    folder = path.parent / f"{path.stem}-data"
    data = {"answer": answer.table(), "pairs": pairs} | {
        exhibit.name: exhibit.data for exhibit in shown
    }
    html = page(
        title or "What the search found, and what it cost",
        [
            section("What the search found", _answer_html(answer, folder.name)),
            section("Headline", _headline(savings)),
            *([section("Audit", _audited(audit))] if audit.trials_audited else []),
            *([section("How far the ranking holds here", _trusted(trust))] if trust else []),
            *(section(exhibit.title, exhibit.html(folder.name)) for exhibit in shown),
            section("Pairs", _pairs_html(pairs, folder.name)),
            section("What is estimated, and how", _HOW),
            section("Provenance", _provenance(rule, decided, records)),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in data.items():
        write_atomically(folder / f"{name}.csv", encoded(rows.to_csv(index=False)))
    # Of an earlier report that had more to show: numbers that belong to no figure mislead.
    for name in set(exhibits.NAMES) - set(data):
        (folder / f"{name}.csv").unlink(missing_ok=True)
    write_atomically(path, encoded(html))


def _as_of_now(
    rule: EliminationRule | LearningRule | None, records: list[TrialRecord], maximize: bool
) -> EliminationRule | None:
    if not isinstance(rule, LearningRule):
        return rule
    try:
        return rule.refitted(transfers_from_records(records, maximize=maximize))
    except ValueError:
        return rule.refitted()


def _negated(trials: pd.DataFrame) -> pd.DataFrame:
    """Turn the scores of an exhaustive search around, for `regret` takes the higher as better."""
    scores = [column for column in ("dev", "test") if column in trials]
    return trials.assign(**{column: -trials[column] for column in scores})


def _answer_html(answer: Answer, folder: str) -> str:
    shown = answer.shown()
    numeric = [SHOWN.index(name) for name in SHOWN_NUMBERS]
    return (
        f'<p class="headline">{escape(answer.headline())}</p><p>All measured. The gain is over the '
        "best of training alone. What was chosen as the best of many configurations is on average "
        "less good than its score: measure it again, on examples that it was not chosen by.</p>"
        + table(SHOWN, [list(row.values()) for row in shown], numeric=numeric, classes="pairs")
        + link(folder, "answer")
    )


def _headline(savings: Savings) -> str:
    interval = _interval(savings, savings.estimated_seconds_saved_interval)
    rows = [
        ("seconds spent", number(savings.seconds_spent), "measured"),
        ("    training of trials", number(savings.training_seconds), "measured"),
        ("        of these, audit trials", number(savings.audit_seconds), "measured"),
        ("    single-task models", number(savings.single_task_seconds), "measured, as given"),
        ("    attribution", number(savings.attribution_seconds), "measured, as given"),
        ("    proxy scores", number(savings.scoring_seconds), "measured"),
        ("    deciding", number(savings.deciding_seconds), "measured"),
        (
            "seconds of the exhaustive search",
            number(savings.estimated_exhaustive_seconds),
            "estimated",
        ),
        ("seconds saved", number(savings.estimated_seconds_saved), f"estimated, {interval}"),
        *_never_started_seconds(savings),
        ("share saved", number(savings.estimated_fraction_saved, "{:.1%}"), "estimated"),
        ("trials trained", str(savings.trials_trained), "counted"),
        ("    of these, audit trials", str(savings.trials_audited), "counted"),
        ("trials eliminated", str(savings.trials_eliminated), "counted"),
        ("trials failed", str(savings.trials_failed), "counted"),
        *_never_started(savings),
        ("pairs trained", str(savings.pairs_trained), "counted"),
        ("pairs eliminated", str(savings.pairs_eliminated), "counted"),
    ]
    why = f"<p>Why it stopped: {escape(savings.stopped)}</p>" if savings.stopped else ""
    return f'<p class="headline">{escape(savings.headline())}</p>{why}' + table(
        ("", "value", "how it is known"), rows, numeric=(1,)
    )


def _interval(savings: Savings, of: tuple[float, float]) -> str:
    return f"{savings.confidence:.0%} interval {number(of[0])} to {number(of[1])}"


def _never_started_seconds(savings: Savings) -> list[tuple[str, str, str]]:
    if savings.trials_never_started is None:
        return []
    interval = _interval(savings, savings.estimated_never_started_seconds_interval)
    seconds = number(savings.estimated_never_started_seconds)
    return [("    of these, of trials never started", seconds, f"estimated, {interval}")]


def _never_started(savings: Savings) -> list[tuple[str, str, str]]:
    if savings.trials_never_started is None:
        return []
    of = f"of {savings.exhaustive_trials} that the exhaustive search has"
    return [("trials never started", str(savings.trials_never_started), of)]


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


def _trusted(trust: RankingTrust) -> str:
    said = str(trust)
    return (
        f'<p class="headline">{escape(said[0].upper() + said[1:])}</p><p>Measured: the order of '
        "a target's sources before any of these trials, held against the gains of those that "
        "trained. Where the search took the best-ranked pairs, it says nothing of the others.</p>"
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
ones too, of single-task training, of attribution and of proxy scores.</li>
<li><b>Seconds saved</b> are estimated. An eliminated trial never ran; it is taken to cost what
trained trials like it cost. A regression tree over the hyperparameters groups trials of similar
duration, and the mean of its group stands in. The interval is a bootstrap over those trials.
Attribution, proxy scores and deciding are paid for. A trial that was never started, where the size
of the exhaustive search is known, is taken to cost the mean of trained trials with a source.</li>
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
