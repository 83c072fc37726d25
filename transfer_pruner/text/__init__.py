"""From transformers' classifiers and texts to TaskEmbeddings: `embed_text`, `embed_many`."""

from transfer_pruner.text._embed import embed_text
from transfer_pruner.text.store import embed_many

__all__ = ["embed_many", "embed_text"]
