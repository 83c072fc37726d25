"""Eliminate unpromising (source task, target task) pairs before a training step.

Importing this package loads nothing heavy: each name is imported on first use, so that a search
worker that only asks a rule for a decision starts fast and needs no deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from transfer_pruner import _moved  # noqa: F401
from transfer_pruner._version import __version__ as __version__

if TYPE_CHECKING:
    from transfer_pruner.acquisition import suggest_pairs
    from transfer_pruner.answer import Answer, TargetAnswer, find_answer
    from transfer_pruner.attribution import embed
    from transfer_pruner.audit import AuditEstimate, estimate_audit
    from transfer_pruner.embedding import TaskEmbedding, load_embeddings, save_embeddings
    from transfer_pruner.exceptions import TransferPrunerWarning
    from transfer_pruner.nearest import top_sources
    from transfer_pruner.pairs import pair_features
    from transfer_pruner.predictor import TransferPredictor
    from transfer_pruner.probes import probe_texts
    from transfer_pruner.records import TrialRecord
    from transfer_pruner.report import write_report
    from transfer_pruner.rule import Decision, EliminationRule, LearningRule
    from transfer_pruner.savings import Regret, Savings, estimate_savings, regret
    from transfer_pruner.tasks import PairParams
    from transfer_pruner.text import embed_many
    from transfer_pruner.transferability import score_pairs
    from transfer_pruner.transfers import transfers_from_records
    from transfer_pruner.trust import RankingTrust, ranking_trust

__all__ = [
    "Answer",
    "AuditEstimate",
    "Decision",
    "EliminationRule",
    "LearningRule",
    "PairParams",
    "RankingTrust",
    "Regret",
    "Savings",
    "TargetAnswer",
    "TaskEmbedding",
    "TransferPredictor",
    "TransferPrunerWarning",
    "TrialRecord",
    "embed",
    "embed_many",
    "estimate_audit",
    "estimate_savings",
    "find_answer",
    "load_embeddings",
    "pair_features",
    "probe_texts",
    "ranking_trust",
    "regret",
    "save_embeddings",
    "score_pairs",
    "suggest_pairs",
    "top_sources",
    "transfers_from_records",
    "write_report",
]

_HOMES = {
    "acquisition": ("suggest_pairs",),
    "answer": ("Answer", "TargetAnswer", "find_answer"),
    "attribution": ("embed",),
    "audit": ("AuditEstimate", "estimate_audit"),
    "embedding": ("TaskEmbedding", "load_embeddings", "save_embeddings"),
    "exceptions": ("TransferPrunerWarning",),
    "nearest": ("top_sources",),
    "pairs": ("pair_features",),
    "predictor": ("TransferPredictor",),
    "probes": ("probe_texts",),
    "records": ("TrialRecord",),
    "report": ("write_report",),
    "rule": ("Decision", "EliminationRule", "LearningRule"),
    "savings": ("Regret", "Savings", "estimate_savings", "regret"),
    "tasks": ("PairParams",),
    "text": ("embed_many",),
    "transferability": ("score_pairs",),
    "transfers": ("transfers_from_records",),
    "trust": ("RankingTrust", "ranking_trust"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'transfer_pruner' has no attribute {name!r}")
    return getattr(import_module(f"transfer_pruner.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
