"""From probe texts to the batches of tokens that a model is given.

What it must satisfy: the tokens are those of the model's own tokenizer, most of them known to it;
and no text's logits depend on what else is in its batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from transfer_pruner.attribution.scorer import Batch
from transfer_pruner.attribution.structures import first_tensor
from transfer_pruner.attribution.wrappers import device_of, evaluating
from transfer_pruner.text.scorer import TextScorer, close, takes

Tokens = Mapping[str, list[int]]
"""One text's tokens, as a tokenizer gives them."""
Together = Literal["padded", "of equal length", "alone"]
"""Which texts may share a batch."""

# From this share of unknown tokens on, what is attributed is not the texts any more.
_UNKNOWN = 0.5
_POSITIONS = re.compile(r"(^|\.)(position_embeddings?|embed_positions?|positions_embed|wpe)$")


def tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[Tokens]:
    """Tokenize texts, each by itself.

    Raises
    ------
    ValueError
        If `max_length` leaves no room for a text, or most tokens are unknown to the tokenizer.
    """
    least = _special_tokens(tokenizer) + 1
    if max_length < least:
        raise ValueError(
            f"max_length must be {least} or more, {least - 1} special tokens and one of the text, "
            f"but got {max_length}."
        )
    tokens = [
        _with_special_mask(
            tokenizer(
                text, truncation=True, max_length=max_length, return_special_tokens_mask=True
            ),
            tokenizer,
        )
        for text in texts
    ]
    longest = max(len(one["input_ids"]) for one in tokens)
    if longest > max_length:
        raise ValueError(
            f"tokenizer, a {type(tokenizer).__name__}, does not truncate: it gave {longest} tokens "
            f"of a text at max_length={max_length}."
        )
    unknown = unknown_share(tokens, tokenizer.unk_token_id)
    if unknown > _UNKNOWN:
        raise ValueError(
            f"texts say nothing to the tokenizer, a {type(tokenizer).__name__}: "
            f"{unknown:.0%} of them is unknown. Take the tokenizer that the model was fine-tuned "
            "with, and save it beside the model with save_pretrained()."
        )
    return tokens


def unknown_share(tokens: Sequence[Tokens], unknown: int | None) -> float:
    """Tell how much of texts their tokenizer does not know.

    That is the share of unknown tokens among those that are not special, or of texts that have
    none but special tokens, whichever is larger.
    """
    own = [
        [
            token
            for token, special in zip(one["input_ids"], one["special_tokens_mask"], strict=True)
            if not special
        ]
        for one in tokens
    ]
    empty = sum(1 for one in own if not one) / len(own)
    total = sum(map(len, own))
    strange = sum(1 for one in own for token in one if token == unknown)
    return max(empty, strange / total if total else 1.0)


