"""Tune's own grid and random search, best first, passing over trials that a rule eliminates.

What it must satisfy: the trials that are left are those that Tune would have made, with the same
ids; a trial that is passed over takes no slot, and a restored experiment passes over the same ones
and goes on in the same order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

from transfer_pruner.records import Recorder
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.tried import NextPair
from transfer_pruner.rule.verdict import Verdict
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_ray import _private
from transfer_pruner_ray._domains import flat_space
from transfer_pruner_ray.deciding import PassedOver, place_of, refuse_hidden
from transfer_pruner_ray.history import History, PairSpace
from transfer_pruner_ray.marks import AUDIT, Pair, flat

# So many variants are made before the first of them is given away, or of more than that these.
_ALL, _OF_MORE = 10_000, 1_000
# More than any pair has running.
_GONE = 10**12


class TransferVariantGenerator(BasicVariantGenerator):
    """Make the variants of a search space best first, without those whose pair is eliminated.

    For ``TuneConfig(search_alg=TransferVariantGenerator(rule))`` with any param_space of plain
    values, also one that `filter_param_space` refuses. Every variant of the whole space is made and
    looked at, which takes about 0.3 ms each. With ``num_samples`` N the space is gone through N
    times; an eliminated variant is not replaced by another one.

    Single-task baselines come first, then the best pairs of all targets (`Decision.priority`), then
    those of which the rule tells nothing, and audits. Of more than 10,000 variants each next 1,000
    are put in order. Where the rule tells no order they come as Tune makes them.

    With a `LearningRule` each variant is chosen when Tune takes it, as `TransferSearcher` chooses,
    from what has finished by then; an eliminated one waits, in case a later refit thinks better of
    it, and is passed over when nothing else is left or running. Tune takes up to 200 variants
    before it starts any: say ``max_concurrent=``, then it takes no more than these.

    A source or target from ``tune.sample_from``, or one that is no text, number or truth value, is
    not known yet when a variant is made, and is refused: use `TransferScheduler`.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
        A LearningRule learns from the metric and mode of TuneConfig, in every trial's last result.
    source_param, target_param, target, audit_fraction
        As for `TransferScheduler`.
    tracker : Recorder, optional
        Such as a `transfer_pruner_mlflow.SavingsTracker`: told of every variant that is passed
        over, in the process that started the search. Its ``ray_callback`` tells it of the others.
    points_to_evaluate, max_concurrent, constant_grid_search, random_state
        As for BasicVariantGenerator. Tune ignores ``TuneConfig(max_concurrent_trials=)`` where a
        generator is passed: say it here.

    Raises
    ------
    ValueError
        If `rule` is no rule, or `audit_fraction` is no share; when the search starts, if Tune hides
        the source or target, or a LearningRule has no metric and mode to learn from.

    Examples
    --------
    >>> from ray import tune
    >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
    >>> from transfer_pruner_ray import TransferVariantGenerator
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> rule = LearningRule(TransferPredictor(embeddings))
    >>> generator = TransferVariantGenerator(rule, target="news", max_concurrent=2)
    >>> config = tune.TuneConfig(search_alg=generator, metric="f1", mode="max")
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
        tracker: Recorder | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        max_concurrent: int = 0,
        constant_grid_search: bool = False,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(points_to_evaluate, max_concurrent, constant_grid_search, random_state)
        pair_of = PairParams(source_param, target_param, target)
        self._history = History(rule, pair_of, audit_fraction)
        self._decider = self._history.decider
        self._passed_over = PassedOver(pair_of, tracker)
        self._next = NextPair()
        self._mode: str | None = None
        # Made, and not given to Tune yet: in the order in which they were made.
        self._waiting: list[Trial] = []
        self._is_making = False

    @property
    def eliminated_pairs(self) -> dict[Pair, int]:
        """How many variants of each eliminated pair were passed over so far."""
        return dict(self._passed_over.counts)

    def add_configurations(self, experiments: Any) -> None:
        """Take the experiment's space, in which the pair must be plain."""
        for experiment in experiments if isinstance(experiments, list) else [experiments]:
            spec = getattr(experiment, "spec", {})
            refuse_hidden(spec.get("config", {}), self._decider.pair_of)
        super().add_configurations(experiments)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Take the metric and mode that a LearningRule learns from."""
        self._mode = mode
        if self._history.learns and (metric is None or mode is None):
            raise ValueError(
                f"a LearningRule needs a score to learn from, but metric is {metric!r} and mode is "
                f"{mode!r}: pass both to TuneConfig."
            )
        space = PairSpace.of(flat_space(config), self._decider.pair_of)
        if space is not None and spec.get("num_samples", 1) != 1:
            # Settings come again, and a pair that has had them all has a next trial.
            space = replace(space, possible=math.inf)
        self._history.space = space
        accepted: bool = super().set_search_properties(metric, mode, config, **spec)
        return accepted

    def next_trial(self) -> Trial | None:
        """Give the next trial that is kept; None if there is none, or no slot for it."""
        rule = self._history.rule()
        if not self._history.learns and not self._next.order(rule).tells:
            return self._as_made(rule)
        if self.max_concurrent > 0 and len(self._live_trials) >= self.max_concurrent:
            return None
        if not self._waiting:
            self._make(rule)
        trial = self._best(rule)
        if trial is not None:
            self._waiting.remove(trial)
            self._live_trials.add(trial.trial_id)
            verdict = self._decider.of(rule, trial.config, trial.trial_id)
            self._give(trial, verdict)
        return trial

    def is_finished(self) -> bool:
        """Whether there are no more variants."""
        return bool(super().is_finished()) and not self._waiting

    def set_finished(self) -> None:
        """End the search: what waits is not tried any more."""
        super().set_finished()  # type: ignore[no-untyped-call]
        if not self._is_making:
            self._waiting = []

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Free the trial's slot, and learn."""
        super().on_trial_complete(trial_id, result, error)
        self._history.end(
            trial_id, result, error=error, metric=self._metric, maximize=self._mode == "max"
        )

    def _as_made(self, rule: EliminationRule) -> Trial | None:
        while True:
            trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
            if trial is None:
                return None
            verdict = self._decider.of(rule, trial.config, trial.trial_id)
            if verdict is None or not verdict.eliminated:
                self._give(trial, verdict)
                return trial
            self._pass_over(trial, verdict)

    def _give(self, trial: Trial, verdict: Verdict | None) -> None:
        if verdict is not None and verdict.audit:
            setattr(trial, AUDIT, verdict.marks(""))
        self._history.start(trial.trial_id, flat(trial.config))

    def _pass_over(self, trial: Trial, verdict: Verdict) -> None:
        self._passed_over.add(verdict, trial.config)
        super().on_trial_complete(trial.trial_id)

    def _make(self, rule: EliminationRule) -> None:
        """Have Tune make what is to be put in order."""
        limit, self.max_concurrent, self._is_making = self.max_concurrent, 0, True
        count = _ALL if self.total_samples <= _ALL else _OF_MORE
        made: list[tuple[tuple[int, float], Trial]] = []
        try:
            while len(made) < count:
                trial = super().next_trial()  # type: ignore[no-untyped-call]
                if trial is None:
                    break
                super().on_trial_complete(trial.trial_id)
                verdict = self._decider.of(rule, trial.config, trial.trial_id)
                if verdict is not None and verdict.eliminated and not self._history.learns:
                    self._pass_over(trial, verdict)
                else:
                    made.append((place_of(verdict), trial))
        finally:
            self.max_concurrent, self._is_making = limit, False
        if not self._history.learns:
            made.sort(key=lambda placed: placed[0])
        self._waiting = [trial for _, trial in made]

    def _best(self, rule: EliminationRule) -> Trial | None:
        """Choose among those that wait; None if all of them are eliminated, for now or for good."""
        if not self._history.learns or not self._waiting:
            return self._waiting[0] if self._waiting else None
        by_pair: dict[Any, Trial] = {}
        for trial in self._waiting:
            by_pair.setdefault(self._history.pair(flat(trial.config)), trial)
        found = by_pair.get(self._best_pair(rule, by_pair))
        if found is not None:
            return found
        for trial in self._waiting:
            verdict = self._decider.of(rule, trial.config, trial.trial_id)
            if verdict is None or not verdict.decision.eliminated:
                return trial
        if self._live_trials:
            # What they teach may bring one back.
            return None
        for trial in list(self._waiting):
            verdict = self._decider.of(rule, trial.config, trial.trial_id)
            if verdict is None or not verdict.eliminated:
                return trial
            self._waiting.remove(trial)
            self._pass_over(trial, verdict)
        return None

    def _best_pair(self, rule: EliminationRule, waiting: Mapping[Any, Trial]) -> Pair | None:
        history = self._history
        pairs = [pair for pair in waiting if pair is not None and not isinstance(pair[0], tuple)]
        sources, targets = {source for source, _ in pairs}, {target for _, target in pairs}
        gone = {(s, t): _GONE for s in sources | {None} for t in targets if (s, t) not in waiting}
        try:
            return self._next(
                rule,
                history,
                history.setting({}),
                Counter(history.pairs_running()) | Counter(gone),
                sources=sources,
                targets=targets,
            )
        except Exception as error:
            self._decider.warn("order", f"no pair could be chosen, Tune's order stands: {error!r}")
            return None

    def get_state(self) -> Any:
        """Take what Tune saves: all but the rule, which it has saved with the Tuner."""
        state = super().get_state()  # type: ignore[no-untyped-call]
        if state:
            for name in ("_history", "_decider", "_next"):
                del state[name]
            state["_passed_over"] = self._passed_over.get_state()
            state["history"] = self._history.get_state()
            # Trials cannot be pickled.
            state["_waiting"] = [_private.written_trial(trial) for trial in self._waiting]
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `get_state` gave."""
        passed_over = self._passed_over
        self._history.set_state(state["history"])
        others = {name: value for name, value in state.items() if name != "history"}
        super().set_state(others)  # type: ignore[no-untyped-call]
        self._passed_over = passed_over
        self._passed_over.set_state(state["_passed_over"])
        self._waiting = [_private.read_trial(self, written) for written in state["_waiting"]]
