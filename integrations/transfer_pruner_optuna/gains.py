"""A study of several targets as its base sampler sees it: with gains in place of scores.

What it must satisfy: what a base sampler learns of hyperparameters does not depend on how hard the
targets are that they were tried on; the study's own trials stay as they are; and a sampler that
reads no trials costs nothing.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna._private import SeenStudy, study_key, trials_read, whole_study

_Levels = dict[str, float]
"""What is subtracted from a target's scores."""


class Gains:
    """Shows base samplers studies whose scores are gains over the target's baseline.

    The mean of the target's baseline trials is subtracted from its scores; until there is one, the
    mean of all its scores. A study of one target, of several objectives or sources is shown as it
    is.

    Parameters
    ----------
    pair_of : PairParams
    """

    def __init__(self, pair_of: PairParams) -> None:
        self._pair_of = pair_of
        # Of the trials that were read last, and of each trial what it was shown as.
        self._levels: dict[Hashable, tuple[list[FrozenTrial], _Levels]] = {}
        self._shown: dict[tuple[Hashable, int], tuple[FrozenTrial, float, FrozenTrial]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_pair_of": self._pair_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_pair_of"])  # type: ignore[misc]

    def study(self, study: optuna.Study) -> optuna.Study:
        """Show a study with gains."""
        several = len(self._pair_of.source_params) > 1 or len(study.directions) > 1
        if several or self._pair_of.target is not None:
            return study
        shown: Any = SeenStudy(study, lambda trials: self._of_trials(study, trials))
        return shown  # type: ignore[no-any-return]

    def _of_trials(self, study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        key, every = study_key(study), trials_read(whole_study(study))
        known = self._levels.get(key)
        if known is None or known[0] is not every:
            known = self._levels[key] = every, self._levels_of(every)
        return [self._of_trial(key, known[1], trial) for trial in trials]

    def _levels_of(self, trials: Iterable[FrozenTrial]) -> _Levels:
        baselines, scores = defaultdict(list), defaultdict(list)
        for trial in trials:
            if trial.state != TrialState.COMPLETE or not self._pair_of.is_in(trial.params):
                continue
            source, target = self._pair_of(trial.params)
            if math.isfinite(value := trial.values[0]):
                scores[target].append(value)
                if source is None:
                    baselines[target].append(value)
        return {target: _mean(baselines.get(target, of)) for target, of in scores.items()}

    def _of_trial(self, key: Hashable, levels: _Levels, trial: FrozenTrial) -> FrozenTrial:
        if not trial.state.is_finished() or not self._pair_of.is_in(trial.params):
            return trial
        level = levels.get(self._pair_of(trial.params)[1])
        if level is None:
            # Nothing of its target has a score: what was reported before a trial was stopped.
            level = _mean(levels.values()) if levels else 0.0
        of, at, shown = self._shown.get((key, trial.number), (None, math.nan, trial))
        if of is not trial or at != level:
            shown = copy.copy(trial)
            if trial.values is not None:
                shown.values = [value - level for value in trial.values]
            steps = trial.intermediate_values.items()
            shown.intermediate_values = {step: value - level for step, value in steps}
            self._shown[key, trial.number] = trial, level, shown
        return shown


def _mean(values: Iterable[float]) -> float:
    several = [*values]
    return sum(several) / len(several)
