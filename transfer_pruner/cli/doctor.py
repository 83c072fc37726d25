"""The command that says what is wrong and what to do about it: doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from transfer_pruner.cli.options import DIRECTORY
from transfer_pruner.cli.program import Answer, answers, command

_COLOURS = {"ok": "green", "absent": "bright_black", "warning": "yellow", "broken": "red"}


@command(
    "transfer-pruner doctor --storage sqlite:///study.db --embeddings embeddings/ --rule rule/",
    "transfer-pruner doctor --models models/",
)
@click.option("--storage", help="Optuna storage to open: storage URL or journal file.")
@click.option("--tracking-uri", help="MLflow server or database to reach.")
@click.option(
    "--models", "models_dir", type=DIRECTORY, help="Folder of models, or one model's, to load."
)
@click.option("--embeddings", "embeddings_dir", type=DIRECTORY, help="Task embeddings to load.")
@click.option("--rule", "rule_dir", type=DIRECTORY, help="Rule to load.")
@answers
def doctor(
    storage: str | None,
    tracking_uri: str | None,
    models_dir: Path | None,
    embeddings_dir: Path | None,
    rule_dir: Path | None,
) -> Answer:
    """Check the installation and what a search reads; exit code 1 if something is broken."""
    from transfer_pruner import doctor as checking
    from transfer_pruner.cli.options import list_studies

    checks = [*checking.check_packages(), checking.check_torch()]
    if storage is not None:
        checks.append(checking.check_storage(storage, list_studies))
    if tracking_uri is not None:
        checks.append(checking.check_tracking(tracking_uri))
    if models_dir is not None:
        checks += checking.check_models(models_dir)
    tasks: list[str] = []
    if embeddings_dir is not None:
        found, tasks = checking.check_embeddings(embeddings_dir)
        checks += found
    if rule_dir is not None:
        checks += checking.check_rule(rule_dir, tasks)
    broken = sum(check.status == "broken" for check in checks)
    lines = []
    for check in checks:
        status = click.style(f"{check.status:8}", fg=_COLOURS[check.status])
        lines.append(f"{status} {check.name}: {check.found}")
        if check.advice:
            lines.append(f"         -> {check.advice}")
    summary = f"{broken} broken." if broken else "Nothing is broken."
    data = {"broken": broken, "checks": [asdict(check) for check in checks]}
    return Answer(data, [*lines, summary], exit_code=int(broken > 0))
