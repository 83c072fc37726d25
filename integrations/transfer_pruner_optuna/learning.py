"""What a LearningRule has learnt from a study so far: derived from its storage, kept nowhere else.

What it must satisfy: processes that see the same finished trials decide alike, and so does one that
starts anew.
"""

from __future__ import annotations

import threading
import warnings
from datetime import datetime
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.records import check_objective, transfers_from_trials

_Finished = tuple[datetime, int]


class RuleOfNow:
    """The rule that decides in a study now: the one given, or what it has learnt there so far.

    A `LearningRule` learns from the complete trials in the order in which they finished, rounded
    down to whole multiples of its ``refit_every``. The refitted rule is remembered together with
    the trials that it rests on, and made again when those are others: because more have finished,
    or because one that finished earlier elsewhere has only now become visible.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
    pair_of : PairParams
    objective_index : int, optional
        Which objective a gain is of, in a study with several.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        pair_of: PairParams,
        objective_index: int | None = None,
    ) -> None:
        self._rule = rule
        self._pair_of = pair_of
        self._objective_index = objective_index
        self._lock = threading.Lock()
        # By study name: the trials learnt from, and what they taught.
        self._learnt: dict[str, tuple[list[_Finished], EliminationRule]] = {}
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # A pruner is pickled with its study; locks cannot be, and what was learnt can be made anew.
        return RuleOfNow, (self._rule, self._pair_of, self._objective_index)

    @property
    def first(self) -> EliminationRule:
        """The rule that decides in a study without trials."""
        return self._rule.refitted() if isinstance(self._rule, LearningRule) else self._rule

    def __call__(self, study: optuna.Study) -> EliminationRule:
        """Find the rule of now.

        Raises
        ------
        ValueError
            If a LearningRule is to learn from a study with several objectives and none is chosen.
        """
        if not isinstance(self._rule, LearningRule):
            return self._rule
        check_objective(study, self._objective_index)
        # Reading is inside too: a thread with an older reading would undo the others' refit.
        with self._lock:
            trials = self._evidence(study, self._rule.refit_every)
            seen = [_finished(trial) for trial in trials]
            known, rule = self._learnt.get(study.study_name, ([], self.first))
            if seen != known:
                rule = self._rule.refitted(self._transfers(study, trials))
                self._learnt[study.study_name] = seen, rule
            return rule

    def _evidence(self, study: optuna.Study, refit_every: int) -> list[FrozenTrial]:
        """List the complete trials that the rule of now rests on, in the order they finished."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        trials = sorted((t for t in trials if self._pair_of.is_in(t.params)), key=_finished)
        return trials[: len(trials) // refit_every * refit_every]

    def _transfers(self, study: optuna.Study, trials: list[FrozenTrial]) -> pd.DataFrame | None:
        try:
            return transfers_from_trials(study, trials, self._pair_of, self._objective_index)
        except Exception as error:
            # Fail open, but not in silence: mostly, the study has no baseline trials.
            if study.study_name not in self._warned:
                self._warned.add(study.study_name)
                warnings.warn(
                    f"the rule has learnt nothing from {len(trials)} finished trials yet and goes "
                    f"on by attributions: {error}",
                    TransferPrunerWarning,
                    stacklevel=4,
                )
            return None


def _finished(trial: FrozenTrial) -> _Finished:
    return trial.datetime_complete or datetime.max, trial.number
