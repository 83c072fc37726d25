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
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.rule.tried import Pair
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna._private import SeenStudy, study_key, trials_read, whole_study


@dataclass(slots=True)
class _Finished:
    """A trial that has finished, and what it was shown as with what was subtracted then."""

    trial: FrozenTrial
    pair: Pair | None
    shown: FrozenTrial
    level: float = math.nan


@dataclass
class _Reading:
    """What was read last of a study: all trials, and what is subtracted from a target's scores."""

    trials: list[FrozenTrial] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)
    finished: dict[int, _Finished] = field(default_factory=dict)


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
        self._readings: dict[Hashable, _Reading] = {}

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
        reading = self._readings.setdefault(study_key(study), _Reading())
        every = trials_read(whole_study(study))
        if reading.trials is not every:
            reading.trials, reading.levels = every, self._levels(reading, every)
        levels = reading.levels
        return [
            self._shown(self._finished(reading, trial), levels)
            if trial.state.is_finished()
            else trial
            for trial in trials
        ]

    def _finished(self, reading: _Reading, trial: FrozenTrial) -> _Finished:
        found = reading.finished.get(trial.number)
        if found is None or found.trial is not trial:
            has_pair = self._pair_of.is_in(trial.params)
            pair = self._pair_of(trial.params) if has_pair else None
            found = reading.finished[trial.number] = _Finished(trial, pair, trial)
        return found

    def _levels(self, reading: _Reading, trials: Iterable[FrozenTrial]) -> dict[str, float]:
        baselines, scores = defaultdict(list), defaultdict(list)
        for trial in trials:
            if trial.state != TrialState.COMPLETE:
                continue
            pair = self._finished(reading, trial).pair
            if pair is not None and math.isfinite(value := trial.values[0]):
                source, target = pair
                scores[target].append(value)
                if source is None:
                    baselines[target].append(value)
        return {target: _mean(baselines.get(target, of)) for target, of in scores.items()}

    def _shown(self, finished: _Finished, levels: dict[str, float]) -> FrozenTrial:
        if finished.pair is None:
            return finished.trial
        level = levels.get(finished.pair[1])
        if level is None:
            # Nothing of its target has a score: what was reported before a trial was stopped.
            level = _mean(levels.values()) if levels else 0.0
        if finished.level != level:
            shown = copy.copy(finished.trial)
            if shown.values is not None:
                shown.values = [value - level for value in shown.values]
            steps = shown.intermediate_values.items()
            shown.intermediate_values = {step: value - level for step, value in steps}
            finished.level, finished.shown = level, shown
        return finished.shown


def _mean(values: Iterable[float]) -> float:
    several = [*values]
    return sum(several) / len(several)
