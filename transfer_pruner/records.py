"""Plain records of trials: what every host adapter hands to savings, audit and transfers.

Hosts differ in what a trial is; from here on they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from transfer_pruner.tasks import PairParams as PairParams  # as in 0.1
from transfer_pruner.tasks import Source
from transfer_pruner.tasks import plain_source as plain_source
from transfer_pruner.tasks import source_name as source_name

Outcome = Literal["trained", "eliminated", "failed"]


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
