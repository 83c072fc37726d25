"""The thread that sends a spool to MLflow.

What it must satisfy: whatever the server does, nobody waits for it longer than they say; what was
not sent is sent when the server answers again; and a long outage or a long search costs no memory.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from transfer_pruner_mlflow.ledger import Ledger, Point
from transfer_pruner_mlflow.messages import Messages
from transfer_pruner_mlflow.spool import Spool, password_of

if TYPE_CHECKING:
    from transfer_pruner_mlflow.run import SavingsRun

_FLUSH_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0
# Points to hold at a time, about one batch of MLflow's.
_MOST_POINTS = 1000

logger = logging.getLogger(__name__)


class Writer(threading.Thread):
    """Send what a spool holds every moment, until closed; after failures, at longer times.

    Parameters
    ----------
    spool : Spool
    tracking_uri : str
    settings : dict
        The spool's last "run" event.
    run_id : str or None
        The run that an earlier session wrote into, or somebody else's.
    messages : Messages

    Attributes
    ----------
    run_id, experiment_id : str or None
        None until MLflow has answered.
    connected, closing : threading.Event
    complete : bool
        Whether MLflow has everything and the run is ended.
    """

    def __init__(
        self,
        spool: Spool,
        tracking_uri: str,
        settings: dict[str, Any],
        run_id: str | None,
        messages: Messages,
    ) -> None:
        # A daemon, so that a server that hangs cannot keep the user's process from ending.
        super().__init__(name="savings-tracker", daemon=True)
        self.run_id = run_id
        self.experiment_id: str | None = None
        self.connected, self.closing = threading.Event(), threading.Event()
        self.complete = False
        self._spool = spool
        self._tracking_uri = tracking_uri
        self._settings = settings
        self._messages = messages
        self._run: SavingsRun | None = None
        self._ledger = Ledger(spool.taken)
        self._unsent: list[Point] = []
        self._uncertain = spool.resumed
        self._told_of_failure = False

    def close(self, seconds: float) -> bool:
        """Wait for MLflow to have everything; say whether it has."""
        self.closing.set()
        self.join(seconds)
        return self.complete

    def run(self) -> None:
        """Write, in the thread's own time."""
        failures, next_attempt, hangs = 0, 0.0, False
        while True:
            closing = self.closing.wait(_FLUSH_SECONDS if self._run or failures else 0)
            self._messages.tell()
            self._spool.sync()
            began = time.monotonic()
            # A last attempt when closing, unless the server keeps one waiting.
            if began >= next_attempt or (closing and not hangs):
                try:
                    self._attempt(closing)
                    failures, next_attempt = 0, 0.0
                except Exception as error:
                    failures += 1
                    pause = min(_FLUSH_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS)
                    next_attempt = time.monotonic() + pause
                    hangs = time.monotonic() - began > _FLUSH_SECONDS
                    self._failed(error)
            if closing:
                break
        if self.complete:
            self._messages.guard(lambda: self._spool.append("synced", {}))
        self._spool.close()

    def _attempt(self, closing: bool) -> None:
        if self._run is None:
            self._run = self._connect()
        while self._unsent or self._take():
            self._run.send(self._unsent)
            self._unsent = []
        if closing:
            self._run.summarise(self._ledger)
            self._run.end(self._ledger.status)
            self.complete = True

    def _take(self) -> list[Point]:
        for event in self._spool.take():
            self._unsent += self._ledger.add(event)
            # Which points of an earlier session were sent, the run is asked only once.
            if len(self._unsent) >= _MOST_POINTS and not self._uncertain:
                return self._unsent
        self._uncertain = False
        return self._unsent

    def _connect(self) -> SavingsRun:
        from transfer_pruner_mlflow.client import limited_client
        from transfer_pruner_mlflow.run import SavingsRun

        run = SavingsRun(
            limited_client(self._tracking_uri),
            self._settings,
            self._spool.id,
            run_id=self.run_id,
            uncertain=self._uncertain,
        )
        self._spool.append("connected", {"run_id": run.run_id})
        # Whoever goes on with this run later finds its spool by that name.
        self._spool.rename(run.run_id)
        self.run_id, self.experiment_id = run.run_id, run.experiment_id
        self.connected.set()
        return run

    def _failed(self, error: Exception) -> None:
        logger.info("MLflow could not be written to", exc_info=error)
        if not self._told_of_failure:
            self._told_of_failure = True
            password = password_of(self._tracking_uri)
            what = f"{type(error).__name__}: {error}"
            what = what.replace(f":{password}@", ":***@") if password else what
            self._messages.add(
                f"MLflow could not be written to ({what[:300]}). The search goes on; its decisions "
                f"are kept in {self._spool.path} and sent when MLflow answers."
            )
            self._messages.tell()
