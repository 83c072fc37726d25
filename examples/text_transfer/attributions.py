"""A task's embedding from the part of its model that was trained: the rest is the same for all."""

from __future__ import annotations

from collections.abc import Iterator

import encoder
import numpy as np
import torch
from encoder import Top
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from transfer_pruner import TaskEmbedding
from transfer_pruner.attribution import embed_batches
from transfer_pruner.attribution.methods import Batch, Scorer
from transfer_pruner.attribution.outputs import PREDICTED
from transfer_pruner.text import embed_text


class Probe:
    """Shared probe texts as batches of frozen activations, and those of their baseline inputs.

    Texts are cut to multiples of `cut` tokens: texts of few lengths are few batches.
    """

    def __init__(self, texts: list[str], n_trainable: int, cut: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
        model = AutoModel.from_pretrained(encoder.pretrained(), local_files_only=True).eval()
        encoded = tokenizer(
            texts, truncation=True, max_length=encoder.MAX_LENGTH, return_special_tokens_mask=True
        )
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        lengths = np.where(lengths > cut, lengths // cut * cut, lengths)
        self.order = np.argsort(lengths, kind="stable")
        self.batches: list[Batch] = []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            ids, mask = (
                torch.tensor([encoded[name][row][:length] for row in rows])
                for name in ("input_ids", "special_tokens_mask")
            )
            special = mask.bool()
            without = torch.where(special, ids, tokenizer.pad_token_id)
            with torch.no_grad():
                ends = [
                    model(x, output_hidden_states=True).hidden_states[-1 - n_trainable]
                    for x in (ids, without)
                ]
            self.batches.append(Batch(*ends, tokens=ids))

    def __call__(self) -> Iterator[Batch]:
        """Give the batches, from the first on."""
        return iter(self.batches)


class Classifier(nn.Module):
    """The trainable part on texts of one length: (texts, tokens, width) -> (texts, outputs)."""

    def __init__(self, top: Top) -> None:
        super().__init__()
        self.blocks, self.head = top.blocks, top.head

    def forward(self, hidden: Tensor) -> Tensor:
        """Score texts of one length."""
        for block in self.blocks:
            output = block(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.head(hidden.mean(dim=1))


def embed_top(top: Top, probe: Probe, name: str, n_steps: int, method: str) -> TaskEmbedding:
    """Embed a task by the part of its model that was trained, as `embed_text` does by the whole."""
    tokens: dict[int, float] = {}

    def observe(batch: Batch, attributed: Tensor) -> None:
        assert batch.tokens is not None
        of_position = attributed.sum(dim=-1).flatten().tolist()
        for token, value in zip(batch.tokens.flatten().tolist(), of_position, strict=True):
            tokens[token] = tokens.get(token, 0.0) + value

    embedding = embed_batches(
        Scorer(Classifier(top)),
        probe,
        name=name,
        target=PREDICTED if top.head.out_features > 2 else top.head.out_features - 1,
        layers=[f"blocks.{index}" for index in range(len(top.blocks))],
        method=method,
        n_steps=n_steps,
        batch_size=64,
        keep_examples=True,
        order=probe.order,
        observe_inputs=observe,
        provenance={"probe": "shared"},
    )
    dense = np.array([tokens[token] for token in sorted(tokens)])
    return TaskEmbedding(
        name,
        embedding.vectors,
        {**embedding.signals, "tokens": dense},
        {**embedding.provenance, "tokens": sorted(tokens)},
    )


def embed_whole(top: Top, texts: list[str], name: str) -> TaskEmbedding:
    """Embed a task by `embed_text` with its defaults, as a user of whole models would."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    return embed_text(
        encoder.WholeModel(top).eval(), tokenizer, texts, name=name, max_length=encoder.MAX_LENGTH
    )
