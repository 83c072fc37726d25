"""What a search found: the best source and hyperparameters of every target, and how sure it is."""

from transfer_pruner.answer.finding import find_answer
from transfer_pruner.answer.found import (
    ALONE,
    SHOWN,
    SHOWN_NUMBERS,
    Answer,
    Configuration,
    TargetAnswer,
)

__all__ = [
    "ALONE",
    "SHOWN",
    "SHOWN_NUMBERS",
    "Answer",
    "Configuration",
    "TargetAnswer",
    "find_answer",
]
