"""Which parameters trials of a branch have, learnt from those that trained.

An eliminated trial should bear the parameters that it would have had, since samplers infer their
search space from it too: one that stops after source and target narrows TPE's space to those two
for good. But what a trial has not suggested itself may belong to another branch of the objective.
So it takes a parameter only if every trial that trained on a like pair, and agreed with it on all
categorical parameters up to there, suggested that parameter next.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.trial import as_json

_SOURCE, _END = "<source>", "<end>"


@dataclass
class _Place:
    """What trials of one branch suggested next: a parameter, and where each value of it leads."""

    next: dict[str, BaseDistribution | None] = field(default_factory=dict)
    places: dict[Hashable, _Place] = field(default_factory=dict)


class Branches:
    """Remembers the order in which trained trials suggested their parameters.

    Parameters
    ----------
    pair_of : PairParams
    """

    def __init__(self, pair_of: PairParams) -> None:
        self._pair_of = pair_of
        self._of_target: dict[str, _Place] = {}
        self._of_all = _Place()
        self.order: tuple[str, ...] = ()
        """Names of the parameters of the first trained trial, in the order of their suggestion."""

    @property
    def targets(self) -> int:
        """How many targets have a trial that trained on a pair."""
        return len(self._of_target)

    def add(self, trial: FrozenTrial) -> None:
        """Learn from a trial that trained; from one without a source nothing is learnt."""
        if not self._pair_of.is_in(trial.params):
            return
        self.order = self.order or tuple(trial.params)
        source, target = self._pair_of(trial.params)
        if source is None:
            return
        for place in (self._of_target.setdefault(target, _Place()), self._of_all):
            for name, value in trial.params.items():
                known, step = self._step(trial.params, name, value, trial.distributions[name])
                place.next[known] = trial.distributions[name]
                place = place.places.setdefault(step, _Place())
            place.next[_END] = None

    def following(self, trial: FrozenTrial | Any) -> tuple[str, BaseDistribution] | None:
        """Find what a trial with an eliminated pair would suggest next; None if it is not known.

        Among trials of its target; where there is none, among those of all targets.
        """
        _, target = self._pair_of(trial.params)
        own = self._of_target.get(target)
        place = self._walked(own, trial) if own is not None else None
        if place is None:
            place = self._walked(self._of_all, trial)
        if place is None or len(place.next) != 1:
            return None
        name, distribution = next(iter(place.next.items()))
        return None if distribution is None or name == _SOURCE else (name, distribution)

    def knows(self, trial: FrozenTrial | Any) -> bool:
        """Whether a trial that trained began as this one has."""
        return self._walked(self._of_all, trial) is not None

    def _walked(self, place: _Place, trial: Any) -> _Place | None:
        for name, value in trial.params.items():
            _, step = self._step(trial.params, name, value, trial.distributions[name])
            if step not in place.places:
                return None
            place = place.places[step]
        return place if place.next else None

    def _step(
        self, params: Any, name: str, value: Any, distribution: BaseDistribution
    ) -> tuple[str, Hashable]:
        """Name a parameter, and what its value says of the branch: nothing, if it is a number."""
        if self._pair_of.is_source_param(name) or name in self._read_by_callable(params):
            return _SOURCE, _SOURCE
        if name == self._pair_of.target_param and self._pair_of.target is None:
            return name, name
        if isinstance(distribution, CategoricalDistribution):
            return name, (name, repr(as_json(value)))
        return name, name

    def _read_by_callable(self, params: Any) -> set[str]:
        if self._pair_of.is_named or self._pair_of.source_params:
            return set()
        return set(self._pair_of.names_in(params)) - {self._pair_of.target_param}
