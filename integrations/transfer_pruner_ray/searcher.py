"""A search algorithm of Tune's that is asked again until its pair is kept.

What it must satisfy: the algorithm hears of every trial under the name it gave it, of a rejected
one that it failed, and of no other difference; any number of Tune's wrappers may stand outside and
inside; and what is counted and learnt is in Tune's checkpoints.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.sample import Domain

from transfer_pruner.files import write_atomically
from transfer_pruner.records import Recorder, TrialRecord
from transfer_pruner.rule.current import CurrentRule, Finished
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Verdict
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_ray.deciding import (
    PassedOver,
    TuneDecider,
    evidence_of,
    refuse_hidden,
    rule_of_now,
)
from transfer_pruner_ray.marks import Pair, flat, with_audit

_STATE_SUFFIX = ".transfer.json"
_TIMES = 5


class TransferSearcher(Searcher):
    """Ask a search algorithm again until it suggests a pair that the rule keeps.

    For OptunaSearch, HyperOptSearch, TuneBOHB and kin, inside or outside a ConcurrencyLimiter, and
    inside a Repeater. All of ``num_samples`` trials are trials that run. The algorithm is told that
    a rejected trial failed, so its model rests on measured trials only; from the fifth time on that
    one pair comes in a row of rejected ones, that it was as bad as the worst trial so far.

    Parameters
    ----------
    searcher : ray.tune.search.Searcher
    rule : EliminationRule or LearningRule
        A LearningRule learns from the metric and mode of the search, whenever ``refit_every`` more
        trials have finished. Trials that a scheduler stopped early count with their last value:
        where there is such a scheduler, give the LearningRule to `TransferScheduler`.
    source_param, target_param, target
        As for `TransferScheduler`: ``a/b`` where a parameter is nested.
    audit_fraction : float in [0, 1]
        Share of the eliminated suggestions that are kept all the same, at random, to measure what
        elimination misses. Drawn from the suggestion's id. The configuration of an audit trial has
        one more key beside the pair, ``transfer_pruner_audit``, the rule's fingerprint: Tune keeps
        nothing else of a searcher's where reading it runs no code.
    tracker : Recorder, optional
        Such as a `transfer_pruner_mlflow.SavingsTracker`: told of every trial that has another pair
        than the one suggested first, in the process that started the search. Its ``ray_callback``
        tells it of the trials.
    max_resamples : int
        The search ends, with a warning, when so many suggestions in a row were rejected.

    Attributes
    ----------
    searcher : ray.tune.search.Searcher

    Raises
    ------
    ValueError
        If `searcher` is no Searcher, `rule` no rule, `audit_fraction` no share, or `max_resamples`
        below 1; when the search starts, if Tune hides the source or target from search algorithms:
        values other than text, numbers and truth values.
    """

    def __init__(
        self,
        searcher: Searcher,
        rule: EliminationRule | LearningRule,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
        tracker: Recorder | None = None,
        max_resamples: int = 1000,
    ) -> None:
        if not isinstance(searcher, Searcher):
            raise ValueError(
                f"searcher must be one of Tune's search algorithms but got {searcher!r}. For grid "
                "and random search use TransferVariantGenerator or filter_param_space."
            )
        if max_resamples < 1:
            raise ValueError(f"max_resamples must be at least 1 but got {max_resamples}.")
        # Tune finds the inner searcher by this name, to save it.
        self.searcher: Any = searcher
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._current = CurrentRule(rule)
        pair_of = PairParams(source_param, target_param, target)
        self._decider = TuneDecider(pair_of, audit_fraction, self._current.fingerprint)
        self._max_resamples = max_resamples
        # What does not vary, which search algorithms leave out: of it, what may be of the pair.
        self._constants: dict[str, Any] = {}
        self._rejected = PassedOver(pair_of)
        self._redirected = PassedOver(pair_of, tracker)
        # What a LearningRule learns from: running trials, and those that have finished, in order.
        self._running: dict[str, Mapping[str, Any]] = {}
        self._records: list[TrialRecord] = []
        self._learnt = 0
        self._rule = self._current.first
        self._inner_ids: dict[str, str] = {}
        self._worst: float | None = None

    @property
    def metric(self) -> Any:
        """The metric of the inner searcher, else of the Tuner."""
        return self.searcher.metric or self._metric

    @property
    def mode(self) -> Any:
        """The mode of the inner searcher, else of the Tuner."""
        return self.searcher.mode or self._mode

    @property
    def eliminated_pairs(self) -> dict[Pair, int]:
        """How many suggestions of each eliminated pair were rejected so far."""
        return dict(self._rejected.counts)

    @property
    def redirected_pairs(self) -> dict[Pair, int]:
        """How many trials have another pair than the eliminated one that was suggested first."""
        return dict(self._redirected.counts)

    @property
    def rejected(self) -> int:
        """How many suggestions were rejected so far."""
        return self._rejected.counts.total()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Pass the Tuner's metric, mode and space on, and remember constants of the pair."""
        refuse_hidden(config, self._decider.pair_of)
        pair_of, given = self._decider.pair_of, flat(config)
        self._constants = {
            name: value
            for name, value in given.items()
            if (name in pair_of.params or not pair_of.is_named) and not isinstance(value, Domain)
        }
        self._metric, self._mode = metric or self._metric, mode or self._mode
        accepted: bool = self.searcher.set_search_properties(metric, mode, config, **spec)
        return accepted

    def suggest(self, trial_id: str) -> Any:
        """Suggest a configuration whose pair is kept."""
        rule = self._rule_of_now()
        times: Counter[Pair] = Counter()
        first: tuple[Verdict, Mapping[str, Any]] | None = None
        for n in range(self._max_resamples):
            # Some searchers answer the same trial's id with the same suggestion.
            inner_id = f"{trial_id}-{n}" if n else trial_id
            suggested = self.searcher.suggest(inner_id)
            if not isinstance(suggested, dict):
                # Finished, or no slot.
                return suggested
            config = self._constants | flat(suggested)
            verdict = self._decider.of(rule, config, inner_id)
            if verdict is None or not verdict.eliminated:
                if first is not None:
                    self._redirected.add(*first)
                self._inner_ids[trial_id] = inner_id
                if self._current.learns:
                    self._running[trial_id] = config
                if verdict is not None and verdict.audit:
                    beside = self._decider.pair_of.names_in(config)[-1]
                    return with_audit(suggested, beside, verdict.rule)
                return suggested
            pair = verdict.source, verdict.target
            first = first or (verdict, config)
            self._rejected.add(verdict, config)
            times[pair] += 1
            self._reject(inner_id, times[pair])
        self._decider.warn(
            "exhausted",
            f"the search ends: the last {self._max_resamples} pairs that "
            f"{type(self.searcher).__name__} suggested are all eliminated. Keep more pairs, or "
            "raise max_resamples=.",
        )
        # None would make Tune wait for minutes.
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the inner searcher."""
        self.searcher.on_trial_result(self._inner_id(trial_id), result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the inner searcher, and learn."""
        self.searcher.on_trial_complete(self._inner_id(trial_id), result=result, error=error)
        value = _value(None if error else result, self.metric)
        if math.isfinite(value):
            worse = min if self.mode == "max" else max
            self._worst = value if self._worst is None else worse(self._worst, value)
        config = self._running.pop(trial_id, None)
        if config is not None and math.isfinite(value):
            self._learn_from(config, result or {})

    def on_pause(self, trial_id: str) -> None:
        """Tell the inner searcher; for HyperBandForBOHB."""
        self.searcher.on_pause(self._inner_id(trial_id))

    def on_unpause(self, trial_id: str) -> None:
        """Tell the inner searcher; for HyperBandForBOHB."""
        self.searcher.on_unpause(self._inner_id(trial_id))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tell the inner searcher; say whether it limits the trials at a time itself."""
        limits: bool = self.searcher.set_max_concurrency(max_concurrent)
        return limits

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Pass a measured configuration on, whether or not its pair is kept."""
        self.searcher.add_evaluated_point(parameters, value, error, pruned, intermediate_values)

    def get_state(self) -> dict[str, Any]:
        """Take what Tune saves beside the inner searcher: plain data, without the rule."""
        return {
            "constants": self._constants,
            "inner_ids": dict(self._inner_ids),
            "metric": self._metric,
            "mode": self._mode,
            "worst": self._worst,
            "eliminated": self._rejected.get_state(),
            "redirected": self._redirected.get_state(),
            "running": dict(self._running),
            "records": [asdict(record) for record in self._records],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `get_state` gave."""
        self._constants = dict(state["constants"])
        self._inner_ids = dict(state["inner_ids"])
        self._metric, self._mode = state["metric"], state["mode"]
        self._worst = state["worst"]
        self._rejected.set_state(state["eliminated"])
        self._redirected.set_state(state["redirected"])
        self._running = dict(state["running"])
        self._records = [TrialRecord(**record) for record in state["records"]]
        self._learnt = 0
        self._current.forget("")

    def save(self, checkpoint_path: str) -> None:
        """Save the inner searcher, as its own ``save`` would, and our state as JSON beside it."""
        self.searcher.save(checkpoint_path)
        state = json.dumps(self.get_state(), default=str).encode()
        write_atomically(Path(f"{checkpoint_path}{_STATE_SUFFIX}"), state)

    def restore(self, checkpoint_path: str) -> None:
        """Restore what `save` wrote, or an inner searcher that was saved on its own."""
        self.searcher.restore(checkpoint_path)
        ours = Path(f"{checkpoint_path}{_STATE_SUFFIX}")
        if ours.exists():
            self.set_state(json.loads(ours.read_bytes()))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save into a folder from which ``restore_from_dir`` reads."""
        self.save(os.path.join(checkpoint_dir, self.CKPT_FILE_TMPL.format(session_str)))

    def _reject(self, inner_id: str, times: int) -> None:
        """Close a suggestion; `times` is how often its pair came in a row.

        As a failed trial, which leaves no trace in the searcher's model. A pruned or bad one would
        tell a model like TPE's that the other parameters were at fault too. But a model that learns
        from values alone may ask for the same pair for ever, as Optuna's GPSampler does: after some
        times it is told the worst value measured so far.
        """
        if times < _TIMES or self._worst is None:
            self.searcher.on_trial_complete(inner_id, error=True)
        else:
            self.searcher.on_trial_complete(inner_id, result={self.metric: self._worst})

    def _inner_id(self, trial_id: str) -> str:
        return self._inner_ids.get(trial_id, trial_id)

    def _rule_of_now(self) -> EliminationRule:
        if self._current.learns and (
            not isinstance(self.metric, str) or self.mode not in ("max", "min")
        ):
            raise ValueError(
                f"a LearningRule needs one score to learn from, but metric is {self.metric!r} and "
                f"mode is {self.mode!r}: pass both to TuneConfig or to the search algorithm."
            )
        new = [Finished((r.number,), r) for r in self._records[self._learnt :]]
        self._learnt = len(self._records)
        self._rule = rule_of_now(self._current, new, self._rule, self._decider)
        return self._rule

    def _learn_from(self, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        record = evidence_of(
            # As it comes back from a checkpoint: trials are matched by hyperparameters.
            json.loads(json.dumps(config, default=str)),
            result,
            self._decider.pair_of,
            number=len(self._records),
            metric=self.metric,
            maximize=self.mode == "max",
        )
        if record is not None:
            self._records.append(record)


def _value(result: Mapping[str, Any] | None, name: Any) -> float:
    """Read one number of a result; several metrics have none."""
    value = result.get(name) if result and isinstance(name, str) else None
    return math.nan if value is None else float(value)
