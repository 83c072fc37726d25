"""The gate: decide before the user's objective trains, around it.

What it must satisfy: an eliminated pair never trains; its trial ends PRUNED with the parameters
that it would have had, as far as they are known; no trial is added, and the study's sampler and
pruner stay as they are.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from numbers import Real
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import GridSampler
from optuna.study import StudyDirection
from optuna.trial import Trial

from transfer_pruner.records import Outcome, Recorder, TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Decider, Verdict
from transfer_pruner.tasks import PairParams, SourceParam, task_name
from transfer_pruner_optuna._private import (
    first_number,
    fix_param,
    fixed_params,
    tolerate_eliminated_trials,
    write_attributes,
)
from transfer_pruner_optuna.branches import Branches
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.records import check_objective, marks_of, never_ran
from transfer_pruner_optuna.trial import PairEliminated, WatchedTrial, suggest

Value = float | Sequence[float]
Objective = Callable[[Trial], Value]
# Where no trial of so many had the pair, its parameters are most likely called something else.
_TRIALS_WITHOUT_PAIR = 10


def gate(
    objective: Objective,
    rule: EliminationRule | LearningRule,
    *,
    search_space: Mapping[str, BaseDistribution | Sequence[Any]] | None = None,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
    audit_fraction: float = 0.0,
    tracker: Recorder | None = None,
) -> Objective:
    """Wrap an objective so that eliminated pairs are pruned before it trains.

    Every trial is marked with the user attributes ``transfer_pruner.eliminated`` (0 or 1),
    ``transfer_pruner.score``, ``transfer_pruner.probability`` and ``transfer_pruner.rule`` (the
    rule's fingerprint), an eliminated one with ``transfer_pruner.reason`` too, an audit trial with
    ``transfer_pruner.audit``. A trial that did not come from a study, such as a `FixedTrial` or
    ``study.best_trial``, goes to the objective as it is.

    Parameters
    ----------
    objective : callable of a Trial
        As it is. It suggests the source task, and the target task unless `target` is given, as
        categorical parameters; a source of None, or the target itself, is the single-task baseline.
    rule : EliminationRule or LearningRule
        A LearningRule learns from the study's own finished trials, so that processes which share
        the study's storage agree and a restart loses nothing.
    search_space : mapping of str to distribution or to list of choices, optional
        The parameters that the objective suggests in every trial, in the order in which it does.
        Given, the objective is not even entered for an eliminated pair. Left out, the objective
        runs until it has suggested source and target; an eliminated trial then gets the further
        parameters that trained trials of its branch have. As long as no trial of a branch has
        trained, pairs that the rule keeps are suggested there, whatever the sampler would propose.
    source_param : str, sequence of str, or callable
        Name of the source's parameter; several for joint transfer from several sources, each of
        them a task or None. A trial is eliminated if one of its sources is. A pattern such as
        ``source_{target}``, or a callable of the trial's parameters, where each branch has a
        parameter of its own: see `transfer_pruner.PairParams`.
    target_param : str
        Name of the target's parameter.
    target : str, optional
        The target task of a study that searches over sources only.
    objective_index : int or str, optional
        Which of several objectives, by number or metric name, a LearningRule learns from and the
        tracker is told of.
    audit_fraction : float in [0, 1]
        Share of the eliminated trials that run all the same, at random, to measure what elimination
        misses (`transfer_pruner.estimate_audit`). Drawn from the study's name and the trial's
        number and pair, so every worker and restart draws alike.
    tracker : SavingsTracker, optional
        Or anything with ``record(TrialRecord)``; told of every trial.

    Returns
    -------
    callable
        For ``study.optimize``; raises `optuna.TrialPruned` for an eliminated pair.

    Raises
    ------
    ValueError
        If `objective` is not callable, `rule` no rule, `search_space` lacks the source or the
        target, or `audit_fraction` is no share; when a trial starts, if a LearningRule is to learn
        from a study with several objectives and none is chosen, if `target` is given and the
        objective suggests one too, or if several ranks of torch.distributed share the trial.

    Examples
    --------
    >>> import optuna
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_optuna import gate
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> def objective(trial):
    ...     return scores[trial.suggest_categorical("source", list(scores))]
    >>> study = optuna.create_study(direction="maximize")
    >>> for source in scores:
    ...     study.enqueue_trial({"source": source})
    >>> study.optimize(gate(objective, rule, target="news"), n_trials=3)
    >>> [trial.state.name for trial in study.trials]
    ['COMPLETE', 'COMPLETE', 'PRUNED']
    """
    if not callable(objective):
        raise ValueError(f"objective must be callable with a trial but got {objective!r}.")
    return _Gate(
        objective,
        Evidence(rule, PairParams(source_param, target_param, target), objective_index),
        Decider(PairParams(source_param, target_param, target), audit_fraction),
        search_space,
        objective_index,
        tracker,
    )


class _Gate:
    def __init__(
        self,
        objective: Objective,
        evidence: Evidence,
        decider: Decider,
        search_space: Mapping[str, BaseDistribution | Sequence[Any]] | None,
        objective_index: int | str | None,
        tracker: Recorder | None,
    ) -> None:
        self._objective = objective
        self._evidence = evidence
        self._decide = decider
        self._pair_of = decider.pair_of
        self._space = None if search_space is None else self._checked(search_space)
        self._objective_index = objective_index
        self._tracker = tracker
        self._trials_without_pair = 0
        # The objective's own choices, as far as it has suggested them in this process.
        self._choices: dict[str, Sequence[Any]] = {}

    def _checked(
        self, search_space: Mapping[str, BaseDistribution | Sequence[Any]]
    ) -> dict[str, BaseDistribution]:
        if not isinstance(search_space, Mapping):
            raise ValueError(
                "search_space must map parameters to distributions, or to lists of choices, but "
                f"got {search_space!r}."
            )
        missing = [name for name in self._pair_of.params if name not in search_space]
        if missing and self._pair_of.is_named:
            raise ValueError(
                f"search_space lacks {missing[0]!r}; it has: "
                f"{', '.join(search_space) or 'nothing'}. Add it, or name the parameter "
                "with source_param= and target_param=."
            )
        if not self._pair_of.is_named:
            raise ValueError(
                f"search_space cannot go with source_param={self._pair_of.source_param!r}, whose "
                "parameters differ from branch to branch: leave search_space out."
            )
        space = {}
        for name, values in search_space.items():
            if not isinstance(values, BaseDistribution):
                if isinstance(values, str) or not isinstance(values, Sequence):
                    raise ValueError(
                        f"search_space[{name!r}] must be a distribution or a list of choices but "
                        f"got {values!r}."
                    )
                values = CategoricalDistribution(values)
            space[name] = values
        return space

    def __call__(self, trial: Trial) -> Value:
        _refuse_several_ranks(trial)
        if not isinstance(trial, Trial):
            # A FixedTrial or a FrozenTrial: the user looks at one setting, there is no search.
            return self._objective(trial)
        study = trial.study
        self._evidence.meet(study)
        tolerate_eliminated_trials(study.sampler, never_ran)
        # One rule for the whole trial: others may finish, and a learning rule refit, meanwhile.
        rule = self._evidence.rule(study)
        if self._space is not None:
            return self._run_with_space(trial, rule, self._space)
        return self._run_watched(trial, rule)

    def _run_with_space(
        self, trial: Trial, rule: EliminationRule, space: Mapping[str, BaseDistribution]
    ) -> Value:
        # In the order of the study's trained trials, of which some samplers build a tree.
        known = self._evidence.branches(trial.study, lambda branches: bool(branches.order))
        left = dict.fromkeys([name for name in (*known.order, *space) if name in space])
        while not self._pair_of.is_in(trial.params):
            name = next(iter(left))
            del left[name]
            suggest(trial, name, space[name])
        verdict = self._verdict(trial, rule)
        if verdict is not None and verdict.eliminated:
            for name in left:
                suggest(trial, name, space[name])
            raise self._eliminate(trial, verdict)
        self._mark(trial, verdict)
        return self._train(trial, trial, verdict)

    def _run_watched(self, trial: Trial, rule: EliminationRule) -> Value:
        """Run the objective until the pair is known: not every trial has it."""
        verdict: Verdict | None = None

        def before(trial: Trial, name: str, choices: Sequence[Any]) -> None:
            self._pair_of.check({name: None})
            self._choices[name] = choices
            self._lead_into_branch(trial, rule, name, choices)

        def after(trial: Trial) -> bool:
            """Decide as soon as the objective has suggested the pair; say whether it has."""
            nonlocal verdict
            verdict = self._verdict(trial, rule)
            if verdict is None:
                return False
            if verdict.eliminated:
                raise PairEliminated(verdict)
            self._mark(trial, verdict)
            return True

        try:
            return self._train(trial, WatchedTrial(trial, before, after), lambda: verdict)
        except PairEliminated as eliminated:
            verdict = eliminated.verdict
        while (following := self._following(trial)) is not None:
            name, distribution = following
            suggest(trial, name, distribution, self._choices.get(name))
        raise self._eliminate(trial, verdict)

    def _following(self, trial: Trial) -> tuple[str, BaseDistribution] | None:
        known = self._evidence.branches(trial.study, lambda b: b.following(trial) is not None)
        return known.following(trial)

    def _verdict(self, trial: Trial, rule: EliminationRule) -> Verdict | None:
        self._pair_of.check(trial.params)
        return self._decide(
            rule,
            trial.params,
            search=trial.study.study_name,
            trial=first_number(trial),
            fingerprint=self._evidence.fingerprint,
        )

    def _lead_into_branch(
        self, trial: Trial, rule: EliminationRule, name: str, choices: Sequence[Any]
    ) -> None:
        """Have a pair suggested that trains, where no trial of this branch has trained yet.

        Without one nobody knows which parameters an eliminated trial of the branch would have.
        """
        pair_of, params = self._pair_of, trial.params
        is_target = pair_of.target is None and name == pair_of.target_param
        if not (is_target or pair_of.is_source_param(name)) or name in params:
            return
        if name in fixed_params(trial) or isinstance(trial.study.sampler, GridSampler):
            return
        if self._evidence.branches(trial.study, lambda known: known.knows(trial)).knows(trial):
            return
        surviving = [c for c in choices if self._may_train(rule, {**params, name: c})]
        if surviving and len(surviving) < len(choices):
            rng = random.Random(f"{trial.study.study_name} {trial.number} {name}")
            fix_param(trial, name, rng.choice(surviving))

    def _may_train(self, rule: EliminationRule, params: Mapping[str, Any]) -> bool:
        """Whether parameters can still lead to a pair with a source that the rule keeps."""
        pair_of = self._pair_of
        try:
            if pair_of.is_in(params):
                source, target = pair_of(params)
                return source is not None and not rule.decide(source, target).eliminated
            known = task_name(params.get(pair_of.target_param, pair_of.target))
            if known is not None:
                return rule.keeps_any(known)
            sources = [params[name] for name in params if pair_of.is_source_param(name)]
            return all(rule.keeps_any(source=task_name(source)) for source in sources)
        except Exception:
            # Whatever fails here fails again where it is decided, and is told there.
            return True

    def _eliminate(self, trial: Trial, verdict: Verdict) -> optuna.TrialPruned:
        self._mark(trial, verdict)
        self._record(trial, verdict, "eliminated")
        return optuna.TrialPruned(f"eliminated before training: {verdict.decision.reason}")

    def _train(
        self,
        trial: Trial,
        shown: Trial,
        verdict: Verdict | Callable[[], Verdict | None] | None,
    ) -> Value:
        """Enter the objective and record how it ended; `shown` is the trial that it is shown."""
        value: Value = math.nan
        outcome: Outcome = "failed"
        try:
            value = self._objective(shown)
            outcome = "trained"
        except optuna.TrialPruned:
            outcome = "trained"
            raise
        except PairEliminated:
            outcome = "eliminated"
            raise
        finally:
            if outcome != "eliminated":
                found = verdict() if callable(verdict) else verdict
                if found is None:
                    self._tell_of_no_pair(trial)
                else:
                    self._record(trial, found, outcome, value)
        return value

    def _tell_of_no_pair(self, trial: Trial) -> None:
        """Warn where the pair's parameters seem to be called something else.

        A trial without a pair may be of a branch that has none. It is not if another parameter
        holds a task of the rule, or if no trial of many had a pair.
        """
        self._trials_without_pair += 1
        if (
            self._decide.names_a_task(self._evidence.first, trial.params)
            or self._trials_without_pair == _TRIALS_WITHOUT_PAIR
        ) and not self._evidence.branches(trial.study, _any_target).targets:
            self._decide.warn_without_pair(trial.params)

    def _mark(self, trial: Trial, verdict: Verdict | None) -> None:
        if verdict is not None:
            write_attributes(trial.study, trial, marks_of(verdict, trial.user_attrs))

    def _record(
        self, trial: Trial, verdict: Verdict, outcome: Outcome, value: Value = math.nan
    ) -> None:
        if self._tracker is None:
            return
        study = trial.study
        index = self._objective_index
        several = len(study.directions) > 1 and index is None
        objective = 0 if several else check_objective(study, index)
        # From when Optuna started the trial, as its own duration counts: sampling is paid for too.
        begun = trial.datetime_start or datetime.now()
        if isinstance(value, Sequence):
            value = math.nan if several else value[objective]
        self._tracker.record(
            TrialRecord(
                number=trial.number,
                source=verdict.source,
                target=verdict.target,
                outcome=outcome,
                seconds=(datetime.now() - begun).total_seconds(),
                # NaN also of what Optuna is about to refuse.
                value=float(value) if isinstance(value, Real) else math.nan,
                score=verdict.decision.score,
                probability=verdict.decision.probability,
                priority=verdict.decision.priority,
                reason=verdict.decision.reason,
                hyperparameters=self._pair_of.hyperparameters(trial.params),
                audit=verdict.audit,
                maximize=several or study.directions[objective] == StudyDirection.MAXIMIZE,
                scoring_seconds=verdict.scoring_seconds,
            )
        )


def _any_target(branches: Branches) -> bool:
    return branches.targets > 0


def _refuse_several_ranks(trial: object) -> None:
    """Refuse a trial that ranks share: pruned on one rank, the others would wait for it."""
    distributed = sys.modules.get("torch.distributed")
    ranks = 1
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        ranks = distributed.get_world_size()
    if trial is None or type(trial).__name__ == "TorchDistributedTrial" or ranks > 1:
        raise ValueError(
            f"trial cannot be shared by several ranks of torch.distributed behind a gate, but got "
            f"{trial!r} on one of {ranks}: use TransferPruner, and should_prune() of the "
            "TorchDistributedTrial, which asks rank 0 and tells the others."
        )
