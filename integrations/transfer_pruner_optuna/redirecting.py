"""What a trial's parameters become once the base sampler has proposed them: with a surviving pair.

What it must satisfy: a proposal that survives stands, unless the rule learns; where the rule tells
no order the base sampler is asked again before anything is changed; and a trial's rule, and what it
is to be given, are fixed when it starts, and forgotten when it ends.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.verdict import Decider, Verdict
from transfer_pruner_optuna._private import (
    first_number,
    study_key,
    tolerate_eliminated_trials,
    whole_study,
    write_attributes,
)
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.ordering import Ordering, Proposal
from transfer_pruner_optuna.records import PROPOSED, REDIRECTED, never_ran
from transfer_pruner_optuna.spaces import PairSpaces, Spaces
from transfer_pruner_optuna.survivors import Params, Survivors

# Optuna promises samplers one sample_relative a trial: of its own, these are cheap and lose nothing
# when they are asked more often. GPSampler takes seconds and comes back to pairs like the last one.
_ASKED_AGAIN = (
    *(RandomSampler, TPESampler, QMCSampler),
    *(CmaEsSampler, NSGAIISampler, NSGAIIISampler),
)
# Where a fifth of the pairs survives, ten at random find one nine times of ten.
_TIMES_ASKED = 10


@dataclass
class PairOfTrial:
    """What is fixed for a trial that runs: its rule, and parameters that it will be given."""

    rule: EliminationRule
    enqueued: Params
    first_number: int
    planned: Params = field(default_factory=dict)
    redirected: bool = False


class Redirector:
    """Settles what trials are given, for one sampler.

    Parameters
    ----------
    base_sampler : optuna.samplers.BaseSampler
    evidence : Evidence
    decide : Decider
    rng : random.Random
        Of the choice among surviving pairs.
    shown : callable of a study to a study
        What the base sampler sees of it.
    learns : bool
        Whether the rule is a LearningRule, which says of every trial what it should be; any other
        one says so of eliminated proposals.
    """

    def __init__(
        self,
        base_sampler: BaseSampler,
        evidence: Evidence,
        decide: Decider,
        rng: random.Random,
        *,
        shown: Callable[[optuna.Study], optuna.Study],
        learns: bool,
    ) -> None:
        self._base_sampler = base_sampler
        self._shown = shown
        self._at_random = RandomSampler(seed=0)
        self._evidence = evidence
        self._decide = decide
        self._pair_of = decide.pair_of
        self._spaces = PairSpaces(decide.pair_of)
        self._survivors = Survivors(decide, rng)
        self._learns = learns
        self._ordering = Ordering(decide.pair_of, learns=learns)
        # Of trials that run, by study and number.
        self._pairs: dict[tuple[Hashable, int], PairOfTrial] = {}
        self._met: set[Hashable] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Trials that run, and studies that were met, belong to this process.
        return self.__dict__ | {"_pairs": {}, "_met": set()}

    def begin(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Fix the rule for the trial."""
        self._forget(study, trial)
        self._pair(study, trial)

    def end(self, study: optuna.Study, trial: FrozenTrial) -> EliminationRule:
        """Forget the trial; return the rule that was fixed for it."""
        rule = self._pair(study, trial).rule
        self._forget(study, trial)
        return rule

    def all_of(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        space: Mapping[str, BaseDistribution],
        ask: Callable[[], Params],
    ) -> Params:
        """Settle parameters that the base sampler proposes together."""
        self._spaces.remember(study, space)
        return self._settled(study, trial, ask, self._insisting(study, trial, space, ask))

    def one_of(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        name: str,
        space: BaseDistribution,
        ask: Callable[[], Params],
    ) -> Any:
        """Settle one parameter; the first of a pair decides on all of it."""
        if name not in self._pair_of.params:
            other = self._insisting(study, trial, {name: space}, ask)
            proposal = Proposal(ask(), other, self._times_again)
            return self._ordering.without_repeats(study, trial, proposal, {})[name]
        self._spaces.remember(study, {name: space})
        planned = self._pair(study, trial).planned
        if name in planned:
            value = planned.pop(name)
            if value in getattr(space, "choices", ()):
                return value
        return self._settled(study, trial, ask, ask)[name]

    def verdict(
        self,
        study: optuna.Study,
        rule: EliminationRule,
        trial: FrozenTrial,
        params: Mapping[str, Any],
    ) -> Verdict | None:
        """Decide on a trial with these parameters, and draw the audit."""
        # While a trial runs, each look at its system attributes reads the storage.
        begun = self._pairs.get((study_key(study), trial.number))
        return self._decide(
            rule,
            params,
            search=study.study_name,
            trial=begun.first_number if begun else first_number(trial),
            fingerprint=self._evidence.fingerprint,
        )

    def _insisting(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        space: Mapping[str, BaseDistribution],
        ask: Callable[[], Params],
    ) -> Callable[[], Params]:
        """Ask for other hyperparameters, from half of the times on at random.

        A sampler that is sure of one choice, as TPE soon is, proposes it however often it is asked.
        """
        asked = itertools.count(1)
        seen: list[Params] = []

        def other() -> Params:
            params = ask()
            names = [name for name in space if name in params and name not in self._pair_of.params]
            drawn = {name: params[name] for name in names}
            if 2 * next(asked) > self._times_again:
                # Each time another one: of few choices chance may leave one out.
                for _ in range(_TIMES_ASKED):
                    drawn = {
                        name: self._at_random.sample_independent(study, trial, name, space[name])
                        for name in names
                    }
                    if drawn not in seen:
                        break
            seen.append(drawn)
            return params | drawn

        return other

    def _settled(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        ask: Callable[[], Params],
        other: Callable[[], Params],
    ) -> Params:
        """Take the pair that the rule's order says; without one, ask until a pair survives."""
        params = ask()
        spaces = self._spaces.known(study)
        if spaces is None or not any(name in params for name in self._pair_of.params):
            return params
        pair = self._pair(study, trial)
        given = self._given(trial, pair, spaces)
        choices = self._spaces.choices(pair.rule, spaces)
        choices |= {name: [value] for name, value in given.items()}
        proposed = first = self._completed(study, trial, params | given, spaces)
        verdict = self.verdict(study, pair.rule, trial, first)
        if verdict is not None:
            stands = not verdict.eliminated
        else:
            stands = self._survivors.includes(pair.rule, first, choices)
        audited = verdict is not None and verdict.audit
        chosen = None
        if (self._learns or not stands) and not audited:
            proposal = Proposal(params, other, self._times_again)
            chosen = self._ordering.choose(study, trial, pair.rule, proposal, first, choices)
        if chosen is not None:
            (proposed, params), stands = chosen, True
        for _ in range(self._times_again):
            if stands:
                break
            params = ask()
            proposed = self._completed(study, trial, params | given, spaces)
            stands = self._survivors.includes(pair.rule, proposed, choices)
        if not stands:
            changed = self._survivors.nearest(pair.rule, proposed, choices)
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

    def _completed(
        self, study: optuna.Study, trial: FrozenTrial, params: Params, spaces: Spaces
    ) -> Params:
        """Take the pair, and have the base sampler propose what is missing and known of it.

        One after the other, a first value that leaves few partners would be as likely as one that
        leaves many, and one that leaves none would never be audited.
        """
        missing = [name for name in spaces if name not in params]
        proposed = params | {
            name: self._base_sampler.sample_independent(
                self._shown(study), trial, name, spaces[name]
            )
            for name in missing
        }
        return {name: proposed[name] for name in self._pair_of.params if name in proposed}

    def _pair(self, study: optuna.Study, trial: FrozenTrial) -> PairOfTrial:
        """Find what is fixed for a trial; anew in a process that did not start it."""
        key = study_key(study), trial.number
        if key not in self._pairs:
            whole = whole_study(study)
            if study_key(study) not in self._met:
                self._met.add(study_key(study))
                tolerate_eliminated_trials(self._base_sampler, never_ran)
            self._evidence.meet(whole)
            rule = self._evidence.rule(whole)
            enqueued = trial.system_attrs.get("fixed_params", {})
            self._pairs[key] = PairOfTrial(rule, enqueued, first_number(trial))
        return self._pairs[key]

    def _forget(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._pairs.pop((study_key(study), trial.number), None)
        self._ordering.forget(study, trial)

    def _given(self, trial: FrozenTrial, pair: PairOfTrial, spaces: Spaces) -> Params:
        """Collect the pair's parameters that are not to be changed any more."""
        single = {name: space.choices[0] for name, space in spaces.items() if space.single()}
        base = self._base_sampler
        partial = base._fixed_params if isinstance(base, PartialFixedSampler) else {}
        given = single | partial | pair.enqueued | pair.planned | trial.params
        return {name: given[name] for name in self._pair_of.params if name in given}


def _told(verdict: Verdict) -> dict[str, Any]:
    """Make what is written of an eliminated proposal."""
    source = list(verdict.source) if isinstance(verdict.source, tuple) else verdict.source
    told: dict[str, Any] = {"source": source, "target": verdict.target}
    decision = verdict.decision
    score = {} if math.isnan(decision.score) else {"score": decision.score}
    return told | score | {"reason": decision.reason}
