"""Replay a spool: what MLflow lacks of a search is sent, what it has is left alone."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer_pruner.files import without_password
from transfer_pruner_mlflow.attach import DEFAULT_EXPERIMENT
from transfer_pruner_mlflow.ledger import Ledger, Point
from transfer_pruner_mlflow.spool import DEFAULT_DIRECTORY, Spool, SpoolInUseError, tell

if TYPE_CHECKING:
    from transfer_pruner_mlflow.run import SavingsRun

# Of a spool whose first line is lost: it becomes a run of its own.
_LOST: dict[str, Any] = {
    "experiment": DEFAULT_EXPERIMENT,
    "run_name": "savings",
    "tracking_uri": None,
    "run_id": None,
    "parent_run_id": None,
    "beneath": False,
    "tags": {},
    "params": {},
}


@dataclass(frozen=True)
class Synced:
    """What a replay came to.

    Attributes
    ----------
    runs : int
        Spools replayed.
    decisions : int
        Trials in them, each of which MLflow now holds once.
    points_sent, points_already_there : int
        Values of step metrics.
    run_ids : tuple of str
    not_sent : tuple of str
        Spools, and files that belong to runs, that are not in MLflow yet: which, why, and what to
        do.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner_mlflow import SavingsTracker, sync
    >>> with SavingsTracker("news", maximize=True, report=False) as tracker:
    ...     tracker.record(TrialRecord(0, None, "news", "trained", 60.0, value=0.61))
    >>> synced = sync(tracker.spool)
    >>> synced.runs, synced.decisions, synced.not_sent
    (1, 1, ())
    """

    runs: int
    decisions: int
    points_sent: int
    points_already_there: int
    run_ids: tuple[str, ...]
    not_sent: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.runs} runs with {self.decisions} decisions: {self.points_sent} points sent, "
            f"{self.points_already_there} were there. {' '.join((*self.run_ids, *self.not_sent))}"
        ).strip()


def sync(
    spool: str | os.PathLike[str] = DEFAULT_DIRECTORY,
    *,
    tracking_uri: str | None = None,
    run_id: str | None = None,
) -> Synced:
    """Send what an outage, or the end of a process, kept from MLflow; safe to repeat.

    Every point has the step and the time of its decision. Points that the run has are not sent
    again, tables are written whole, and a run whose creation was not answered is found by its tag.
    A run that the tracker created is ended: KILLED if the search never closed its tracker. What of
    a folder, or of a run's files, cannot be sent is warned about and left for the next time.

    Parameters
    ----------
    spool : path
        A spool, or a folder of them: of these, the ones that MLflow does not hold yet.
    tracking_uri : str, optional
        Where the search sent it, if left out.
    run_id : str, optional
        Another run to write one spool into, where the search's own is gone. It is not ended.

    Returns
    -------
    Synced

    Raises
    ------
    ValueError
        If there is no such spool, or it is a single one that a search still writes, that holds
        nothing, or that does not say where to send it.
    mlflow.exceptions.MlflowException
        If MLflow does not answer, after the retries that your environment asks for, or refuses a
        single spool for good: then the message says what to do.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner_mlflow import SavingsTracker, sync
    >>> with SavingsTracker("news", maximize=True, report=False) as tracker:
    ...     tracker.record(TrialRecord(0, None, "news", "trained", 60.0, value=0.61))
    >>> sync(tracker.spool).points_sent
    0
    """
    path = Path(spool)
    if not path.exists():
        raise ValueError(f"spool is {str(path)!r}, which is neither a file nor a folder.")
    silent: set[str] = set()
    if path.is_file():
        only = _replay(path, tracking_uri, run_id, silent, only_new=False)
        if only is None:
            raise ValueError(f"spool {path} holds no event of a search.")
        return only
    if run_id is not None:
        raise ValueError(f"run_id is {run_id!r}, so spool must be one file but is a folder.")
    found: list[Synced] = []
    not_sent: list[str] = []
    for file in sorted(path.glob("*.jsonl")):
        try:
            one = _replay(file, tracking_uri, None, silent, only_new=True)
        except SpoolInUseError:
            continue  # by a search that sends it itself
        except Exception as error:
            not_sent.append(f"{file}: {without_password(str(error))}")
            tell(not_sent[-1])
        else:
            found += [one] if one is not None else []
    return Synced(
        runs=len(found),
        decisions=sum(one.decisions for one in found),
        points_sent=sum(one.points_sent for one in found),
        points_already_there=sum(one.points_already_there for one in found),
        run_ids=tuple(run for one in found for run in one.run_ids),
        not_sent=(*not_sent, *(what for one in found for what in one.not_sent)),
    )


def _replay(
    path: Path, tracking_uri: str | None, run_id: str | None, silent: set[str], *, only_new: bool
) -> Synced | None:
    """Send one spool; None if it holds nothing to send.

    `silent` gathers addresses where nobody answered.
    """
    with _open(path) as spool:
        last = deque(spool.events(), maxlen=1)
        if not last or (only_new and last[0].kind == "synced"):
            return None
        ledger = Ledger(spool.taken)
        points = [point for event in spool.take() for point in ledger.add(event)]
        if not ledger.closed:
            points += ledger.estimates()
        settings = _LOST | ledger.settings | ({} if run_id is None else {"run_id": run_id})
        uri = tracking_uri or settings["tracking_uri"]
        if uri is None:
            raise ValueError(
                f"spool {path} does not say where to send it, since the address holds a password "
                "or the line that named it is lost: pass tracking_uri=."
            )
        if uri in silent:
            raise _outage("not tried, since its server did not answer before")
        try:
            run, failed = _send(spool, ledger, points, settings, uri)
        except Exception as error:
            raise _explained(error, uri, silent) from error
        not_sent = [f"{path}: {name}: {why}" for name, why in failed.items()]
        for what in not_sent:
            tell(what)
        if not failed:
            spool.append("synced", {"tracking_uri": settings["tracking_uri"]})
        return Synced(
            1, ledger.decided, run.sent, run.already_there, (run.run_id,), tuple(not_sent)
        )


def _send(
    spool: Spool, ledger: Ledger, points: list[Point], settings: dict[str, Any], uri: str
) -> tuple[SavingsRun, dict[str, str]]:
    """Write the run; return it, and what of its files could not be stored."""
    from mlflow import MlflowClient

    from transfer_pruner_mlflow.run import SavingsRun

    run = SavingsRun(
        MlflowClient(tracking_uri=uri),
        settings,
        spool.id,
        run_id=ledger.run_id,
        uncertain=True,
    )
    run.send(points)
    for name, why in run.refused.items():
        tell(f"metric {name!r}: MLflow refuses it and it is left out: {why}")
    run.finish(ledger)
    return run, run.store(ledger)


def _explained(error: Exception, uri: str, silent: set[str]) -> Exception:
    """Say whether asking again will do, and else what will."""
    from transfer_pruner_mlflow.run import refusal

    refused = refusal(error)
    if refused is not None:
        return refused
    silent.add(uri)
    return _outage(f"{error}")


def _outage(what: str) -> Exception:
    from mlflow.exceptions import MlflowException

    return MlflowException(f"MLflow did not take it; sync again once it answers: {what}")


@contextmanager
def _open(path: Path) -> Iterator[Spool]:
    spool = Spool(path, _raise)
    try:
        yield spool
    finally:
        spool.close()


def _raise(error: OSError) -> None:
    raise error
