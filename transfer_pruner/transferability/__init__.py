"""Proxy scores of a source on a target: `score_pairs`, `logme`, `h_score`, `null_corrected`."""

from transfer_pruner.transferability.formulas import h_score, logme, null_corrected
from transfer_pruner.transferability.scoring import score_pairs

__all__ = ["h_score", "logme", "null_corrected", "score_pairs"]
