"""The sampler that redirects: no trial is spent on an eliminated pair.

What it must satisfy: whatever another sampler proposes, a trial gets a surviving pair if there is
one among the parameters' choices, of a rule that learns the one that is worth most; choices stay as
they are; the other sampler's model of the search
is respected, so it is asked again before anything is changed; and where the pair is not ours to
choose, or nothing can be said of it, the proposal stands.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
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

from transfer_pruner.records import Recorder
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Decider, Verdict
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna._private import (
    first_number,
    study_key,
    tolerate_eliminated_trials,
    whole_study,
    write_attributes,
)
from transfer_pruner_optuna.callback import tell_tracker
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.ordering import Ordering
from transfer_pruner_optuna.records import (
    ELIMINATED,
    PROPOSED,
    REDIRECTED,
    RULE,
    marks_of,
    never_ran,
)

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

    With a `LearningRule` the pair is the surviving one of the highest `Decision.priority`, over all
    targets or the one that is given, and of the base sampler's first proposal the hyperparameters
    are taken, not the pair. Every target's single-task baseline comes first, since gains need one.
    Pairs that other workers are running come after all others of positive priority; so do those
    that three trials have left without a result, and, last, those that were tried at every setting
    that there is. No random number chooses: equal trials, equal pairs. Proposals stand where the
    rule tells no order or no priority of the pair; in joint transfer no order is told.

    What a sampler is not asked for, it cannot redirect: parameters of enqueued trials, and those
    that a `PartialFixedSampler` around this one fixes (around a `PartialFixedSampler` it works). If
    one half of a pair is enqueued, the other is chosen to go with it. And in a study's first trial
    the choices of what is suggested second are not known yet, only the rule's tasks: there may be
    none that survives with the first. To stop such trials pass ``gate(objective, rule)`` to
    ``optimize`` as well, or use `TransferPruner`, with the same `audit_fraction`.

    Trials are marked as by `gate`. Where the base sampler's first proposal was eliminated, two
    marks say so: ``transfer_pruner.redirected``, 1, and ``transfer_pruner.proposed``, what it was.
    Records count it as an eliminated trial, from which savings are estimated. Where no pair
    survives among the choices, proposals stand, with one warning.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
        As for `gate`; fixed for a trial when it starts.
    base_sampler : optuna.samplers.BaseSampler, optional
        ``TPESampler(seed=seed)`` if left out.
    source_param : str or sequence of str
        Name of the source's parameter; several for joint transfer. Parameters that are not
        categorical are left alone. Patterns and callables, which name no parameter beforehand, are
        for `gate`.
    target_param : str
    target : str, optional
        The target task of a study that searches over sources only.
    objective_index : int or str, optional
        Which of several objectives, by number or metric name, a LearningRule learns from and the
        tracker is told of.
    audit_fraction : float in [0, 1]
        Share of the eliminated proposals that run all the same, drawn as for `gate`.
    seed : int, optional
        Of the choice among surviving pairs.
    tracker : SavingsTracker, optional
        Or anything with ``record(TrialRecord)``; told of every trial, and of the eliminated
        proposals that were redirected.

    Raises
    ------
    ValueError
        If `rule` is no rule, `base_sampler` no sampler, `audit_fraction` no share, `source_param` a
        pattern or callable, or `base_sampler` is a GridSampler or BruteForceSampler: redirected,
        they would train surviving pairs again and again. When a trial starts, if a LearningRule is
        to learn from a study with several objectives and none is chosen.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        base_sampler: BaseSampler | None = None,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        objective_index: int | str | None = None,
        audit_fraction: float = 0.0,
        seed: int | None = None,
        tracker: Recorder | None = None,
    ) -> None:
        if isinstance(base_sampler, (GridSampler, BruteForceSampler)):
            raise ValueError(
                f"base_sampler cannot be a {type(base_sampler).__name__}, which visits every point "
                "once: redirected, it would train surviving pairs again and again. Keep it as the "
                "study's sampler and pass gate(objective, rule, search_space=...) to optimize()."
            )
        if not isinstance(base_sampler, BaseSampler | None):
            raise ValueError(
                f"base_sampler must be a sampler but got {base_sampler!r}: pass an instance such "
                "as optuna.samplers.GPSampler()."
            )
        self._base_sampler = TPESampler(seed=seed) if base_sampler is None else base_sampler
        self._pair_of = PairParams(source_param, target_param, target)
        if not self._pair_of.is_named:
            raise ValueError(
                f"source_param must name parameters here but got {source_param!r}, which depends "
                "on the trial: pass gate(objective, rule, source_param=...) to optimize()."
            )
        self._rule = rule
        self._decide = Decider(self._pair_of, audit_fraction)
        self._evidence = Evidence(rule, self._pair_of, objective_index)
        self._ordering = Ordering(self._pair_of) if isinstance(rule, LearningRule) else None
        self._objective_index = objective_index
        self._tracker = tracker
        self._rng = random.Random(seed)
        # Of trials that run, by study and number.
        self._pairs: dict[tuple[Hashable, int], _PairOfTrial] = {}
        # What the pair's parameters can be, by study.
        self._spaces: dict[Hashable, dict[str, BaseDistribution]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Trials that run, and studies that were met, belong to this process.
        return self.__dict__ | {"_pairs": {}, "_spaces": {}}

    def evidence_of(
        self,
        rule: EliminationRule | LearningRule,
        pair_of: PairParams,
        objective_index: int | str | None,
    ) -> Evidence | None:
        """Share what was learnt with a callback that has the same rule and parameters."""
        own = (self._pair_of, self._objective_index)
        alike = rule is self._rule and own == (pair_of, objective_index)
        return self._evidence if alike else None

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
            return self._without_repeats(study, trial, ask(), {}, ask)[param_name]
        self._remember(study, {param_name: param_distribution})
        planned = self._pair(study, trial).planned
        if param_name in planned:
            value = planned.pop(param_name)
            if value in getattr(param_distribution, "choices", ()):
                return value
        return self._settled(study, trial, ask)[param_name]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Fix the rule for the trial."""
        self._forget(study, trial)
        self._pair(study, trial)
        self._base_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Mark the trial, which Optuna has not finished yet, and tell the tracker."""
        pair = self._pair(study, trial)
        self._forget(study, trial)
        # A gate or pruner with the same rule has marked it; another rule's marks say nothing.
        if trial.user_attrs.get(RULE) != self._evidence.fingerprint or (
            ELIMINATED not in trial.user_attrs
        ):
            ours = self._is_ours(trial.distributions)
            verdict = self._verdict(study, pair.rule, trial, trial.params) if ours else None
            if not self._pair_of.is_in(trial.params) and self._decide.names_a_task(
                self._evidence.first, trial.params
            ):
                self._decide.warn_without_pair(trial.params)
            # An eliminated pair that nobody stopped has trained, and a pruned trial that is marked
            # as eliminated would be taken for one that has not.
            if verdict is not None and not (verdict.eliminated and state == TrialState.PRUNED):
                write_attributes(study, trial, marks_of(verdict, trial.user_attrs))
        if self._tracker is not None:
            tell_tracker(
                self._tracker, study, trial, state, values, self._pair_of, self._objective_index
            )
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
        proposed = first = self._completed(study, trial, params | given, spaces)
        verdict = self._verdict(study, pair.rule, trial, first)
        if verdict is not None:
            stands = not verdict.eliminated
        else:
            stands = self._survives(pair.rule, first, choices)
        audited = verdict is not None and verdict.audit
        chosen = None
        if self._ordering is not None and not audited:
            # Who is not asked again says here which hyperparameters it will be.
            known = trial.params if self._times_again else trial.params | params
            chosen = self._ordering.choose(study, trial, pair.rule, first, choices, known)
        if chosen is not None:
            params = self._without_repeats(study, trial, params, chosen, ask)
            proposed, stands = chosen, True
        for _ in range(self._times_again):
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
        if verdict is not None and verdict.eliminated and not pair.redirected:
            pair.redirected = True
            write_attributes(study, trial, {REDIRECTED: 1, PROPOSED: _told(verdict)})
        pair.planned = {name: value for name, value in proposed.items() if name in spaces}
        return params | {name: value for name, value in pair.planned.items() if name in params}

    @property
    def _times_again(self) -> int:
        return _TIMES_ASKED - 1 if isinstance(self._base_sampler, _ASKED_AGAIN) else 0

    def _without_repeats(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        params: Params,
        pair: Params,
        ask: Callable[[], Params],
    ) -> Params:
        """Have a pair that was chosen trained at other hyperparameters than before, if we can."""
        if self._ordering is None or not self._ordering.is_chosen(study, trial):
            return params
        return self._ordering.without_repeats(study, trial, params, pair, ask, self._times_again)

    def _forget(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._pairs.pop((study_key(study), trial.number), None)
        if self._ordering is not None:
            self._ordering.forget(study, trial)

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
        """Whether a pair is kept; of a part of one, whether it can be completed to such."""
        if self._pair_of.is_in(proposed):
            return self._is_kept(rule, proposed)
        fixed = {name: [value] for name, value in proposed.items()}
        return self._nearest(rule, proposed, {**choices, **fixed}) is not None

    def _nearest(
        self, rule: EliminationRule, proposed: Params, choices: Mapping[str, Sequence[Any]]
    ) -> Params | None:
        """Change as little of a pair as makes it survive: first sources, then the target.

        None if nothing survives. A joint pair survives if each of its sources does.
        """
        of = self._pair_of
        alone = dict.fromkeys(of.source_params)

        def with_target(target: Any) -> Params:
            return {} if of.target is not None else {of.target_param: target}

        def is_kept(name: str, value: Any, target: Any) -> bool:
            return self._is_kept(rule, alone | with_target(target) | {name: value})

        def changed(target: Any) -> int:
            return sum(
                name not in proposed or not is_kept(name, proposed[name], target)
                for name in of.source_params
            )

        def completed(target: Any) -> Params | None:
            """Keep the proposed sources that survive, and choose among what does for the others."""
            found = with_target(target)
            for name in of.source_params:
                own = proposed.get(name, _UNKNOWN)
                if own in choices[name] and is_kept(name, own, target):
                    found[name] = own
                    continue
                kept = [value for value in choices[name] if is_kept(name, value, target)]
                if not kept:
                    return None
                found[name] = self._rng.choice(kept)
            return found

        own = of.target if of.target is not None else proposed.get(of.target_param, _UNKNOWN)
        if own is not _UNKNOWN:
            found = completed(own)
            if found is not None or of.target is not None:
                return found
        others = [target for target in choices[of.target_param] if target != own]
        others = self._rng.sample(others, len(others))
        # One after the other, so that a search over many tasks does not try every pair.
        results = (completed(target) for target in sorted(others, key=changed))
        return next((found for found in results if found is not None), None)

    def _is_kept(self, rule: EliminationRule, params: Mapping[str, Any]) -> bool:
        verdict = self._decide(rule, params, search="", trial="", fingerprint="", audit=False)
        return verdict is None or not verdict.eliminated

    def _verdict(
        self,
        study: optuna.Study,
        rule: EliminationRule,
        trial: FrozenTrial,
        params: Mapping[str, Any],
    ) -> Verdict | None:
        return self._decide(
            rule,
            params,
            search=study.study_name,
            trial=first_number(trial),
            fingerprint=self._evidence.fingerprint,
        )

    def _is_ours(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        """Whether there is a pair, of tasks and not of numbers."""
        return self._pair_of.is_in(distributions) and all(
            isinstance(distributions[name], CategoricalDistribution)
            for name in self._pair_of.params
        )

    def _pair(self, study: optuna.Study, trial: FrozenTrial) -> _PairOfTrial:
        """Find what is fixed for a trial; anew in a process that did not start it."""
        key = study_key(study), trial.number
        if key not in self._pairs:
            whole = whole_study(study)
            if study_key(study) not in self._spaces:
                self._spaces[study_key(study)] = {}
                tolerate_eliminated_trials(self._base_sampler, never_ran)
            self._evidence.meet(whole)
            rule = self._evidence.rule(whole)
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
        self._spaces.setdefault(study_key(study), {}).update(found)

    def _known_spaces(self, study: optuna.Study) -> dict[str, CategoricalDistribution] | None:
        """Find the choices of the pair's parameters; None if they are not tasks but numbers."""
        known = self._spaces[study_key(study)]
        if not self._pair_of.is_in(known):
            for past in reversed(whole_study(study).get_trials(deepcopy=False)):
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
        choices: dict[str, list[Any]] = {
            name: list(space.choices) for name, space in spaces.items()
        }
        if not self._pair_of.is_in(choices):
            for name in self._pair_of.params:
                is_target = name == self._pair_of.target_param
                choices.setdefault(name, sorted(rule.targets if is_target else rule.sources))
        return choices


@dataclass
class _PairOfTrial:
    """What is fixed for a trial that runs: its rule, and parameters that it will be given."""

    rule: EliminationRule
    enqueued: Params
    planned: Params = field(default_factory=dict)
    redirected: bool = False


def _told(verdict: Verdict) -> dict[str, Any]:
    """Make what is written of an eliminated proposal."""
    source = list(verdict.source) if isinstance(verdict.source, tuple) else verdict.source
    told: dict[str, Any] = {"source": source, "target": verdict.target}
    decision = verdict.decision
    score = {} if math.isnan(decision.score) else {"score": decision.score}
    return told | score | {"reason": decision.reason}
