"""The pruner, for objectives that call should_prune() and for ask-and-tell loops."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.trial import FrozenTrial

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Decider
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna._private import (
    first_number,
    study_key,
    tolerate_eliminated_trials,
    write_attributes,
)
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.records import marks_of, never_ran


class TransferPruner(BasePruner):
    """Prune eliminated pairs, and leave the others to another pruner.

    Call ``trial.should_prune()`` once after all parameters are suggested and before training; a
    trial that is stopped earlier narrows the space that samplers infer. Where the objective cannot
    be changed, use `gate`. Trials are marked as by `gate`; `TrackingCallback` tells a tracker.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
        A LearningRule learns from the study's own finished trials. Either decides once a trial, the
        first time that it is asked.
    wrapped_pruner : optuna.pruners.BasePruner, optional
        Asked about every trial that is not eliminated; none is pruned if left out.
    source_param : str, sequence of str, or callable
        As for `gate`. A trial that has not suggested its pair is left to the wrapped pruner.
    target_param : str
    target : str, optional
        The target task of a study that searches over sources only.
    audit_fraction : float in [0, 1]
        As for `gate`.

    Raises
    ------
    ValueError
        If `rule` is no rule, `wrapped_pruner` no pruner, `audit_fraction` no share, or
        `wrapped_pruner` is a HyperbandPruner: samplers look for one in ``study.pruner`` and would
        not find it. Keep it there and use `gate`.

    Examples
    --------
    >>> import optuna
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_optuna import TransferPruner
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> def objective(trial):
    ...     source = trial.suggest_categorical("source", ["advice", "weather"])
    ...     if trial.should_prune():
    ...         raise optuna.TrialPruned
    ...     return 0.66
    >>> pruner = TransferPruner(rule, target="news")
    >>> study = optuna.create_study(direction="maximize", pruner=pruner)
    >>> study.enqueue_trial({"source": "weather"})
    >>> study.optimize(objective, n_trials=1)
    >>> study.trials[0].state.name
    'PRUNED'
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        *,
        wrapped_pruner: BasePruner | None = None,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
    ) -> None:
        if isinstance(wrapped_pruner, HyperbandPruner):
            raise ValueError(
                "wrapped_pruner cannot be a HyperbandPruner, which samplers must find in "
                "study.pruner: keep it there and pass gate(objective, rule) to optimize()."
            )
        if not isinstance(wrapped_pruner, BasePruner | None):
            raise ValueError(
                f"wrapped_pruner must be a pruner but got {wrapped_pruner!r}: pass an instance "
                "such as optuna.pruners.MedianPruner()."
            )
        self._wrapped_pruner = wrapped_pruner or NopPruner()
        self._pair_of = PairParams(source_param, target_param, target)
        self._decide = Decider(self._pair_of, audit_fraction)
        self._evidence = Evidence(rule, self._pair_of)
        # Of trials that were asked about in this process: whether they are eliminated.
        self._decided: dict[tuple[Hashable, int], bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Trials that run belong to this process.
        return self.__dict__ | {"_decided": {}}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial: its pair is eliminated, or the wrapped pruner says so."""
        # Not by the trial's marks: a trial that is queued again brings old ones along.
        key = study_key(study), trial._trial_id
        if key not in self._decided:
            eliminated = self._decided_now(study, trial)
            if eliminated is None:
                return self._wrapped_pruner.prune(study, trial)
            self._decided[key] = eliminated
        return self._decided[key] or self._wrapped_pruner.prune(study, trial)

    def _decided_now(self, study: optuna.Study, trial: FrozenTrial) -> bool | None:
        """Decide on a trial and mark it; None if it has no pair."""
        self._pair_of.check(trial.params)
        self._evidence.meet(study)
        tolerate_eliminated_trials(study.sampler, never_ran)
        verdict = self._decide(
            self._evidence.rule(study),
            trial.params,
            search=study.study_name,
            trial=first_number(trial),
            fingerprint=self._evidence.fingerprint,
        )
        if verdict is None:
            if self._decide.names_a_task(self._evidence.first, trial.params):
                self._decide.warn_without_pair(trial.params)
            return None
        write_attributes(study, trial, marks_of(verdict, trial.user_attrs))
        return verdict.eliminated
