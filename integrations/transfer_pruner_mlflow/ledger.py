"""From a spool's events to what MLflow shows; every figure follows from the events alone.

What it must satisfy: the same events give the same points, with the same steps and timestamps,
while the search runs and at any replay. So a point that is sent twice is one point. Of a trial
only a number, its seconds and what became of it stay in memory: the rest is read again from the
events when a figure needs it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pandas as pd

from transfer_pruner.answer import Answer, find_answer
from transfer_pruner.audit import AuditEstimate, estimate_audit
from transfer_pruner.progress import is_milestone
from transfer_pruner.records import TrialRecord
from transfer_pruner.savings import Savings, estimate_savings
from transfer_pruner.tables import pairs_table, trials_table
from transfer_pruner.trust import RankingTrust
from transfer_pruner_mlflow.note import REGRET, describe
from transfer_pruner_mlflow.spool import Event, decode_record

TRUST = "trust/"
TRUST_METRICS = ("correlation", "low", "high", "level", "n_pairs", "n_targets")
"""Of a `RankingTrust`, as metrics; one that is NaN is left out."""
# Estimates change slowly and are costly: at times of their own, never further apart than this.
_ESTIMATE_MILLISECONDS = 60_000


_Key = tuple[int, str]


class Point(NamedTuple):
    """One value of a step metric; the step is the number of trials decided by then."""

    key: str
    value: float
    timestamp: int
    step: int


class Ledger:
    """What is known of a search after some of its events.

    Parameters
    ----------
    taken : callable, optional
        Gives every event that was added so far, again; left out, they are kept here.

    Attributes
    ----------
    artifacts : dict of str to str
        Name in MLflow to file.
    settings : dict
        Those of the last session.
    run_id : str or None
        The run that the last session wrote into.
    status : str
        How the last session ended.
    closed : bool
        Whether it ended as it should.
    ending : dict
        Why the search ended, and how many trials the exhaustive one has, as `estimate_savings`
        takes it; empty if nobody said.
    """

    def __init__(self, taken: Callable[[], Iterable[Event]] | None = None) -> None:
        self.artifacts: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.run_id: str | None = None
        self.status = "KILLED"
        self.closed = False
        self._kept: list[Event] | None = None if taken else []
        self._taken = taken or (lambda: self._kept or [])
        # A record of an earlier one's trial and pair corrects it. A trial may have others: pairs
        # that were proposed for it first, and eliminated.
        self._known: dict[_Key, tuple[str, float]] = {}
        self._seconds = 0.0
        self._scoring = 0.0
        self._counts: dict[str, int] = {"trained": 0, "eliminated": 0, "failed": 0}
        self._last = 0
        self._last_estimate = 0
        self._unestimated = self._corrected = False
        self._logged: dict[str, float] = {}
        self.ending: dict[str, Any] = {}

    @property
    def maximize(self) -> bool | None:
        """Whether a higher value is better: what was said, else what all trials say."""
        return self._maximize(self.records())

    def _maximize(self, records: list[TrialRecord]) -> bool | None:
        said: bool | None = self.settings.get("maximize")
        if said is None:
            told = {record.maximize for record in records if math.isfinite(record.value)} - {None}
            return told.pop() if len(told) == 1 else None
        return said

    @property
    def decided(self) -> int:
        """Number of trials, and of pairs that were eliminated before a trial took another."""
        return len(self._known)

    def records(self) -> list[TrialRecord]:
        """Return the latest record of every decision, in the order of the trials' numbers."""
        return sorted((record for record, _ in self._decisions()), key=lambda record: record.number)

    def _decisions(self) -> list[tuple[TrialRecord, int]]:
        """Return every decision's latest record and when it was made first, in that order."""
        latest: dict[_Key, dict[str, Any]] = {}
        times: dict[_Key, int] = {}
        for event in self._taken():
            if event.kind == "trial":
                key = _key(event.data)
                latest[key] = event.data
                times.setdefault(key, event.timestamp)
        return [(decode_record(latest[key]), time) for key, time in times.items()]

    def add(self, event: Event) -> list[Point]:
        """Take an event; return the points that it makes."""
        points: list[Point] = []
        if self._kept is not None:
            self._kept.append(event)
        if event.kind == "run":
            self.settings, self.closed, self.status = event.data, False, "KILLED"
        elif event.kind == "connected":
            self.run_id = event.data["run_id"]
        elif event.kind == "trial":
            points = self._add_trial(event)
        elif event.kind == "metrics":
            self._logged |= event.data
            points = self._points(event.data, event.timestamp)
        elif event.kind == "artifact":
            self.artifacts[event.data["artifact"]] = event.data["file"]
        elif event.kind == "ending":
            self.ending, self._unestimated = event.data, bool(self._known)
        elif event.kind == "closed":
            self.status, self.closed = event.data["status"], True
            points = self.estimates()
        return points

    def estimates(self) -> list[Point]:
        """Return every figure of savings and audit at the last step, unless it is known."""
        if not self._unestimated:
            return []
        records = self.records()
        metrics = self._savings(records).metrics()
        if not self._corrected:
            # These have been told with the trial, and are equal but for the order of a sum.
            metrics = {key: value for key, value in metrics.items() if key not in self._told()}
        audit = self._audit(records)
        if audit is not None:
            metrics |= audit.metrics()
        answer = self.answer(records)
        if answer is not None:
            metrics |= answer.metrics() | _best(answer)
        # What corrects a point comes after it, in however short a search.
        timestamp = self._last + self._corrected
        self._unestimated = self._corrected = False
        self._last_estimate = self._last
        return self._points(metrics, timestamp)

    def answer(self, records: list[TrialRecord] | None = None) -> Answer | None:
        """Find what the search found; None where nobody said whether a higher value is better."""
        records = self.records() if records is None else records
        maximize = self._maximize(records)
        if maximize is None:
            return None
        return find_answer(
            records,
            maximize=maximize,
            dev_sizes=self.settings.get("dev_sizes"),
        )

    def trust(self) -> str:
        """Say how far the rule's ranking holds here, if that was looked at."""
        values = (self._logged.get(f"{TRUST}{name}") for name in TRUST_METRICS)
        correlation, low, high, level, *counts = (math.nan if x is None else x for x in values)
        if math.isnan(level):
            return ""
        n_pairs, n_targets = map(int, counts)
        return str(RankingTrust(correlation, low, high, level, n_pairs, n_targets))

    @property
    def kind(self) -> str:
        """What kind of search it is, in a word for MLflow's comparison."""
        told = self.settings.get("tags", {}).get("transfer_pruner.search")
        eliminated = self._counts["eliminated"]
        return str(told or ("elimination" if eliminated else "no elimination"))

    def savings(self) -> Savings:
        """Estimate the savings of the trials so far."""
        return self._savings(self.records())

    def _savings(self, records: list[TrialRecord]) -> Savings:
        return estimate_savings(records, **self._seconds_before(), **self.ending)

    def _audit(self, records: list[TrialRecord]) -> AuditEstimate | None:
        """Estimate what elimination misses; None if no trial was audited."""
        maximize = self._maximize(records)
        if maximize is None or not any(record.audit for record in records):
            return None
        return estimate_audit(records, maximize=maximize)

    def _add_trial(self, event: Event) -> list[Point]:
        key, record, timestamp = _key(event.data), decode_record(event.data), event.timestamp
        known = self._known.get(key)
        # JSON gives a new text each time.
        now = sys.intern(record.outcome), record.seconds
        for one, sign in ((known, -1), (now, 1)):
            if one is not None:
                self._counts[one[0]] += sign
                self._seconds += sign * one[1]
        self._known[key] = now
        self._scoring = max(self._scoring, record.scoring_seconds)
        self._last, self._unestimated = timestamp, True
        if known is not None:
            self._corrected = True
            return []
        # What is told of this step has the corrections of earlier ones in it.
        self._corrected = False
        points = self._points(self._told(), timestamp)
        late = timestamp - self._last_estimate >= _ESTIMATE_MILLISECONDS
        if is_milestone(self.decided) or late:
            points += self.estimates()
        return points

    def _told(self) -> dict[str, float]:
        """Name what is told of every trial: measured, and cheap."""
        return {
            "savings/seconds_spent": self._seconds + sum(self._seconds_before().values()),
            "savings/trials_trained": self._counts["trained"],
            "savings/trials_eliminated": self._counts["eliminated"],
        }

    def _seconds_before(self) -> dict[str, Any]:
        """Name what was spent before the first trial, as `estimate_savings` takes it."""
        names = ("single_task_seconds", "attribution_seconds", "scoring_seconds")
        before: dict[str, Any] = {name: float(self.settings.get(name, 0.0)) for name in names}
        # The rule's, as the run or a trial tells it.
        before["scoring_seconds"] = max(before["scoring_seconds"], self._scoring)
        return before

    def _points(self, metrics: dict[str, float], timestamp: int) -> list[Point]:
        step = self.decided
        return [Point(key, float(value), timestamp, step) for key, value in metrics.items()]

    def decisions_table(self) -> pd.DataFrame:
        """One row a trial, in the order of the decisions: with it all figures can be redone."""
        decisions = self._decisions()
        table = trials_table(record for record, _ in decisions)
        times = [pd.Timestamp(time, unit="ms", tz="UTC").isoformat() for _, time in decisions]
        table.insert(0, "decided", times)
        return table

    def pairs_table(self) -> pd.DataFrame:
        """One row a pair, as `transfer_pruner.tables.pairs_table` makes it.

        Where nobody said whether a higher value is better, there is no measured gain.
        """
        records = self.records()
        maximize = self._maximize(records)
        pairs = pairs_table(records, maximize=maximize is not False)
        if maximize is None:
            pairs = pairs.drop(columns="mean_gain")
        # JSON has no NaN: the UI shows an empty cell for a missing number.
        return pairs.astype(object).where(pairs.notna(), None)

    def note(self) -> str:
        """Describe the search, what was found and the headline first, and say what is measured."""
        records = self.records()
        return describe(
            self.answer(records),
            self._savings(records),
            self._audit(records),
            regret=self._logged.get(REGRET),
            trust=self.trust(),
            rule=self.settings.get("tags", {}).get("transfer_pruner.rule"),
        )


def _best(answer: Answer) -> dict[str, float]:
    """Name the best value of every target."""
    # It imports mlflow, which reading a spool must not need.
    from transfer_pruner_mlflow._private import accepted_name

    return {
        accepted_name("best/", one.target): one.best.value for one in answer.targets if one.best
    }


def _key(data: dict[str, Any]) -> _Key:
    """Tell a decision from others: by its trial's number and its pair."""
    source = data["source"]
    source = " + ".join(source) if isinstance(source, list) else source
    # JSON gives new texts each time.
    return data["number"], sys.intern(f"{source} -> {data['target']}")
