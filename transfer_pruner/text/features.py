"""What a transformers classifier answers to texts, and the features that its head answers from.

What it must satisfy: texts of equal length go together, so that none is padded, none changes
another one's logits, and a model without a padding token is run like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from transfer_pruner.attribution.features import Seen, see
from transfer_pruner.attribution.wrappers import device_of, evaluating, without_wrapper
from transfer_pruner.text.scorer import takes
from transfer_pruner.text.tokens import by_token, check_tokens, tokenized


def see_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    max_length: int,
) -> Iterator[Seen]:
    """Run a classifier on texts, shorter ones first, batch by batch."""
    model = without_wrapper(model)
    tokens = tokenized(tokenizer, texts, max_length)
    check_tokens(model, tokenizer, 0, tokens)
    taken, device = takes(model), device_of(model)
    further = [
        name
        for name, values in tokens[0].items()
        if name not in ("input_ids", "attention_mask") and taken(name) and by_token(values)
    ]
    # A decoder that knows no padding token finds the last token of one text alone.
    if getattr(model.config.get_text_config(), "pad_token_id", None) is None:
        batch_size = 1

    def length(row: int) -> int:
        return len(tokens[row]["input_ids"])

    with evaluating(model):
        for _, group in groupby(sorted(range(len(texts)), key=length), key=length):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                rows = alike[start : start + batch_size]
                named = {
                    name: torch.tensor([tokens[row][name] for row in rows], device=device)
                    for name in ("input_ids", *further)
                }
                if taken("attention_mask"):
                    named["attention_mask"] = torch.ones_like(named["input_ids"])
                yield Seen(rows, *see(model, named=named))


def label_names(model: PreTrainedModel) -> list[str]:
    """Name what a classifier's logits stand for, as its configuration does."""
    names = without_wrapper(model).config.id2label or {}
    return [str(names[index]) for index in sorted(names, key=int)]
