"""What a search found: the best source and hyperparameters of every target, and how sure it is."""

from transfer_pruner.answer.finding import find_answer
from transfer_pruner.answer.found import ALONE, Answer, Configuration, TargetAnswer

__all__ = ["ALONE", "Answer", "Configuration", "TargetAnswer", "find_answer"]
