"""Tune's own grid and random search, passing over trials that a rule eliminates.

What it must satisfy: the trials that are left are those that Tune would have made, with the same
ids; a trial that is passed over takes no slot, and a restored experiment passes over the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

from transfer_pruner.records import Recorder
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_ray.deciding import PassedOver, TuneDecider, fixed_rule, refuse_hidden
from transfer_pruner_ray.marks import AUDIT, Pair


class TransferVariantGenerator(BasicVariantGenerator):
    """Make the variants of a search space, without those whose pair is eliminated.

    For ``TuneConfig(search_alg=TransferVariantGenerator(rule))`` with any param_space of plain
    values, also one that `filter_param_space` refuses. Every variant of the whole space is made and
    looked at, which takes about 0.3 ms each. With ``num_samples`` N the space is gone through N
    times; an eliminated variant is not replaced by another one.

    A source or target from ``tune.sample_from``, or one that is no text, number or truth value, is
    not known yet when a variant is made, and is refused: use `TransferScheduler`.

    Parameters
    ----------
    rule : EliminationRule
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
        If `rule` is a LearningRule or no rule, or `audit_fraction` is no share; when the search
        starts, if Tune hides the source or target.
    """

    def __init__(
        self,
        rule: EliminationRule,
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
        self._rule = fixed_rule(rule)
        pair_of = PairParams(source_param, target_param, target)
        self._decider = TuneDecider(pair_of, audit_fraction, self._rule.fingerprint)
        self._passed_over = PassedOver(pair_of, tracker)

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

    def next_trial(self) -> Trial | None:
        """Make the next trial that is kept; None if there is none, or no slot for it."""
        while True:
            trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
            if trial is None:
                return None
            verdict = self._decider.of(self._rule, trial.config, trial.trial_id)
            if verdict is None or not verdict.eliminated:
                if verdict is not None and verdict.audit:
                    setattr(trial, AUDIT, verdict.marks(""))
                return trial
            self._passed_over.add(verdict, trial.config)
            super().on_trial_complete(trial.trial_id)

    def get_state(self) -> Any:
        """Take what Tune saves: all but the rule, which it has saved with the Tuner."""
        state = super().get_state()  # type: ignore[no-untyped-call]
        if state:
            for name in ("_rule", "_decider"):
                del state[name]
            state["_passed_over"] = self._passed_over.get_state()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `get_state` gave."""
        passed_over = self._passed_over
        super().set_state(state)  # type: ignore[no-untyped-call]
        self._passed_over = passed_over
        self._passed_over.set_state(state["_passed_over"])
