"""What a study's finished trials say: the rule of now, and what parameters its trials have.

What it must satisfy: the study's storage is the truth, so whatever is held here can be read anew at
any time; and a trial costs what has finished since the last one, not what has finished in all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.current import CurrentRule, Finished
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna._private import keeps_order, read_trials, study_key, whole_study
from transfer_pruner_optuna.branches import Branches
from transfer_pruner_optuna.records import check_objective, ran, record_study, records_from_trials


@dataclass
class _Reading:
    """How far a study has been read: what has not finished yet is looked at again."""

    branches: Branches
    first: tuple[Any, ...] | None = None
    read: int = 0
    unfinished: list[int] = field(default_factory=list)


class Evidence:
    """Reads studies as they grow, for one adapter.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
    pair_of : PairParams
    objective_index : int or str, optional
        Which objective a gain is of, in a study with several.

    Raises
    ------
    ValueError
        If `rule` is neither.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        pair_of: PairParams,
        objective_index: int | str | None = None,
    ) -> None:
        self._current = CurrentRule(rule)
        self._pair_of = pair_of
        self._objective_index = objective_index
        self._readings: dict[Hashable, _Reading] = {}
        self._met: set[Hashable] = set()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # A lock cannot be pickled, and what was read is read anew.
        return {**self.__dict__, "_lock": None, "_readings": {}, "_met": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    @property
    def first(self) -> EliminationRule:
        """The rule that decides in a study without trials."""
        return self._current.first

    @property
    def fingerprint(self) -> str:
        """Of the rule as it was given."""
        return self._current.fingerprint

    def rule(self, study: optuna.Study) -> EliminationRule:
        """Find the rule of now; of a LearningRule, what it has learnt from the study so far.

        Raises
        ------
        ValueError
            If a LearningRule is to learn from a study with several objectives and none is chosen.
        """
        if not self._current.learns:
            return self._current.first
        check_objective(study, self._objective_index)
        # Reading is inside too: a thread with an older reading would undo the others' refit.
        with self._lock:
            self._read(study)
            return self._current(study_key(whole_study(study)), [])

    def meet(self, study: optuna.Study) -> None:
        """Write once which rule decides, where the study's other constants are."""
        study = whole_study(study)
        key = study_key(study)
        if key not in self._met:
            self._met.add(key)
            record_study(study, self.first)

    def branches(self, study: optuna.Study, enough: Callable[[Branches], bool]) -> Branches:
        """Find which parameters the study's trained trials have.

        Parameters
        ----------
        study : optuna.Study
        enough : callable of Branches to bool
            Whether what was read before says what is asked for; if not, the study is read again.
        """
        with self._lock:
            reading = self._readings.get(study_key(whole_study(study)))
            if reading is not None and enough(reading.branches):
                return reading.branches
            return self._read(study).branches

    def _read(self, study: optuna.Study) -> _Reading:
        study = whole_study(study)
        key = study_key(study)
        trials = read_trials(study)
        fresh = _Reading(Branches(self._pair_of, keeps_order=keeps_order(study)))
        reading = self._readings.setdefault(key, fresh)
        first = (trials[0]._trial_id, trials[0].datetime_start) if trials else None
        if len(trials) < reading.read or (reading.first is not None and first != reading.first):
            # Another study has come in its place.
            self._current.forget(key)
            reading = self._readings[key] = fresh
        reading.first = reading.first or (first if first and first[1] else None)
        candidates = [*reading.unfinished, *range(reading.read, len(trials))]
        reading.unfinished = [i for i in candidates if not trials[i].state.is_finished()]
        reading.read = len(trials)
        newly = [trials[i] for i in candidates if trials[i].state.is_finished()]
        for trial in newly:
            if trial.state != TrialState.FAIL and ran(trial):
                reading.branches.add(trial)
        if self._current.learns:
            self._current(key, self._complete(study, newly))
        return reading

    def _complete(self, study: optuna.Study, trials: list[FrozenTrial]) -> list[Finished]:
        """Take the complete trials with a pair: one that was stopped early has no result."""
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        complete = [t for t in complete if self._pair_of.is_in(t.params)]
        return [
            Finished((trial.datetime_complete or datetime.max, trial.number), record)
            for trial in complete
            # The last one: before it may stand the proposal that it was redirected from.
            for record in self._records(study, trial)[-1:]
        ]

    def _records(self, study: optuna.Study, trial: FrozenTrial) -> list[TrialRecord]:
        return records_from_trials(study, [trial], self._pair_of, None, self._objective_index)
