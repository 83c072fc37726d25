"""Where the single-task model of a text task is: in a folder, on the hub, or in memory.

What it must satisfy: nothing that is read can run code, no weight is left as it was initialized,
and two checkpoints that give other numbers have other digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
except ImportError as error:
    raise ImportError(
        "embedding text tasks needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

InMemory = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Checkpoint = str | os.PathLike[str] | InMemory

_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER = (
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json"),
    "added_tokens.json",
)
# What a classifier and its tokenizer are loaded from; not the optimizer's state or a model card.
_MODEL_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json"),
    *_TOKENIZER,
    _ADAPTER,
)
# What PEFT's file calls the module that it wraps, and transformers its classifiers' last layers.
_WRAPPER, _HEADS = "base_model.model.", {"classifier", "score"}


def load_model(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: str = "float32",
    what: str = "checkpoint",
) -> InMemory:
    """Load a classifier and its tokenizer, as `transfer_pruner.text.embed_text` takes them.

    Parameters
    ----------
    checkpoint : path, str or (model, tokenizer)
        A folder that ``save_pretrained`` wrote a sequence or token classifier to, with safetensors;
        the id of one on the Hugging Face hub; or a PEFT adapter in such a place, whose base model
        is loaded with it, and whose tokenizer is the base model's if it has none of its own. A pair
        in memory is given back as it is.
    device, dtype : str
        As for `transfer_pruner.embed_many`.
    what : str
        What errors call the checkpoint.

    Returns
    -------
    model : transformers.PreTrainedModel or peft.PeftModel
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    FileNotFoundError
        If there is no such checkpoint, or it is not saved as safetensors.
    ImportError
        If it is an adapter and peft is not installed.
    ValueError
        If it lacks weights, such as those of a classification head.
    """
    if isinstance(checkpoint, tuple):
        return checkpoint
    folder = _folder(checkpoint, what)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not (folder / _ADAPTER).is_file():
        _files(folder, what)
        model, missing = _classifier(folder, dtype)
        _check_whole(missing, folder, what)
    else:
        model, base = _adapted(folder, dtype, what)
        if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER):
            folder = base
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.to(device)  # type: ignore[arg-type]
    return model, tokenizer


def digests(checkpoint: Checkpoint, what: str) -> Iterator[str]:
    """Fingerprint everything that a checkpoint's numbers depend on, an adapter's base included.

    Raises
    ------
    FileNotFoundError
        If there is no such checkpoint, or it is not saved as safetensors.
    """
    if isinstance(checkpoint, tuple):
        yield from _digests_in_memory(*checkpoint)
        return
    folder = _folder(checkpoint, what)
    for file in _files(folder, what):
        with file.open("rb") as content:
            yield f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}"
    if (folder / _ADAPTER).is_file():
        yield from digests(_base(folder, what), _base_of(what))


def _digests_in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    from transfer_pruner.attribution._embed import fingerprint_model

    yield fingerprint_model(model)
    yield str(next(model.parameters()).dtype)
    yield json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    if hasattr(model, "get_base_model"):
        # A PEFT model's scale, and which of its adapters is active, are not among its weights.
        configs: dict[str, Any] = dict(model.peft_config)
        adapters = {name: adapter.to_dict() for name, adapter in configs.items()}
        said = [adapters, model.active_adapter]
        yield json.dumps(said, sort_keys=True, default=lambda x: sorted(map(str, x)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Padding and truncation are set anew by every call.
    vocabulary = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    yield json.dumps({**vocabulary, "padding": None, "truncation": None}, sort_keys=True)
    yield f"{type(tokenizer).__name__}\0{tokenizer.pad_token_id}\0{tokenizer.eos_token_id}"


def _folder(where: str | os.PathLike[str], what: str, revision: str | None = None) -> Path:
    if Path(where).is_dir():
        return Path(where)
    try:
        return Path(
            snapshot_download(
                os.fspath(where), revision=revision, allow_patterns=list(_MODEL_FILES)
            )
        )
    except Exception as error:
        raise FileNotFoundError(
            f"{what} is {os.fspath(where)!r}, which is no folder here and could not be had from "
            f"the Hugging Face hub: {error}"
        ) from error


def _files(folder: Path, what: str) -> list[Path]:
    files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise FileNotFoundError(
            f"{what} is {str(folder)!r}, which holds no .safetensors file: save the model with "
            "save_pretrained()."
        )
    return files


def _classifier(
    folder: Path, dtype: str, kind: str | None = None, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load what the folder's configuration names, and tell which weights it does not hold."""
    if kind is None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        (kind, *_) = config.architectures or [""]
    tokens = kind == "TOKEN_CLS" or kind.endswith("ForTokenClassification")
    auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    # Safetensors alone: what is unpickled could run code.
    model, report = auto.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    return model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def _check_whole(missing: set[str], folder: Path, what: str, advice: str = "") -> None:
    if missing:
        names = ", ".join(sorted(missing)[:4]) + ", ..." * (len(missing) > 4)
        advice = advice or "fine-tune it on its task first and save it with save_pretrained()"
        raise ValueError(
            f"{what} is {str(folder)!r}, which lacks {names}: as a classifier it is not trained "
            f"yet, so {advice}."
        )


def _adapted(folder: Path, dtype: str, what: str) -> tuple[Any, Path]:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(
            f"{what} is {str(folder)!r}, an adapter, which needs peft: pip install peft."
        ) from error
    from safetensors import safe_open

    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{what} is {str(folder)!r}, an adapter which holds no {_ADAPTER_WEIGHTS}: save it "
            "with save_pretrained()."
        )
    adapter = PeftConfig.from_pretrained(str(folder))
    with safe_open(folder / _ADAPTER_WEIGHTS, framework="numpy") as content:
        shapes = {
            key.removeprefix(_WRAPPER): content.get_slice(key).get_shape()
            for key in content.keys()  # noqa: SIM118  (it is no mapping)
        }
    # An adapter brings its head, whose size the base model's configuration does not know.
    heads = [
        shape[0]
        for key, shape in shapes.items()
        if _HEADS & {*key.split(".")} and "lora_" not in key and len(shape) == 2
    ]
    options = {"num_labels": min(heads), "ignore_mismatched_sizes": True} if heads else {}
    base = _base(folder, what)
    kind = str(getattr(adapter.task_type, "value", adapter.task_type) or "") or None
    model, missing = _classifier(base, dtype, kind, **options)
    advice = "train the adapter with task_type='SEQ_CLS', or these modules in modules_to_save"
    _check_whole(missing - shapes.keys(), folder, what, advice)
    adapted = PeftModel.from_pretrained(model, str(folder))
    return adapted.to(getattr(torch, dtype)), base


def _base(folder: Path, what: str) -> Path:
    try:
        adapter = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
        where, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{what} is {str(folder)!r}, whose {_ADAPTER} is broken ({error!r}): save the adapter "
            "with save_pretrained()."
        ) from error
    if not where:
        raise ValueError(
            f"{what} is {str(folder)!r}, an adapter that does not know its base model: write the "
            f"base model's folder or hub id as base_model_name_or_path into its {_ADAPTER}."
        )
    return _folder(where, _base_of(what), revision)


def _base_of(what: str) -> str:
    return f"the base model of {what}"
