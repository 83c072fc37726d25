"""The files that belong to a run: figures, copies and the report, beside the spool until sent."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner_mlflow.ledger import Ledger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "savings/report.html"


def artifact_name(artifact: str) -> str:
    """Check the name of a file in a run, and write it without detours.

    Raises
    ------
    ValueError
        If it is no relative name.
    """
    name = PurePosixPath(artifact)
    if not name.name or name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"artifact must be a relative name, as 'savings/pairs.png', but got {artifact!r}."
        )
    return str(name)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure of matplotlib, or one of plotly as a page of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(figure, "write_html"):
        figure.write_html(file, include_plotlyjs=True)
    else:
        figure.savefig(file)


def copy_file(path: str | os.PathLike[str], file: Path) -> None:
    """Copy a file, which may be gone or changed when the tracker is closed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, file)


def write_report_files(
    ledger: Ledger,
    folder: Path,
    rule: EliminationRule | LearningRule | None,
    failures: list[str],
) -> dict[str, Path]:
    """Write the report; what is wrong is added to `failures`.

    Returns
    -------
    dict of str to Path
        Name in MLflow to file; empty if there is no trial, or nothing to draw with.
    """
    try:
        return _write(ledger, folder, rule)
    except ImportError as error:
        failures.append(
            f"the report is left out ({error}): pip install 'transfer-pruner[plot]', or pass "
            "report=False."
        )
    except Exception as error:
        failures.append(f"the report is left out: {type(error).__name__}: {error}")
    return {}


def _write(
    ledger: Ledger, folder: Path, rule: EliminationRule | LearningRule | None
) -> dict[str, Path]:
    from transfer_pruner.report.page import write_report

    records, settings = ledger.records(), ledger.settings
    if not records:
        return {}
    maximize = ledger.maximize
    if maximize is None:
        # Nothing can be said of gains and of what audits found.
        records = [replace(record, value=math.nan) for record in records]
    file = folder / REPORT
    write_report(
        records,
        file,
        maximize=maximize is not False,
        rule=rule,
        dev_sizes=settings.get("dev_sizes"),
        single_task_seconds=settings["single_task_seconds"],
        attribution_seconds=settings["attribution_seconds"],
        scoring_seconds=settings.get("scoring_seconds", 0.0),
        **ledger.ending,
    )
    data = sorted(file.with_name(f"{file.stem}-data").iterdir())
    return {path.relative_to(folder).as_posix(): path for path in (file, *data)}
