"""Why a rule decided on a pair as it did: `explain_pair`."""

from transfer_pruner.explain.explanation import Explanation
from transfer_pruner.explain.pair import explain_pair

__all__ = ["Explanation", "explain_pair"]