class Encoder:
    """Turns tokenized texts into batches on the model's device."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Tokens]
    ) -> None:
        """Find out how the model takes texts.

        Raises
        ------
        ValueError
            If there is no padding token, or the model does not take these tokens.
        """
        self.model = model
        self.device = device_of(model)
        pad = tokenizer.pad_token_id
        if pad is None:
            # Decoders often have none; what ends a text says as little.
            pad = tokenizer.eos_token_id
        if pad is None:
            raise ValueError(
                "tokenizer must have a padding token, which is the baseline input: set "
                "tokenizer.pad_token."
            )
        self.pad = int(pad)
        self.filling = self._filling(tokens)
        taken = takes(model)
        self.names = [
            name
            for name, values in tokens[0].items()
            if name not in ("input_ids", "attention_mask") and taken(name) and by_token(values)
        ]
        self.fill = {"token_type_ids": int(tokenizer.pad_token_type_id)}
        self.takes_mask = taken("attention_mask")
        by_length = sorted(tokens, key=lambda one: len(one["input_ids"]))
        shortest, longest = by_length[0], by_length[-1]
        check_tokens(model, tokenizer, self.pad, tokens)
        try:
            self.scorer = TextScorer(model, self._named([longest]))
            self.together = self._together(shortest, longest) if len(tokens) > 1 else "alone"
        except (ValueError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(
                f"model, a {type(model).__name__}, cannot be run with gradients on the "
                f"{', '.join(self._named([longest]))} of a text of {len(longest['input_ids'])} "
                f"tokens ({type(error).__name__}: {error}): try a smaller max_length, or another "
                "model if it needs more than a text."
            ) from error

    def batch(self, tokens: Sequence[Tokens]) -> Batch:
        """Pad texts to the longest of them; the baseline keeps special tokens and padding."""
        named = self._named(tokens)
        special = self._padded([one["special_tokens_mask"] for one in tokens], 1)
        ids = named["input_ids"]
        baseline = torch.where(special.bool(), ids, self.pad)
        return Batch(self.scorer.embed(ids), self.scorer.embed(baseline), named, tokens=ids)

    def rows(
        self, order: NDArray[np.intp], tokens: Sequence[Tokens], batch_size: int
    ) -> Iterator[list[int]]:
        """Split texts, sorted by length, into batches in which none changes another's logits."""
        groups = [list(order)]
        if self.together == "of equal length":
            by_length = groupby(order, key=lambda row: len(tokens[row]["input_ids"]))
            groups = [list(rows) for _, rows in by_length]
        size = 1 if self.together == "alone" else max(batch_size, 1)
        for group in groups:
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _together(self, shortest: Tokens, longest: Tokens) -> Together:
        """Compare the logits of the shorter of two texts alone with those beside the other."""
        ways: tuple[tuple[Tokens, Together], ...]
        ways = ((longest, "padded"), (shortest, "of equal length"))

        def logits(tokens: Sequence[Tokens]) -> Tensor:
            first = first_tensor(self.model(**self._named(tokens)))[:1]
            # Of outputs of each token, those of the text's own.
            return first[:, : len(shortest["input_ids"])] if first.dim() == 3 else first

        with evaluating(self.model), torch.no_grad():
            alone = logits([shortest])
            with self.padding_known():
                for beside, together in ways:
                    if close(alone, logits([shortest, beside])):
                        return together
        return "alone"

    def _filling(self, tokens: Sequence[Tokens]) -> int:
        """Choose what pads a text: of a model that knows no padding token, a token of no text."""
        config = self.model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is not None:
            return self.pad
        used = {token for one in tokens for token in one["input_ids"]}
        unused = (token for token in range(int(config.vocab_size)) if token not in used)
        return next(unused, self.pad)

    @contextmanager
    def padding_known(self) -> Iterator[None]:
        """Let a decoder that knows no padding token find the last token of each text of a batch."""
        config = self.model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is not None:
            yield
            return
        config.pad_token_id = self.filling
        try:
            yield
        finally:
            config.pad_token_id = None

    def _named(self, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        named = {"input_ids": self._padded([one["input_ids"] for one in tokens], self.filling)}
        if self.takes_mask:
            mask = [[1] * len(one["input_ids"]) for one in tokens]
            named["attention_mask"] = self._padded(mask, 0)
        for name in self.names:
            named[name] = self._padded([one[name] for one in tokens], self.fill.get(name, 0))
        return named

    def _padded(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        longest = max(map(len, rows))
        padded = [[*row, *[value] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, device=self.device)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    try:
        return int(tokenizer.num_special_tokens_to_add())
    except (NotImplementedError, AttributeError):
        return 0


def _with_special_mask(encoded: Any, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Add which tokens are special, where a tokenizer does not tell."""
    tokens: dict[str, list[int]] = dict(encoded)
    if "special_tokens_mask" not in tokens:
        special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        tokens["special_tokens_mask"] = [int(token in special) for token in tokens["input_ids"]]
    return tokens


def by_token(values: object) -> bool:
    """Whether a tokenizer's output has a number for each token."""
    return isinstance(values, list) and all(isinstance(value, int) for value in values)


def check_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pad: int,
    tokens: Sequence[Tokens],
) -> None:
    """Refuse what the model would fail on, far from the cause: in an index, on a GPU.

    Raises
    ------
    ValueError
        If a token is none of the model's, or a text has more tokens than the model takes.
    """
    known = getattr(model.config.get_text_config(), "vocab_size", None)
    largest = max(pad, *(max(one["input_ids"], default=0) for one in tokens))
    if known is not None and largest >= known:
        raise ValueError(
            f"tokenizer gives the token {largest} but the model knows {known}: "
            "take the tokenizer that the model was fine-tuned with."
        )
    longest = max(len(one["input_ids"]) for one in tokens)
    most = min([int(tokenizer.model_max_length), *_positions(model)])
    if longest > most:
        raise ValueError(
            f"max_length must be {most} or less, as the model takes no more tokens, but a text "
            f"has {longest}."
        )


def _positions(model: PreTrainedModel) -> Iterator[int]:
    """Tell how many positions the model's tables of them have."""
    for name, module in model.named_modules():
        is_of_text = "vision" not in name
        if is_of_text and isinstance(module, nn.Embedding) and _POSITIONS.search(name):
            # RoBERTa counts from behind its padding token, OPT and BART from 2.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - max(unused, int(getattr(module, "offset", 0)))
