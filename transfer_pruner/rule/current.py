"""The rule that decides now: as given, or as a LearningRule has learnt from the search so far.

What it must satisfy: equal finished trials, equal decisions, in every process and after every
restart. What is held here can be made anew from the host's own state at any time, and a decision
costs what has finished since the last one, not what has finished in all.
"""

from __future__ import annotations

import threading
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.transfers import transfers_from_records

_PAIRS = 100_000
"""Pairs that are predicted anew for one trial at most: some tenths of a second and more."""
_SILENT = 10
"""Finished trials that may teach nothing without a warning: a search has to begin somewhere."""


@dataclass(frozen=True)
class Finished:
    """A finished trial as evidence.

    Attributes
    ----------
    order : tuple
        When it finished, and what tells trials of one moment apart: the same in every process.
    record : TrialRecord
    length : float
        How long it trained, in the host's steps; see `CurrentRule`.
    """

    order: tuple[Any, ...]
    record: TrialRecord
    length: float = 0


@dataclass
class _Evidence:
    """What one search has shown so far, in the order in which its trials finished."""

    finished: list[Finished] = field(default_factory=list)
    orders: list[tuple[Any, ...]] = field(default_factory=list)
    learnt_from: int = 0
    rule: EliminationRule | None = None


def learnt_from(finished: int, refit_every: int, pairs: int = 0) -> int:
    """Count the trials that a LearningRule has learnt from when so many have finished.

    From one refit to the next are `refit_every` trials, or, if that is more, a fiftieth of those
    that have finished or one for every 100,000 pairs: what a large search learns from one trial is
    little, and what it costs is not.
    """
    every = max(refit_every, pairs // _PAIRS)
    known, following = 0, refit_every
    while following <= finished:
        known, following = following, following + max(every, following // 50)
    return known


class CurrentRule:
    """Finds the rule of now from a search's finished trials.

    A LearningRule learns from the trials in the order in which they finished, at fixed counts of
    them: see `learnt_from`. What has finished since is in the rule's `not_learnt`, so that the pair
    that it puts first is not taken again and again until the next refit. The refitted rule is held
    together with the trials that it rests on, and made again when those are others: because more
    have finished, or because one that finished earlier elsewhere has only now become visible.

    Parameters
    ----------
    rule : EliminationRule or LearningRule
    longest_only : bool
        Whether only trials as long as the longest finished one count: where others may have been
        stopped early, and what is left of them does not say so.

    Raises
    ------
    ValueError
        If `rule` is neither.
    """

    def __init__(self, rule: EliminationRule | LearningRule, *, longest_only: bool = False) -> None:
        if not isinstance(rule, (EliminationRule, LearningRule)):
            raise ValueError(
                f"rule must be an EliminationRule or a LearningRule but got {rule!r}: make one "
                "with EliminationRule.top_k(predictor), or read one with EliminationRule.load()."
            )
        self._given = rule
        self._longest_only = longest_only
        self._searches: dict[Hashable, _Evidence] = {}
        self._warned = False
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # What was learnt can be made anew; a lock cannot be pickled.
        return {"_given": self._given, "_longest_only": self._longest_only}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_given"], longest_only=state["_longest_only"])  # type: ignore[misc]

    @property
    def learns(self) -> bool:
        """Whether decisions can change."""
        return isinstance(self._given, LearningRule)

    @property
    def given(self) -> EliminationRule | LearningRule:
        """The rule as the user gave it."""
        return self._given

    @property
    def first(self) -> EliminationRule:
        """The rule that decides before any trial has finished."""
        return self._given.refitted() if isinstance(self._given, LearningRule) else self._given

    @property
    def fingerprint(self) -> str:
        """Of the rule as it was given: the same however much it has learnt."""
        return self.first.fingerprint

    def __call__(self, search: Hashable, newly_finished: Iterable[Finished]) -> EliminationRule:
        """Take what has finished since the last call for this search, and find the rule of now."""
        if not isinstance(self._given, LearningRule):
            return self._given
        with self._lock:
            evidence = self._searches.setdefault(search, _Evidence())
            for trial in newly_finished:
                self._add(evidence, trial)
            pairs = len(self._given)
            count = learnt_from(len(evidence.finished), self._given.refit_every, pairs)
            if evidence.rule is None or count != evidence.learnt_from:
                records = [trial.record for trial in evidence.finished[:count]]
                rule = self._refitted(self._given, records)
                # Of this search alone: others may have learnt nothing either, but tried something.
                rule = rule.with_settings(rule.settings, unknown_pairs=rule.unknown_pairs)
                evidence.rule, evidence.learnt_from = rule, count
            since = (trial.record for trial in evidence.finished[count:])
            evidence.rule.not_learnt = Counter((each.source, each.target) for each in since)
            return evidence.rule

    def forget(self, search: Hashable) -> None:
        """Forget a search: another one has taken its name, or it is read from the start."""
        with self._lock:
            self._searches.pop(search, None)

    def _add(self, evidence: _Evidence, trial: Finished) -> None:
        if self._longest_only and evidence.finished:
            longest = evidence.finished[0].length
            if trial.length < longest:
                return
            if trial.length > longest:
                evidence.finished, evidence.orders, evidence.rule = [], [], None
        place = bisect_left(evidence.orders, trial.order)
        if place < len(evidence.orders) and evidence.orders[place] == trial.order:
            return
        evidence.orders.insert(place, trial.order)
        evidence.finished.insert(place, trial)
        if place < evidence.learnt_from:
            evidence.rule = None

    def _refitted(self, rule: LearningRule, records: list[TrialRecord]) -> EliminationRule:
        if not records:
            return rule.refitted()
        try:
            return rule.refitted(transfers_from_records(records))
        except Exception as error:
            # Fail open, but not in silence: mostly, the search has no baseline trials.
            transfers = any(record.source is not None for record in records)
            soon = rule.refit_every == 1 and len(records) < _SILENT
            if not self._warned and transfers and not soon:
                self._warned = True
                warnings.warn(
                    f"the rule has learnt nothing from {len(records)} finished trials yet and goes "
                    f"on by attributions: {error}",
                    TransferPrunerWarning,
                    stacklevel=4,
                )
            return rule.refitted()
