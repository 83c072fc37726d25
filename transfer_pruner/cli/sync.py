"""The command that sends to MLflow what an outage kept from it: sync."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click

from transfer_pruner.cli.program import Answer, answers, command, fail, needing


@command(
    "transfer-pruner sync .transfer_pruner/spool",
    "transfer-pruner sync SPOOL --tracking-uri http://localhost:5000",
)
@click.argument("spool", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--tracking-uri", help="Where to send it; left out, where the search did.")
@answers
def sync(spool: Path | None, tracking_uri: str | None) -> Answer:
    """Send to MLflow what an outage kept from it: a spool, or a folder of them. Safe to repeat."""
    # MLflow's own default keeps somebody at a terminal waiting for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with needing("mlflow", "sync"):
        from mlflow import MlflowClient  # noqa: F401
        from mlflow.exceptions import MlflowException

        from transfer_pruner_mlflow import sync as send
    from transfer_pruner.files import one_line

    try:
        sent = send(*([spool] if spool else []), tracking_uri=tracking_uri)
    except MlflowException as error:
        fail(one_line(error))
    named = {f.name: getattr(sent, f.name) for f in fields(sent)} if is_dataclass(sent) else sent
    lines = [f"{name.replace('_', ' ')}: {_listed(x)}" for name, x in named.items()]
    return Answer(named, lines, exit_code=int(bool(sent.not_sent)))


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
