"""The gate: decide before the user's objective trains, around it.

What it must satisfy: an eliminated trial ends PRUNED with every parameter of the search space
suggested, since samplers infer their space from such trials too (a trial that stops after two
suggestions narrows TPE's space to those two for good); the study's sampler and pruner stay as they
are; and an eliminated pair never trains.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import product
from numbers import Real
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.search_space import IntersectionSearchSpace, intersection_search_space
from optuna.trial import Trial, TrialState, create_trial

from transfer_pruner.records import Outcome, Recorder, TrialRecord
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import check_fraction, is_audited
from transfer_pruner.tasks import PairParams, plain_source
from transfer_pruner_optuna.learning import RuleOfNow
from transfer_pruner_optuna.records import AUDIT, ELIMINATED, decision_attributes, record_study

Value = float | Sequence[float]
Objective = Callable[[Trial], Value]


def gate(
    objective: Objective,
    rule: EliminationRule | LearningRule,
    *,
    search_space: Mapping[str, BaseDistribution] | None = None,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | None = None,
    audit_fraction: float = 0.0,
    tracker: Recorder | None = None,
) -> Objective:
    """Wrap an objective so that eliminated pairs are pruned before it trains.

    Every trial is marked with the user attributes ``transfer_pruner.eliminated`` (0 or 1) and
    ``transfer_pruner.score``, an eliminated one with ``transfer_pruner.reason`` too, an audit trial
    with ``transfer_pruner.audit``. A trial that did not come from a study, such as a `FixedTrial`
    or ``study.best_trial``, goes to the objective as it is.

    Parameters
    ----------
    objective : callable of a Trial
        As it is. It suggests the source task, and the target task unless `target` is given, as
        categorical parameters; a source of None, or the target itself, is the single-task baseline.
    rule : EliminationRule or LearningRule
        A LearningRule learns from the study's own finished trials, so that processes which share
        the study's storage agree and a restart loses nothing.
    search_space : mapping of str to distribution, optional
        The parameters that the objective suggests in every trial. Given, the objective is not even
        entered for an eliminated pair. Left out, it is taken from the study's finished trials. In a
        study that has none, and where source and target are suggested in one branch of the
        objective only, the objective runs until it has suggested them; if the first pair of all is
        eliminated, one kept pair is trained in an extra trial to learn the space from.
    source_param : str or sequence of str
        Name of the source's parameter; several for joint transfer from several sources, each of
        them a task or None. A trial is eliminated if one of its sources is.
    target_param : str
        Name of the target's parameter.
    target : str, optional
        The target task of a study that searches over sources only.
    objective_index : int, optional
        Which of several objectives a LearningRule learns from and the tracker is told of.
    audit_fraction : float in [0, 1]
        Share of the eliminated trials that run all the same, at random, to measure what elimination
        misses (`transfer_pruner.estimate_audit`). Drawn from the trial's number and pair, so every
        worker and restart draws alike.
    tracker : SavingsTracker, optional
        Or anything with ``record(TrialRecord)``; told of every trial.

    Returns
    -------
    callable
        For ``study.optimize``; raises `optuna.TrialPruned` for an eliminated pair.

    Raises
    ------
    ValueError
        If `search_space` lacks the source or the target, or `audit_fraction` is no share; when a
        trial starts, if a LearningRule is to learn from a study with several objectives and none is
        chosen.
    """
    return _Gate(
        objective,
        rule,
        PairParams(source_param, target_param, target),
        search_space,
        objective_index,
        check_fraction(audit_fraction),
        tracker,
    )


class _Gate:
    def __init__(
        self,
        objective: Objective,
        rule: EliminationRule | LearningRule,
        pair_of: PairParams,
        search_space: Mapping[str, BaseDistribution] | None,
        objective_index: int | None,
        audit_fraction: float,
        tracker: Recorder | None,
    ) -> None:
        self._objective = objective
        self._objective_index = objective_index
        self._audit_fraction = audit_fraction
        self._rule_of_now = RuleOfNow(rule, pair_of, objective_index)
        self._pair_of = pair_of
        self._given_space = dict(search_space) if search_space is not None else None
        self._tracker = tracker
        self._lock = threading.Lock()
        self._scouting = threading.Lock()
        # One for each study that this gate has met, by name.
        self._finished_spaces: dict[str, IntersectionSearchSpace] = {}
        if self._given_space is not None:
            missing = [name for name in pair_of.params if name not in self._given_space]
            if missing:
                raise ValueError(
                    f"search_space lacks {missing[0]!r}; it has: "
                    f"{', '.join(self._given_space) or 'nothing'}. Add it, or name the parameter "
                    "with source_param= and target_param=."
                )

    def __call__(self, trial: Trial) -> Value:
        if not isinstance(trial, Trial):
            # A FixedTrial or a FrozenTrial: the user looks at one setting, there is no search.
            return self._objective(trial)
        self._meet(trial.study)
        # One rule for the whole trial: others may finish, and a learning rule refit, meanwhile.
        rule = self._rule_of_now(trial.study)
        space = self._search_space(trial.study)
        if not self._covers(space):
            return self._run_unknown(trial, rule)
        for name in self._pair_of.params:
            _suggest(trial, name, space[name])
        decision, audit = self._verdict(trial, rule)
        if decision.eliminated and not audit:
            raise self._eliminate(trial, decision, space)
        self._mark(trial, decision, audit)
        return self._train(trial, trial, rule)

    def _verdict(self, trial: Trial, rule: EliminationRule) -> tuple[Decision, bool]:
        """Decide on a trial's pair; say whether it is eliminated and audited all the same."""
        source, target = self._pair_of(trial.params)
        decision = rule.decide(source, target)
        # A trial that died and is run again brings its attributes along, with another number.
        drawn = AUDIT in trial.user_attrs or is_audited(
            self._audit_fraction, trial.study.study_name, trial.number, source, target
        )
        return decision, decision.eliminated and drawn

    def _covers(self, space: Mapping[str, BaseDistribution]) -> bool:
        return all(name in space for name in self._pair_of.params)

    def _search_space(self, study: optuna.Study) -> dict[str, BaseDistribution]:
        """Find the parameters that every trial has."""
        if self._given_space is not None:
            return self._given_space
        with self._lock:
            return self._finished_spaces[study.study_name].calculate(study)

    def _space_with_pair(self, study: optuna.Study) -> dict[str, BaseDistribution] | None:
        """Find the parameters of every trial that trained with a source and target; None if none.

        Where the pair is suggested in one branch only, that is more than all trials have in common.
        """
        trained = [
            trial
            for trial in study.get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
            )
            if self._pair_of.is_in(trial.params)
            and (trial.user_attrs.get(ELIMINATED) != 1 or AUDIT in trial.user_attrs)
        ]
        # One that a pruner stopped has most likely suggested everything, but it need not have.
        complete = [trial for trial in trained if trial.state == TrialState.COMPLETE]
        if not trained:
            return None
        return intersection_search_space(complete or trained, include_pruned=True)

    def _run_unknown(self, trial: Trial, rule: EliminationRule) -> Value:
        """Run the objective until the pair is known: not every trial has it, or none yet."""
        try:
            return self._train(trial, self._watched(trial, rule), rule)
        except _PairEliminated as eliminated:
            decision = eliminated.decision
        with self._scouting:
            space = self._space_with_pair(trial.study)
            kept = self._kept_params(trial, rule) if space is None else None
            if kept is not None:
                space = self._scout(trial.study, kept, rule).distributions
        raise self._eliminate(trial, decision, space or {})

    def _watched(self, trial: Trial, rule: EliminationRule) -> _WatchedTrial:
        def on_suggest(trial: Trial) -> bool:
            """Decide as soon as the objective has suggested the pair; say whether it has."""
            if not self._pair_of.is_in(trial.params):
                return False
            decision, audit = self._verdict(trial, rule)
            if decision.eliminated and not audit:
                raise _PairEliminated(decision)
            self._mark(trial, decision, audit)
            return True

        return _WatchedTrial(trial, on_suggest)

    def _scout(self, study: optuna.Study, kept: dict[str, Any], rule: EliminationRule) -> Trial:
        """Train a kept pair in a trial of its own, which shows the whole space."""
        # As an enqueued trial, but running from the start: on sqlite two workers may both get one
        # that waits, and no public call makes one that does not.
        template = create_trial(
            state=TrialState.RUNNING,
            system_attrs={"fixed_params": kept},
            user_attrs={"transfer_pruner.scout": 1},
        )
        scout = Trial(study, study._storage.create_new_trial(study._study_id, template))
        try:
            value = self._train(scout, self._watched(scout, rule), rule)
        except optuna.TrialPruned:
            study.tell(scout, state=TrialState.PRUNED)
        except BaseException:
            study.tell(scout, state=TrialState.FAIL)
            raise
        else:
            study.tell(scout, value)
        return scout

    def _kept_params(self, trial: Trial, rule: EliminationRule) -> dict[str, Any] | None:
        """Find a pair that the rule keeps, for the trial's own target if there is one.

        With it comes what the trial had suggested before, which leads into the same branch; of a
        grid a value for every parameter, without which its sampler takes no fixed ones.
        """
        known = trial.study._storage.get_trial(trial._trial_id).system_attrs
        grid = known.get("search_space", {}) if "grid_id" in known else {}
        first = {name: values[0] for name, values in grid.items()}
        names = self._pair_of.params
        choices = []
        for name in names:
            distribution = trial.distributions[name]
            if not isinstance(distribution, CategoricalDistribution):
                return None
            own = trial.params[name]
            choices.append([own, *(choice for choice in distribution.choices if choice != own)])
        for values in product(*reversed(choices)):
            params = dict(zip(reversed(names), values, strict=True))
            if not rule.decide(*self._pair_of(params)).eliminated:
                return first | trial.params | params
        return None

    def _eliminate(
        self,
        trial: Trial,
        decision: Decision,
        space: Mapping[str, BaseDistribution],
    ) -> optuna.TrialPruned:
        for name, distribution in space.items():
            _suggest(trial, name, distribution)
        self._mark(trial, decision)
        self._record(trial, decision, "eliminated")
        return optuna.TrialPruned(f"eliminated before training: {decision.reason}")

    def _train(self, trial: Trial, shown: Trial, rule: EliminationRule) -> Value:
        """Enter the objective and record how it ended; `shown` is the trial that it is shown."""
        value: Value = math.nan
        outcome: Outcome = "failed"
        try:
            value = self._objective(shown)
            outcome = "trained"
        except optuna.TrialPruned:
            outcome = "trained"
            raise
        except _PairEliminated:
            outcome = "eliminated"
            raise
        finally:
            if outcome != "eliminated":
                self._record_training(trial, rule, outcome, value)
        return value

    def _mark(self, trial: Trial, decision: Decision, audit: bool = False) -> None:
        for key, attribute in decision_attributes(decision, audit).items():
            trial.set_user_attr(key, attribute)

    def _meet(self, study: optuna.Study) -> None:
        """Write once which rule decides, where the study's other constants are."""
        with self._lock:
            if study.study_name not in self._finished_spaces:
                self._finished_spaces[study.study_name] = IntersectionSearchSpace()
                record_study(study, self._rule_of_now.first)

    def _record_training(
        self, trial: Trial, rule: EliminationRule, outcome: Outcome, value: Value
    ) -> None:
        # An objective may fail before it has suggested the pair.
        if self._pair_of.is_in(trial.params):
            decision, audit = self._verdict(trial, rule)
            self._record(trial, decision, outcome, value, audit)

    def _record(
        self,
        trial: Trial,
        decision: Decision,
        outcome: Outcome,
        value: Value = math.nan,
        audit: bool = False,
    ) -> None:
        if self._tracker is None:
            return
        source, target = self._pair_of(trial.params)
        # From when Optuna started the trial, as its own duration counts: sampling is paid for too.
        begun = trial.datetime_start or datetime.now()
        self._tracker.record(
            TrialRecord(
                number=trial.number,
                source=plain_source(source, target),
                target=target,
                outcome=outcome,
                seconds=(datetime.now() - begun).total_seconds(),
                value=self._number(value),
                score=decision.score,
                probability=decision.probability,
                reason=decision.reason,
                hyperparameters=self._pair_of.hyperparameters(trial.params),
                audit=audit,
            )
        )

    def _number(self, value: Value) -> float:
        """Take the one number: NaN of several objectives, or of what Optuna is about to refuse."""
        if isinstance(value, Sequence) and self._objective_index is not None:
            value = value[self._objective_index]
        return float(value) if isinstance(value, Real) else math.nan


