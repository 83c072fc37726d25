"""The thread that sends a spool to MLflow.

What it must satisfy: whatever the server does, nobody waits for it longer than they say, and nobody
hears of it after that; what was not sent is sent when the server answers again; and a long outage
or a long search costs no memory.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from transfer_pruner.files import without_password
from transfer_pruner_mlflow.ledger import Ledger, Point
from transfer_pruner_mlflow.spool import Spool, guarded, tell

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

    Attributes
    ----------
    run_id, experiment_id : str or None
        None until MLflow has answered.
    connected, closing : threading.Event
    unstored : dict of str to str or None
        Artifacts that could not be stored, and why; None before all were tried.
    """

    def __init__(
        self,
        spool: Spool,
        tracking_uri: str,
        settings: dict[str, Any],
        run_id: str | None,
    ) -> None:
        # A daemon, so that a server that hangs cannot keep the user's process from ending.
        super().__init__(name="savings-tracker", daemon=True)
        self.run_id = run_id
        self.experiment_id: str | None = None
        self.connected, self.closing = threading.Event(), threading.Event()
        self.unstored: dict[str, str] | None = None
        self._spool = spool
        self._tracking_uri = tracking_uri
        self._settings = settings
        self._run: SavingsRun | None = None
        self._ledger = Ledger(spool.taken)
        self._unsent: list[Point] = []
        self._uncertain = spool.resumed
        self._told: set[str] = set()
        self._given_up = False
        self._telling = threading.Lock()

    def close(self, seconds: float) -> None:
        """Wait for MLflow to have everything; what is still to be sent then is left to a replay."""
        self.closing.set()
        self.join(seconds)
        with self._telling:
            self._given_up = True

    def run(self) -> None:
        """Write, in the thread's own time."""
        failures, next_attempt, hangs = 0, 0.0, False
        while True:
            closing = self.closing.wait(_FLUSH_SECONDS if self._run or failures else 0)
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
        if self.unstored == {}:
            guarded(lambda: self._spool.append("synced", {}))
        self._spool.close()

    def _attempt(self, closing: bool) -> None:
        if self._run is None:
            self._run = self._connect()
        while not self._given_up and (self._unsent or self._take()):
            self._run.send(self._unsent)
            self._unsent = []
            for name, why in self._run.refused.items():
                self._tell(f"metric {name!r}", f"MLflow refuses it and it is left out: {why}")
        if closing and not self._given_up:
            self._run.finish(self._ledger)
            self.unstored = self._run.store(self._ledger, lambda: self._given_up)

    def _take(self) -> list[Point]:
        for event in self._spool.take():
            self._unsent += self._ledger.add(event)
            # Which points of an earlier session were sent, the run is asked only once.
            if len(self._unsent) >= _MOST_POINTS and not self._uncertain:
                return self._unsent
        self._uncertain = False
        return self._unsent

    def _connect(self) -> SavingsRun:
        from transfer_pruner_mlflow._private import limited_client
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
        from transfer_pruner_mlflow.run import refusal

        logger.info("MLflow could not be written to", exc_info=error)
        refused = refusal(error)
        what = f"{type(error).__name__}: {error}" if refused is None else str(refused)
        what = without_password(what)[:400]
        when = "when MLflow answers" if refused is None else "once that is mended"
        self._tell(
            "MLflow could not be written to" if refused is None else "MLflow refuses this search",
            f"{what}. The search goes on; its decisions are kept in {self._spool.path} and sent "
            f"{when}.",
        )

    def _tell(self, of_what: str, message: str) -> None:
        """Tell once, and nobody who has stopped waiting: they were told of what is not sent."""
        with self._telling:
            if of_what not in self._told and not self._given_up:
                self._told.add(of_what)
                tell(f"{of_what}: {message}")
