"""The pruner, for objectives that call should_prune() and for ask-and-tell loops."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.trial import FrozenTrial

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import check_fraction, is_audited
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.learning import RuleOfNow
from transfer_pruner_optuna.records import AUDIT, ELIMINATED, decision_attributes


class TransferPruner(BasePruner):
    """Prune eliminated pairs, and leave the others to another pruner.

    Call ``trial.should_prune()`` once after all parameters are suggested and before training; a
    trial that is stopped earlier narrows the space that samplers infer. Where the objective cannot
    be changed, use `gate`.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
        A LearningRule learns from the study's own finished trials. Either decides once a trial, the
        first time that it is asked.
    wrapped_pruner : optuna.pruners.BasePruner, optional
        Asked about every trial that is not eliminated; none is pruned if left out.
    source_param : str or sequence of str
        As for `gate`. A trial that has not suggested its pair is left to the wrapped pruner.
    target_param : str
    target : str, optional
        The target task of a study that searches over sources only.
    audit_fraction : float in [0, 1]
        As for `gate`.

    Raises
    ------
    ValueError
        If `audit_fraction` is no share, or `wrapped_pruner` is a HyperbandPruner: samplers look for
        one in ``study.pruner`` and would not find it. Keep it there and use `gate`.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        *,
        wrapped_pruner: BasePruner | None = None,
        source_param: str | Sequence[str] = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
    ) -> None:
        if isinstance(wrapped_pruner, HyperbandPruner):
            raise ValueError(
                "wrapped_pruner cannot be a HyperbandPruner, which samplers must find in "
                "study.pruner: keep it there and pass gate(objective, rule) to optimize()."
            )
        self._wrapped_pruner = wrapped_pruner or NopPruner()
        self._pair_of = PairParams(source_param, target_param, target)
        self._audit_fraction = check_fraction(audit_fraction)
        self._rule_of_now = RuleOfNow(rule, self._pair_of)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial: its pair is eliminated, or the wrapped pruner says so."""
        if not self._pair_of.is_in(trial.params):
            return self._wrapped_pruner.prune(study, trial)
        if ELIMINATED not in trial.user_attrs:
            source, target = self._pair_of(trial.params)
            decision = self._rule_of_now(study).decide(source, target)
            drawn = is_audited(self._audit_fraction, study.study_name, trial.number, source, target)
            marks = decision_attributes(decision, decision.eliminated and drawn)
            for key, value in marks.items():
                # Optuna hands pruners a frozen trial, on which no public call can write.
                study._storage.set_trial_user_attr(trial._trial_id, key, value)
                # As Trial.set_user_attr does. The live trial shares these attributes, so that
                # the next call finds them: a trial that trains is not stopped by a later refit.
                trial.user_attrs[key] = value
        eliminated: bool = trial.user_attrs[ELIMINATED] == 1 and AUDIT not in trial.user_attrs
        return eliminated or self._wrapped_pruner.prune(study, trial)
