"""Plain records of trials: what every host adapter hands to savings, audit and transfers.

Hosts differ in what a trial is; from here on they do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from transfer_pruner.equality import SameValues
from transfer_pruner.tasks import PairParams as PairParams  # as in 0.1
from transfer_pruner.tasks import Source, plain_source, task_name
from transfer_pruner.tasks import source_name as source_name

Outcome = Literal["trained", "eliminated", "failed"]


@dataclass(frozen=True, eq=False)
class TrialRecord(SameValues):
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
        Wall-clock seconds that the trial took; for an eliminated one, what deciding took. Negative
        ones, of a clock that was set back meanwhile, are 0; so are those that are no finite number,
        since a host's own report must not end a search.
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
    maximize : bool, optional
        Whether a higher value is better; None if nobody said, which most readers take for yes.
    scoring_seconds : float
        What the proxy scores took that the rule re-ranked by, once for the whole search: the same
        in every record of it. 0 where it re-ranked by none, or the host does not know.
    priority : float
        How much the rule said that the trial is worth, as `Decision.priority`; NaN if nothing.

    Source and target are named as `transfer_pruner.tasks.task_name` does; a source that is the
    target is None.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> record = TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66)
    >>> record.source, record.target, record.value
    ('advice', 'news', 0.66)
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
    maximize: bool | None = None
    scoring_seconds: float = 0.0
    priority: float = math.nan

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", plain_source(self.source, self.target))
        object.__setattr__(self, "target", str(task_name(self.target)))
        seconds = float(self.seconds)
        object.__setattr__(self, "seconds", max(0.0, seconds) if math.isfinite(seconds) else 0.0)


def is_maximizing(records: Iterable[TrialRecord], maximize: bool | None = None) -> bool:
    """Whether a higher value is better: what was said, else what the records say.

    Raises
    ------
    ValueError
        If the records of one search disagree.
    """
    if maximize is not None:
        return maximize
    directions = {record.maximize is not False for record in records}
    if len(directions) > 1:
        raise ValueError(
            "records must be of one search, but some maximize and some minimize: read them apart, "
            "or pass maximize=."
        )
    return directions != {False}


class Recorder(Protocol):
    """What host adapters hand their records to; `SavingsTracker` is one."""

    def record(self, record: TrialRecord) -> None:
        """Take one record; called from any thread, and never raises."""
