"""What a study has tried of each pair, and what its trials that run will be.

What it must satisfy: what has finished is read once, and all of it follows from the storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.rule.tried import Pair, Setting, TriedPairs, setting_of
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna._private import enqueued_params, trials_read, whole_study
from transfer_pruner_optuna.claims import Claim, Claims, claims_of
from transfer_pruner_optuna.records import ran
from transfer_pruner_optuna.spaces import count_values


class History(TriedPairs):
    """What a study has tried of each pair; what has finished is read once.

    Parameters
    ----------
    pair_of : PairParams
    """

    def __init__(self, pair_of: PairParams) -> None:
        super().__init__()
        self._pair_of = pair_of
        self._first: int | None = None
        self._read = 0
        self._unfinished: list[int] = []
        self._names: set[frozenset[str]] = set()
        self.running: list[FrozenTrial] = []

    def update(self, study: optuna.Study, *, anew: bool = True) -> None:
        """Read what is new in the study.

        Parameters
        ----------
        study : optuna.Study
        anew : bool
            Whether to read the storage; if not, what was read last in this trial is enough.
        """
        study = whole_study(study)
        trials = study.get_trials(deepcopy=False) if anew else trials_read(study)
        if not anew and len(trials) <= self._read:
            # Another thread has read as much, and later.
            return
        first = trials[0]._trial_id if trials else None
        if len(trials) < self._read or (self._first is not None and first != self._first):
            # Another study has come in its place.
            self.__init__(self._pair_of)  # type: ignore[misc]
        candidates = [*self._unfinished, *range(self._read, len(trials))]
        self._first, self._read = first, len(trials)
        self._unfinished = [i for i in candidates if not trials[i].state.is_finished()]
        # Who waits with parameters of its own is the next to run.
        self.running = [trials[i] for i in self._unfinished if _will_run(trials[i])]
        for i in candidates:
            if trials[i].state.is_finished() and ran(trials[i]):
                self._add(trials[i])

    def _add(self, trial: FrozenTrial) -> None:
        if (pair := self.pair(trial.params)) is not None:
            spaces = self._pair_of.hyperparameters(trial.distributions)
            self._names.add(frozenset(spaces))
            self.add(
                pair,
                self.setting(trial.params),
                has_result=trial.state == TrialState.COMPLETE,
                has_failed=trial.state == TrialState.FAIL,
                possible=math.prod(map(count_values, spaces.values())),
            )

    def may_be_whole(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial with these parameters may have all of its hyperparameters.

        Not if only trials with more of them have finished.
        """
        names = frozenset(self._pair_of.hyperparameters(params))
        return names in self._names or not any(names < more for more in self._names)

    def pair(self, params: Mapping[str, Any]) -> Pair | None:
        """Take the pair from a trial's parameters, if they have one."""
        return self._pair_of(params) if self._pair_of.is_in(params) else None

    def setting(self, params: Mapping[str, Any]) -> Setting:
        """Take the hyperparameters from a trial's parameters."""
        return setting_of(self._pair_of.hyperparameters(params))

    def claim(self, params: Mapping[str, Any]) -> Claim | None:
        """Make what a trial with these parameters says of itself; None without a pair."""
        pair = self.pair(params)
        return None if pair is None else Claim(pair, self.setting(params))

    def claims(self, but: int) -> dict[int, Claim]:
        """Find what trials that run will be, all but the one of this number."""
        return claims_of((t for t in self.running if t.number != but), self._pair_of)

    def repeats(self, claim: Claim, others: Claims) -> bool:
        """Whether a trial of the same pair had, or will have, exactly these hyperparameters."""
        return self.has(claim.pair, claim.setting) or any(
            (other.pair, other.setting) == (claim.pair, claim.setting) for other in others.values()
        )


def _will_run(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING or bool(enqueued_params(trial) | trial.params)
