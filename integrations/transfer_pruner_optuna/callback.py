"""A tracker is told of a study's trials as they finish, whichever adapter decided on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.records import Recorder
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna.records import records_from_trials


class TrackingCallback:
    """Tell a tracker of every finished trial, for ``study.optimize(..., callbacks=[...])``.

    For `TransferPruner`, and for a study without any adapter, whose trials then count as an
    exhaustive search's. `gate` and `TransferSampler` take the tracker themselves. In an
    ask-and-tell loop call it with what ``study.tell`` returns.

    Parameters
    ----------
    tracker : SavingsTracker
        Or anything with ``record(TrialRecord)``.
    source_param, target_param, target, objective_index
        As for `gate`.
    """

    def __init__(
        self,
        tracker: Recorder,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        objective_index: int | str | None = None,
    ) -> None:
        self._tracker = tracker
        self._pair_of = PairParams(source_param, target_param, target)
        self._objective_index = objective_index

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell of one trial; of a redirected one, of the eliminated proposal too."""
        for record in records_from_trials(
            study, [trial], self._pair_of, None, self._objective_index
        ):
            self._tracker.record(record)


def tell_tracker(
    tracker: Recorder,
    study: optuna.Study,
    trial: FrozenTrial,
    state: TrialState,
    values: Sequence[float] | None,
    pair_of: PairParams,
    objective_index: int | str | None,
) -> None:
    """Tell of a trial that Optuna is about to finish, as a sampler learns of it."""
    finished = copy(trial)
    finished.state = state
    finished.datetime_complete = datetime.now()
    if values is not None and not any(map(math.isnan, values)):
        finished.values = list(values)
    for record in records_from_trials(study, [finished], pair_of, None, objective_index):
        tracker.record(record)
