"""The description of a run: what was found, what that saved, and what of it is measured.

What it must satisfy: MLflow shows three lines of it before it is opened, and cuts it off at 8000
characters.
"""

from __future__ import annotations

from transfer_pruner.answer import SHOWN, Answer
from transfer_pruner.audit import AuditEstimate
from transfer_pruner.savings import Savings

REGRET = "savings/measured_regret"
"""Logged by who has run what was eliminated; the description tells it."""
NOTE_ENDS = "Charts: metrics under `savings/`."
_NO_ANSWER = (
    "What was best is not said: nobody told whether a higher value is better. Give SavingsTracker "
    "`study=` or `maximize=`."
)
# Characters that the table of the answer may take, and one of its cells.
_ROOM, _LONGEST_CELL = 4500, 120


def describe(
    answer: Answer | None,
    savings: Savings,
    audit: AuditEstimate | None,
    *,
    regret: float | None = None,
    trust: str = "",
    rule: str | None = None,
) -> str:
    """Write the description as Markdown; of None nothing is said, but why there is no answer."""
    lines = [
        f"**{answer.headline()}**" if answer is not None else "",
        f"**{savings.headline()} {_lost(audit, regret)}**",
        f"Why it stopped: {savings.stopped}" if savings.stopped else "",
        _answer_table(answer) if answer is not None else _NO_ANSWER,
        "| | seconds | |\n|---|---:|---|\n"
        f"| single-task training | {savings.single_task_seconds:.1f} | measured |\n"
        f"| attribution | {savings.attribution_seconds:.1f} | measured |\n"
        f"| proxy scores | {savings.scoring_seconds:.1f} | measured |\n"
        f"| {savings.trials_trained} trials that trained | {savings.training_seconds:.1f} "
        "| measured |\n"
        f"| {savings.trials_eliminated} eliminated trials, deciding "
        f"| {savings.deciding_seconds:.1f} | measured |\n"
        f"| exhaustive search | {savings.estimated_exhaustive_seconds:.1f} | estimated |",
        f"Audit: {audit.headline()}" if audit is not None else "",
        f"Ranking: {trust}" if trust else "",
        f"Rule: `{rule}`" if rule else "",
        f"{NOTE_ENDS} The best of every target: `savings/answer.csv`; every pair with its reason: "
        "`savings/pairs.csv`; every trial: `savings/decisions.csv`. What is named `estimated_` "
        "rests on a cost model over the trials that trained, since an eliminated trial never ran.",
    ]
    return "\n\n".join(line for line in lines if line)


def _lost(audit: AuditEstimate | None, regret: float | None) -> str:
    """Say in a sentence what the savings cost in score, or that nobody knows."""
    if regret is not None:
        return f"Regret {regret:.4f} (measured)."
    if audit is None or not audit.trials_audited:
        return "What elimination missed is not known: no trial was audited."
    low, high = audit.false_elimination_rate_interval
    return (
        f"False eliminations: {audit.false_eliminations} of {audit.trials_audited} audited, "
        f"{audit.confidence:.0%} interval {low:.0%} to {high:.0%}."
    )


def _answer_table(answer: Answer) -> str:
    """Write the answer as Markdown, as far as a description has room for it."""
    header, rule = "|".join(SHOWN), "|".join("---" for _ in SHOWN)
    lines, room = [f"|{header}|", f"|{rule}|"], _ROOM
    rows = answer.shown()
    for at, row in enumerate(rows):
        cells = (" ".join(cell.split())[:_LONGEST_CELL] for cell in row.values())
        cells = (cell.replace("|", r"\|") for cell in cells)
        line = f"|{'|'.join(cells)}|"
        room -= len(line)
        if room < 0:
            return "\n".join([*lines, f"\n{len(rows) - at} more targets: `savings/answer.csv`."])
        lines.append(line)
    return "\n".join(lines)
