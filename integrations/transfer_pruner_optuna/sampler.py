"""The sampler that redirects, as Optuna sees it: no trial is spent on an eliminated pair.

What it must satisfy: whatever another sampler proposes, a trial gets a surviving pair if there is
one among the parameters' choices, of a rule that learns the one that is worth most; choices stay as
they are; and where the pair is not ours to choose, or nothing can be said of it, the proposal
stands.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.records import Recorder
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Decider
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna._private import write_attributes
from transfer_pruner_optuna.callback import tell_tracker
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.gains import Gains
from transfer_pruner_optuna.records import ELIMINATED, RULE, marks_of
from transfer_pruner_optuna.redirecting import Redirector
from transfer_pruner_optuna.survivors import Params


class TransferSampler(BaseSampler):
    """Let another sampler propose, and redirect eliminated pairs to surviving ones.

    No trial is pruned and none is wasted: the advice for samplers that never learn from pruned
    trials and return to the same pairs (GP, CMA-ES, QMC, NSGA-II, random search).

    The base sampler proposes source and target together, also where Optuna would have it sample one
    after the other. What survives stands. In place of an eliminated pair comes the target's
    single-task baseline, if it has no result yet, else the best-scored pair of that target among
    those that have had the fewest trials; of another target if none survives for this one. Pairs
    that were tried at these hyperparameters come last, and of the proposal the hyperparameters are
    taken. Where the rule tells no order, or the source is several parameters, Random, TPE, QMC,
    CMA-ES and NSGA samplers are asked again, up to nine times; others are not, such as `GPSampler`,
    which would take long. Then as little of the last proposal as possible is changed, at random:
    the source, if any survives for the proposed target, else the target.

    With a `LearningRule` the pair is the surviving one of the highest `Decision.priority`, over all
    targets or the one that is given, and of the base sampler's first proposal the hyperparameters
    are taken, not the pair. Every target's single-task baseline comes first, since gains need one.
    Pairs that other workers are running come after all others of positive priority; so do those of
    a target without a baseline that have had a result, and, last, those that were tried at every
    setting that there is, or that three trials have left without a result. No random number
    chooses: equal trials, equal pairs. Proposals stand where the rule tells no order or no priority
    of the pair; in joint transfer no order is told. In a study of several targets the base sampler
    learns hyperparameters from gains over each target's baseline, not from scores, which say more
    of the target.

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
        Of the choice among surviving pairs that the rule puts in no order.
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

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
    >>> from transfer_pruner_optuna import TransferSampler
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> rule = LearningRule(TransferPredictor(embeddings))
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> def objective(trial):
    ...     return scores[trial.suggest_categorical("source", list(scores))]
    >>> sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=0), target="news")
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(objective, n_trials=3)
    >>> [trial.params["source"] for trial in study.trials]
    ['news', 'advice', 'weather']
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
        self._objective_index = objective_index
        self._tracker = tracker
        self._rng = random.Random(seed)
        learns = isinstance(rule, LearningRule)
        # Whose pairs are chosen for it is asked for hyperparameters, whatever the target.
        self._shown = Gains(self._pair_of).study if learns else _as_it_is
        self._redirector = Redirector(
            self._base_sampler,
            self._evidence,
            self._decide,
            self._rng,
            shown=self._shown,
            learns=learns,
        )

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

        def ask() -> Params:
            return self._base_sampler.sample_relative(self._shown(study), trial, search_space)

        return self._redirector.all_of(study, trial, search_space, ask)

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
                self._shown(study), trial, param_name, param_distribution
            )
            return {param_name: value}

        return self._redirector.one_of(study, trial, param_name, param_distribution, ask)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Fix the rule for the trial."""
        self._redirector.begin(study, trial)
        self._base_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Mark the trial, which Optuna has not finished yet, and tell the tracker."""
        rule = self._redirector.end(study, trial)
        # A gate or pruner with the same rule has marked it; another rule's marks say nothing.
        if trial.user_attrs.get(RULE) != self._evidence.fingerprint or (
            ELIMINATED not in trial.user_attrs
        ):
            verdict = None
            if self._is_ours(trial.distributions):
                verdict = self._redirector.verdict(study, rule, trial, trial.params)
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

    def _is_ours(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        """Whether there is a pair, of tasks and not of numbers."""
        return self._pair_of.is_in(distributions) and all(
            isinstance(distributions[name], CategoricalDistribution)
            for name in self._pair_of.params
        )


def _as_it_is(study: optuna.Study) -> optuna.Study:
    return study
