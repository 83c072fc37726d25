"""What a search has tried of each pair, and which pair its next trial gets.

What it must satisfy: the same finished and running trials give the same pair in every host, in
every process and after a restart; gains have a baseline to be measured from; and no pair holds the
search up, because others are running it, because it fails, or because nothing is left to try of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import FITTED_AT
from transfer_pruner.rule.order import PairOrder

_TRIES = 3
"""Trials without a result after which a pair waits for others, and no more baselines are tried."""
_REPEATS = 2
"""Results after which a pair waits for others while the model cannot know yet what repeats vary by:
its prior expects much of them, and the few gains that are measured look alike if one pair has them
all."""
_LAST = 10**9
"""More than there can be trials: what is behind by so much comes after what is running."""

Pair = tuple[Any, str]
"""A source as `PairParams` takes it, and a target."""
Setting = frozenset[tuple[str, str]]
"""Hyperparameters of a trial: alike where they are written alike."""


def setting_of(hyperparameters: Mapping[str, Any]) -> Setting:
    """Take a trial's hyperparameters, without the pair, as something to be compared."""
    return frozenset((name, repr(value)) for name, value in hyperparameters.items())


@dataclass
class _Tried:
    """What was tried of a pair: its results, other trials, and settings of how many there are."""

    results: int = 0
    without_result: int = 0
    settings: set[Setting] = field(default_factory=set)
    possible: float = math.inf

    @property
    def is_exhausted(self) -> bool:
        return len(self.settings) >= self.possible

    @property
    def is_failing(self) -> bool:
        return not self.results and self.without_result >= _TRIES


class TriedPairs:
    """Counts a search's finished trials by pair and setting."""

    def __init__(self) -> None:
        self._tried: dict[Pair, _Tried] = {}

    def add(
        self,
        pair: Pair,
        setting: Setting,
        *,
        has_result: bool,
        has_failed: bool = False,
        possible: float = math.inf,
    ) -> None:
        """Count a trial that has finished, and was not eliminated.

        Parameters
        ----------
        pair : (source, target)
        setting : Setting
        has_result : bool
            Whether it has a value: not if it failed, or was stopped early.
        has_failed : bool
            A failed trial may be tried again at the same setting.
        possible : float
            How many settings there are; infinity if that is not known.
        """
        tried = self._tried.setdefault(pair, _Tried())
        if has_result:
            tried.results += 1
        else:
            tried.without_result += 1
        if not has_failed:
            tried.settings.add(setting)
            tried.possible = possible

    def has_baseline(self, target: str) -> bool:
        """Whether a baseline of the target has a result."""
        return self._tried.get((None, target), _Tried()).results > 0

    def has_lost_baseline(self, target: str) -> bool:
        """Whether the target's baseline keeps failing, so that no gain will be measured."""
        return self._tried.get((None, target), _Tried()).is_failing

    @property
    def without_baseline(self) -> Counter[Pair]:
        """Count the results of pairs whose target has no baseline with a result."""
        return Counter(
            {
                pair: tried.results
                for pair, tried in self._tried.items()
                if pair[0] is not None and tried.results and not self.has_baseline(pair[1])
            }
        )

    def has(self, pair: Pair, setting: Setting) -> bool:
        """Whether a pair was tried at a setting."""
        return setting in self._tried.get(pair, _Tried()).settings

    @property
    def trials(self) -> Counter[Pair]:
        """How many trials every pair has had."""
        return Counter({pair: self.trials_of(pair) for pair in self._tried})

    def trials_of(self, pair: Pair) -> int:
        """How many trials a pair has had."""
        tried = self._tried.get(pair, _Tried())
        return tried.results + tried.without_result

    @property
    def measured(self) -> set[Pair]:
        """Pairs that have a result."""
        return {pair for pair, tried in self._tried.items() if tried.results}

    @property
    def done(self) -> set[Pair]:
        """Pairs that were tried at every setting that there is, or that keep failing."""
        return {
            pair for pair, tried in self._tried.items() if tried.is_exhausted or tried.is_failing
        }

    def taken(
        self, running: Iterable[tuple[Pair, Setting]], setting: Setting = frozenset()
    ) -> Counter[Pair]:
        """Count the running trials of every pair.

        A pair of which they leave no setting, or of which one runs at just the setting of the trial
        that asks, is behind those that were tried at it.

        Parameters
        ----------
        running : iterable of ((source, target), Setting)
            Settings as far as they are known.
        setting : Setting
            The hyperparameters of the trial that asks, as far as they stand.
        """
        trials = [*running]
        taken = Counter(pair for pair, _ in trials)
        most = max((tried.possible for tried in self._tried.values()), default=math.inf)
        for pair in taken:
            tried = self._tried.get(pair, _Tried(possible=most))
            # What has finished is counted by `behind`.
            new = [own for of, own in trials if of == pair and own not in tried.settings]
            leaves_none = new and len(tried.settings) + len(new) >= tried.possible
            if leaves_none or (setting and setting in new):
                taken[pair] += _LAST
        return taken

    def due_baseline(
        self,
        targets: Collection[str],
        sources: Collection[str | None],
        running: Mapping[Pair, int],
    ) -> Pair | None:
        """Find the first target without a baseline's result, of which one may still come.

        A baseline that runs is waited for until three trials of its target have a result: that of
        a worker that died runs for ever. Then another one is due, after three more a third.

        Parameters
        ----------
        targets : collection of str
        sources : collection of str or None
            What the source can be: a baseline needs None, or the target itself.
        running : mapping of (source, target) to int
            How many trials of a pair are running.
        """
        if len(sources) == 1 and None not in sources:
            # Somebody wants this source.
            return None
        for target in sorted(targets):
            baseline = None, target
            tried = self._tried.get(baseline, _Tried())
            can = None in sources or target in sources
            if not can or tried.results or tried.is_failing:
                continue
            if running.get(baseline, 0) <= self._results_to(target) // _TRIES:
                return baseline
        return None

    def _results_to(self, target: str) -> int:
        return sum(tried.results for (_, to), tried in self._tried.items() if to == target)

    def behind(
        self, setting: Setting, running: Mapping[Pair, int], repeats: float = math.inf
    ) -> dict[Pair, int]:
        """Find the pairs that come after others in a trial, and how far they are behind.

        Parameters
        ----------
        setting : Setting
            The trial's hyperparameters as far as they stand: a pair that was tried at just these
            comes after others.
        running : mapping of (source, target) to int
        repeats : int
            Results after which a pair comes after others, at whatever settings.
        """
        behind = Counter(running)
        for pair, tried in self._tried.items():
            if tried.is_failing:
                # With those of which nothing is left: a search that is through runs it no more.
                behind[pair] += _LAST + tried.without_result
            if tried.results >= repeats:
                behind[pair] += tried.results
            if tried.is_exhausted or setting in tried.settings:
                behind[pair] += _LAST + tried.results
        return behind


