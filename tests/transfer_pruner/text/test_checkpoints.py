"""Models wherever users keep them: folders, adapters, memory; whole, and running no code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from transfer_pruner import embed_many, load_embeddings
from transfer_pruner.text.checkpoints import digests, load_model

TEXTS = ["flood in the city", "we need water and food", "help"]
SaveModel = Callable[..., Path]


def logits(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


@pytest.fixture
def adapter(save_model: SaveModel, tmp_path: Path) -> Path:
    """A LoRA adapter on a saved classifier, as `Trainer` leaves it: without a tokenizer."""
    peft = pytest.importorskip("peft")
    base = AutoModelForSequenceClassification.from_pretrained(save_model("base"))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(base, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "classifier" in name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_loaded_with_its_base_model_head_and_tokenizer(
    adapter: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = tmp_path / "models" / "base"
    model, tokenizer = load_model(adapter, device="cpu")
    merged = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base), str(adapter)
    ).merge_and_unload()
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(base))
    torch.testing.assert_close(logits(model, tokenizer), logits(merged, tokenizer))
    assert not torch.allclose(
        logits(model, tokenizer),
        logits(AutoModelForSequenceClassification.from_pretrained(base), tokenizer),
    )


def test_whatever_changes_an_adapters_numbers_changes_its_digest(
    adapter: Path, save_model: SaveModel
) -> None:
    first = [*digests(adapter, "m")]
    assert [*digests(adapter, "m")] == first
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 64}))
    scaled = [*digests(adapter, "m")]
    assert scaled != first
    save_model("base", seed=3)
    assert [*digests(adapter, "m")] != scaled


def test_adapters_are_embedded_like_any_model(
    adapter: Path, save_model: SaveModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = embed_many({"news": adapter, "rescue": save_model("other", seed=1)}, TEXTS, out)
    assert set(files) == set(load_embeddings(out)) == {"news", "rescue"}
    in_memory = load_model(adapter, device="cpu")
    again = embed_many({"news": in_memory}, TEXTS, tmp_path / "memory")
    one, other = load_embeddings(out)["news"], load_embeddings(again["news"].parent)["news"]
    assert one.vectors.keys() == other.vectors.keys()
    for layer, vector in one.vectors.items():
        np.testing.assert_allclose(other.vectors[layer], vector, rtol=1e-5, atol=1e-9)


def test_an_adapter_whose_head_was_not_trained_is_refused(
    save_model: SaveModel, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    encoder = BertModel(BertConfig.from_pretrained(save_model("base")))
    encoder.save_pretrained(tmp_path / "encoder")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    peft.get_peft_model(encoder, config).save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "encoder")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lacks classifier\.bias.* task_type='SEQ_CLS'"):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"base_model_name_or_path": None}, ValueError, "does not know its base model"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, FileNotFoundError, "the base model of m"),
    ],
)
def test_an_adapter_without_its_base_says_what_to_do(
    adapter: Path, config: dict[str, object], error: type[Exception], message: str
) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | config))
    with pytest.raises(error, match=message):
        load_model(adapter, what="m")


def test_an_adapter_that_is_broken_is_named(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"whose adapter_config\.json is broken"):
        [*digests(adapter, "m")]


def test_an_encoder_without_a_head_is_not_taken_for_a_classifier(
    save_model: SaveModel, tmp_path: Path
) -> None:
    BertModel(BertConfig.from_pretrained(save_model("base"))).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, .*: as a classifier it is not"):
        load_model(tmp_path / "encoder")


def test_pickles_are_not_opened(save_model: SaveModel, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    folder = save_model("base")
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.bias": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file: save the model"):
        load_model(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_label_of_a_token_classifier_is_a_task(save_model: SaveModel, tmp_path: Path) -> None:
    folder = save_model("base")
    config = BertConfig.from_pretrained(folder, num_labels=5)
    torch.manual_seed(0)
    shutil.rmtree(tmp_path / "tokens", ignore_errors=True)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "tokens")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tokens")
    model, _ = load_model(tmp_path / "tokens")
    assert type(model).__name__ == "BertForTokenClassification"
    files = embed_many(
        {"place": tmp_path / "tokens", "person": tmp_path / "tokens"},
        TEXTS,
        tmp_path / "out",
        target={"place": 1, "person": 2},
    )
    found = load_embeddings(tmp_path / "out")
    assert set(files) == {"place", "person"}
    assert found["place"].fingerprint != found["person"].fingerprint
    with pytest.raises(ExceptionGroup) as raised:
        embed_many({"place": tmp_path / "tokens"}, TEXTS, tmp_path / "none")
    assert "which of the 5 labels" in str(raised.value.exceptions[0])


def test_a_model_in_memory_is_known_by_its_weights(save_model: SaveModel) -> None:
    model, tokenizer = load_model(save_model("base"), device="cpu")
    first = [*digests((model, tokenizer), "m")]
    tokenizer(TEXTS, padding="max_length", max_length=20, truncation=True)
    assert [*digests((model, tokenizer), "m")] == first
    with torch.no_grad():
        model.classifier.bias.add_(1)
    assert [*digests((model, tokenizer), "m")] != first
