"""Real storages for tests: opened from plain words, read past Optuna, and served here."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

# How a worker that is slow to get its turn waits, where SQLite's five seconds are too short.
PATIENCE = 120.0
# Seconds without a heartbeat after which a trial has died.
GRACE = 4
# What Optuna calls of a trial that died; 4.9 renamed it, and takes the old name with a warning.
CALLBACKS = ("heartbeat_stale_trial_callback", "failed_trial_callback")


def open_storage(kind: str, where: str, heartbeat: int = 0) -> Any:
    """Open a storage as a worker on another machine would: by its kind and its place.

    With a heartbeat, every so many seconds, trials that died fail and are run again.
    """
    if kind == "journal":
        # A worker that is killed may hold the lock; others wait this long before they take it.
        return JournalStorage(JournalFileBackend(where, JournalFileSymlinkLock(where, 10)))
    if kind == "grpc":
        proxy = optuna.storages.GrpcStorageProxy(host="localhost", port=int(where))
        proxy.wait_server_ready(timeout=60)
        return proxy
    waiting = {"connect_args": {"timeout": PATIENCE}} if kind == "sqlite" else None
    beating: dict[str, Any] = {}
    if heartbeat:
        beating = {"heartbeat_interval": heartbeat, "grace_period": GRACE}
        names = inspect.signature(RDBStorage).parameters
        beating[next(name for name in CALLBACKS if name in names)] = running_again()
    return get_storage(RDBStorage(where, engine_kwargs=waiting, **beating))


def running_again() -> Any:
    """Make what Optuna calls of a trial that died, for it to run again."""
    storages = optuna.storages
    name = "RetryHeartbeatStaleTrialCallback"
    return getattr(storages, name, storages.RetryFailedTrialCallback)(max_retry=3)


@dataclass
class Row:
    """A trial as the storage has it, read without Optuna."""

    state: str = "WAITING"
    seconds: float = 0.0
    attributes: dict[str, Any] = field(default_factory=dict)


def read_rows(kind: str, where: str, study: str) -> dict[int, Row]:
    """Read a study's trials by their numbers, with SQL or out of the journal's lines."""
    return _read_journal(Path(where), study) if kind == "journal" else _read_tables(where, study)


def _read_tables(url: str, study: str) -> dict[int, Row]:
    engine = sqlalchemy.create_engine(url)
    of_study = "JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :study"
    with engine.connect() as connection:
        trials = connection.execute(
            sqlalchemy.text(
                "SELECT t.number, t.state, t.datetime_start, t.datetime_complete "
                f"FROM trials t {of_study}"
            ),
            {"study": study},
        ).all()
        attributes = connection.execute(
            sqlalchemy.text(
                "SELECT t.number, a.key, a.value_json FROM trial_user_attributes a "
                f"JOIN trials t ON t.trial_id = a.trial_id {of_study}"
            ),
            {"study": study},
        ).all()
    engine.dispose()
    rows = {number: Row(state, _seconds(begun, ended)) for number, state, begun, ended in trials}
    for number, key, value in attributes:
        rows[number].attributes[key] = json.loads(value)
    return rows


def _read_journal(file: Path, study: str) -> dict[int, Row]:
    """Replay the journal: of workers that set one state at once, the first has it."""
    names = ["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"]
    studies: list[str] = []
    trials: list[Row] = []
    begun: list[str | None] = []
    ours: list[Row] = []
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        operation = entry["op_code"]
        if operation == 0:
            studies.append(entry["study_name"])
        elif operation == 4:
            row = Row(names[entry.get("state", 0)])
            trials.append(row)
            begun.append(entry.get("datetime_start"))
            if studies[entry["study_id"]] == study:
                ours.append(row)
        elif operation == 6:
            number, state = entry["trial_id"], names[entry["state"]]
            row = trials[number]
            if state == "RUNNING" and row.state == "WAITING":
                row.state, begun[number] = state, entry["datetime_start"]
            elif state != "RUNNING" and row.state in ("RUNNING", "WAITING"):
                row.state = state
                row.seconds = _seconds(begun[number], entry["datetime_complete"])
        elif operation == 8:
            trials[entry["trial_id"]].attributes |= entry["user_attr"]
    return dict(enumerate(ours))


def _seconds(begun: Any, ended: Any) -> float:
    if not begun or not ended:
        return 0.0
    first, last = (
        moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
        for moment in (begun, ended)
    )
    return (last - first).total_seconds()


@contextmanager
def grpc_proxy(url: str) -> Iterator[str]:
    """Serve a database to processes that only reach a port; the port is what they need."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    serve = (
        "import sys; from optuna.storages import get_storage, run_grpc_proxy_server; "
        "run_grpc_proxy_server(get_storage(sys.argv[1]), host='localhost', port=int(sys.argv[2]))"
    )
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", serve, url, str(port)])
    try:
        yield str(port)
    finally:
        server.kill()
        server.wait()
