"""transfer_pruner on Ray: embedding tasks on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_pruner_ray.embedding import embed_many

__all__ = ["embed_many"]


def __getattr__(name: str) -> Any:
    # Embedding needs torch and transformers, which a driver that only searches does not load.
    if name == "embed_many":
        from transfer_pruner_ray.embedding import embed_many

        return embed_many
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
