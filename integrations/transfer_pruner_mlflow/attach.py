"""Which run a search is shown in, found in the caller's thread and without asking any server."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import optuna

DEFAULT_EXPERIMENT = "transfer_pruner"
_LONGEST_NAME = 500  # MLflow's own limit
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Attachment:
    """Where to write.

    Attributes
    ----------
    tracking_uri : str
        Resolved: what somebody sets later changes nothing.
    experiment : str
        Where a run is created if there is none to write into.
    run_id : str or None
        Somebody else's run, which is never ended here; None to create one.
    parent_run_id : str or None
        The active run that a created one stands under in the list, if in the same experiment.
    """

    tracking_uri: str
    experiment: str
    run_id: str | None = None
    parent_run_id: str | None = None


def attach(
    experiment: str | None,
    run_id: str | None,
    tracking_uri: str | None,
    study: optuna.Study | None,
) -> Attachment:
    """Find the run: the first of these that there is.

    1. `run_id`; 2. the run that an `MlflowStorage` study is; and if no `experiment` is named,
    3. the active run of this thread; 4. ``MLFLOW_RUN_ID``; 5. a new run. A named experiment asks
    for a run there, so the active run is then its parent at most.

    Raises
    ------
    ValueError
        If `experiment` is empty or too long.
    mlflow.exceptions.MlflowException
        If the tracking URI has a scheme that MLflow does not know.
    """
    import mlflow

    if experiment is not None and not 0 < len(experiment.strip()) <= _LONGEST_NAME:
        raise ValueError(
            f"experiment must be a name of at most {_LONGEST_NAME} characters but got "
            f"{experiment!r}; leave it out for none."
        )
    study_run, study_uri = _run_of(study)
    current = mlflow.get_tracking_uri()
    uri = _absolute(tracking_uri or (study_uri if run_id is None else None) or current)
    name = experiment or DEFAULT_EXPERIMENT
    if urlsplit(uri).scheme.partition("+")[0] not in _DATABASES:
        # Asks no server, and refuses what MLflow cannot write to. A database it would ask.
        mlflow.MlflowClient(tracking_uri=uri)
    if run_id or (study_run and study_uri and _absolute(study_uri) == uri):
        return Attachment(uri, name, run_id or study_run)
    if uri != _absolute(current):
        # An active run and MLFLOW_RUN_ID are runs of the current store.
        return Attachment(uri, name)
    active = mlflow.active_run()
    if experiment is None:
        active_id = active.info.run_id if active is not None else None
        return Attachment(uri, name, active_id or os.environ.get("MLFLOW_RUN_ID") or None)
    return Attachment(uri, name, None, active.info.run_id if active is not None else None)


def _run_of(study: optuna.Study | None) -> tuple[str | None, str | None]:
    """Tell the run that a study of `mlflow.optuna.MlflowStorage` is, and its tracking URI."""
    # A study with that storage has imported it; to others this must not cost an import.
    module = sys.modules.get("mlflow.optuna.storage")
    if study is None or module is None or not isinstance(study._storage, module.MlflowStorage):
        return None, None
    return str(study._study_id), study._storage._mlflow_client.tracking_uri


def _absolute(uri: str) -> str:
    """Resolve an SQLite file now: training may change the working directory."""
    prefix = "sqlite:///"
    path = uri.removeprefix(prefix)
    if not uri.startswith(prefix) or not path or path.startswith((":memory:", "file:")):
        return uri
    return prefix + str(Path(path).absolute())
