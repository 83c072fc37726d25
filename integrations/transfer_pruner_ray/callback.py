"""A search of Ray Tune's in a tracker, from callbacks on the driver.

What it must satisfy: nothing here stops a search; a trial is recorded once, however it ends and
however often the experiment is restored; and the experiment's state, which Tune pickles, holds no
thread, file or password of the tracker.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol
from weakref import WeakValueDictionary

from transfer_pruner.records import Recorder
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import PairParams, SourceParam

try:
    from ray.tune import Callback
    from ray.tune.experiment import Trial
except ImportError as error:
    raise ImportError("ray_callback needs ray: pip install 'transfer-pruner[ray]'.") from error

from transfer_pruner_ray.experiment import TuneTrial
from transfer_pruner_ray.records import record_of


class Tracker(Recorder, Protocol):
    """What this needs of a tracker; `transfer_pruner_mlflow.SavingsTracker` is one."""

    rule: EliminationRule | LearningRule | None
    maximize: bool | None

    @property
    def run_id(self) -> str | None:
        """The run that is written into."""

    @property
    def entered(self) -> bool:
        """Whether it was opened, and maybe closed."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def arguments(self) -> dict[str, Any]:
        """Say how to make one that goes on in the same run."""

    def __enter__(self) -> Any:
        """Open it."""

    def __exit__(self, *error: Any) -> None:
        """Close it."""


# Looking through all trials takes a microsecond each, and Tune takes a step for every result.
_LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)

# Of this process: an experiment that is restored while its tracker is open goes on with that.
_trackers: WeakValueDictionary[str, Tracker] = WeakValueDictionary()


class RayCallback(Callback):
    """Record every trial of a Tune experiment as it ends; `SavingsTracker.ray_callback` makes one.

    Tune tells callbacks neither of trials that a scheduler eliminated nor of those that ended
    before a restore. So this looks at all trials, every second and when the experiment is over.
    Where nobody has opened the tracker, it is open while the experiment runs.
    """

    def __init__(
        self,
        tracker: Tracker,
        metric: str | None,
        *,
        source_param: SourceParam,
        target_param: str,
        target: str | None,
        min_iterations: int,
    ) -> None:
        self._tracker: Tracker | None = tracker
        self._make = type(tracker)
        self._arguments: dict[str, Any] = {}
        self._metric = metric
        self._pair_of = PairParams(source_param, target_param, target)
        self._min_iterations = min_iterations
        # A restored experiment has its trials in another order.
        self._numbers: dict[str, int] = {}
        self._opened = self._failed = False
        self._forget()
        self._key = f"{id(tracker)} {time.time_ns()}"
        _trackers[self._key] = tracker

    def _forget(self) -> None:
        self._recorded: dict[str, str] = {}
        self._found, self._lacking = False, ""
        self._looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        arguments = self._arguments if self._tracker is None else self._tracker.arguments()
        return vars(self) | {"_tracker": None, "_arguments": arguments, "_opened": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tracker = _trackers.get(self._key)
        self._forget()

    def get_state(self) -> dict[str, Any]:
        """Take what Tune saves while the experiment runs."""
        run_id = self._tracker.run_id if self._tracker is not None else None
        return {"numbers": dict(self._numbers), "run_id": run_id}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_state` gave."""
        self._numbers = dict(state["numbers"])
        if state["run_id"] is not None:
            self._arguments["run_id"] = state["run_id"]

    def setup(self, *args: Any, **info: Any) -> None:
        """Open the tracker, if nobody has."""
        try:
            self._open()
        except Exception as error:
            self._fail("the search goes on without its tracker", error)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Record what has ended, every second."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._look(trials)
            self._looked = time.monotonic()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Record what has ended since, and close a tracker that was opened here."""
        self._look(trials)
        if self._lacking and not self._found:
            logger.warning("no trial is recorded: %s", self._lacking)
        if self._opened and self._tracker is not None:
            self._opened = False
            self._tracker.__exit__(None, None, None)

    def _open(self) -> None:
        tracker = self._tracker
        if tracker is None:
            tracker = self._make(**self._arguments)
        elif tracker.closed:
            tracker = self._make(**tracker.arguments())
            self._forget()
        if not tracker.entered:
            tracker.__enter__()
            self._opened = True
        self._tracker = tracker

    def _look(self, trials: list[Trial]) -> None:
        for trial in trials:
            # In the order in which they were made, not in that in which they end.
            self._numbers.setdefault(trial.trial_id, len(self._numbers))
            # Trials that failed may be tried again by a restored experiment.
            if trial.status in (Trial.TERMINATED, Trial.ERROR) and (
                self._recorded.get(trial.trial_id) != trial.status
            ):
                self._recorded[trial.trial_id] = trial.status
                try:
                    self._record(trial)
                except Exception as error:
                    self._fail(f"{trial} is left out of MLflow", error)

    def _record(self, trial: Trial) -> None:
        if self._tracker is None:
            return
        rule = self._tracker.rule
        seen = TuneTrial.of(trial)
        record = record_of(
            self._numbers[trial.trial_id],
            seen,
            self._pair_of,
            rule=rule if isinstance(rule, EliminationRule) else None,
            metric=self._metric,
            maximize=self._tracker.maximize,
            min_iterations=self._min_iterations,
        )
        if record is None:
            self._lacking = self._pair_of.lacking(seen.config)
            return
        self._found = True
        self._tracker.record(record)

    def _fail(self, what: str, error: Exception) -> None:
        """Tell the first of what may be many."""
        logger.info(what, exc_info=error)
        if not self._failed:
            self._failed = True
            logger.warning("%s: %s: %s", what, type(error).__name__, error)
