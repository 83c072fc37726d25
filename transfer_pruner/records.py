"""Plain records of trials: what every host adapter hands to savings, audit and transfers.

Hosts differ in what a trial is; from here on they do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from transfer_pruner.pairs import is_baseline

Outcome = Literal["trained", "eliminated", "failed"]
Source = str | tuple[str, ...] | None


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a search, as a host reports it.

    Attributes
    ----------
    number : int
        The host's number of the trial.
    source : str, tuple of str or None
        Several for joint transfer from all of them; None is the single-task baseline.
    target : str
    outcome : {"trained", "eliminated", "failed"}
        A trial that a wrapped pruner stopped early has trained.
    seconds : float
        Wall-clock seconds that the trial took; for an eliminated one, what deciding took.
    value : float
        The objective's value; NaN if there is none.
    score, probability : float
        What the rule said of the pair; NaN if nothing.
    reason : str
        Why it was eliminated or kept.
    hyperparameters : mapping of str to value
        Without source and target.
    audit : bool
        Whether the rule eliminated the pair and it ran all the same, to measure what is missed.
    """

    number: int
    source: Source
    target: str
    outcome: Outcome
    seconds: float
    value: float = math.nan
    score: float = math.nan
    probability: float = math.nan
    reason: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    audit: bool = False


class Recorder(Protocol):
    """What host adapters hand their records to; `SavingsTracker` is one."""

    def record(self, record: TrialRecord) -> None:
        """Take one record; called from any thread, and never raises."""


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
