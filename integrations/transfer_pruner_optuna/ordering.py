"""The pair that a trial gets where the rule says which one is worth most.

What it must satisfy: the study is read once, and the pair follows from its storage alone, up to
trials of this process whose parameters are not in there yet.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.tried import NextPair, Pair, Setting, TriedPairs, setting_of
from transfer_pruner.tasks import PairParams, task_name
from transfer_pruner_optuna._private import study_key, whole_study
from transfer_pruner_optuna.records import ran
from transfer_pruner_optuna.spaces import count_values

Params = dict[str, Any]


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
        self.running: list[FrozenTrial] = []

    def update(self, study: optuna.Study) -> None:
        """Read what is new in the study."""
        trials = whole_study(study).get_trials(deepcopy=False)
        first = trials[0]._trial_id if trials else None
        if len(trials) < self._read or (self._first is not None and first != self._first):
            # Another study has come in its place.
            self.__init__(self._pair_of)  # type: ignore[misc]
        candidates = [*self._unfinished, *range(self._read, len(trials))]
        self._first, self._read = first, len(trials)
        self._unfinished = [i for i in candidates if not trials[i].state.is_finished()]
        self.running = [
            trials[i] for i in self._unfinished if trials[i].state == TrialState.RUNNING
        ]
        for i in candidates:
            if trials[i].state.is_finished() and ran(trials[i]):
                self._add(trials[i])

    def _add(self, trial: FrozenTrial) -> None:
        if (pair := self.pair(trial.params)) is not None:
            spaces = self._pair_of.hyperparameters(trial.distributions)
            self.add(
                pair,
                self.setting(trial.params),
                has_result=trial.state == TrialState.COMPLETE,
                has_failed=trial.state == TrialState.FAIL,
                possible=math.prod(map(count_values, spaces.values())),
            )

    def pair(self, params: Mapping[str, Any]) -> Pair | None:
        """Take the pair from a trial's parameters, if they have one."""
        return self._pair_of(params) if self._pair_of.is_in(params) else None

    def setting(self, params: Mapping[str, Any]) -> Setting:
        """Take the hyperparameters from a trial's parameters."""
        return setting_of(self._pair_of.hyperparameters(params))

    def repeats(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial of the same pair has, or had, exactly these parameters."""
        pair, setting = self.pair(params), self.setting(params)
        if pair is None:
            return False
        return self.has(pair, setting) or any(
            self.pair(trial.params) == pair and self.setting(trial.params) == setting
            for trial in self.running
        )


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
        # Of trials of this process whose parameters are not in the storage yet.
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
        proposed: Mapping[str, Any],
        choices: Mapping[str, Sequence[Any]],
        known: Mapping[str, Any],
    ) -> Params | None:
        """Choose the pair's parameters; None if the rule tells no order, or nothing of the pair.

        Of a rule that does not learn it is the pair that an eliminated one gives way to.

        Parameters
        ----------
        study, trial
        rule : EliminationRule
            Of this trial.
        proposed : mapping of str to value
            What the base sampler proposes: a pair of which no priority is told stands.
        choices : mapping of str to sequence
            What the pair's parameters can be; one value where it is fixed.
        known : mapping of str to value
            The trial's parameters as far as they stand: a pair that was tried at just these
            hyperparameters comes after others.
        """
        if len(self._pair_of.source_params) != 1:
            return None
        with self._lock:
            history = self._history(study)
            running = self._running(study, trial, history)
            of_target = self._pair_of.target_param
            sources = _by_name(choices[self._pair_of.source_params[0]])
            targets = _by_name(choices.get(of_target, [self._pair_of.target]))
            # Chosen when its first half was suggested, whose choices alone were known then.
            pair = self._chosen.get((study_key(study), trial.number))
            if pair is None or not _is_among(pair, sources, targets):
                ask = self._next if self._learns else self._instead
                pair = ask(
                    rule,
                    history,
                    history.setting(known),
                    running,
                    sources=sources,
                    targets=_names(targets),
                    instead_of=history.pair(proposed),
                )
            if pair is None:
                return None
            self._chosen[study_key(study), trial.number] = pair
        source, target = pair
        own = source if source is not None or None in sources else target
        params = {self._pair_of.source_params[0]: sources[own]}
        if self._pair_of.target is not None:
            return params
        return params | {of_target: targets[target]}

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

    def without_repeats(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        params: Params,
        pair: Params,
        ask: Callable[[], Params],
        times: int,
    ) -> Params:
        """Ask again while the pair has been tried at just these parameters."""
        with self._lock:
            history = self._history(study)
        for _ in range(times):
            if not history.repeats(trial.params | params | pair):
                break
            params = ask()
        return params

    def forget(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forget a trial that has ended, or is about to begin."""
        self._chosen.pop((study_key(study), trial.number), None)

    def _history(self, study: optuna.Study) -> History:
        history = self._histories.setdefault(study_key(study), History(self._pair_of))
        history.update(study)
        return history

    def _running(self, study: optuna.Study, trial: FrozenTrial, history: History) -> Counter[Pair]:
        running: Counter[Pair] = Counter()
        for other in history.running:
            chosen = self._chosen.get((study_key(study), other.number))
            pair = history.pair(other.params) or chosen
            if other.number != trial.number and pair is not None:
                running[pair] += 1
        return running


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
