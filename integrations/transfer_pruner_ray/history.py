"""What a search of Tune's has tried and learnt so far, from what its adapter is told.

What it must satisfy: all of it is plain data in Tune's checkpoints, from which a restored search
goes on with the same rule and the same next pair; and nothing here raises while a search runs.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakSet

from ray.tune.search.sample import Categorical, Domain, Float, Integer, Quantized

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.current import CurrentRule, Finished
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.settled import settled
from transfer_pruner.rule.tried import Pair, Setting, TriedPairs, setting_of
from transfer_pruner.tasks import PairParams, plain_source, task_name
from transfer_pruner_ray.deciding import TuneDecider, rule_of_now
from transfer_pruner_ray.marks import flat, split_audit

_SEVERAL = (list, tuple, set, frozenset)

# Of this process: a stopper finds the search that it is to stop.
searches: WeakSet[History] = WeakSet()


@dataclass(frozen=True)
class PairSpace:
    """What a pair can be in a search space, by name; and how many settings there are beside it.

    Attributes
    ----------
    sources, targets : dict of name to value
        None is the name of no source.
    possible : float
    """

    sources: dict[str | None, Any]
    targets: dict[str, Any]
    possible: float

    @classmethod
    def of(cls, space: Mapping[str, Any], pair_of: PairParams) -> PairSpace | None:
        """Find the pair in a flat space; None where it is not one source and target by name."""
        if not pair_of.is_named or len(pair_of.source_params) != 1:
            return None
        given = {name: _options(space[name]) for name in pair_of.params if name in space}
        sources = given.get(pair_of.source_params[0])
        targets = [pair_of.target] if pair_of.target else given.get(pair_of.target_param)
        if not sources or not targets:
            return None
        if any(isinstance(value, (*_SEVERAL, dict, Domain)) for value in [*sources, *targets]):
            return None
        others = pair_of.hyperparameters(space).values()
        named = {str(task_name(value)): value for value in reversed(targets)}
        return cls(
            # Of two of the same name the first counts.
            {task_name(value): value for value in reversed(sources)},
            named,
            float(math.prod(map(_count, others))),
        )

    def params(self, pair: Pair, pair_of: PairParams) -> dict[str, Any]:
        """Write a pair as parameters: a baseline without a source is the target itself."""
        source, target = pair
        own = source if source is not None or None in self.sources else target
        params = {pair_of.source_params[0]: self.sources[own]}
        return params if pair_of.target else params | {pair_of.target_param: self.targets[target]}

    def get_state(self) -> list[Any]:
        """Write it as plain lists."""
        return [[*self.sources.values()], [*self.targets.values()], self.possible]

    @classmethod
    def from_state(cls, state: list[Any]) -> PairSpace:
        """Read what `get_state` wrote."""
        sources, targets, possible = state
        return cls(
            {task_name(value): value for value in sources},
            {str(task_name(value)): value for value in targets},
            float(possible),
        )


class History(TriedPairs):
    """A search's trials by pair, what its rule has learnt from them, and what it may try.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
    pair_of : PairParams
    audit_fraction : float in [0, 1]

    Attributes
    ----------
    decider : TuneDecider
    space : PairSpace or None
        None where no order can be told.
    running : dict of str to mapping
        Configurations by trial id, flat.
    records : list of TrialRecord
        Trials that have ended with a value, in that order.
    stopped : dict or None
        Why `StopWhenSettled` stopped the search, as `settled` says.

    Raises
    ------
    ValueError
        If `rule` is no rule or `audit_fraction` no share.
    """

    def __init__(
        self,
        rule: EliminationRule | LearningRule,
        pair_of: PairParams,
        audit_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        self._current = CurrentRule(rule)
        self.decider = TuneDecider(pair_of, audit_fraction, self._current.fingerprint)
        self.pair_of = pair_of
        self.space: PairSpace | None = None
        self.running: dict[str, dict[str, Any]] = {}
        self.records: list[TrialRecord] = []
        self.stopped: dict[str, Any] | None = None
        # Trials that left no value: source, target, hyperparameters, and whether they failed.
        self._fruitless: list[list[Any]] = []
        self._ids: set[str] = set()
        # When it last was told something: a search that is restored knows trials of its first run.
        self.told_at = time.monotonic()
        self._learnt = 0
        self._rule = self._current.first
        searches.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        searches.add(self)

    @property
    def learns(self) -> bool:
        """Whether decisions can change."""
        return self._current.learns

    @property
    def fingerprint(self) -> str:
        """Of the rule as it was given."""
        return self._current.fingerprint

    def rule(self) -> EliminationRule:
        """Find the rule of now."""
        new = [Finished((r.number,), r) for r in self.records[self._learnt :]]
        self._learnt = len(self.records)
        self._rule = rule_of_now(self._current, new, self._rule, self.decider)
        return self._rule

    def setting(self, config: Mapping[str, Any]) -> Setting:
        """Take the hyperparameters of a flat configuration."""
        return setting_of(self.pair_of.hyperparameters(_plain(split_audit(config)[0])))

    def pair(self, config: Mapping[str, Any]) -> Pair | None:
        """Take the pair of a flat configuration, if it has one."""
        params = split_audit(config)[0]
        try:
            return self.pair_of(params) if self.pair_of.is_in(params) else None
        except Exception:
            return None

    def pairs_running(self, setting: Setting = frozenset()) -> Counter[Pair]:
        """Count the running trials of every pair, as `TriedPairs.taken` does."""
        pairs = [(self.pair(config), self.setting(config)) for config in self.running.values()]
        return self.taken(((pair, own) for pair, own in pairs if pair is not None), setting)

    def repeats(self, pair: Pair, config: Mapping[str, Any]) -> bool:
        """Whether a trial of the pair has, or had, the hyperparameters of a configuration."""
        setting = self.setting(config)
        return self.has(pair, setting) or any(
            self.pair(other) == pair and self.setting(other) == setting
            for other in self.running.values()
        )

    def knows(self, trial_id: str) -> bool:
        """Whether a trial is of this search."""
        return trial_id in self._ids

    @property
    def ended(self) -> int:
        """How many trials have ended after they ran."""
        return len(self.records) + len(self._fruitless)

    def settled(self, tolerance: float, share: float) -> dict[str, Any] | None:
        """Say why the search is settled, for `StopWhenSettled`; None if it is not.

        Returns
        -------
        dict or None
            As `transfer_pruner.rule.settled` says; with ``trials``, how many were started, and
            ``exhaustive_trials``, of how many; None of what cannot be counted.
        """
        if self.space is None:
            return None
        space = self.space
        sources = [name for name in space.sources if name is not None]
        told = settled(
            self.rule(), self, sources, space.targets, tolerance, share, lambda: self.records
        )
        if told is None:
            return None
        pairs = {(plain_source(s, t), t) for s in space.sources for t in space.targets}
        whole = None if math.isinf(space.possible) else len(pairs) * int(space.possible)
        return told | {"trials": len(self._ids), "exhaustive_trials": whole}

    def start(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """Take up a trial that is given to Tune."""
        # As it comes back from a checkpoint: trials are matched by hyperparameters.
        self.told_at = time.monotonic()
        self.running[trial_id] = _plain(config)
        self._ids.add(trial_id)

    def end(
        self,
        trial_id: str,
        result: Mapping[str, Any] | None,
        *,
        error: bool,
        metric: Any,
        maximize: bool,
    ) -> None:
        """Take a trial's end: what has no result and did not fail has never run."""
        self.told_at = time.monotonic()
        config = self.running.pop(trial_id, None)
        pair = None if config is None else self.pair(config)
        if config is None or pair is None or not (result or error):
            return
        hyperparameters = self.pair_of.hyperparameters(split_audit(config)[0])
        value = math.nan if error else value_of(result, metric)
        if not math.isfinite(value):
            self._fruitless.append([*pair, hyperparameters, error])
            self._count_fruitless(self._fruitless[-1])
            return
        record = TrialRecord(
            number=len(self.records),
            source=pair[0],
            target=pair[1],
            outcome="trained",
            seconds=_seconds(result),
            value=value,
            hyperparameters=hyperparameters,
            maximize=maximize,
        )
        self.records.append(record)
        self._count(record)

    def get_state(self) -> dict[str, Any]:
        """Take what Tune saves: plain data, without the rule."""
        return {
            "running": dict(self.running),
            "records": [asdict(record) for record in self.records],
            "fruitless": list(self._fruitless),
            "ids": sorted(self._ids),
            "space": None if self.space is None else self.space.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `get_state` gave."""
        self.told_at = time.monotonic()
        space = state.get("space")
        self.space = None if space is None else PairSpace.from_state(space)
        self.running = dict(state["running"])
        self.records = [TrialRecord(**record) for record in state["records"]]
        self._fruitless = [list(trial) for trial in state.get("fruitless", [])]
        self._ids = set(state.get("ids", self.running))
        self._tried = {}
        for record in self.records:
            self._count(record)
        for trial in self._fruitless:
            self._count_fruitless(trial)
        self._learnt = 0
        self._current.forget("")

    @property
    def _possible(self) -> float:
        return math.inf if self.space is None else self.space.possible

    def _count(self, record: TrialRecord) -> None:
        self.add(
            (record.source, record.target),
            setting_of(record.hyperparameters),
            has_result=True,
            possible=self._possible,
        )

    def _count_fruitless(self, trial: list[Any]) -> None:
        source, target, hyperparameters, error = trial
        source = tuple(source) if isinstance(source, list) else source
        self.add(
            (source, target),
            setting_of(hyperparameters),
            has_result=False,
            has_failed=error,
            possible=self._possible,
        )


def value_of(result: Mapping[str, Any] | None, name: Any) -> float:
    """Read one number of a result; several metrics have none."""
    value = result.get(name) if result and isinstance(name, str) else None
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def _seconds(result: Mapping[str, Any] | None) -> float:
    seconds = value_of(result, "time_total_s")
    return seconds if math.isfinite(seconds) else 0.0


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(flat(config), default=str))
    return plain


def _options(domain: Any) -> list[Any]:
    """List what a parameter can be; nothing if that is no list."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    return [] if isinstance(domain, Domain) else [domain]


def _count(domain: Any) -> float:
    """Count what a parameter can be."""
    if isinstance(domain, (Float, Integer)):
        sampler: Any = domain.get_sampler()  # type: ignore[no-untyped-call]
        step = sampler.q if isinstance(sampler, Quantized) else 0
        width = domain.upper - domain.lower
        if step:
            # Inclusive where it is quantized.
            return math.floor(width / step + 1e-9) + 1
        return width if isinstance(domain, Integer) else math.inf
    options = _options(domain)
    inside = (part for option in options for part in _parts(option))
    return (
        math.inf if any(isinstance(part, Domain) for part in inside) else len(options) or math.inf
    )


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (dict, *_SEVERAL)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)