class NextPair:
    """Finds the pair of a search's next trial."""

    def __init__(self) -> None:
        # A rule does not change: sorted once after each refit.
        self._order: tuple[EliminationRule, PairOrder] | None = None

    def order(self, rule: EliminationRule) -> PairOrder:
        """Sort a rule's pairs, if it is another rule than the last one."""
        if self._order is None or self._order[0] is not rule:
            self._order = rule, PairOrder(rule)
        return self._order[1]

    def __call__(
        self,
        rule: EliminationRule,
        tried: TriedPairs,
        setting: Setting,
        running: Mapping[Pair, int],
        *,
        sources: Collection[str | None],
        targets: Collection[str],
        instead_of: Pair | None = None,
    ) -> Pair | None:
        """Take a baseline that is due, else the best pair; None if the rule tells no order.

        Until the variances of a LearningRule's model have been fitted, a pair with two results
        comes after others.

        Parameters
        ----------
        rule : EliminationRule
            Of this trial.
        tried : TriedPairs
        setting, running
            As for `TriedPairs.behind`.
        sources : collection of str or None
            What the source can be, by name; None for no source.
        targets : collection of str
        instead_of : (source, target), optional
            What was proposed: a pair of which no priority is told stands.
        """
        known = [target for target in targets if target in rule.targets]
        due = tried.due_baseline(known, sources, running)
        if due is not None:
            return due
        order = self.order(rule)
        if not order.tells:
            return None
        if instead_of is not None:
            source, target = instead_of
            if isinstance(source, str) and not order.ranks((source, target)):
                return None
        behind = self.behind(rule, tried, setting, running)
        return order.best(_names(sources), targets, behind)

    def behind(
        self,
        rule: EliminationRule,
        tried: TriedPairs,
        setting: Setting,
        running: Mapping[Pair, int],
    ) -> dict[Pair, int]:
        """Find the pairs that come after others with a LearningRule, and how far they are behind.

        Parameters
        ----------
        rule, tried, setting, running
            As for a call.
        """
        fitted = rule.settings.get("transfers", 0) >= FITTED_AT
        # A trial that the rule has not learnt from yet is as one that runs; nor can it learn from
        # one whose target has no baseline.
        waiting = Counter(running) + rule.not_learnt + tried.without_baseline
        return tried.behind(setting, waiting, math.inf if fitted else _REPEATS)

    def instead(
        self,
        rule: EliminationRule,
        tried: TriedPairs,
        setting: Setting,
        running: Mapping[Pair, int],
        *,
        sources: Collection[str | None],
        targets: Collection[str],
        proposed: Pair,
    ) -> Pair | None:
        """Take the surviving pair that an eliminated one gives way to.

        For a rule that does not learn. Of the proposed target, if anything survives there, else of
        any: the best among those that have had the fewest trials, since what they gave does not
        change the order; before them, the target's baseline if it is due. None if the rule tells no
        order, or nothing survives.

        Parameters
        ----------
        rule, tried, setting, running, sources, targets
            As for a call.
        proposed : (source, target)
        """
        order = self.order(rule)
        if not order.tells:
            return None
        behind = tried.behind(setting, Counter(running) + tried.trials)
        same = [target for target in targets if target == proposed[1]]
        due = tried.due_baseline(same, sources, running)
        if due is not None:
            return due
        found = (order.best(_names(sources), those, behind) for those in (same, targets))
        return next((pair for pair in found if pair is not None), None)


def _names(sources: Collection[str | None]) -> set[str]:
    return {source for source in sources if source is not None}