class _PairEliminated(BaseException):
    """Leaves the user's objective from inside a suggestion.

    No Exception, so that a broad ``except Exception`` around the training cannot swallow it.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision


class _WatchedTrial(Trial):
    """The user's trial itself, which tells after each suggestion: it shares the trial's state."""

    __slots__ = ("_decided", "_on_suggest")

    def __init__(self, trial: Trial, on_suggest: Callable[[Trial], bool]) -> None:
        self.__dict__ = trial.__dict__
        self._on_suggest = on_suggest
        self._decided = False

    def suggest_categorical(self, *args: Any, **kwargs: Any) -> Any:
        return self._told(super().suggest_categorical(*args, **kwargs))

    def suggest_float(self, *args: Any, **kwargs: Any) -> float:
        value: float = self._told(super().suggest_float(*args, **kwargs))
        return value

    def suggest_int(self, *args: Any, **kwargs: Any) -> int:
        value: int = self._told(super().suggest_int(*args, **kwargs))
        return value

    def _told(self, value: Any) -> Any:
        if not self._decided:
            self._decided = self._on_suggest(self)
        return value


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> None:
    """Suggest a parameter by its distribution; one that was suggested before stays as it is."""
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    else:
        raise ValueError(f"search_space[{name!r}] must be a distribution but is {distribution!r}.")
