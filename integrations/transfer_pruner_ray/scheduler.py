"""The scheduler: eliminate pairs in Ray Tune before an actor or a placement group exists for them.

What it must satisfy: an eliminated trial ends TERMINATED like one that has finished, so that Tune,
its searchers, loggers and restored experiments need not know; the base scheduler never hears of it;
and nothing that decides is kept here, since Tune restores an experiment with the scheduler as it
was before the first trial.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import check_fraction, is_audited
from transfer_pruner.tasks import PairParams

try:
    from ray.air._internal.json import SafeFallbackEncoder
    from ray.air.constants import EXPR_RESULT_FILE
    from ray.tune.experiment import Trial
    from ray.tune.result import DEFAULT_METRIC, DONE, TRIAL_ID
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
except ImportError as error:
    raise ImportError(
        "searching with Ray Tune needs ray: pip install 'transfer-pruner[ray]'."
    ) from error

from transfer_pruner_ray.learning import RuleOfNow, flat_config
from transfer_pruner_ray.records import AUDIT, ELIMINATED, PROBABILITY, REASON, SCORE

# Tune looks at its time budget and at interrupts between its steps only.
_BURST = 100

logger = logging.getLogger(__name__)


class TransferScheduler(TrialScheduler):
    """Eliminate pairs before they train, and leave the other trials to another scheduler.

    An eliminated trial ends TERMINATED with ``transfer_pruner/eliminated`` (1),
    ``transfer_pruner/score``, ``transfer_pruner/probability`` and ``transfer_pruner/reason`` in its
    metrics and in its ``result.json``; what is NaN is left out. Nothing is added to what a trial
    that runs reports. A trial whose configuration holds no pair is kept, with one warning.

    A trial that waits is decided when it is added. With a LearningRule, one that was kept and still
    waits is decided again after each refit; an eliminated trial stays eliminated, and a trial that
    has started is never stopped by the rule. Both follow from the finished trials alone, so that
    ``Tuner.restore`` goes on with the same decisions.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
        A LearningRule learns from the experiment's own finished trials: from the metric in their
        last result. With a base scheduler it learns only from trials as long as the longest, since
        the base scheduler may have stopped the others early.
    base_scheduler : ray.tune.schedulers.TrialScheduler, optional
        Schedules the trials that are not eliminated; first in, first out if left out.
    source_param : str or sequence of str
        Name of the source in the configuration, with ``/`` for nested ones; several for joint
        transfer from several sources, each of them a task or None. The value may be a list of
        sources too. A trial is eliminated if one of its sources is.
    target_param : str
        Name of the target in the configuration.
    target : str, optional
        The target task of a search over sources only.
    audit_fraction : float in [0, 1]
        Share of the eliminated trials that run all the same, at random, to measure what elimination
        misses (`transfer_pruner.estimate_audit`). Drawn from the trial's id and pair, so a restored
        experiment draws alike. Such a Trial has the attribute ``transfer_pruner_audit``, a dict
        of what the rule said, which the experiment's state on disk keeps.

    Raises
    ------
    ValueError
        If `rule` is no rule, `base_scheduler` no scheduler or `audit_fraction` no share; when the
        search starts, if a LearningRule has no metric and mode to learn from.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        base_scheduler: TrialScheduler | None = None,
        *,
        source_param: str | Sequence[str] = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(rule, (EliminationRule, LearningRule)):
            raise ValueError(
                f"rule must be an EliminationRule or a LearningRule but got {rule!r}: make one "
                "with EliminationRule.top_k(predictor)."
            )
        if not isinstance(base_scheduler, TrialScheduler | None):
            raise ValueError(
                f"base_scheduler must be a scheduler of ray.tune but got {base_scheduler!r}: pass "
                "an instance such as ASHAScheduler()."
            )
        self._pair_of = PairParams(source_param, target_param, target)
        self._audit_fraction = check_fraction(audit_fraction)
        self._base_scheduler = base_scheduler or FIFOScheduler()  # type: ignore[no-untyped-call]
        self._rule_of_now = RuleOfNow(
            rule, self._pair_of, longest_only=type(self._base_scheduler) is not FIFOScheduler
        )
        self._given_mode: str | None = None
        self._forget()

    def _forget(self) -> None:
        self._rule = self._rule_of_now.first
        self._trials: dict[str, Trial] = {}
        # Ids of the trials that the base scheduler has been told of and may be asked about.
        self._admitted: set[str] = set()
        self._deferred: list[tuple[Trial, Decision]] = []
        self._burst = 0
        self._evidence_changed = False
        self._refitted = False
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps one copy, of before the search; trials hold actors and cannot be pickled.
        blank = type(self).__new__(type(self))
        blank._rule_of_now = self._rule_of_now
        blank._forget()
        return self.__dict__ | blank.__dict__

    @property
    def _metric(self) -> str | None:  # type: ignore[override]
        # ResourceChangingScheduler reads these two of the scheduler that it wraps.
        metric: str | None = self._base_scheduler.metric
        return metric

    @property
    def _mode(self) -> str | None:
        mode = self._given_mode
        scheduler: Any = self._base_scheduler
        while mode is None and scheduler is not None:
            mode = getattr(scheduler, "_mode", None)
            scheduler = getattr(scheduler, "_base_scheduler", None)
        return mode

    @property
    def supports_buffered_results(self) -> bool:
        """Whether the base scheduler may be told of several results at once."""
        supports: bool = self._base_scheduler.supports_buffered_results
        return supports

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the metric and mode of TuneConfig, for the base scheduler and for a LearningRule."""
        accepted: bool = self._base_scheduler.set_search_properties(metric, mode, **spec)
        self._given_mode = mode
        if self._rule_of_now.learns and (
            self._metric in (None, DEFAULT_METRIC) or self._mode is None
        ):
            raise ValueError(
                f"a LearningRule needs a score to learn from, but metric is {metric!r} and mode is "
                f"{mode!r}: pass both to TuneConfig."
            )
        return accepted

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Eliminate a new trial, or pass it on."""
        self._trials[trial.trial_id] = trial
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            # Restored. A base scheduler would wait for it: HyperBand does so forever.
            self._evidence_changed = True
            return
        if _waits(trial):
            self._refit()
            decision = self._decide(trial)
            if decision is not None and self._burst >= _BURST:
                self._deferred.append((trial, decision))
                return
            if decision is not None and self._eliminate(tune_controller, trial, decision):
                self._burst += 1
                return
        self._admit(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Eliminate what has to be, then let the base scheduler choose."""
        self._burst = 0
        deferred, self._deferred = self._deferred, []
        for trial, decision in deferred:
            # Tune may have stopped it with all others meanwhile.
            if _waits(trial) and not self._eliminate(tune_controller, trial, decision):
                self._admit(tune_controller, trial)
        self._refit()
        if self._refitted:
            self._refitted = False
            self._decide_again(tune_controller)
        return self._base_scheduler.choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ask the base scheduler."""
        action: str = self._base_scheduler.on_trial_result(tune_controller, trial, result)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Tell the base scheduler."""
        self._evidence_changed = True
        if self._dismiss(trial):
            self._base_scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the base scheduler; the trial is added again if it is tried again."""
        if self._dismiss(trial):
            self._base_scheduler.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the base scheduler, if it knows the trial."""
        self._evidence_changed = True
        if self._dismiss(trial):
            self._base_scheduler.on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """Count the trials; of a restored experiment too."""
        results = [trial.run_metadata.last_result for trial in self._trials.values()]
        eliminated = sum(ELIMINATED in result for result in results)
        audited = sum(hasattr(trial, AUDIT) for trial in self._trials.values())
        return (
            f"TransferScheduler: {eliminated} eliminated, {audited} audited, "
            f"{len(results) - eliminated - audited} kept, "
            f"{len(self._rule.unknown_pairs)} unknown pairs\n{self._base_scheduler.debug_string()}"
        )

    def _admit(self, tune_controller: Any, trial: Trial) -> None:
        self._base_scheduler.on_trial_add(tune_controller, trial)
        self._admitted.add(trial.trial_id)

    def _dismiss(self, trial: Trial) -> bool:
        """Say whether the base scheduler knows the trial, for the last time."""
        known = trial.trial_id in self._admitted
        self._admitted.discard(trial.trial_id)
        return known

    def _refit(self) -> None:
        if not self._evidence_changed:
            return
        self._evidence_changed = False
        try:
            rule = self._rule_of_now(
                self._trials.values(), self._metric or "", maximize=self._mode == "max"
            )
        except Exception as error:
            self._warn("refit", f"the rule could not learn and stays as it is: {error!r}")
            return
        self._refitted = self._refitted or rule is not self._rule
        self._rule = rule

    def _decide(self, trial: Any) -> Decision | None:
        """Find the decision that eliminates a trial; None if the trial is to run."""
        vars(trial).pop(AUDIT, None)
        try:
            config = flat_config(trial)
            if not self._pair_of.is_in(config):
                self._warn(
                    "no pair",
                    f"a trial without {' and '.join(map(repr, self._pair_of.params))} in its "
                    f"configuration is kept; it has: {', '.join(config) or 'nothing'}. Name them "
                    "with source_param= and target_param=.",
                )
                return None
            source, target = self._pair_of(config)
            decision = self._rule.decide(source, target)
            if not decision.eliminated:
                return None
            audit = is_audited(self._audit_fraction, "", trial.trial_id, source, target)
        except Exception as error:
            self._warn("decide", f"the rule failed on {trial}, which is kept: {error!r}")
            return None
        if not audit:
            return decision
        setattr(trial, AUDIT, asdict(decision))
        trial.invalidate_json_state()
        return None

    def _decide_again(self, tune_controller: Any) -> None:
        """Decide on the trials that were kept and have not started."""
        controller = _unwrapped(tune_controller)
        live = controller._actor_manager.live_actors
        for trial in list(self._trials.values()):
            if trial.trial_id not in self._admitted or not _waits(trial):
                continue
            if controller._trial_to_actor.get(trial) in live:
                continue
            decision = self._decide(trial)
            if decision is not None and self._eliminate(tune_controller, trial, decision):
                self.on_trial_remove(tune_controller, trial)

    def _eliminate(self, tune_controller: Any, trial: Any, decision: Decision) -> bool:
        """Close a trial that has not started as one that has finished; say whether it worked."""
        result = {TRIAL_ID: trial.trial_id, DONE: True, "config": trial.config, ELIMINATED: 1}
        numbers = {SCORE: decision.score, PROBABILITY: decision.probability}
        result |= {key: value for key, value in numbers.items() if not math.isnan(value)}
        result[REASON] = decision.reason
        try:
            # Tune looks for both at the end, and warns of every trial that lacks them.
            trial.init_local_path()
            line = json.dumps(result, cls=SafeFallbackEncoder) + "\n"
            # In place: Tune copies this folder all the while, and fails if a file is renamed then.
            Path(trial.local_path, EXPR_RESULT_FILE).write_text(line)
        except Exception as error:
            self._warn("write", f"{trial} could not be eliminated and is kept: {error!r}")
            return False
        trial.update_last_result(result)
        # No public call ends a trial without telling loggers, which know nothing of it.
        controller = _unwrapped(tune_controller)
        if trial in controller._staged_trials:
            controller._unstage_trial_with_resources(trial)
        if trial in controller._pending_trials:
            controller._schedule_trial_stop(trial)
        else:
            # It is being added: the controller files it by its status afterwards.
            trial.set_status(Trial.TERMINATED)
        controller.get_live_trials().discard(trial)
        controller._mark_trial_to_checkpoint(trial)
        # Frees the searcher's slot, where trials at a time are limited.
        controller.search_alg.on_trial_complete(trial.trial_id)
        return True

    def _warn(self, kind: str, message: str) -> None:
        if kind in self._warned:
            return
        self._warned.add(kind)
        try:
            warnings.warn(message, TransferPrunerWarning, stacklevel=3)
        except TransferPrunerWarning:
            # Warnings may be errors here, and an error makes Tune start a restored search over.
            logger.warning(message)


def _waits(trial: Trial) -> bool:
    """Whether a trial has not started yet, in this process or before a restore."""
    return trial.status == Trial.PENDING and trial.run_metadata.start_time is None


def _unwrapped(tune_controller: Any) -> Any:
    """Take the controller itself: its wrapper complains of what schedulers are not to use."""
    return getattr(tune_controller, "_tune_controller", tune_controller)
