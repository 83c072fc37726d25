"""Which parameters trials of a branch have, learnt from those that trained.

An eliminated trial should bear the parameters that it would have had, since samplers infer their
search space from it too: one that stops after source and target narrows TPE's space to those two
for good. But what a trial has not suggested itself may belong to another branch of the objective.
So it takes a parameter only if every trial that trained on a like pair, and agrees with it on all
categorical parameters that it has so far, has that parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial

from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.trial import as_json

_SOURCE = "<source>"


@dataclass(frozen=True)
class _Shape:
    """What tells branches apart: the names of a trial's parameters, and its categorical values."""

    names: tuple[str, ...]
    values: frozenset[tuple[str, str]]

    def begins_as(self, other: _Shape) -> bool:
        return set(other.names) <= set(self.names) and other.values <= self.values


class Branches:
    """Remembers which parameters trained trials had, and in which order.

    Parameters
    ----------
    pair_of : PairParams
    keeps_order : bool
        Whether the study's storage gives parameters back in the order of their suggestion. If not,
        categorical parameters are taken to come first, since others may depend on them.
    """

    def __init__(self, pair_of: PairParams, *, keeps_order: bool = True) -> None:
        self._pair_of = pair_of
        self._keeps_order = keeps_order
        # By target and shape, the distributions of a trial that had it.
        self._seen: dict[tuple[str, _Shape], Mapping[str, BaseDistribution]] = {}
        self.order: tuple[str, ...] = ()
        """Names of the parameters of the first trained trial, in the order of their suggestion."""

    @property
    def targets(self) -> int:
        """How many targets have a trial that trained on a pair."""
        return len({target for target, _ in self._seen})

    def add(self, trial: FrozenTrial) -> None:
        """Learn from a trial that trained; from one without a source nothing but the order."""
        if not self._pair_of.is_in(trial.params):
            return
        if self._keeps_order:
            self.order = self.order or tuple(trial.params)
        source, target = self._pair_of(trial.params)
        if source is not None:
            in_order = {name: trial.distributions[name] for name in trial.params}
            self._seen.setdefault((target, self._shape(trial)), in_order)

    def following(self, trial: Trial | FrozenTrial) -> tuple[str, BaseDistribution] | None:
        """Find what a trial with an eliminated pair would suggest next; None if it is not known.

        Among trials of its target; where there is none, among those of all targets.
        """
        begun = self._shape(trial)
        _, target = self._pair_of(trial.params)
        alike = [key for key in self._seen if key[1].begins_as(begun)]
        alike = [key for key in alike if key[0] == target] or alike
        if not alike:
            return None
        names = set.intersection(*(set(shape.names) for _, shape in alike))
        first = self._seen[alike[0]]
        left = [name for name in first if name in names and name not in trial.params]
        if not self._keeps_order:
            left.sort(key=lambda name: not isinstance(first[name], CategoricalDistribution))
        return (left[0], first[left[0]]) if left else None

    def knows(self, trial: Trial | FrozenTrial) -> bool:
        """Whether a trial that trained began as this one has."""
        begun = self._shape(trial)
        return any(shape.begins_as(begun) for _, shape in self._seen)

    def _shape(self, trial: Trial | FrozenTrial) -> _Shape:
        of, params = self._pair_of, trial.params
        pair = {*of.names_in(params), *([of.target_param] if of.target is None else [])}
        pair |= {name for name in params if of.is_source_param(name)}
        values = {
            (name, repr(as_json(value)))
            for name, value in params.items()
            if name not in pair and isinstance(trial.distributions[name], CategoricalDistribution)
        }
        # Sources may be called otherwise in trials of other targets.
        names = (_SOURCE if name in pair and name != of.target_param else name for name in params)
        return _Shape(tuple(dict.fromkeys(names)), frozenset(values))
