"""From a transformers sequence classifier, its tokenizer and texts to a task embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from transfer_pruner.attribution._embed import device_of, embed_batches, evaluating, without_wrapper
from transfer_pruner.attribution.outputs import default_target
from transfer_pruner.embedding import TOKENS, TaskEmbedding

try:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
except ImportError as error:
    raise ImportError(
        "embedding a text task needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

from transfer_pruner.attribution.methods import Batch, Scorer

# Logits of one text must not move by more than this when another text pads it.
_PADDING_TOLERANCE = 1e-3


def embed_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    name: str,
    target: int | str | None = None,
    layers: Sequence[str] | None = None,
    method: str | type = "conductance",
    n_steps: int = 8,
    batch_size: int = 16,
    max_length: int = 128,
    keep_examples: bool = True,
    top_tokens: int = 256,
) -> TaskEmbedding:
    """Embed a text task by the attributions of its single-task model on probe texts.

    The path runs through the word embeddings, from a text whose tokens are all the padding token,
    special tokens kept, to the text. Otherwise as `transfer_pruner.embed`; to be compared example
    by example, two tasks need the same texts in the same order, whatever their tokenizers.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A sequence or token classifier that takes ``inputs_embeds``, or a PEFT model of one, which
        is taken as the model that it wraps, adapters included: its layers have the names that they
        have without.
    tokenizer : transformers.PreTrainedTokenizerBase
    texts : sequence of str
        The probe examples; labels are not needed. 64 or more, the same for all tasks, are enough to
        compare tasks by.
    name : str
        The task.
    target : int or str, optional
        Which logit to attribute; ``"predicted"``: of each text, that of the class which the model
        predicts for it; ``"sum"``: all of them. Left out: the only logit of a model with one
        (regression, or a binary head), the positive class of a model with two labels, ``"sum"`` for
        a multi-label model, else ``"predicted"``. Of a token classifier a label must be given; its
        logit is averaged over the tokens of a text.
    layers : sequence of str, optional
        Names of modules; the encoder's blocks if left out.
    method, n_steps, keep_examples
        As for `transfer_pruner.embed`.
    batch_size : int
        Texts attributed together, of similar lengths. More cost more on a CPU, whose cache holds no
        more activations, and less on a GPU. A model whose output changes when a text is
        padded, such as a decoder that is classified at its last position, is given texts of equal
        length together instead.
    max_length : int
        Tokens after which a text is cut.
    top_tokens : int
        Keep the attributions of this many tokens of the vocabulary, the largest by absolute value;
        0 for none. They take the backward passes down to the word embeddings. Only with the
        methods ``"conductance"``, where they are integrated gradients, and
        ``"gradient_x_activation"``.

    Returns
    -------
    TaskEmbedding
        With the signals of `transfer_pruner.embed`, and ``"tokens"``: the attribution of each
        token of ``provenance["tokens"]``, summed over where it stands and averaged over texts.
        ``provenance["tokens_share"]`` is their share of the absolute attribution of all tokens.

    Raises
    ------
    ValueError
        If there is no text, `target` is needed, the tokenizer is not the model's, or a parameter
        is out of range.
    """
    model = without_wrapper(model)
    texts = list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be one string or more in a sequence but got {texts[:3]!r}.")
    if target is None:
        target = default_target(model.config, type(model).__name__)
    tokens = [
        tokenizer(text, truncation=True, max_length=max_length, return_special_tokens_mask=True)
        for text in texts
    ]
    if top_tokens < 0:
        raise ValueError(f"top_tokens must be 0 or more but got {top_tokens}.")
    order = np.argsort([len(encoded["input_ids"]) for encoded in tokens], kind="stable")
    encoder = _Encoder(model, tokenizer)
    encoder.check(tokens, max_length)
    padding = encoder.padding_changes_nothing([tokens[order[0]], tokens[order[-1]]])

    of_token = _TokenAttributions(len(texts))

    def batches() -> Iterator[Batch]:
        for rows in _rows(order, [len(x["input_ids"]) for x in tokens], batch_size, padding):
            batch = encoder.batch([tokens[row] for row in rows])
            yield batch if top_tokens else replace(batch, tokens=None)

    embedding = embed_batches(
        encoder.scorer,
        batches,
        name=name,
        target=target,
        layers=layers,
        method=method,
        n_steps=n_steps,
        batch_size=batch_size,
        keep_examples=keep_examples,
        order=order,
        observe_inputs=of_token.add,
        provenance={
            "probe": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            "baselines": "padding token, special tokens kept",
            "max_length": max_length,
        },
    )
    return of_token.added_to(embedding, tokenizer, top_tokens)


def _rows(
    order: np.ndarray[Any, Any], lengths: Sequence[int], batch_size: int, padding: bool
) -> Iterator[list[int]]:
    """Split texts, sorted by length, into batches; of equal lengths where padding is no option."""
    groups = [list(order)]
    if not padding:
        groups = [list(rows) for _, rows in groupby(order, key=lambda row: lengths[row])]
    for group in groups:
        for start in range(0, len(group), max(batch_size, 1)):
            yield group[start : start + max(batch_size, 1)]


class _TokenAttributions:
    """Sums the attributions of word embeddings by token of the vocabulary."""

    def __init__(self, n_texts: int) -> None:
        self.n_texts = n_texts
        self.totals: dict[int, float] = {}

    def add(self, batch: Batch, attributed: Tensor) -> None:
        if batch.tokens is None:
            return
        of_position = attributed.sum(dim=-1).double().cpu().numpy().ravel()
        tokens, places = np.unique(batch.tokens.cpu().numpy().ravel(), return_inverse=True)
        sums = np.bincount(places.ravel(), weights=of_position)
        for token, total in zip(tokens.tolist(), sums.tolist(), strict=True):
            self.totals[token] = self.totals.get(token, 0.0) + total

    def added_to(
        self, embedding: TaskEmbedding, tokenizer: PreTrainedTokenizerBase, top: int
    ) -> TaskEmbedding:
        mass = sum(map(abs, self.totals.values()))
        # Special and padding tokens stand in the baseline input too: theirs is exactly 0.
        ranked = sorted(self.totals, key=lambda token: (-abs(self.totals[token]), token))
        kept = [token for token in ranked[:top] if self.totals[token] != 0]
        if not kept:
            return embedding
        share = sum(abs(self.totals[token]) for token in kept) / mass
        words = tokenizer.convert_ids_to_tokens(kept)
        return replace(
            embedding,
            signals={
                **embedding.signals,
                TOKENS: np.array([self.totals[token] / self.n_texts for token in kept]),
            },
            provenance={**embedding.provenance, "tokens": words, "tokens_share": share},
        )


class _Encoder:
    """Turns tokenized texts into batches of word embeddings on the model's device."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.scorer = Scorer(model, inputs_name="inputs_embeds")
        self.embed: nn.Module = model.get_input_embeddings()
        self.device = device_of(model)
        self.takes_types = getattr(model.config, "type_vocab_size", 0) > 1
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

    def check(self, tokens: Sequence[Any], max_length: int) -> None:
        """Refuse what the model would fail on, far from the cause: in an index, on a GPU."""
        known = int(self.model.config.get_text_config().vocab_size)
        largest = max(max(x["input_ids"], default=0) for x in tokens)
        if max(largest, self.pad) >= known:
            raise ValueError(
                f"tokenizer gives the token {max(largest, self.pad)} but the model knows {known}: "
                "take the tokenizer that the model was fine-tuned with."
            )
        longest = max(len(x["input_ids"]) for x in tokens)
        if longest > self.tokenizer.model_max_length:
            raise ValueError(
                f"max_length must be {self.tokenizer.model_max_length} or less, as the model takes "
                f"no more tokens, but got {max_length}."
            )

    def batch(self, tokens: Sequence[Any]) -> Batch:
        """Pad texts to the longest of them; the baseline keeps special tokens and padding."""
        ids = self._padded([x["input_ids"] for x in tokens], self.pad)
        special = self._padded([x["special_tokens_mask"] for x in tokens], 1)
        mask = self._padded([[1] * len(x["input_ids"]) for x in tokens], 0)
        extras = {"attention_mask": mask}
        if self.takes_types and "token_type_ids" in tokens[0]:
            extras["token_type_ids"] = self._padded([x["token_type_ids"] for x in tokens], 0)
        baseline = torch.where(special.bool(), ids, self.pad)
        with torch.no_grad():
            return Batch(self.embed(ids), self.embed(baseline), extras, tokens=ids)

    def padding_changes_nothing(self, tokens: Sequence[Any]) -> bool:
        """Whether the shorter of two texts gets the same logits alone and beside the longer."""
        if len(tokens[0]["input_ids"]) == len(tokens[1]["input_ids"]):
            return True

        def logits(batch: Batch) -> Tensor:
            self.scorer.extras = batch.extras
            output: Tensor = self.scorer(batch.inputs)[0]
            return output

        with evaluating(self.model), torch.no_grad():
            alone, beside = logits(self.batch(tokens[:1])), logits(self.batch(tokens))
        return bool((alone - beside).abs().max() <= _PADDING_TOLERANCE * (1 + alone.abs().max()))

    def _padded(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        longest = max(map(len, rows))
        padded = [[*row, *[value] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, device=self.device)
