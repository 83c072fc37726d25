"""What a source, a target, a baseline and a pair are, in the parameters of a trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Source = str | tuple[str, ...] | None


def is_baseline(source: object, target: object) -> bool:
    """Whether a trial has no source: None, NaN, an empty string, or the target itself."""
    if source is None or source == "" or source == target:
        return True
    return isinstance(source, float) and math.isnan(source)


@dataclass(frozen=True)
class PairParams:
    """Where the pair stands among a trial's parameters.

    Parameters
    ----------
    source_param : str or sequence of str
        Several for joint transfer, each with one of the trial's sources or none. A parameter's
        value may also be a list or tuple of sources.
    target_param : str
    target : str, optional
        The target task of a search over sources only.

    Raises
    ------
    ValueError
        If `source_param` names no parameter.
    """

    source_param: str | Sequence[str] = "source"
    target_param: str = "target"
    target: str | None = None

    def __post_init__(self) -> None:
        if not self.source_param:
            raise ValueError(f"source_param must name a parameter but got {self.source_param!r}.")

    @property
    def source_params(self) -> tuple[str, ...]:
        """Names of the parameters that hold sources."""
        if isinstance(self.source_param, str):
            return (self.source_param,)
        return tuple(self.source_param)

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the parameters that make the pair, the target's last."""
        if self.target is not None:
            return self.source_params
        return (*self.source_params, self.target_param)

    def is_in(self, params: Mapping[str, Any]) -> bool:
        """Whether the parameters hold the pair."""
        return all(name in params for name in self.params)

    def __call__(self, params: Mapping[str, Any]) -> tuple[Any, Any]:
        """Take (source, target) from a trial's parameters; several sources are a tuple."""
        target = self.target if self.target is not None else params[self.target_param]
        values = [params[name] for name in self.source_params]
        if len(values) == 1 and not isinstance(values[0], (list, tuple, set, frozenset)):
            return values[0], target
        several = [
            source
            for value in values
            for source in (value if isinstance(value, (list, tuple, set, frozenset)) else [value])
        ]
        return several_sources(several, target), target

    def hyperparameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Take everything but the pair."""
        return {name: value for name, value in params.items() if name not in self.params}


def several_sources(sources: Iterable[Any], target: Any) -> Any:
    """Name the distinct sources of a joint trial in order; one alone as itself, none as None."""
    distinct = sorted({s for s in sources if not is_baseline(s, target)}, key=str)
    return None if not distinct else distinct[0] if len(distinct) == 1 else tuple(distinct)


def plain_source(source: Any, target: Any) -> Source:
    """None for the single-task baseline, else the source task or tasks."""
    if isinstance(source, tuple):
        source = several_sources(source, target)
    return None if is_baseline(source, target) else source


def python_strings(value: Any) -> Any:
    """Turn the strings of numpy, which some search algorithms make, into those of Python."""
    if isinstance(value, tuple):
        return tuple(map(python_strings, value))
    return str(value) if isinstance(value, str) else value


def source_name(source: Source) -> str:
    """Write a source, or several, in one cell of a table; nothing for the baseline."""
    return " + ".join(source) if isinstance(source, tuple) else source or ""
