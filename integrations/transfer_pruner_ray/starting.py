"""The order in which a scheduler starts the trials that wait.

What it must satisfy: it follows from the rule, from what has finished and from what is running, so
that a restored search goes on in it; and a trial of which nothing is told loses its place to others
but is started in the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.tried import NextPair, TriedPairs, setting_of
from transfer_pruner_ray.deciding import TuneDecider, place_of
from transfer_pruner_ray.marks import AUDIT

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

Place = tuple[float, ...]


class StartOrder:
    """Orders trials that wait, best first, for one scheduler.

    Parameters
    ----------
    decider : TuneDecider
    learns : bool
        Whether the rule is a LearningRule.
    """

    def __init__(self, decider: TuneDecider, *, learns: bool) -> None:
        self._decider = decider
        self._learns = learns
        self._next = NextPair()
        self._tried = TriedPairs()

    def add(self, record: TrialRecord) -> None:
        """Count a trial that has finished."""
        pair, setting = (record.source, record.target), setting_of(record.hyperparameters)
        self._tried.add(pair, setting, has_result=math.isfinite(record.value))

    def places(
        self, rule: EliminationRule, waiting: Iterable[Trial], running: Iterable[Trial]
    ) -> dict[str, Place]:
        """Find every waiting trial's place, the lowest first; nothing if the rule tells no order.

        Single-task baselines come first; of a LearningRule one of each target that has none yet.
        Then pairs by `Decision.priority`; of a LearningRule, after all others those that are
        running, and of several trials of a pair the second after the first of each other one.
        Then what the rule tells nothing of, and audits.
        """
        if not self._next.order(rule).tells:
            return {}
        busy = Counter(pair for trial in running if (pair := self._pair(rule, trial)))
        # No trial that waits has been tried at its settings.
        behind: Counter[Any] = Counter(
            self._next.behind(rule, self._tried, setting_of({"": ""}), busy)
        )
        places: dict[str, Place] = {}
        for trial in waiting:
            verdict = self._decider.of(rule, trial.config, trial.trial_id, vars(trial).get(AUDIT))
            place: Place = place_of(verdict)
            if verdict is not None and self._learns and place[0] < 2:
                pair = verdict.source, verdict.target
                if verdict.source is None:
                    has = self._tried.has_baseline(verdict.target) or busy[pair]
                    place = (2.0,) if has else (0.0,)
                    busy[pair] += 1
                else:
                    place = 1.0, float(behind[pair]), place[1]
                    behind[pair] += 1
            places[trial.trial_id] = place
        return places

    def _pair(self, rule: EliminationRule, trial: Trial) -> Any:
        verdict = self._decider.of(rule, trial.config, trial.trial_id, vars(trial).get(AUDIT))
        return None if verdict is None else (verdict.source, verdict.target)
