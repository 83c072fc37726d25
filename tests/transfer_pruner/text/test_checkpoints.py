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
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from transfer_pruner import embed_many, load_embeddings
from transfer_pruner.text.checkpoints import digests, load_model
from transfer_pruner.text.folders import model_folder
from transfer_pruner.text.loading import load_tokenizer

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


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def without_tokenizer(folder: Path) -> Path:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_a_folder_without_a_tokenizer_is_refused_as_one_without_weights_is(
    family: str, tmp_path: Path
) -> None:
    # What Trainer.save_model() writes if it was given none; transformers would make one up.
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"m is '.*', which holds no tokenizer: save the one that"):
        load_tokenizer(tmp_path, "m")
    # Nor do its settings make a vocabulary.
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path, "m")


@pytest.mark.parametrize("family", ["canine", "perceiver"])
def test_a_tokenizer_of_characters_or_bytes_needs_no_file(family: str, tmp_path: Path) -> None:
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path, "m")("help")["input_ids"]) == 6


def test_no_way_to_a_model_makes_up_a_tokenizer(
    save_model: SaveModel, adapter: Path, tmp_path: Path
) -> None:
    bare = without_tokenizer(save_model("bare"))
    without_tokenizer(tmp_path / "models" / "base")
    with pytest.raises(ExceptionGroup) as raised:
        embed_many({"folder": bare, "adapter": adapter}, TEXTS, tmp_path / "out")
    assert len(raised.value.exceptions) == 2
    assert all("holds no tokenizer" in str(error) for error in raised.value.exceptions)
    made_up = AutoTokenizer.from_pretrained(bare)
    model = AutoModelForSequenceClassification.from_pretrained(bare)
    with pytest.raises(ExceptionGroup) as raised:
        embed_many({"memory": (model, made_up)}, TEXTS, tmp_path / "out")
    assert "texts say nothing to the tokenizer" in str(raised.value.exceptions[0])
    assert not (tmp_path / "out").exists()


class Bomb:
    """A module of Python that leaves a trace if it is run."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "exploded"
        (folder / "bomb.py").write_text(f"open({str(self.trace)!r}, 'w').close()")

    def plant(self, file: Path, auto_map: dict[str, object], **more: object) -> None:
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**content, "auto_map": auto_map, **more}))


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_is_never_run_nor_asked_about(
    where: str, save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model("base")
    bomb = Bomb(folder)
    if where == "config.json":
        kinds = ("AutoConfig", "AutoModelForSequenceClassification")
        auto_map: dict[str, object] = dict.fromkeys(kinds, "bomb.Bomb")
        bomb.plant(folder / where, auto_map, model_type="bomb")
    else:
        bomb.plant(
            folder / where, {"AutoTokenizer": ["bomb.Bomb", None]}, tokenizer_class="BombTokenizer"
        )
        (folder / "tokenizer.json").rename(folder / "vocab.txt")
    # As `yes | transfer-pruner embed` would.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(ValueError, match=r"needs code of its own \(auto_map"):
        load_model(folder, what="m")
    assert not bomb.trace.exists()


def test_a_kernel_of_somebodys_repository_is_not_fetched(save_model: SaveModel) -> None:
    config = save_model("base") / "config.json"
    for name in ("attn_implementation", "_attn_implementation"):
        content = json.loads(config.read_text()) | {name: "somebody/kernel"}
        config.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="a kernel as its attention"):
            load_model(config.parent, what="m")


def test_a_folder_with_code_that_transformers_does_not_need_is_loaded(
    save_model: SaveModel,
) -> None:
    folder = save_model("base")
    bomb = Bomb(folder)
    bomb.plant(folder / "config.json", {"AutoModelForSequenceClassification": "bomb.Bomb"})
    model, _ = load_model(folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not bomb.trace.exists()


def test_a_folder_that_a_trainer_left_is_its_best_checkpoint_or_its_last(
    save_model: SaveModel, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step in (500, 1000, 1500):
        shutil.copytree(save_model(str(step), seed=step), run / f"checkpoint-{step}")
    (run / "checkpoint-x").mkdir()
    assert model_folder(run).name == "checkpoint-1500"
    state = run / "checkpoint-1500" / "trainer_state.json"
    state.write_text(json.dumps({"best_model_checkpoint": "/elsewhere/run/checkpoint-1000"}))
    assert model_folder(run).name == "checkpoint-1000"
    state.write_text(json.dumps({"best_model_checkpoint": "C:\\run\\checkpoint-500"}))
    assert model_folder(run).name == "checkpoint-500"
    shutil.rmtree(run / "checkpoint-500")
    assert model_folder(run).name == "checkpoint-1500"
    assert [*digests(run, "m")] == [*digests(run / "checkpoint-1500", "m")]
    model, _ = load_model(run, device="cpu")
    torch.testing.assert_close(
        model.classifier.weight,
        load_model(run / "checkpoint-1500", device="cpu")[0].classifier.weight,
    )
    # A model in the folder itself is what the Trainer saved last of all.
    shutil.copytree(run / "checkpoint-1000", run, dirs_exist_ok=True)
    assert model_folder(run) == run


def test_what_macos_writes_beside_files_is_no_file_of_a_model(save_model: SaveModel) -> None:
    folder = save_model("base")
    first = [*digests(folder, "m")]
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7")
    assert [*digests(folder, "m")] == first


@pytest.mark.parametrize(
    ("family", "heads"),
    [
        ("xlnet", ["logits_proj", "sequence_summary"]),
        ("t5", ["classification_head"]),
        ("roberta", ["classifier"]),
    ],
)
def test_an_adapter_brings_its_head_whatever_it_is_called(
    family: str, heads: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    peft = pytest.importorskip("peft")
    sizes = {"vocab_size": 40, "d_model": 16, "hidden_size": 16, "n_layer": 1, "num_layers": 1}
    sizes |= {"num_hidden_layers": 1, "n_head": 2, "num_heads": 2, "num_attention_heads": 2}
    sizes |= {"d_inner": 16, "d_ff": 16, "d_kv": 8, "intermediate_size": 16, "pad_token_id": 0}
    sizes |= {"decoder_start_token_id": 0, "eos_token_id": 2}
    config = CONFIG_MAPPING[family](**sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True
    )
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q", "query"], modules_to_save=heads
    )
    if family == "xlnet":
        settings.target_modules = {"layer_1"}
        settings.modules_to_save = [*heads, "sequence_summary"]
    model = peft.get_peft_model(base, settings)
    model.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_model(tmp_path / "adapter", device="cpu")
    assert loaded.config.num_labels == 5
    one = {"input_ids": torch.tensor([[1, 7, 8, 2]])}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**one).logits, model.eval()(**one).logits)
