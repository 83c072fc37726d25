"""A tracker is told of a study's trials as they finish, and the study of what they found."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import copy
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.progress import is_milestone
from transfer_pruner.records import Recorder
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna.answer import record_answer
from transfer_pruner_optuna.records import records_from_trials


class TrackingCallback:
    """Tell a tracker of every finished trial, for ``study.optimize(..., callbacks=[...])``.

    For `TransferPruner`, and for a study without any adapter, whose trials then count as an
    exhaustive search's. `gate` and `TransferSampler` take the tracker themselves. In an
    ask-and-tell loop call it with what ``study.tell`` returns.

    It also writes what was found into the study's user attribute ``transfer_pruner.answer``, as
    `record_answer` does: after each of the first ten trials, then after eighteen in each power of
    ten, since a storage takes milliseconds to write. `record_answer` brings it to the study's end.

    Parameters
    ----------
    tracker : SavingsTracker, optional
        Or anything with ``record(TrialRecord)``; left out, only the answer is written.
    source_param, target_param, target, objective_index
        As for `gate`. In a study with several objectives of which none is chosen there is no
        answer.

    Examples
    --------
    >>> import optuna
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_optuna import TrackingCallback, TransferPruner
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> def objective(trial):
    ...     source = trial.suggest_categorical("source", ["news", "advice"])
    ...     if trial.should_prune():
    ...         raise optuna.TrialPruned
    ...     return {"news": 0.61, "advice": 0.66}[source]
    >>> pruner = TransferPruner(rule, target="news")
    >>> study = optuna.create_study(direction="maximize", pruner=pruner)
    >>> study.optimize(objective, n_trials=3, callbacks=[TrackingCallback(target="news")])
    >>> list(study.user_attrs["transfer_pruner.answer"]["targets"])
    ['news']
    """

    def __init__(
        self,
        tracker: Recorder | None = None,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        objective_index: int | str | None = None,
    ) -> None:
        self._tracker = tracker
        self._pair_of = PairParams(source_param, target_param, target)
        self._objective_index = objective_index
        self._warned = False

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell of one trial; of a redirected one, of the eliminated proposal too."""
        if self._tracker is not None:
            for record in records_from_trials(
                study, [trial], self._pair_of, None, self._objective_index
            ):
                self._tracker.record(record)
        several = len(study.directions) > 1 and self._objective_index is None
        if is_milestone(trial.number + 1) and not several:
            self._write_answer(study)

    def _write_answer(self, study: optuna.Study) -> None:
        pair_of = self._pair_of
        try:
            record_answer(
                study,
                source_param=pair_of.source_param,
                target_param=pair_of.target_param,
                target=pair_of.target,
                objective_index=self._objective_index,
            )
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "what the study found is not written into its attributes, and the search goes "
                    f"on: {type(error).__name__}: {error}",
                    TransferPrunerWarning,
                    stacklevel=2,
                )


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
