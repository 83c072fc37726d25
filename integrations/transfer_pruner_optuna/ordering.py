"""The pair that a trial gets where the rule says which one is worth most.

What it must satisfy: the study is read once, and the pair follows from its storage alone, whichever
process asks; and trials that ask in the same moment get different pairs, while there are any.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.tried import NextPair, Pair, Setting
from transfer_pruner.tasks import PairParams, task_name
from transfer_pruner_optuna._private import study_key, whole_study
from transfer_pruner_optuna.claims import Claim, Claims, give_way_before, may_wait, write_claim
from transfer_pruner_optuna.history import History

Params = dict[str, Any]

_PATIENCE = 0.5
"""Seconds for which a trial waits in all until those that began later give way: then it does."""
_PAUSE = 0.02
"""Seconds from one look at the storage to the next."""
_ROUNDS = 50
"""Pairs that a trial chooses and finds taken in that moment, before it shares one."""


@dataclass(frozen=True)
class _Drawn:
    """What a trial would be, and the parameters that make it so."""

    claim: Claim
    pair: Params
    params: Params


@dataclass(frozen=True)
class Proposal:
    """What a base sampler proposes for a trial.

    Attributes
    ----------
    params : dict of str to value
    ask : callable without parameters
        Makes others.
    times : int
        How often it can be asked again.
    """

    params: Params
    ask: Callable[[], Params]
    times: int


class Ordering:
    """Chooses pairs by priority, for one sampler.

    Parameters
    ----------
    pair_of : PairParams
        With one parameter for the source: of joint transfer no order is told.
    learns : bool
        Whether the rule says of every trial what it should be, not only of eliminated ones.
    """

    def __init__(self, pair_of: PairParams, *, learns: bool) -> None:
        self._pair_of = pair_of
        self._learns = learns
        self._lock = threading.RLock()
        self._histories: dict[Hashable, History] = {}
        # Of trials that were begun here: the second half of a pair goes with the first.
        self._chosen: dict[tuple[Hashable, int], Pair] = {}
        self._next = NextPair()

    def __getstate__(self) -> dict[str, Any]:
        return {"_pair_of": self._pair_of, "_learns": self._learns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_pair_of"], learns=state["_learns"])  # type: ignore[misc]

    def choose(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        rule: EliminationRule,
        proposal: Proposal,
        proposed: Mapping[str, Any],
        choices: Mapping[str, Sequence[Any]],
    ) -> tuple[Params, Params] | None:
        """Choose the pair's parameters, and among what is proposed those that go with it.

        None if the rule tells no order, or nothing of the pair. Of a rule that does not learn it is
        the pair that an eliminated one gives way to. A pair that was tried at just the trial's
        hyperparameters, as far as they stand, comes after others.

        Parameters
        ----------
        study, trial
        rule : EliminationRule
            Of this trial.
        proposal : Proposal
        proposed : mapping of str to value
            The pair of the proposal: one of which no priority is told stands.
        choices : mapping of str to sequence
            What the pair's parameters can be; one value where it is fixed.
        """
        if len(self._pair_of.source_params) != 1:
            return None
        of_source, of_target = self._pair_of.source_params[0], self._pair_of.target_param
        sources = _by_name(choices[of_source])
        targets = _by_name(choices.get(of_target, [self._pair_of.target]))
        # Who is not asked again says here which hyperparameters it will be.
        known = trial.params if proposal.times else trial.params | proposal.params
        ask = self._next if self._learns else self._instead

        def as_params(pair: Pair) -> Params:
            source, target = pair
            own = source if source is not None or None in sources else target
            params = {of_source: sources[own]}
            return params if self._pair_of.target else params | {of_target: targets[target]}

        def draw(history: History, others: Claims, ahead: int) -> _Drawn | None:
            claimed = [(other.pair, other.setting) for other in others.values()]
            among: dict[str, Any] = {"sources": sources, "targets": _names(targets)}
            among["instead_of"] = history.pair(proposed)

            def best(setting: Setting, now: Proposal) -> _Drawn | None:
                running: Counter[Any] = history.taken(claimed, setting)
                for _ in range(ahead):
                    running[ask(rule, history, setting, running, **among)] += 1
                pair = ask(rule, history, setting, running, **among)
                return pair and self._drawn(trial, now, as_params(pair), history, others)

            drawn = best(history.setting(known), proposal)
            if drawn is None or not history.repeats(drawn.claim, others):
                return drawn
            # No other hyperparameters are proposed: with these, another pair comes first.
            return best(drawn.claim.setting, Proposal(drawn.params, proposal.ask, 0))

        # Chosen when its first half was suggested, whose choices alone were known then.
        pair = self._chosen.get((study_key(study), trial.number))
        if pair is not None and _is_among(pair, sources, targets):
            chosen = as_params(pair)
            return chosen, self.without_repeats(study, trial, proposal, chosen)
        drawn = self._settle(study, trial, draw)
        if drawn is None:
            return None
        self._chosen[study_key(study), trial.number] = drawn.claim.pair
        return drawn.pair, drawn.params

    def without_repeats(
        self, study: optuna.Study, trial: FrozenTrial, proposal: Proposal, pair: Params
    ) -> Params:
        """Have a pair that was chosen tried at other hyperparameters than before, if we can.

        Parameters
        ----------
        study, trial
        proposal : Proposal
        pair : dict of str to value
            Of the pair what the trial's parameters do not hold yet.
        """
        if not self.is_chosen(study, trial) or not proposal.times:
            return proposal.params
        with self._lock:
            history = self._histories.get(study_key(study))
            if history and not history.may_be_whole(trial.params | proposal.params | pair):
                # No other trial is alike as long as something is missing.
                return proposal.params

        def draw(history: History, others: Claims, ahead: int) -> _Drawn | None:
            return self._drawn(trial, proposal, pair, history, others)

        drawn = self._settle(study, trial, draw, of_shared=True)
        return proposal.params if drawn is None else drawn.params

    def _settle(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        draw: Callable[[History, Claims, int], _Drawn | None],
        *,
        of_shared: bool = False,
    ) -> _Drawn | None:
        """Draw, and say so, until no other trial has said the same in that moment.

        Parameters
        ----------
        study, trial
        draw : callable
            Takes what is known of others, and how many of them take what comes next.
        of_shared : bool
            Say nothing unless another trial runs: it may come to share the pair.
        """
        until = time.monotonic() + _PATIENCE
        with self._lock:
            # Whoever has come since the trial began is a rival of the claim.
            others, ahead = self._history(study, anew=of_shared).claims(trial.number), 0
            for _ in range(_ROUNDS):
                history = self._histories[study_key(study)]
                drawn = draw(history, others, ahead)
                if drawn is None:
                    return None
                claim = drawn.claim
                tried = history.trials_of(claim.pair)
                if of_shared and not others:
                    # Who shares the pair later reads what is suggested meanwhile.
                    return drawn
                write_claim(study, trial, claim)
                now = self._history(study).claims(trial.number)
                while (
                    (rivals := claim.rivals(others, now))
                    and may_wait(trial.number, claim, rivals)
                    and time.monotonic() < until
                ):
                    time.sleep(_PAUSE)
                    now = self._history(study).claims(trial.number)
                # Who began and finished meanwhile claims nothing any more, and was not known.
                if not rivals and history.trials_of(claim.pair) == tried:
                    break
                others, ahead = now, give_way_before(trial.number, claim, rivals)
            return drawn

    def _drawn(
        self,
        trial: FrozenTrial,
        proposal: Proposal,
        pair: Params,
        history: History,
        others: Claims,
    ) -> _Drawn | None:
        """Ask again while the pair has been tried, or is claimed, at just these parameters."""
        params = proposal.params
        claim = history.claim(trial.params | params | pair)
        for _ in range(proposal.times):
            if claim is None or not history.repeats(claim, others):
                break
            params = proposal.ask()
            claim = history.claim(trial.params | params | pair)
        return None if claim is None else _Drawn(claim, pair, params)

    def _instead(
        self,
        rule: EliminationRule,
        history: History,
        setting: Setting,
        running: Counter[Pair],
        *,
        sources: Collection[str | None],
        targets: Collection[str],
        instead_of: Pair | None,
    ) -> Pair | None:
        """Take the target's baseline if it is due, else the best of those that were tried least."""
        if instead_of is None or not self._next.order(rule).tells:
            return None
        same = {instead_of[1]} & {*targets}
        due = history.due_baseline(same, sources, running)
        return due or self._next.instead(
            rule,
            history,
            setting,
            running,
            sources=sources,
            targets=targets,
            proposed=instead_of,
        )

    def is_chosen(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's pair was chosen here."""
        return (study_key(study), trial.number) in self._chosen

    def forget(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forget a trial that has ended, or is about to begin."""
        self._chosen.pop((study_key(study), trial.number), None)

    def _history(self, study: optuna.Study, *, anew: bool = True) -> History:
        history = self._histories.setdefault(study_key(study), History(self._pair_of))
        history.update(study, anew=anew)
        return history


def searched(study: optuna.Study, name: str) -> set[str] | None:
    """Find the tasks that a parameter can be in a study; None if no trial tells."""
    for trial in reversed(whole_study(study).get_trials(deepcopy=False)):
        space = trial.distributions.get(name)
        if isinstance(space, CategoricalDistribution):
            return _names(_by_name(space.choices))
    return None


def _by_name(values: Sequence[Any]) -> dict[str | None, Any]:
    """Name choices as the rule does; of two of the same name the first counts."""
    named: dict[str | None, Any] = {}
    for value in values:
        named.setdefault(task_name(value), value)
    return named


def _is_among(
    pair: Pair, sources: Mapping[str | None, Any], targets: Mapping[str | None, Any]
) -> bool:
    source, target = pair
    as_source = source in sources if source is not None else {None, target} & {*sources}
    return bool(as_source) and target in targets


def _names(named: Mapping[str | None, Any]) -> set[str]:
    return {name for name in named if name is not None}
