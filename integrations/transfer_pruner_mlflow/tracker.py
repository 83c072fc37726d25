"""The savings of one search as one MLflow run, written by a thread of its own.

What it must satisfy: training never waits for MLflow and never sees its errors, whatever the server
does; what is decided is on disk before it is sent; no run is ended that was not created here; and
no global state of MLflow (active run, tracking URI, environment) is changed.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import transfer_pruner
from transfer_pruner.embedding import TransferPrunerWarning
from transfer_pruner.learning import LearningRule
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule import EliminationRule
from transfer_pruner.savings import Savings, estimate_savings
from transfer_pruner_mlflow.attach import attach
from transfer_pruner_mlflow.ledger import Ledger, Point
from transfer_pruner_mlflow.spool import (
    DEFAULT_DIRECTORY,
    Event,
    Kind,
    Spool,
    SpoolInUseError,
    encode_record,
    password_of,
)

if TYPE_CHECKING:
    import os

    import optuna
    from matplotlib.figure import Figure

    from transfer_pruner_mlflow.run import SavingsRun

_FLUSH_SECONDS = 2.0
_CONNECT_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class SavingsTracker:
    """Show a search's savings as one MLflow run.

    The run gets step metrics ``savings/...`` after the n-th trial, ``audit/...`` if there are audit
    trials, the tables ``savings/pairs`` and ``savings/decisions``, and a description whose first
    line is the headline. Trials are not runs: an eliminated trial costs a row, not a red cross in
    the list.

    Parameters
    ----------
    experiment : str, optional
        Name of the experiment to create a run in; made if it does not exist. Left out, an active
        run is written into, then the run of ``MLFLOW_RUN_ID``; if there is neither, a run is
        created in ``transfer_pruner``.
    run_name : str
        Of a run that is created.
    tracking_uri : str, optional
        MLflow's own default if left out: the tracking URI that is set, else
        ``sqlite:///mlflow.db`` in the working directory.
    run_id : str, optional
        A run to write into, before all others. It is not ended here.
    study : optuna.Study, optional
        If its storage is ``mlflow.optuna.MlflowStorage``, the study's run is written into. It also
        tells `maximize`.
    rule : EliminationRule or LearningRule, optional
        What decides: its fingerprint and settings become tags, and parameters of a created run.
    maximize : bool, optional
        Whether a higher value is better. Left out and no `study` given, measured gains and audit
        figures are left out too.
    single_task_seconds, attribution_seconds : float
        Seconds spent before the search, as for `estimate_savings`.
    spool : path
        Folder of the file that everything is written to before it is sent;
        `transfer_pruner_mlflow.sync` replays it.
    close_seconds : float
        Longest wait for MLflow when the search is over.

    Attributes
    ----------
    run_id, experiment_id : str or None
        None until MLflow has answered, which may be after the context is left.
    spool : Path
        The file, once the context is entered.

    Raises
    ------
    ImportError
        If mlflow is not installed.
    ValueError
        If a parameter is out of range.

    Notes
    -----
    A server that is down, hangs or fails costs one warning: the search goes on, and what is spooled
    is sent when the server answers again, by this tracker or by `sync`. Entering the context waits
    two seconds for MLflow at most.
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        run_name: str = "savings",
        tracking_uri: str | None = None,
        run_id: str | None = None,
        study: optuna.Study | None = None,
        rule: EliminationRule | LearningRule | None = None,
        maximize: bool | None = None,
        single_task_seconds: float = 0.0,
        attribution_seconds: float = 0.0,
        spool: str | os.PathLike[str] = DEFAULT_DIRECTORY,
        close_seconds: float = 60.0,
    ) -> None:
        try:
            # Here and not in the writer: two threads that import at once can meet in a cycle.
            from mlflow import MlflowClient  # noqa: F401
        except ImportError as error:
            # A bare `import mlflow` would find a folder of that name in the working directory.
            raise ImportError(
                "SavingsTracker needs mlflow: pip install 'transfer-pruner[mlflow]'."
            ) from error
        if not close_seconds >= 0:
            raise ValueError(f"close_seconds cannot be negative but got {close_seconds}.")
        self._attachment = attach(experiment, run_id, tracking_uri, study)
        self.experiment = self._attachment.experiment
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.run_id = self._attachment.run_id
        self.experiment_id: str | None = None
        self.single_task_seconds = single_task_seconds
        self.attribution_seconds = attribution_seconds
        self.close_seconds = close_seconds
        self.spool = Path(spool).absolute()
        if maximize is None and study is not None and len(study.directions) == 1:
            maximize = study.direction.name == "MAXIMIZE"
        self._settings: dict[str, Any] = {
            "experiment": self.experiment,
            "run_name": run_name,
            "maximize": maximize,
            "single_task_seconds": single_task_seconds,
            "attribution_seconds": attribution_seconds,
            "tags": _tags(rule),
            "params": _params(rule),
        }
        self._records: dict[int, TrialRecord] = {}
        # Guards the spool and what is not taken from it yet; never held while MLflow is asked.
        self._lock = threading.Lock()
        self._file: Spool | None = None
        self._events: deque[Event] = deque()
        self._waiting: list[tuple[Kind, dict[str, Any]]] = []
        self._messages: deque[str] = deque()
        password = password_of(self._attachment.tracking_uri)
        self._password = (f":{password}@", ":***@") if password else ("", "")
        self._uncertain = self._complete = self._told_of_failure = False
        self._connected, self._closing = threading.Event(), threading.Event()
        # A daemon, so that a server that hangs cannot keep the user's process from ending.
        self._writer = threading.Thread(target=self._write, name="savings-tracker", daemon=True)

    def __enter__(self) -> Self:
        with self._lock:
            self._open_spool()
            for kind, data in self._waiting:
                self._events.append(self._spooled(kind, data))
            self._waiting.clear()
        self._writer.start()
        self._connected.wait(_CONNECT_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if _interrupted(kind) else "FAILED"
        self._append("closed", {"status": status})
        self._closing.set()
        self._writer.join(self.close_seconds)
        if not self._complete:
            self._messages.append(self._incomplete())
        self._tell()

    def record(self, record: TrialRecord) -> None:
        """Take the record of one trial; returns at once, from any thread, and never raises.

        A record with the number of an earlier one replaces it, so a study can be replayed.
        """
        self._records[record.number] = record
        self._guarded(lambda: self._append("trial", encode_record(record)))

    def savings(self) -> Savings:
        """Estimate the savings of the trials recorded so far, by this tracker."""
        return estimate_savings(
            list(self._records.values()),
            single_task_seconds=self.single_task_seconds,
            attribution_seconds=self.attribution_seconds,
        )

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write further figures into the run; those that are no finite number are left out."""

        def append() -> None:
            values = {str(name): float(value) for name, value in metrics.items()}
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._append("metrics", finite)

        self._guarded(append)

    def log_figure(self, figure: Figure, artifact: str) -> None:
        """Write a figure of matplotlib or plotly into the run, e.g. as ``"savings/pairs.png"``.

        A figure of plotly becomes a page of its own, ``.html``, that needs no network.
        """
        file = self._place(artifact)

        def save() -> None:
            if hasattr(figure, "write_html"):
                figure.write_html(file, include_plotlyjs=True)
            else:
                figure.savefig(file)
            self._append("artifact", {"artifact": artifact, "file": str(file)})

        self._guarded(save)

    def log_report(
        self, path: str | os.PathLike[str], artifact: str = "savings/report.html"
    ) -> None:
        """Put a file, such as a self-contained report, into the run.

        Parameters
        ----------
        path : path
            Copied now; the run gets it when the tracker is closed.
        artifact : str
            Its name in the run.

        Raises
        ------
        ValueError
            If there is no such file, or the name is no relative one.
        """
        if not Path(path).is_file():
            raise ValueError(f"path is {str(path)!r}, which is no file.")
        file = self._place(artifact)

        def copy() -> None:
            shutil.copyfile(path, file)
            self._append("artifact", {"artifact": artifact, "file": str(file)})

        self._guarded(copy)

    # The spool: in the caller's thread.

    def _open_spool(self) -> None:
        attachment = self._attachment
        folder = self.spool
        try:
            self._file = Spool(folder / f"{attachment.run_id or uuid4().hex}.jsonl", self._no_disk)
        except SpoolInUseError:
            self._messages.append(
                f"another tracker writes into the run {attachment.run_id}, whose steps would mix: "
                "this search gets a run of its own beneath it."
            )
            self.run_id = None
            self._file = Spool(folder / f"{uuid4().hex}.jsonl", self._no_disk)
        beneath = attachment.run_id if self.run_id is None else None
        uri = attachment.tracking_uri
        self._events.extend(self._file.earlier)
        self._uncertain = bool(self._file.earlier)
        where = {
            "tracking_uri": None if password_of(uri) else uri,
            "run_id": self.run_id,
            "parent_run_id": beneath or attachment.parent_run_id,
            "beneath": beneath is not None,
        }
        self._settings |= where
        self._events.append(self._file.append("run", self._settings))
        self.spool = self._file.path

    def _append(self, kind: Kind, data: dict[str, Any]) -> None:
        with self._lock:
            if self._file is None:
                self._waiting.append((kind, data))
            elif not self._closing.is_set():
                self._events.append(self._spooled(kind, data))

    def _spooled(self, kind: Kind, data: dict[str, Any]) -> Event:
        assert self._file is not None
        return self._file.append(kind, data)

    def _place(self, artifact: str) -> Path:
        """Find a place for a copy of an artifact, beside the spool if there is one."""
        name = PurePosixPath(artifact)
        if not artifact or name.is_absolute() or ".." in name.parts:
            raise ValueError(
                f"artifact must be a relative name, as 'savings/pairs.png', but got {artifact!r}."
            )
        spooled = self._file is not None and self._file.works
        folder = self._file.path.with_suffix("") if spooled and self._file else None
        try:
            file = (folder or Path(tempfile.mkdtemp(prefix="transfer_pruner_"))) / name
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # Writing to it fails too, and that is told.
            logger.debug("no place for %s: %s", artifact, error)
            return Path(name.name)
        return file

    def _no_disk(self, error: OSError) -> None:
        self._messages.append(
            f"the spool cannot be written ({error}): what MLflow does not take before this process "
            "ends is lost. The search goes on."
        )

    # MLflow: in the writer's thread.

    def _write(self) -> None:
        """Send what was recorded every moment, until closed; after failures, at longer times."""
        failures, next_attempt, hangs = 0, 0.0, False
        run: SavingsRun | None = None
        ledger = Ledger()
        unsent: list[Point] = []
        while True:
            closing = self._closing.wait(_FLUSH_SECONDS if run or failures else 0)
            self._tell()
            if self._file is not None:
                self._file.sync()
            began = time.monotonic()
            # A last attempt when closing, unless the server keeps one waiting.
            if began >= next_attempt or (closing and not hangs):
                try:
                    run = run or self._connect()
                    while self._events:
                        unsent += ledger.add(self._events.popleft())
                    run.send(unsent)
                    unsent = []
                    if closing:
                        run.summarise(ledger)
                        run.end(ledger.status)
                        self._complete = True
                    failures, next_attempt = 0, 0.0
                except Exception as error:
                    failures += 1
                    pause = min(_FLUSH_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS)
                    next_attempt = time.monotonic() + pause
                    hangs = time.monotonic() - began > _FLUSH_SECONDS
                    self._failed(error)
            if closing:
                break
        if self._file is not None:
            if self._complete:
                self._guarded(lambda: self._spooled("synced", {}))
            self._file.close()

    def _connect(self) -> SavingsRun:
        from transfer_pruner_mlflow.client import limited_client
        from transfer_pruner_mlflow.run import SavingsRun

        assert self._file is not None
        client = limited_client(self._attachment.tracking_uri)
        run = SavingsRun(client, self._settings, self._file.id, uncertain=self._uncertain)
        with self._lock:
            self._file.append("connected", {"run_id": run.run_id})
            # Whoever goes on with this run later finds its spool by that name.
            self._file.rename(run.run_id)
            self.spool = self._file.path
        self.run_id, self.experiment_id = run.run_id, run.experiment_id
        self._connected.set()
        return run

    def _failed(self, error: Exception) -> None:
        logger.info("MLflow could not be written to", exc_info=error)
        if not self._told_of_failure:
            self._told_of_failure = True
            what = f"{type(error).__name__}: {error}".replace(*self._password)[:300]
            self._messages.append(
                f"MLflow could not be written to ({what}). The search goes on; its decisions are "
                f"kept in {self.spool} and sent when MLflow answers."
            )
            self._tell()

    def _incomplete(self) -> str:
        if self._file is None or not self._file.works:
            return "MLflow has not taken everything and there is no spool: the rest is lost."
        return (
            "MLflow has not taken everything. Once it answers, this sends the rest: "
            f"python -m transfer_pruner_mlflow {self.spool}"
        )

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except Exception as error:
            self._messages.append(f"left out of MLflow: {type(error).__name__}: {error}")

    def _tell(self) -> None:
        """Warn of what there is to tell; where warnings are errors, training must not see them."""
        while True:
            try:
                message = self._messages.popleft()
            except IndexError:
                return
            try:
                warnings.warn(message, TransferPrunerWarning, stacklevel=3)
            except TransferPrunerWarning:
                logger.warning(message)


def _interrupted(kind: type[BaseException]) -> bool:
    return issubclass(kind, KeyboardInterrupt)


def _tags(rule: EliminationRule | LearningRule | None) -> dict[str, str]:
    tags = {"transfer_pruner.version": transfer_pruner.__version__}
    if rule is None:
        return tags
    tags["transfer_pruner.rule"] = json.dumps(rule.settings, default=str)[:4000]
    if isinstance(rule, EliminationRule):
        tags["transfer_pruner.rule_fingerprint"] = rule.fingerprint
    return tags


def _params(rule: EliminationRule | LearningRule | None) -> dict[str, str]:
    """Take the settings that tell runs apart in MLflow's comparison."""
    if rule is None:
        return {}
    return {
        f"transfer_pruner.{name}": str(value)
        for name, value in rule.settings.items()
        if isinstance(value, (str, int, float)) and len(str(value)) <= 250
    }
