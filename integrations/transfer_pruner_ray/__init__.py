"""transfer_pruner on Ray: models embedded and scored on a cluster, and searches with a rule."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_pruner_ray.embedding import embed_many
    from transfer_pruner_ray.generator import TransferVariantGenerator
    from transfer_pruner_ray.records import (
        ending_from_results,
        records_from_results,
        transfers_from_results,
    )
    from transfer_pruner_ray.scheduler import TransferScheduler
    from transfer_pruner_ray.scoring import score_pairs
    from transfer_pruner_ray.searcher import TransferSearcher
    from transfer_pruner_ray.space import eliminated_pairs, filter_param_space
    from transfer_pruner_ray.stopping import StopWhenSettled

__all__ = [
    "StopWhenSettled",
    "TransferScheduler",
    "TransferSearcher",
    "TransferVariantGenerator",
    "eliminated_pairs",
    "embed_many",
    "ending_from_results",
    "filter_param_space",
    "records_from_results",
    "score_pairs",
    "transfers_from_results",
]

# On first use: embedding needs torch and transformers, which a driver that only searches does not
# load, and reading an experiment needs no ray.
_HOMES = {
    "embedding": ("embed_many",),
    "generator": ("TransferVariantGenerator",),
    "records": ("ending_from_results", "records_from_results", "transfers_from_results"),
    "scheduler": ("TransferScheduler",),
    "scoring": ("score_pairs",),
    "searcher": ("TransferSearcher",),
    "space": ("eliminated_pairs", "filter_param_space"),
    "stopping": ("StopWhenSettled",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
