"""Replay a spool: what MLflow lacks of a search is sent, what it has is left alone."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from transfer_pruner_mlflow.ledger import Ledger
from transfer_pruner_mlflow.spool import DEFAULT_DIRECTORY, Spool


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
    """

    runs: int
    decisions: int
    points_sent: int
    points_already_there: int
    run_ids: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.runs} runs with {self.decisions} decisions: {self.points_sent} points sent, "
            f"{self.points_already_there} were there. {' '.join(self.run_ids)}".strip()
        )


def sync(
    spool: str | os.PathLike[str] = DEFAULT_DIRECTORY, *, tracking_uri: str | None = None
) -> Synced:
    """Send what an outage, or the end of a process, kept from MLflow; safe to repeat.

    Every point has the step and the time of its decision. Points that the run has are not sent
    again, tables are written whole, and a run whose creation was not answered is found by its tag.
    A run that the tracker created is ended: KILLED if the search never closed its tracker.

    Parameters
    ----------
    spool : path
        A spool, or a folder of them: of these, the ones that MLflow does not hold yet.
    tracking_uri : str, optional
        Where the search sent it, if left out.

    Returns
    -------
    Synced

    Raises
    ------
    ValueError
        If there is no such spool, a search still writes it, or it does not say where to send it.
    mlflow.exceptions.MlflowException
        If MLflow does not answer, after the retries that your environment asks for.
    """
    path = Path(spool)
    if not path.exists():
        raise ValueError(f"spool is {str(path)!r}, which is neither a file nor a folder.")
    if path.is_file():
        counts = [_replay(path, tracking_uri, only_new=False)]
    else:
        counts = [_replay(file, tracking_uri, only_new=True) for file in path.glob("*.jsonl")]
    found = [count for count in counts if count is not None]
    return Synced(
        runs=len(found),
        decisions=sum(count.decisions for count in found),
        points_sent=sum(count.points_sent for count in found),
        points_already_there=sum(count.points_already_there for count in found),
        run_ids=tuple(run_id for count in found for run_id in count.run_ids),
    )


def _replay(path: Path, tracking_uri: str | None, only_new: bool) -> Synced | None:
    from mlflow import MlflowClient

    from transfer_pruner_mlflow.run import SavingsRun

    spool = Spool(path, _raise)
    try:
        last = deque(spool.events(), maxlen=1)
        if not last:
            raise ValueError(f"spool {path} holds no event of a search.")
        if only_new and last[0].kind == "synced":
            return None
        ledger = Ledger(spool.taken)
        points = [point for event in spool.take() for point in ledger.add(event)]
        if not ledger.closed:
            points += ledger.estimates()
        uri = tracking_uri or ledger.settings["tracking_uri"]
        if uri is None:
            raise ValueError(
                f"spool {path} does not say where to send it, since that address holds a "
                "password: pass tracking_uri=."
            )
        run = SavingsRun(
            MlflowClient(tracking_uri=uri),
            ledger.settings,
            spool.id,
            run_id=ledger.run_id,
            uncertain=True,
        )
        run.send(points)
        run.summarise(ledger)
        run.end(ledger.status)
        spool.append("synced", {"tracking_uri": ledger.settings["tracking_uri"]})
        return Synced(1, ledger.decided, run.sent, run.already_there, (run.run_id,))
    finally:
        spool.close()


def _raise(error: OSError) -> None:
    raise error
