"""The scheduler: eliminate pairs in Ray Tune before an actor or a placement group exists for them.

What it must satisfy: an eliminated trial ends TERMINATED like one that has finished, so that Tune,
its searchers, loggers and restored experiments need not know; the base scheduler never hears of it;
and nothing that decides is kept here, since Tune restores an experiment with the scheduler as it
was before the first trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transfer_pruner.rule.current import CurrentRule, Finished
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Verdict
from transfer_pruner.tasks import PairParams, SourceParam

try:
    from ray.tune.experiment import Trial
    from ray.tune.result import DEFAULT_METRIC, DONE, TRIAL_ID
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
except ImportError as error:
    raise ImportError(
        "searching with Ray Tune needs ray: pip install 'transfer-pruner[ray]'."
    ) from error

from transfer_pruner_ray import _private
from transfer_pruner_ray.deciding import TuneDecider, evidence_of, rule_of_now
from transfer_pruner_ray.marks import AUDIT, ELIMINATED, PAIR, PREFIX, flat
from transfer_pruner_ray.starting import Place, StartOrder

# Tune looks at its time budget and at interrupts between its steps only.
_BURST = 100


@dataclass
class _Search:
    """What a scheduler knows of the search that it is in."""

    trials: dict[str, Trial] = field(default_factory=dict)
    # Ids of the trials that the base scheduler has been told of and may be asked about.
    admitted: set[str] = field(default_factory=set)
    deferred: list[tuple[Trial, Verdict]] = field(default_factory=list)
    # Trials that have ended, or are about to, and that the rule has not learnt from.
    ended: dict[str, Trial] = field(default_factory=dict)
    # Admitted trials that have not started, in the order in which they came, and their places.
    waiting: dict[str, Trial] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    placed: tuple[Any, ...] = ()
    burst: int = 0
    refitted: bool = False


class TransferScheduler(TrialScheduler):
    """Eliminate pairs before they train, start the best first, and leave the rest to a scheduler.

    Of the trials that wait, the most promising one starts first: single-task baselines, then the
    best pairs of all targets (`Decision.priority`); of a LearningRule pairs that are running come
    last. The base scheduler says whether a trial is to start: where it would have one start that
    has not yet, such as ASHA, median stopping and FIFO do, it is the best instead. It decides alone
    on what has started: which paused trial goes on in HyperBand and population based training. Tune
    hands a scheduler some 200 trials at a time (``TUNE_MAX_PENDING_TRIALS_PG``), and the order is
    among those. Where the rule tells no order they start as they came.

    An eliminated trial ends TERMINATED with ``transfer_pruner/eliminated`` (1),
    ``transfer_pruner/rule`` (the rule's fingerprint), ``transfer_pruner/score``,
    ``transfer_pruner/probability``, ``transfer_pruner/priority`` and ``transfer_pruner/reason`` in
    its metrics and in its ``result.json``; what is NaN is left out. Nothing is added to what a
    trial that runs reports. A trial whose configuration holds no pair is kept, with one warning.

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
    source_param : str, sequence of str, or callable of a mapping
        Name of the source in the configuration, with ``/`` for nested ones; several for joint
        transfer from several sources, each of them a task or None. The value may be a list or tuple
        of sources too. A trial is eliminated if one of its sources is. ``"source_{target}"`` and
        ``"source_*"`` stand for one parameter of each branch; a callable is given the flat
        configuration.
    target_param : str
        Name of the target in the configuration.
    target : str, optional
        The target task of a search over sources only.
    audit_fraction : float in [0, 1]
        Share of the eliminated trials that run all the same, at random, to measure what elimination
        misses (`transfer_pruner.estimate_audit`). Drawn from the trial's id, so a restored
        experiment draws alike and another one anew. Such a Trial has the attribute
        ``transfer_pruner_audit``, a dict of what the rule said, which the experiment's state on
        disk keeps. What `filter_param_space`, a `TransferSearcher` or a `TransferVariantGenerator`
        with the same rule has drawn as an audit runs too.

    Raises
    ------
    ValueError
        If `rule` is no rule, `base_scheduler` no scheduler or `audit_fraction` no share; when the
        search starts, if a LearningRule has no metric and mode to learn from.

    Examples
    --------
    >>> import pandas as pd
    >>> from ray import tune
    >>> from ray.tune.schedulers import ASHAScheduler
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_ray import TransferScheduler
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> scheduler = TransferScheduler(rule, ASHAScheduler(), target="news")
    >>> config = tune.TuneConfig(scheduler=scheduler, metric="f1", mode="max")
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        base_scheduler: TrialScheduler | None = None,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(base_scheduler, TrialScheduler | None):
            raise ValueError(
                f"base_scheduler must be a scheduler of ray.tune but got {base_scheduler!r}: pass "
                "an instance such as ASHAScheduler()."
            )
        self._base_scheduler = base_scheduler or FIFOScheduler()  # type: ignore[no-untyped-call]
        self._current = CurrentRule(
            rule, longest_only=type(self._base_scheduler) is not FIFOScheduler
        )
        self._decider = TuneDecider(
            PairParams(source_param, target_param, target),
            audit_fraction,
            self._current.fingerprint,
        )
        self._given_mode: str | None = None
        self._rule = self._current.first
        self._search = _Search()
        self._order = StartOrder(self._decider, learns=self._current.learns)

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps one copy, of before the search; trials hold actors and cannot be pickled.
        order = StartOrder(self._decider, learns=self._current.learns)
        fresh = {"_rule": self._current.first, "_search": _Search(), "_order": order}
        return {**vars(self), **fresh}

    @property
    def _metric(self) -> str | None:  # type: ignore[override]
        # ResourceChangingScheduler reads these two of the scheduler that it wraps.
        metric: str | None = self._base_scheduler.metric
        return metric

    @property
    def _mode(self) -> str | None:
        return self._given_mode or _private.mode_of(self._base_scheduler)

    @property
    def supports_buffered_results(self) -> bool:
        """Whether the base scheduler may be told of several results at once."""
        supports: bool = self._base_scheduler.supports_buffered_results
        return supports

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the metric and mode of TuneConfig, for the base scheduler and for a LearningRule."""
        accepted: bool = self._base_scheduler.set_search_properties(metric, mode, **spec)
        self._given_mode = mode
        if self._current.learns and (self._metric in (None, DEFAULT_METRIC) or self._mode is None):
            raise ValueError(
                f"a LearningRule needs a score to learn from, but metric is {metric!r} and mode is "
                f"{mode!r}: pass both to TuneConfig."
            )
        return accepted

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Eliminate a new trial, or pass it on."""
        search = self._search
        search.trials[trial.trial_id] = trial
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            # Restored. A base scheduler would wait for it: HyperBand does so forever.
            search.ended[trial.trial_id] = trial
            return
        if _waits(trial):
            self._refit()
            verdict = self._decide(trial)
            if verdict is not None and search.burst >= _BURST:
                search.deferred.append((trial, verdict))
                return
            if verdict is not None and self._eliminate(tune_controller, trial, verdict):
                search.burst += 1
                return
        self._admit(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Eliminate what has to be, then let the base scheduler choose."""
        search = self._search
        search.burst = 0
        deferred, search.deferred = search.deferred, []
        for trial, verdict in deferred:
            # Tune may have stopped it with all others meanwhile.
            if _waits(trial) and not self._eliminate(tune_controller, trial, verdict):
                self._admit(tune_controller, trial)
        self._refit()
        if search.refitted:
            search.refitted = False
            self._decide_again(tune_controller)
        chosen: Trial | None = self._base_scheduler.choose_trial_to_run(tune_controller)
        try:
            best = self._best(tune_controller)
        except Exception as error:
            self._decider.warn("order", f"trials start in the order in which they came: {error!r}")
            return chosen
        return best if best is not None and chosen is not None and _waits(chosen) else chosen

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ask the base scheduler."""
        action: str = self._base_scheduler.on_trial_result(tune_controller, trial, result)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Tell the base scheduler."""
        if self._dismiss(trial):
            self._base_scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the base scheduler; the trial is added again if it is tried again."""
        if self._dismiss(trial):
            self._base_scheduler.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the base scheduler, if it knows the trial."""
        if self._dismiss(trial):
            self._base_scheduler.on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """Count the trials; of a restored experiment too."""
        trials = self._search.trials.values()
        results = [trial.run_metadata.last_result for trial in trials]
        eliminated = sum(ELIMINATED in result for result in results)
        audited = sum(AUDIT in vars(trial) for trial in trials)
        return (
            f"TransferScheduler: {eliminated} eliminated, {audited} audited, "
            f"{len(results) - eliminated - audited} kept, "
            f"{len(self._rule.unknown_pairs)} unknown pairs\n{self._base_scheduler.debug_string()}"
        )

    def _admit(self, tune_controller: Any, trial: Trial) -> None:
        self._base_scheduler.on_trial_add(tune_controller, trial)
        self._search.admitted.add(trial.trial_id)
        if _waits(trial):
            self._search.waiting[trial.trial_id] = trial

    def _dismiss(self, trial: Trial) -> bool:
        """Say whether the base scheduler knows the trial, for the last time."""
        search = self._search
        search.ended[trial.trial_id] = trial
        known = trial.trial_id in search.admitted
        search.admitted.discard(trial.trial_id)
        return known

    def _best(self, tune_controller: Any) -> Trial | None:
        """Put what waits in order; return the first of it, None if there is no order."""
        search = self._search
        for trial in list(search.waiting.values()):
            if trial.trial_id not in search.admitted or not _waits(trial):
                del search.waiting[trial.trial_id]
        running = search.admitted - search.waiting.keys()
        state = self._rule, len(search.trials), frozenset(running)
        if state != search.placed:
            search.placed = state
            search.places = self._order.places(
                self._rule, search.waiting.values(), [search.trials[name] for name in running]
            )
        if not search.places:
            return None

        def place(trial: Trial | None) -> Place:
            # What has been started before, or is not ours, keeps the place that Tune gives it.
            return search.places.get(trial.trial_id, (-1.0,)) if trial is not None else (-1.0,)

        _private.order_unstarted(tune_controller, place)
        waiting = search.waiting.values()
        unstarted = [t for t in waiting if not _private.has_started(tune_controller, t)]
        return min(unstarted, key=place, default=None)

    def _refit(self) -> None:
        if not self._current.learns or not self._search.ended:
            return
        rule = rule_of_now(self._current, self._finished(), self._rule, self._decider)
        self._search.refitted = self._search.refitted or rule is not self._rule
        self._rule = rule

    def _finished(self) -> list[Finished]:
        """Take the trials that have ended since this was last asked."""
        # Tune tells of an end before it says so of the trial.
        ended = [t for t in self._search.ended.values() if t.status == Trial.TERMINATED]
        for trial in ended:
            del self._search.ended[trial.trial_id]
        pair_of, maximize = self._decider.pair_of, self._mode == "max"
        found = [finished_trial(trial, pair_of, self._metric or "", maximize) for trial in ended]
        finished = [trial for trial in found if trial is not None]
        for evidence in finished:
            self._order.add(evidence.record)
        return finished

    def _decide(self, trial: Any) -> Verdict | None:
        """Find the verdict that eliminates a trial; None if the trial is to run."""
        mark = vars(trial).get(AUDIT)
        verdict = self._decider.of(self._rule, trial.config, trial.trial_id, mark)
        if verdict is None:
            return None
        if verdict.audit:
            setattr(trial, AUDIT, verdict.marks(""))
        elif mark is not None and mark.get("rule") == verdict.rule:
            # Of an earlier refit, which eliminated the pair.
            delattr(trial, AUDIT)
        if not _plain(flat(trial.config), self._decider.pair_of):
            setattr(trial, PAIR, [verdict.source, verdict.target])
        # What is kept of it for the experiment's state was made before.
        trial.invalidate_json_state()
        return verdict if verdict.eliminated else None

    def _decide_again(self, tune_controller: Any) -> None:
        """Decide on the trials that were kept and have not started."""
        for trial in list(self._search.trials.values()):
            if trial.trial_id not in self._search.admitted or not _waits(trial):
                continue
            if _private.has_started(tune_controller, trial):
                continue
            verdict = self._decide(trial)
            if verdict is not None and self._eliminate(tune_controller, trial, verdict):
                self.on_trial_remove(tune_controller, trial)

    def _eliminate(self, tune_controller: Any, trial: Any, verdict: Verdict) -> bool:
        """Close a trial that has not started as one that has finished; say whether it worked."""
        result = {TRIAL_ID: trial.trial_id, DONE: True, "config": trial.config}
        result |= verdict.marks(PREFIX)
        try:
            _private.write_result(trial, result)
        except Exception as error:
            self._decider.warn("write", f"{trial} could not be eliminated and is kept: {error!r}")
            return False
        _private.end_unstarted(tune_controller, trial, result)
        return True


def finished_trial(
    trial: Trial, pair_of: PairParams, metric: str, maximize: bool
) -> Finished | None:
    """Take a finished trial as evidence; None if it teaches nothing, as an eliminated one."""
    result = trial.run_metadata.last_result
    record = evidence_of(trial.config, result, pair_of, metric=metric, maximize=maximize)
    if record is None:
        return None
    # The driver's clock, which is kept with the trial.
    order = trial.run_metadata.last_result_time, trial.trial_id
    return Finished(order, record, result.get("training_iteration", 0))


def _waits(trial: Trial) -> bool:
    """Whether a trial has not started yet, in this process or before a restore."""
    return trial.status == Trial.PENDING and trial.run_metadata.start_time is None


def _plain(config: dict[str, Any], pair_of: PairParams) -> bool:
    """Whether JSON holds the pair of a configuration as it is."""
    parts = [config[name] for name in pair_of.names_in(config) if name in config]
    parts = [x for part in parts for x in (part if isinstance(part, (list, tuple)) else [part])]
    return all(part is None or type(part) in (str, int, float, bool) for part in parts)
