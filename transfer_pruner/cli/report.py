"""The command that writes what a search found, saved and cost: report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from transfer_pruner.cli.options import (
    DIRECTORY,
    FILE,
    OUT_FILE,
    Search,
    read_scores,
    search_options,
)
from transfer_pruner.cli.program import Answer, answers, command, fail, needing, terminal_table


@command(
    "transfer-pruner report --storage sqlite:///study.db --study NAME --out report.html",
    "transfer-pruner report --ray ray_results/NAME --metric f1 --mode max --out report.html",
)
@search_options
@click.option("--rule", "rule_dir", type=DIRECTORY, help="The rule that decided.")
@click.option(
    "--embeddings",
    "embeddings_dir",
    type=DIRECTORY,
    help="Task embeddings: drawn as a map, and their seconds counted.",
)
@click.option(
    "--single-task-seconds", type=float, default=0.0, help="Spent on single-task training."
)
@click.option(
    "--attribution-seconds",
    type=float,
    help="Spent on embedding; left out, what --embeddings say, else 0.",
)
@click.option("--scores", type=FILE, help="Proxy scores: their seconds are counted.")
@click.option(
    "--dev-size", type=click.IntRange(min=1), help="Examples that scores were measured on."
)
@click.option("--title")
@click.option("--out", required=True, type=OUT_FILE, help="HTML file; its data goes beside it.")
@answers
def report(
    rule_dir: Path | None,
    embeddings_dir: Path | None,
    single_task_seconds: float,
    attribution_seconds: float | None,
    scores: Path | None,
    dev_size: int | None,
    title: str | None,
    out: Path,
    **search: Any,
) -> Answer:
    """Write what a search found, what elimination saved and what it cost as one HTML file."""
    where = Search(**search)
    with needing("plot", "report"):
        from transfer_pruner.report.page import write_report
    from transfer_pruner import EliminationRule, estimate_savings, find_answer, load_embeddings
    from transfer_pruner.answer import SHOWN, SHOWN_NUMBERS
    from transfer_pruner.rule.reranking import table_seconds

    rule = EliminationRule.load(rule_dir) if rule_dir else None
    embeddings = load_embeddings(embeddings_dir) if embeddings_dir else None
    if attribution_seconds is None:
        took = [e.provenance.get("seconds", 0.0) for e in (embeddings or {}).values()]
        attribution_seconds = float(sum(took))
    records = where.records(rule)
    if not records:
        fail(
            f"no finished trial has the parameters {', '.join(where.source_params)} and "
            f"{where.target_param}: name them with --source-param and --target-param."
        )
    ending = where.ending()
    before: dict[str, Any] = {
        "single_task_seconds": single_task_seconds,
        "attribution_seconds": attribution_seconds,
        # Of what the trials were decided by they tell themselves, and the rule does.
        "scoring_seconds": max(
            table_seconds(read_scores(scores)) if scores is not None else 0.0,
            rule.scoring_seconds if rule is not None else 0.0,
        ),
    }
    write_report(
        records,
        out,
        rule=rule,
        title=title,
        embeddings=embeddings,
        dev_sizes=dev_size,
        **before,
        **ending,
    )
    found = find_answer(records, dev_sizes=dev_size)
    savings = estimate_savings(
        records,
        **before,
        **ending,
    )
    data = {
        "out": out,
        "trials": len(records),
        "answer": found.as_dict(),
        "savings": asdict(savings),
    }
    # How sure each is does not fit beside it: it stands in the report.
    shown = terminal_table(found.shown(), SHOWN[:-1], SHOWN_NUMBERS)
    why = [f"Why it stopped: {savings.stopped}"] if savings.stopped else []
    said = [found.headline(), savings.headline(), *why, f"Written to {out}."]
    return Answer(data, [shown, *said])
