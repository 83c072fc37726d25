"""What a rule says of pairs: one decision, and very many of them in little room.

What it must satisfy: a million decisions are a few arrays, and a reason is made when it is asked
for; decisions that are equal have equal arrays, whatever order they came in.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.equality import SameValues
from transfer_pruner.rule.columns import packed, unpacked
from transfer_pruner.rule.reasons import reason, taken_apart
from transfer_pruner.tasks import FloatArray, task_name

Column = NDArray[Any]
Pair = tuple[str, str]

_OF_REASON = ("why", "target", "rank", "candidates")
_OF_FORM = ("form", "score", "best", "chance", "priority")


@dataclass(frozen=True, eq=False)
class Decision(SameValues):
    """What the rule says of a pair.

    Attributes
    ----------
    eliminated : bool
        True: do not train it. False: it is kept.
    score : float
        What the predictor said; NaN if it said nothing. Comparable within a target.
    probability : float
        Probability of a positive gain; NaN before the predictor has learnt from measured gains.
    reason : str
        One line for a person.
    priority : float
        How much the pair's next trial is worth; NaN where the rule tells no order. Of a
        `LearningRule` the expected improvement over the target's best, in units of the score
        (before anything was measured, in standard deviations of the gain). Of any other rule the
        order of its scores, kept pairs first: the share of the target's scored pairs that come no
        earlier, in (0, 1].

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
    >>> decision = EliminationRule.top_k(predictor, k=1, pairs=pairs).decide("weather", "news")
    >>> decision.eliminated
    True
    >>> print(decision.reason)
    rank 3 of 3 for news; the rule keeps 1
    """

    eliminated: bool
    score: float
    probability: float
    reason: str
    priority: float = math.nan


class Decisions(Mapping[Pair, Decision]):
    """Decisions on ordered pairs, one row each, as columns; nothing changes once it is made.

    A reason is ``"rank {rank} of {candidates} for {target}{why}"`` of a ranked pair, what its form
    says of it (see `reasons.reason`), or ``why`` alone. The few texts of why are kept once.

    Parameters
    ----------
    tasks, whys : sequence of str
        What the columns source and target, and why, give positions in. Unused ones are dropped.
    columns : mapping of str to array of shape (n_pairs,)
        ``source``, ``target`` and ``why``: positions; ``eliminated``; ``score``, ``probability``;
        ``rank`` within the target, 1 the best and 0 if the pair is not ranked; ``candidates``, the
        number of pairs that it is ranked among; ``priority``, if there is one; and, where some
        reason has a form, ``form``, and ``best`` and ``chance``, which it tells of.

    Attributes
    ----------
    tasks, whys : list of str
        Sorted.
    columns : dict of str to array of shape (n_pairs,)
        Rows are ordered by target, and then by source.

    Raises
    ------
    ValueError
        If a pair occurs twice.
    """

    def __init__(
        self, tasks: Sequence[str], whys: Sequence[str], columns: Mapping[str, Column]
    ) -> None:
        source, target, why = (np.asarray(columns[name]) for name in ("source", "target", "why"))
        self.tasks, places = _sorted(tasks, source, target)
        self.whys, why_places = _sorted(whys, why)
        source, target = places[source], places[target]
        order: Any = slice(None)
        if not _is_sorted(source, target):
            order = np.lexsort((source, target))
        self.columns = {
            "source": source[order],
            "target": target[order],
            "eliminated": np.asarray(columns["eliminated"], dtype=bool)[order],
            "score": _floats(columns["score"])[order],
            "probability": _floats(columns["probability"])[order],
            "rank": _counts(columns["rank"])[order],
            "candidates": _counts(columns["candidates"])[order],
            "why": why_places[why][order],
        }
        if "priority" in columns and not np.isnan(columns["priority"]).all():
            # Only where there is one: a rule without an order is what it was in earlier versions.
            self.columns["priority"] = _floats(columns["priority"])[order]
        if "form" in columns and np.any(columns["form"]):
            self.columns["form"] = _counts(columns["form"])[order]
            self.columns |= {name: _floats(columns[name])[order] for name in ("best", "chance")}
        source, target = self.columns["source"], self.columns["target"]
        twice = np.flatnonzero((source[1:] == source[:-1]) & (target[1:] == target[:-1]))
        if len(twice):
            raise ValueError(
                f"the pair {self.tasks[source[twice[0]]]!r} -> {self.tasks[target[twice[0]]]!r} "
                "occurs more than once."
            )
        self._code = {task: code for code, task in enumerate(self.tasks)}
        counts = np.bincount(target, minlength=len(self.tasks))
        self._start = [0, *np.cumsum(counts).tolist()]
        # Single numbers are read from a memoryview several times as fast as from an array.
        self._sources = np.ascontiguousarray(source).data

    @classmethod
    def of(cls, decisions: Mapping[Any, Decision]) -> Decisions:
        """Take decisions by (source, target); those that are Decisions already are shared."""
        if isinstance(decisions, Decisions):
            return decisions
        return cls.of_rows(
            (s, t, said.eliminated, said.score, said.probability, said.reason, said.priority)
            for (s, t), said in decisions.items()
        )

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[Any]]) -> Decisions:
        """Take rows of source, target, eliminated, score, probability, reason (and priority)."""
        tasks: dict[str, int] = {}
        whys: dict[str, int] = {}
        names = ("source", "target", "eliminated", "score", "probability", "rank", "candidates")
        columns: dict[str, list[Any]] = {name: [] for name in (*names, "why", "priority")}
        for source, target, eliminated, score, probability, text, *priority in rows:
            pair = [str(task_name(task)) for task in (source, target)]
            rank, candidates, why = taken_apart(text, pair[1])
            codes = (tasks.setdefault(task, len(tasks)) for task in pair)
            numbers = (eliminated, score, probability, rank, candidates)
            why_code = whys.setdefault(why, len(whys))
            row = (*codes, *numbers, why_code, priority[0] if priority else math.nan)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        arrays = {
            name: np.array(column) if column else np.zeros(0, dtype=int)
            for name, column in columns.items()
        }
        return cls(list(tasks), list(whys), arrays)

    @cached_property
    def priority(self) -> FloatArray:
        """Priority of every row: as given, else by kept or not and score within each target."""
        columns = self.columns
        if "priority" in columns:
            given: FloatArray = columns["priority"]
            return given
        score, target = columns["score"], columns["target"]
        # What is not scored comes last, and has no place. Kept pairs come first even so: those of a
        # rule that was refined are scored by something else than those that it eliminated.
        keys = score, ~columns["eliminated"], np.isnan(score), target
        order = np.lexsort(keys)
        # Equal scores are worth the same: all take the place of the last of them.
        last = np.ones(len(order), dtype=bool)
        last[:-1] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
        ends = np.flatnonzero(last)
        place = ends[np.searchsorted(ends, np.arange(len(order)))]
        start = np.asarray(self._start)
        scored = np.bincount(target[~np.isnan(score)], minlength=len(self.tasks))
        priority = np.empty(len(order))
        of_target = target[order]
        priority[order] = (place - start[of_target] + 1) / np.maximum(scored[of_target], 1)
        return np.where(np.isnan(score), math.nan, priority)

    def row(self, source: str, target: str) -> int | None:
        """Find the row of a pair; None if there is none."""
        s, t = self._code.get(source), self._code.get(target)
        if s is None or t is None:
            return None
        end = self._start[t + 1]
        row = bisect_left(self._sources, s, self._start[t], end)
        return row if row < end and self._sources[row] == s else None

    def at(self, row: int) -> Decision:
        """Make the decision of a row."""
        columns = self.columns
        score, probability = columns["score"].item(row), columns["probability"].item(row)
        priority = self.priority.item(row)
        return Decision(
            columns["eliminated"].item(row),
            # One NaN, which is equal to itself where decisions are compared.
            score if score == score else math.nan,
            probability if probability == probability else math.nan,
            next(self._reasons(slice(row, row + 1))),
            priority if priority == priority else math.nan,
        )

    def _reasons(self, rows: Any) -> Iterator[str]:
        """Write the reasons of rows out."""
        columns = {name: self.columns[name] for name in _OF_REASON}
        if "form" in self.columns:
            named = {"priority": np.full(len(self), math.nan)} | self.columns
            columns |= {name: named[name] for name in _OF_FORM}
        for why, target, *more in zip(
            *(column[rows].tolist() for column in columns.values()), strict=True
        ):
            yield reason(self.whys[why], self.tasks[target], *more)

    def __getitem__(self, pair: Pair) -> Decision:
        row = self.row(*pair)
        if row is None:
            raise KeyError(pair)
        return self.at(row)

    def __iter__(self) -> Iterator[Pair]:
        codes = (self.columns[name].tolist() for name in ("source", "target"))
        for source, target in zip(*codes, strict=True):
            yield self.tasks[source], self.tasks[target]

    def __len__(self) -> int:
        return len(self.columns["source"])

    def __deepcopy__(self, _: Any) -> Decisions:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Decisions.from_packed, (self.packed,)

    def rows_of(self, target: str | None) -> slice:
        """Find the rows of a target, of all if it is None."""
        if target is None:
            return slice(0, len(self))
        t = self._code.get(target)
        return slice(0, 0) if t is None else slice(self._start[t], self._start[t + 1])

    def best_first(self, rows: slice) -> NDArray[np.int64]:
        """Order rows by target, score and source, the best first; NaN scores come last."""
        keys = (self.columns[name][rows] for name in ("source", "score", "target"))
        source, score, target = keys
        order: NDArray[np.int64] = np.lexsort((source, -score, target)) + rows.start
        return order

    def frame(self) -> pd.DataFrame:
        """Write every decision: source and target, and what a `Decision` holds."""
        order = self.best_first(self.rows_of(None))
        columns = {name: column[order] for name, column in self.columns.items()}
        tasks = np.array(self.tasks, dtype=object)
        return pd.DataFrame(
            {
                "source": tasks[columns["source"]],
                "target": tasks[columns["target"]],
                **{name: columns[name] for name in ("eliminated", "score", "probability")},
                "reason": np.array([*self._reasons(order), None], dtype=object)[:-1],
                "priority": self.priority[order],
            }
        )

    def changed(self, rows: Column, why: str, **columns: Column) -> Decisions:
        """Copy them with other values of some columns, and another why, in some rows."""
        changed = {name: column.copy() for name, column in self.columns.items()}
        columns["why"] = np.full(len(rows), len(self.whys))
        if "form" in changed:
            columns["form"] = np.zeros(len(rows), dtype=changed["form"].dtype)
        for name, values in columns.items():
            wide = np.result_type(changed[name], values)
            changed[name] = changed[name].astype(wide)
            changed[name][rows] = values
        return Decisions(self.tasks, [*self.whys, why], changed)

    def with_priority(self, priority: FloatArray) -> Decisions:
        """Copy them with other priorities, one for every row."""
        return Decisions(self.tasks, self.whys, self.columns | {"priority": priority})

    def spelled_out(self) -> Decisions:
        """Give every reason that has a form a text of its own, as if it had been made of texts."""
        if "form" not in self.columns:
            return self
        rows = np.flatnonzero(self.columns["form"])
        codes, texts = pd.factorize(np.array([*self._reasons(rows), None], dtype=object)[:-1])
        why = self.columns["why"].astype(np.int64)
        why[rows] = len(self.whys) + codes
        columns = self.columns | {"why": why, "form": np.zeros_like(why)}
        return Decisions(self.tasks, [*self.whys, *texts], columns)

    @cached_property
    def packed(self) -> dict[str, Any]:
        """What they are pickled and saved as: texts, and columns as compressed bytes.

        Best first, since neighbours are alike then. Made once: hosts pickle a rule again and again.
        """
        order = self.best_first(self.rows_of(None))
        return {
            "tasks": self.tasks,
            "whys": self.whys,
            "pairs": len(self),
            "columns": {
                name: (column.dtype.str, packed(column[order]))
                for name, column in self.columns.items()
            },
        }

    @classmethod
    def from_packed(cls, content: Mapping[str, Any]) -> Decisions:
        """Make them of what `packed` holds.

        Raises
        ------
        ValueError, IndexError, KeyError, TypeError
            If it is damaged.
        """
        n = content["pairs"]
        columns = {name: unpacked(b, dtype, n) for name, (dtype, b) in content["columns"].items()}
        return cls(content["tasks"], content["whys"], columns)


def _sorted(texts: Sequence[str], *codes: Column) -> tuple[list[str], Column]:
    """Sort the texts that are used, and say where each went."""
    used = np.zeros(len(texts), dtype=bool)
    for column in codes:
        used[column] = True
    order = sorted(np.flatnonzero(used).tolist(), key=lambda code: texts[code])
    places = np.zeros(len(texts), dtype=np.min_scalar_type(len(order)))
    places[order] = np.arange(len(order))
    return [str(texts[code]) for code in order], places


def _is_sorted(source: Column, target: Column) -> bool:
    later = (target[1:] > target[:-1]) | ((target[1:] == target[:-1]) & (source[1:] > source[:-1]))
    return bool(later.all())


def _floats(column: Column) -> FloatArray:
    """Take floats with one kind of NaN, so that equal columns have equal bytes."""
    values = np.asarray(column, dtype=np.float64)
    return np.where(np.isnan(values), math.nan, values)


def _counts(column: Column) -> Column:
    """Take whole numbers in as few bytes as the largest of them needs."""
    values = np.asarray(column)
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
