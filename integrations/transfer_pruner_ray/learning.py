"""What a LearningRule has learnt from a Tune experiment so far: derived from its trials alone.

What it must satisfy: equal finished trials, equal decisions, so that a restored experiment goes on
as it would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from ray.air.constants import TRAINING_ITERATION
from ray.tune.experiment import Trial
from ray.tune.result import TIME_TOTAL_S
from ray.tune.utils import flatten_dict

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import PairParams, plain_source
from transfer_pruner.transfers import transfers_from_records


class RuleOfNow:
    """The rule that decides now: the one given, or what it has learnt from finished trials so far.

    A `LearningRule` learns from the trials that ended without an error, in the order of their last
    results, rounded down to whole multiples of its ``refit_every``. The refitted rule is remembered
    together with the trials that it rests on, and made again when those are others.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
    pair_of : PairParams
    longest_only : bool
        Whether only trials as long as the longest finished one count: another scheduler may stop
        the others early, and what is left of them does not say so.
    """

    def __init__(
        self, rule: EliminationRule | LearningRule, pair_of: PairParams, longest_only: bool
    ) -> None:
        self._rule = rule
        self._pair_of = pair_of
        self._longest_only = longest_only
        self._finished: dict[str, _Finished | None] = {}
        self._learnt_from: list[tuple[float, str]] = []
        self._learnt = self.first
        self._warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps the scheduler in a file; what was learnt can be made anew.
        return RuleOfNow, (self._rule, self._pair_of, self._longest_only)

    @property
    def learns(self) -> bool:
        """Whether decisions can change."""
        return isinstance(self._rule, LearningRule)

    @property
    def first(self) -> EliminationRule:
        """The rule that decides before any trial has finished."""
        return self._rule.refitted() if isinstance(self._rule, LearningRule) else self._rule

    def __call__(self, trials: Iterable[Trial], metric: str, maximize: bool) -> EliminationRule:
        """Find the rule of now: the same object for as long as it rests on the same trials."""
        if not isinstance(self._rule, LearningRule):
            return self._rule
        evidence = self._evidence(trials, metric, self._rule.refit_every)
        seen = [trial.order for trial in evidence]
        if seen != self._learnt_from:
            records = [trial.record for trial in evidence]
            self._learnt = self._rule.refitted(self._transfers(records, maximize))
            self._learnt_from = seen
        return self._learnt

    def _evidence(self, trials: Iterable[Trial], metric: str, refit_every: int) -> list[_Finished]:
        """List the finished trials that the rule of now rests on, in order."""
        finished = []
        for trial in trials:
            if trial.status != Trial.TERMINATED:
                continue
            if trial.trial_id not in self._finished:
                self._finished[trial.trial_id] = self._read(trial, metric)
            known = self._finished[trial.trial_id]
            if known is not None:
                finished.append(known)
        if self._longest_only:
            longest = max((trial.iterations for trial in finished), default=0)
            finished = [trial for trial in finished if trial.iterations == longest]
        finished.sort(key=lambda trial: trial.order)
        return finished[: len(finished) // refit_every * refit_every]

    def _read(self, trial: Trial, metric: str) -> _Finished | None:
        config = flat_config(trial)
        result = flatten_dict(trial.run_metadata.last_result)
        # An eliminated trial has no value either.
        if metric not in result or not self._pair_of.is_in(config):
            return None
        source, target = self._pair_of(config)
        record = TrialRecord(
            number=len(self._finished),
            source=plain_source(source, target),
            target=target,
            outcome="trained",
            seconds=result.get(TIME_TOTAL_S, 0.0),
            value=float(result[metric]),
            hyperparameters=self._pair_of.hyperparameters(config),
        )
        # The driver's clock, which is kept with the trial.
        order = trial.run_metadata.last_result_time, trial.trial_id
        return _Finished(order, result.get(TRAINING_ITERATION, 0), record)

    def _transfers(self, records: list[TrialRecord], maximize: bool) -> pd.DataFrame | None:
        try:
            return transfers_from_records(records, maximize=maximize)
        except Exception as error:
            # Fail open, but not in silence: mostly, the experiment has no baseline trials.
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the rule has learnt nothing from {len(records)} finished trials yet and goes "
                    f"on by attributions: {error}",
                    TransferPrunerWarning,
                    stacklevel=4,
                )
            return None


@dataclass(frozen=True)
class _Finished:
    order: tuple[float, str]
    iterations: int
    record: TrialRecord


def flat_config(trial: Trial) -> Mapping[str, Any]:
    """Take a trial's configuration with nested names joined by ``/``."""
    config: Mapping[str, Any] = flatten_dict(trial.config)
    return config
