"""The sampler that redirects: no trial is spent on an eliminated pair.

What it must satisfy: whatever another sampler proposes, a trial gets a surviving pair if there is
one among the parameters' choices, which stay as they are; the other sampler's model of the search
is respected, so it is asked again before anything is changed; and where the pair is not ours to
choose, or nothing can be said of it, the proposal stands.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import check_fraction, is_audited
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.learning import RuleOfNow
from transfer_pruner_optuna.records import ELIMINATED, decision_attributes, record_study

REDIRECTED = "transfer_pruner.redirected"

# Optuna promises samplers one sample_relative a trial: of its own, these are cheap and lose nothing
# when they are asked more often. GPSampler takes seconds and comes back to pairs like the last one.
_ASKED_AGAIN = (
    *(RandomSampler, TPESampler, QMCSampler),
    *(CmaEsSampler, NSGAIISampler, NSGAIIISampler),
)
# Where a fifth of the pairs survives, ten at random find one nine times of ten.
_TIMES_ASKED = 10

Params = dict[str, Any]
_Spaces = Mapping[str, CategoricalDistribution]
_UNKNOWN = object()


class TransferSampler(BaseSampler):
    """Let another sampler propose, and redirect eliminated pairs to surviving ones.

    No trial is pruned and none is wasted: the advice for samplers that never learn from pruned
    trials and return to the same pairs (GP, CMA-ES, QMC, NSGA-II, random search).

    The base sampler proposes source and target together, also where Optuna would have it sample one
    after the other. If the pair is eliminated, Random, TPE, QMC, CMA-ES and NSGA samplers are asked
    again, up to nine times; others are not, such as `GPSampler`, which would take long. Then as
    little of the last proposal as possible is changed, at random: the source, if any survives for
    the proposed target, else the target.

    What a sampler is not asked for, it cannot redirect: parameters of enqueued trials, and those
    that a `PartialFixedSampler` around this one fixes (around a `PartialFixedSampler` it works). If
    one half of a pair is enqueued, the other is chosen to go with it. And in a study's first trial
    the choices of what is suggested second are not known yet, only the rule's tasks: there may be
    none that survives with the first. To stop such trials pass ``gate(objective, rule)`` to
    ``optimize`` as well, or use `TransferPruner`, with the same `audit_fraction`.

    Trials are marked as by `gate`, and with the user attribute ``transfer_pruner.redirected``, 1,
    where the base sampler's first proposal was eliminated. A trial with an eliminated pair is not
    marked if no audit drew it and no gate stopped it.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
        As for `gate`; fixed for a trial when it starts.
    base_sampler : optuna.samplers.BaseSampler, optional
        ``TPESampler(seed=seed)`` if left out.
    source_param : str or sequence of str
        Name of the source's parameter; several for joint transfer. Parameters that are not
        categorical are left alone.
    target_param : str
    target : str, optional
        The target task of a study that searches over sources only.
    objective_index : int, optional
        Which of several objectives a LearningRule learns from.
    audit_fraction : float in [0, 1]
        Share of the eliminated proposals that run all the same, drawn as for `gate`.
    seed : int, optional
        Of the choice among surviving pairs.

    Raises
    ------
    ValueError
        If `audit_fraction` is no share, or `base_sampler` is a GridSampler or BruteForceSampler:
        redirected, they would train surviving pairs again and again. When a trial starts, if a
        LearningRule is to learn from a study with several objectives and none is chosen.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        base_sampler: BaseSampler | None = None,
        *,
        source_param: str | Sequence[str] = "source",
        target_param: str = "target",
        target: str | None = None,
        objective_index: int | None = None,
        audit_fraction: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if isinstance(base_sampler, (GridSampler, BruteForceSampler)):
            raise ValueError(
                f"base_sampler cannot be a {type(base_sampler).__name__}, which visits every point "
                "once: redirected, it would train surviving pairs again and again. Keep it as the "
                "study's sampler and pass gate(objective, rule, search_space=...) to optimize()."
            )
        self._base_sampler = TPESampler(seed=seed) if base_sampler is None else base_sampler
        self._pair_of = PairParams(source_param, target_param, target)
        self._audit_fraction = check_fraction(audit_fraction)
        self._rule_of_now = RuleOfNow(rule, self._pair_of, objective_index)
        self._rng = random.Random(seed)
        self._warned = False
        # Of trials that run, by study and number.
        self._pairs: dict[tuple[str, int], _PairOfTrial] = {}
        # What the pair's parameters can be, by study.
        self._spaces: dict[str, dict[str, BaseDistribution]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Trials that run belong to this process.
        return self.__dict__ | {"_pairs": {}}

    def reseed_rng(self) -> None:
        """Reseed this sampler and the base sampler, as Optuna asks of each thread."""
        self._rng.seed()
        self._base_sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Infer what the base sampler infers."""
        return self._base_sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Sample what the base sampler samples, with a surviving pair."""
        self._remember(study, search_space)

        def ask() -> Params:
            return self._base_sampler.sample_relative(study, trial, search_space)

        return self._settled(study, trial, ask)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one parameter; the first of a pair decides on all of it."""

        def ask() -> Params:
            value = self._base_sampler.sample_independent(
                study, trial, param_name, param_distribution
            )
            return {param_name: value}

        if param_name not in self._pair_of.params:
            return ask()[param_name]
        self._remember(study, {param_name: param_distribution})
        planned = self._pair(study, trial).planned
        if param_name in planned:
            value = planned.pop(param_name)
            if value in getattr(param_distribution, "choices", ()):
                return value
        return self._settled(study, trial, ask)[param_name]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Fix the rule for the trial."""
        self._pairs.pop((study.study_name, trial.number), None)
        self._pair(study, trial)
        self._base_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Mark the trial, which Optuna has not finished yet."""
        pair = self._pair(study, trial)
        del self._pairs[study.study_name, trial.number]
        if self._is_ours(trial.distributions) and ELIMINATED not in trial.user_attrs:
            decision = self._decide(pair.rule, trial.params)
            audit = decision.eliminated and self._is_audited(trial, trial.params)
            if audit or not decision.eliminated:
                for key, value in decision_attributes(decision, audit).items():
                    _mark(study, trial, key, value)
        self._base_sampler.after_trial(study, trial, state, values)

    def _settled(
        self, study: optuna.Study, trial: FrozenTrial, ask: Callable[[], Params]
    ) -> Params:
        """Ask for parameters until their pair survives, else change the last ones."""
        params = ask()
        spaces = self._known_spaces(study)
        if spaces is None or not any(name in params for name in self._pair_of.params):
            return params
        pair = self._pair(study, trial)
        given = self._given(trial, pair, spaces)
        choices = self._choices(pair.rule, spaces) | {name: [v] for name, v in given.items()}
        proposed = self._completed(study, trial, params | given, spaces)
        stands = self._survives(pair.rule, proposed, choices)
        redirected = not stands
        if not stands and self._pair_of.is_in(proposed) and self._is_audited(trial, proposed):
            stands, redirected = True, False
        again = _TIMES_ASKED - 1 if isinstance(self._base_sampler, _ASKED_AGAIN) else 0
        for _ in range(again):
            if stands:
                break
            params = ask()
            proposed = self._completed(study, trial, params | given, spaces)
            stands = self._survives(pair.rule, proposed, choices)
        if not stands:
            changed = self._nearest(pair.rule, proposed, choices)
            if changed is None:
                # Nothing survives, and the choices are what they are.
                return params
            proposed = changed
        if redirected and REDIRECTED not in trial.user_attrs:
            _mark(study, trial, REDIRECTED, 1)
        pair.planned = {name: value for name, value in proposed.items() if name in spaces}
        return params | {name: value for name, value in pair.planned.items() if name in params}

    def _completed(
        self, study: optuna.Study, trial: FrozenTrial, params: Params, spaces: _Spaces
    ) -> Params:
        """Take the pair, and have the base sampler propose what is missing and known of it.

        One after the other, a first value that leaves few partners would be as likely as one that
        leaves many, and one that leaves none would never be audited.
        """
        missing = [name for name in spaces if name not in params]
        proposed = params | {
            name: self._base_sampler.sample_independent(study, trial, name, spaces[name])
            for name in missing
        }
        return {name: proposed[name] for name in self._pair_of.params if name in proposed}

    def _survives(
        self, rule: EliminationRule, proposed: Params, choices: Mapping[str, Sequence[Any]]
    ) -> bool:
        """Whether the pair is kept, or may become one that is by what is yet to be proposed."""
        if self._pair_of.is_in(proposed):
            return not self._decide(rule, proposed).eliminated
        fixed = {name: [value] for name, value in proposed.items()}
        return self._nearest(rule, proposed, {**choices, **fixed}) is not None

    def _nearest(
        self, rule: EliminationRule, proposed: Params, choices: Mapping[str, Sequence[Any]]
    ) -> Params | None:
        """Change as little of a pair as makes it survive: first sources, then the target.

        None if nothing survives. A joint pair survives if each of its sources does.
        """
        of = self._pair_of

        def options(name: str, target: Any) -> list[Any]:
            """List what a source can be: as proposed if that survives, else what does."""
            alone = dict.fromkeys(of.source_params) | {of.target_param: target}
            kept = [
                value
                for value in choices[name]
                if not self._decide(rule, alone | {name: value}).eliminated
            ]
            own = proposed.get(name, _UNKNOWN)
            return [own] if own in kept else kept

        targets = [of.target] if of.target is not None else choices[of.target_param]
        found = {
            target: {name: options(name, target) for name in of.source_params}
            for target in self._rng.sample(targets, len(targets))
        }
        survivors = [target for target, sources in found.items() if all(sources.values())]
        if not survivors:
            return None

        def changes(target: Any) -> tuple[bool, int]:
            another = sum(proposed.get(name) not in found[target][name] for name in found[target])
            return target != proposed.get(of.target_param, target), another

        best = min(survivors, key=changes)
        changed = {name: self._rng.choice(values) for name, values in found[best].items()}
        return changed if of.target is not None else changed | {of.target_param: best}

    def _decide(self, rule: EliminationRule, params: Mapping[str, Any]) -> Decision:
        try:
            return rule.decide(*self._pair_of(params))
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the rule failed and the proposal stands: {failure}",
                TransferPrunerWarning,
                stacklevel=2,
            )
        return Decision(False, math.nan, math.nan, f"the rule failed: kept; {failure}")

    def _is_audited(self, trial: FrozenTrial, params: Mapping[str, Any]) -> bool:
        return is_audited(self._audit_fraction, "", trial.number, *self._pair_of(params))

    def _is_ours(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        """Whether there is a pair, of tasks and not of numbers."""
        return self._pair_of.is_in(distributions) and all(
            isinstance(distributions[name], CategoricalDistribution)
            for name in self._pair_of.params
        )

    def _pair(self, study: optuna.Study, trial: FrozenTrial) -> _PairOfTrial:
        """Find what is fixed for a trial; anew in a process that did not start it."""
        key = study.study_name, trial.number
        if key not in self._pairs:
            whole = _whole(study)
            if study.study_name not in self._spaces:
                self._spaces[study.study_name] = {}
                record_study(whole, self._rule_of_now.first)
            rule = self._rule_of_now(whole)
            self._pairs[key] = _PairOfTrial(rule, trial.system_attrs.get("fixed_params", {}))
        return self._pairs[key]

    def _given(self, trial: FrozenTrial, pair: _PairOfTrial, spaces: _Spaces) -> Params:
        """Collect the pair's parameters that are not to be changed any more."""
        single = {name: space.choices[0] for name, space in spaces.items() if space.single()}
        base = self._base_sampler
        partial = base._fixed_params if isinstance(base, PartialFixedSampler) else {}
        given = single | partial | pair.enqueued | pair.planned | trial.params
        return {name: given[name] for name in self._pair_of.params if name in given}

    def _remember(self, study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
        found = {name: space[name] for name in self._pair_of.params if name in space}
        self._spaces.setdefault(study.study_name, {}).update(found)

    def _known_spaces(self, study: optuna.Study) -> dict[str, CategoricalDistribution] | None:
        """Find the choices of the pair's parameters; None if they are not tasks but numbers."""
        known = self._spaces[study.study_name]
        if not self._pair_of.is_in(known):
            for past in reversed(_whole(study).get_trials(deepcopy=False)):
                self._remember(study, past.distributions | known)
                if self._pair_of.is_in(known):
                    break
        spaces = {
            name: space
            for name, space in dict(known).items()
            if isinstance(space, CategoricalDistribution)
        }
        return spaces if len(spaces) == len(known) else None

    def _choices(self, rule: EliminationRule, spaces: _Spaces) -> dict[str, list[Any]]:
        """List what the pair's parameters can be; the rule's tasks where that is not known yet."""
        choices = {name: list(space.choices) for name, space in spaces.items()}
        if not self._pair_of.is_in(choices):
            table = rule.table()
            for name in self._pair_of.params:
                column = "target" if name == self._pair_of.target_param else "source"
                choices.setdefault(name, sorted(set(table[column])))
        return choices


@dataclass
class _PairOfTrial:
    """What is fixed for a trial that runs: its rule, and parameters that it will be given."""

    rule: EliminationRule
    enqueued: Params
    planned: Params = field(default_factory=dict)


def _whole(study: optuna.Study) -> optuna.Study:
    """Find the study itself where HyperbandPruner shows samplers the trials of one bracket."""
    whole: optuna.Study = getattr(study, "_study", study)
    return whole


def _mark(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    # Optuna hands samplers a frozen trial, on which no public call can write; the live trial
    # shares its attributes while it runs.
    study._storage.set_trial_user_attr(trial._trial_id, key, value)
    trial.user_attrs[key] = value
