"""The order in which a rule's surviving pairs are worth a trial.

What it must satisfy: the same rule gives the same order in every process, and finding the next pair
costs no look at every pair in Python.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from transfer_pruner.rule.decision import Decisions, Pair
from transfer_pruner.rule.elimination import EliminationRule


class PairOrder:
    """Surviving pairs, the highest `Decision.priority` first; ties by target, then by source.

    Where an improvement is so unlikely that it comes out as 0, by what the predicted gain misses of
    the target's best.

    Parameters
    ----------
    rule : EliminationRule
    """

    def __init__(self, rule: EliminationRule) -> None:
        self._decisions = Decisions.of(rule.decisions)
        columns = self._decisions.columns
        kept = np.flatnonzero(~columns["eliminated"])
        self._priority = self._decisions.priority
        best = columns.get("best", np.zeros(len(self._priority)))
        missing = np.maximum(np.nan_to_num(best), 0.0) - columns["score"]
        missing = np.nan_to_num(missing, nan=np.inf)
        self._missing = np.where(self._priority == 0, missing, 0.0)
        # Rows are ordered by target and source, and a stable sort leaves ties so; NaN comes last.
        self._rows = kept[np.lexsort((self._missing[kept], -self._priority[kept]))]

    @cached_property
    def tells(self) -> bool:
        """Whether some pair is worth more than another one."""
        told = self._rows[~np.isnan(self._priority[self._rows])]
        keys = (self._priority[told], self._missing[told])
        return bool(len(told)) and any(bool(key[0] != key[-1]) for key in keys)

    def ranks(self, pair: Pair) -> bool:
        """Whether the rule tells what the pair is worth."""
        row = self._decisions.row(*pair)
        return row is not None and not np.isnan(self._priority[row])

    def best(
        self,
        sources: Collection[str],
        targets: Collection[str],
        behind: Mapping[Pair, int] | None = None,
    ) -> Pair | None:
        """Find the pair that comes next; None if none survives.

        Parameters
        ----------
        sources, targets : collection of str
            Tasks to choose among.
        behind : mapping of (source, target) to int, optional
            Pairs that come after all others of positive priority, those of the lowest number first.
        """
        waiting = behind or {}
        rows = self._among(sources, targets)
        positive = rows[self._priority[rows] > 0]
        for row in positive:
            if self._pair(row) not in waiting:
                return self._pair(row)
        left = positive if len(positive) else rows
        pairs = map(self._pair, left)
        return min(pairs, key=lambda pair: waiting.get(pair, 0), default=None)

    def highest(
        self, sources: Collection[str], targets: Collection[str], done: Collection[Pair] = ()
    ) -> float | None:
        """Find the highest priority of the pairs that are not done; None where one has none.

        Minus infinity if all are done.
        """
        for pair, priority in self.each(sources, targets):
            if pair not in done:
                return None if np.isnan(priority) else priority
        return -np.inf

    def each(
        self, sources: Collection[str], targets: Collection[str]
    ) -> Iterator[tuple[Pair, float]]:
        """Go through pairs and priorities: first those without one, then the highest first."""
        for row in self._unknown_first(self._among(sources, targets)):
            yield self._pair(row), self._priority.item(row)

    def _unknown_first(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        unknown = np.isnan(self._priority[rows])
        return np.concatenate([rows[unknown], rows[~unknown]])

    def _among(self, sources: Collection[str], targets: Collection[str]) -> NDArray[np.int64]:
        codes = {task: code for code, task in enumerate(self._decisions.tasks)}
        rows = self._rows
        for side, wanted in (("source", sources), ("target", targets)):
            allowed = np.zeros(len(codes), dtype=bool)
            allowed[[codes[task] for task in wanted if task in codes]] = True
            rows = rows[allowed[self._decisions.columns[side][rows]]]
        return rows

    def _pair(self, row: int) -> Pair:
        columns, tasks = self._decisions.columns, self._decisions.tasks
        return tasks[columns["source"][row]], tasks[columns["target"][row]]
