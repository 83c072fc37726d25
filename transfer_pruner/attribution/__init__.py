"""From a single-task model and probe examples to its TaskEmbedding: `embed`, `embed_batches`."""

from transfer_pruner.attribution._embed import embed, embed_batches

__all__ = ["embed", "embed_batches"]
