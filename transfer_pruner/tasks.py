"""What a source, a target, a baseline and a pair are, in the parameters of a trial."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Source = str | tuple[str, ...] | None
SourceParam = str | Sequence[str] | Callable[[Mapping[str, Any]], Any]

_SEVERAL = (list, tuple, set, frozenset)


def task_name(task: object) -> str | None:
    """Name a task as embeddings, rules and records do: by text.

    Numbers by their digits, so that 3, ``np.int64(3)`` and the 3.0 that pandas makes of it are one
    task; members of an Enum by their value; None, NaN and an empty string are no task.
    """
    if type(task) is str:
        return task or None
    if isinstance(task, Enum):
        return task_name(task.value)
    if isinstance(task, np.generic):
        task = task.item()
    if task is None or task == "" or (isinstance(task, float) and math.isnan(task)):
        return None
    if isinstance(task, float) and task.is_integer():
        task = int(task)
    return str(task)


def by_task(given: Mapping[Any, Any], parameter: str) -> dict[str, Any]:
    """Name the tasks of a mapping by text, whatever their type.

    Raises
    ------
    ValueError
        If a name is empty, has a blank at an end, or is there twice.
    """
    named: dict[str, Any] = {}
    for task, value in given.items():
        name = task_name(task)
        if name is None or name != name.strip():
            raise ValueError(
                f"{parameter} holds the task {task!r}: a name is not empty and has no blank at its "
                "ends."
            )
        if name in named:
            raise ValueError(f"{parameter} holds the task {name!r} twice, as text and as number.")
        named[name] = value
    return named


def is_baseline(source: object, target: object) -> bool:
    """Whether a trial has no source: None, NaN, an empty string, or the target itself."""
    name = task_name(source)
    return name is None or name == task_name(target)


def plain_source(source: Any, target: Any) -> Source:
    """None for the single-task baseline, else the source task, or several ordered by name."""
    given = source if isinstance(source, _SEVERAL) else [source]
    names = sorted({str(task_name(task)) for task in given if not is_baseline(task, target)})
    return None if not names else names[0] if len(names) == 1 else tuple(names)


def source_name(source: Source) -> str:
    """Write a source, or several, in one cell of a table; nothing for the baseline."""
    return " + ".join(source) if isinstance(source, tuple) else source or ""


@dataclass(frozen=True)
class PairParams:
    """Which of a trial's parameters hold the pair.

    Parameters
    ----------
    source_param : str, sequence of str, or callable of a mapping
        Several for joint transfer, each with one of the trial's sources or none. A parameter's
        value may also be a list or tuple of sources. A pattern names a parameter of each
        branch: ``source_{target}`` for the one that is called after the trial's target,
        ``source_*`` for any that matches. A callable takes the trial's parameters and returns the
        source, or raises KeyError where there is none.
    target_param : str
    target : str, optional
        The target task of a search over sources only.

    Raises
    ------
    ValueError
        If `source_param` names no parameter.

    Examples
    --------
    >>> from transfer_pruner import PairParams
    >>> params = PairParams(source_param="aux", target="news")
    >>> params.names_in({"aux": "advice", "lr": 0.01})
    ('aux',)
    """

    source_param: SourceParam = "source"
    target_param: str = "target"
    target: str | None = None

    def __post_init__(self) -> None:
        if not self.source_param:
            raise ValueError(f"source_param must name a parameter but got {self.source_param!r}.")

    @property
    def source_params(self) -> tuple[str, ...]:
        """Names and patterns of the parameters that hold sources; none of a callable."""
        if isinstance(self.source_param, str):
            return (self.source_param,)
        return () if callable(self.source_param) else tuple(self.source_param)

    @property
    def params(self) -> tuple[str, ...]:
        """Names and patterns of the parameters that make the pair, the target's last."""
        if self.target is not None:
            return self.source_params
        return (*self.source_params, self.target_param)

    @property
    def is_named(self) -> bool:
        """Whether `params` are names, known without a trial: no pattern and no callable."""
        return not callable(self.source_param) and not any(map(_is_pattern, self.source_params))

    def is_in(self, params: Mapping[str, Any]) -> bool:
        """Whether the parameters hold the pair."""
        return self._values(params) is not None

    def names_in(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Name the parameters that make a trial's pair, the target's last; none if it has none."""
        found = self._values(params)
        if found is None:
            return ()
        return (*found, self.target_param) if self.target is None else tuple(found)

    def __call__(self, params: Mapping[str, Any]) -> tuple[Source, str]:
        """Take (source, target) from a trial's parameters: None for the single-task baseline.

        Raises
        ------
        KeyError
            If the parameters hold no pair.
        """
        values = self._values(params)
        if values is None:
            raise KeyError(self.lacking(params))
        target = self._target(params)
        sources = [one for value in values.values() for one in _parts(value)]
        return plain_source(sources, target), str(task_name(target))

    def is_source_param(self, name: str) -> bool:
        """Whether a parameter of this name holds sources, whatever the target."""
        wanted = (pattern.replace("{target}", "*") for pattern in self.source_params)
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in wanted)

    def check(self, params: Mapping[str, Any]) -> None:
        """Refuse a fixed target where the parameters have one too.

        Raises
        ------
        ValueError
            If both say which task the target is.
        """
        if self.target is not None and self.target_param in params:
            raise ValueError(
                f"target is {self.target!r} but the parameters have {self.target_param!r} too: "
                "leave target out, or name another target_param."
            )

    def hyperparameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Take everything but the pair."""
        pair = set(self.names_in(params)) or set(self.params)
        return {name: value for name, value in params.items() if name not in pair}

    def lacking(self, params: Mapping[str, Any]) -> str:
        """Say that the parameters hold no pair, and what to do."""
        wanted = " and ".join(map(repr, self.params)) or "what source_param reads"
        return (
            f"no {wanted} among the parameters; there are: {', '.join(map(str, params)) or 'none'}."
            " Name them with source_param= and target_param=."
        )

    def _target(self, params: Mapping[str, Any]) -> Any:
        return self.target if self.target is not None else params[self.target_param]

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Find the parameters that hold sources, by name; None if one is missing."""
        if self.target is None and self.target_param not in params:
            return None
        if callable(self.source_param):
            watched = _Watched(params)
            try:
                source = self.source_param(watched)
            except KeyError:
                return None
            read = [name for name in dict.fromkeys(watched.read) if name != self.target_param]
            # All that was read makes the pair; the first stands for its value.
            return {name: source if i == 0 else None for i, name in enumerate(read or [""])}
        found: dict[str, Any] = {}
        for wanted in self.source_params:
            names = self._matching(wanted, params)
            if not names:
                return None
            found |= {name: params[name] for name in names}
        return found

    def _matching(self, wanted: str, params: Mapping[str, Any]) -> list[str]:
        if wanted in params:
            return [wanted]
        if "{target}" in wanted:
            wanted = wanted.replace("{target}", str(task_name(self._target(params))))
            return [wanted] if wanted in params else []
        if not _is_pattern(wanted):
            return []
        return [name for name in params if fnmatchcase(name, wanted) and name != self.target_param]


class _Watched(dict[str, Any]):
    """A trial's parameters that remember which of them were read."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self.read.append(name)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def _is_pattern(name: str) -> bool:
    return "{target}" in name or re.search(r"[*?\[]", name) is not None


def _parts(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, _SEVERAL) else [value]
