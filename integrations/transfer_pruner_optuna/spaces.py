"""What parameters can be, those of a pair as far as a study has shown it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna._private import study_key, whole_study

Spaces = Mapping[str, CategoricalDistribution]


class PairSpaces:
    """Remembers the distributions of a pair's parameters, by study.

    Parameters
    ----------
    pair_of : PairParams
    """

    def __init__(self, pair_of: PairParams) -> None:
        self._pair_of = pair_of
        self._spaces: dict[Hashable, dict[str, BaseDistribution]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Studies that were met belong to this process.
        return self.__dict__ | {"_spaces": {}}

    def remember(self, study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
        """Take the pair's parameters from what is about to be suggested."""
        found = {name: space[name] for name in self._pair_of.params if name in space}
        self._spaces.setdefault(study_key(study), {}).update(found)

    def known(self, study: optuna.Study) -> dict[str, CategoricalDistribution] | None:
        """Find the choices of the pair's parameters; None if they are not tasks but numbers."""
        known = self._spaces.setdefault(study_key(study), {})
        if not self._pair_of.is_in(known):
            for past in reversed(whole_study(study).get_trials(deepcopy=False)):
                self.remember(study, past.distributions | known)
                if self._pair_of.is_in(known):
                    break
        spaces = {
            name: space
            for name, space in dict(known).items()
            if isinstance(space, CategoricalDistribution)
        }
        return spaces if len(spaces) == len(known) else None

    def choices(self, rule: EliminationRule, spaces: Spaces) -> dict[str, list[Any]]:
        """List what the pair's parameters can be; the rule's tasks where that is not known yet."""
        choices: dict[str, list[Any]] = {
            name: list(space.choices) for name, space in spaces.items()
        }
        if not self._pair_of.is_in(choices):
            for name in self._pair_of.params:
                is_target = name == self._pair_of.target_param
                choices.setdefault(name, sorted(rule.targets if is_target else rule.sources))
        return choices


def count_values(space: BaseDistribution) -> float:
    """Count what a parameter can be; infinity if it is continuous."""
    if space.single():
        return 1
    if isinstance(space, CategoricalDistribution):
        return len(space.choices)
    if isinstance(space, (IntDistribution, FloatDistribution)) and space.step is not None:
        return math.floor((space.high - space.low) / space.step + 1e-9) + 1
    return math.inf
