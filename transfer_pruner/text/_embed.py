"""From a transformers sequence classifier, its tokenizer and texts to a task embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from transfer_pruner.attribution import embed_batches
from transfer_pruner.attribution.outputs import PREDICTED, SUM, default_target
from transfer_pruner.embedding import TOKENS, TaskEmbedding

try:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
except ImportError as error:
    raise ImportError(
        "embedding a text task needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

from transfer_pruner.attribution.scorer import Batch
from transfer_pruner.attribution.wrappers import without_wrapper
from transfer_pruner.text.tokens import Encoder, tokenized, unknown_share


def embed_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    name: str,
    target: int | str | None = None,
    layers: Sequence[str] | None = None,
    method: str | type = "conductance",
    n_steps: int | None = None,
    batch_size: int = 16,
    max_length: int = 128,
    keep_examples: bool = True,
    top_tokens: int = 256,
) -> TaskEmbedding:
    r"""Embed a text task by the attributions of its single-task model on probe texts.

    The path runs through the word embeddings, from a text whose tokens are all the padding token,
    special tokens kept, to the text. Otherwise as `transfer_pruner.embed`; to be compared example
    by example, two tasks need the same texts in the same order, whatever their tokenizers.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A sequence or token classifier, called as ``model(**tokenizer(text))``; what its word
        embeddings give is replaced on the way. Or a PEFT model of one, which is taken as the model
        that it wraps, adapters included: its layers have the names that they have without.
    tokenizer : transformers.PreTrainedTokenizerBase
    texts : sequence of str
        The probe examples; labels are not needed. 64 or more, the same for all tasks, are enough to
        compare tasks by.
    name : str
        The task.
    target : int or str, optional
        Which logit to attribute, by number or by its label (``model.config.id2label``);
        ``"predicted"``: of each text, that of the class which the model
        predicts for it; ``"sum"``: all of them. Left out: the only logit of a model with one
        (regression, or a binary head), the positive class of a model with two labels, ``"sum"`` for
        a multi-label model, else ``"predicted"``. Of a token classifier a label must be given; its
        logit is averaged over the tokens of a text.
    layers : sequence of str, optional
        Names of modules; the blocks if left out.
    method, n_steps, keep_examples
        As for `transfer_pruner.embed`.
    batch_size : int
        Texts attributed together, of similar lengths. More cost more on a CPU, whose cache holds no
        more activations, and less on a GPU. A model whose output changes when a text is
        padded is given texts of equal length together instead.
    max_length : int
        Tokens after which a text is cut, special tokens included.
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
        If there is no text, most of what the texts say is unknown to the tokenizer, `target` is
        needed, the tokenizer is not the model's, the model cannot be called with a text alone or
        gives other logits when handed its own word embeddings, or a parameter is out of range.

    Examples
    --------
    >>> from pathlib import Path
    >>> from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
    >>> from transfer_pruner.text import embed_text
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "flood", "help", "storm"]
    >>> _ = Path("vocab.txt").write_text("\n".join(words))
    >>> tokenizer = BertTokenizer("vocab.txt")
    >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=1)
    >>> model = BertForSequenceClassification(config)
    >>> embedding = embed_text(model, tokenizer, ["flood help", "storm"], name="news")
    >>> {layer: vector.shape for layer, vector in embedding.vectors.items()}
    {'bert.encoder.layer.0': (8,), 'bert.encoder.layer.1': (8,)}
    """
    model = without_wrapper(model)
    if isinstance(texts, str):
        raise ValueError(
            f"texts must be a sequence of strings but got the string {texts[:40]!r}: write [text]."
        )
    texts = list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be one string or more in a sequence but got {texts[:3]!r}.")
    if top_tokens < 0:
        raise ValueError(f"top_tokens must be 0 or more but got {top_tokens}.")
    target = _target(target, model)
    tokens = tokenized(tokenizer, texts, max_length)
    order = np.argsort([len(encoded["input_ids"]) for encoded in tokens], kind="stable")
    encoder = Encoder(model, tokenizer, tokens)
    of_token = _TokenAttributions(len(texts))

    def batches() -> Iterator[Batch]:
        for rows in encoder.rows(order, tokens, batch_size):
            batch = encoder.batch([tokens[row] for row in rows])
            yield batch if top_tokens else replace(batch, tokens=None)

    with encoder.padding_known():
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
                "unknown_share": unknown_share(tokens, tokenizer.unk_token_id),
            },
        )
    return of_token.added_to(embedding, tokenizer, top_tokens)


def _target(target: int | str | None, model: PreTrainedModel) -> int | str:
    """Find the logit that a user's target means: by default, by number or by its label."""
    if target is None:
        return default_target(model.config, type(model).__name__)
    if not isinstance(target, str) or target in (PREDICTED, SUM):
        return target
    labels = {str(label): int(index) for index, label in (model.config.id2label or {}).items()}
    alike = {label for label in labels if label.casefold() == target.casefold()}
    found = target if target in labels else alike.pop() if len(alike) == 1 else None
    if found is None:
        raise ValueError(
            f"target must be a number, {PREDICTED!r}, {SUM!r} or a label of the model but got "
            f"{target!r}; it has: {', '.join(labels)}."
        )
    return labels[found]


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
