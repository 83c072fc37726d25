"""Which ordered pairs train, and why not the others: decisions, and the rules that make them."""

from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.ranking import Predictor

__all__ = ["Decision", "EliminationRule", "LearningRule", "Predictor"]
