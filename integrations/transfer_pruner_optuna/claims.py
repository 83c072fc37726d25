"""What a trial that runs says that it will be, before its parameters are in the storage.

What it must satisfy: of two trials that settle on the same pair, or on the same hyperparameters of
one, at least one knew of the other when it chose; what a dead process has said holds nobody up; and
who asks alone writes once.

Every trial writes its claim before it looks at the claims of others, so of two that ask in the same
moment the one whose claim came last sees the other's. Who finds a rival chooses anew, and says so
again, until it finds none. That alone keeps trials apart. So that not all of them leave a pair that
each of them wanted, the one that began first waits a moment for the others to give way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from transfer_pruner.rule.tried import Pair, Setting, setting_of
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna._private import enqueued_params, write_system_attribute

CLAIM = "transfer_pruner.claim"
"""System attribute of a trial whose pair was chosen by priority."""


@dataclass(frozen=True)
class Claim:
    """What a trial will be, as far as it has said so.

    Attributes
    ----------
    pair : (source, target)
    setting : Setting
        Its hyperparameters, claimed or suggested.
    suggested : Setting or None
        Those that are in the storage, with the pair: they cannot change. None of a pair that is
        claimed only.
    """

    pair: Pair
    setting: Setting = frozenset()
    suggested: Setting | None = None

    def rivals(self, before: Claims, now: Claims) -> Claims:
        """Find those who claim the same, which was not known when this was chosen."""
        return {
            number: other
            for number, other in now.items()
            if other.pair == self.pair and not self._knew(before.get(number), other)
        }

    def _knew(self, before: Claim | None, now: Claim) -> bool:
        if before is None or before.pair != self.pair:
            return False
        return now.setting != self.setting or before.setting == self.setting

    def stands(self, other: Claim) -> bool:
        """Whether another trial cannot give way any more."""
        if other.suggested is None:
            return False
        return other.setting != self.setting or other.suggested == self.setting


Claims = Mapping[int, Claim]
"""By the trial's number."""


def claims_of(trials: Iterable[FrozenTrial], pair_of: PairParams) -> dict[int, Claim]:
    """Read what trials will be that run, or that wait with parameters that were given to them."""
    claims = {}
    for trial in trials:
        claimed = _read(trial.system_attrs.get(CLAIM))
        params = enqueued_params(trial) | trial.params
        if not pair_of.is_in(params):
            if claimed is not None:
                claims[trial.number] = claimed
            continue
        pair, setting = pair_of(params), setting_of(pair_of.hyperparameters(params))
        known = dict(claimed.setting) if claimed is not None and claimed.pair == pair else {}
        claims[trial.number] = Claim(pair, frozenset((known | dict(setting)).items()), setting)
    return claims


def write_claim(study: optuna.Study, trial: FrozenTrial, claim: Claim) -> None:
    """Say what a trial will be, where other processes see it."""
    told = [*claim.pair, sorted(map(list, claim.setting))]
    write_system_attribute(study, trial, CLAIM, told)


def _read(told: Any) -> Claim | None:
    if not told:
        return None
    source, target, setting = told
    return Claim((source, target), frozenset((name, value) for name, value in setting))


def may_wait(number: int, claim: Claim, rivals: Claims) -> bool:
    """Whether all rivals began later, and can still give way."""
    return all(n > number and not claim.stands(other) for n, other in rivals.items())


def give_way_before(number: int, claim: Claim, rivals: Claims) -> int:
    """Count the rivals that began earlier and give way too, each of which takes another pair."""
    moving = sorted(n for n, other in rivals.items() if not claim.stands(other))
    earlier = sum(n < number for n in moving)
    # Where nobody stands already, the first of all does.
    return earlier - (len(moving) == len(rivals) and earlier > 0)
