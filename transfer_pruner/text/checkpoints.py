"""Where the single-task model of a text task is: in a folder, on the hub, or in memory.

What it must satisfy: nothing that is read can run code, no weight is left as it was initialized,
and two checkpoints that give other numbers have other digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfer_pruner.text.folders import (
    ADAPTER,
    MODEL_FILES,
    brings_code,
    files_of,
    has_vocabulary,
    model_folder,
    names_kernel,
)

try:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
except ImportError as error:
    raise ImportError(
        "embedding text tasks needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

InMemory = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Checkpoint = str | os.PathLike[str] | InMemory

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What PEFT's file calls the module that it wraps.
_WRAPPER = "base_model.model."


def load_model(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: str = "float32",
    what: str = "checkpoint",
    fetch: bool = True,
) -> InMemory:
    """Load a classifier and its tokenizer, as `transfer_pruner.text.embed_text` takes them.

    Parameters
    ----------
    checkpoint : path, str or (model, tokenizer)
        A folder that ``save_pretrained`` wrote a sequence or token classifier to, with safetensors;
        the id of one on the Hugging Face hub; or a PEFT adapter in such a place, whose base model
        is loaded with it, and whose tokenizer is the base model's if it has none of its own. Of a
        folder that a Trainer left, with checkpoints in it, the best is loaded, or the last. A pair
        in memory is given back as it is.
    device, dtype : str
        As for `transfer_pruner.embed_many`.
    what : str
        What errors call the checkpoint.
    fetch : bool
        Whether to fetch from the hub what is not on this machine.

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
        If it lacks weights, such as those of a classification head, or a tokenizer, or needs code
        of its own.
    """
    if isinstance(checkpoint, tuple):
        return checkpoint
    folder = _folder(checkpoint, what, fetch=fetch)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not (folder / ADAPTER).is_file():
        _files(folder, what)
        model, missing = _classifier(folder, dtype, what)
        _check_whole(missing, folder, what)
    else:
        model, base = _adapted(folder, dtype, what, fetch)
        folder = folder if has_vocabulary(folder) else base
    tokenizer = _tokenizer(folder, what)
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
    if (folder / ADAPTER).is_file():
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
        scaled_by = [adapters, model.active_adapter]
        yield json.dumps(scaled_by, sort_keys=True, default=lambda x: sorted(map(str, x)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Padding and truncation are set anew by every call.
    vocabulary = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    yield json.dumps({**vocabulary, "padding": None, "truncation": None}, sort_keys=True)
    yield f"{type(tokenizer).__name__}\0{tokenizer.pad_token_id}\0{tokenizer.eos_token_id}"


def _folder(
    where: str | os.PathLike[str], what: str, revision: str | None = None, fetch: bool = True
) -> Path:
    if Path(where).is_dir():
        return model_folder(Path(where))
    try:
        return Path(
            snapshot_download(
                os.fspath(where),
                revision=revision,
                allow_patterns=list(MODEL_FILES),
                local_files_only=not fetch,
            )
        )
    except Exception as error:
        raise FileNotFoundError(
            f"{what} is {os.fspath(where)!r}, which is no folder here and could not be had from "
            f"the Hugging Face hub: {error}"
        ) from error


def _files(folder: Path, what: str) -> list[Path]:
    files = files_of(folder)
    if not any(file.suffix == ".safetensors" for file in files):
        raise FileNotFoundError(
            f"{what} is {str(folder)!r}, which holds no .safetensors file: save the model with "
            "save_pretrained()."
        )
    return files


@contextmanager
def _running_no_code(folder: Path, what: str) -> Iterator[None]:
    """Say of a folder with code of its own why it cannot be loaded."""
    needed = (
        f"{what} is {str(folder)!r}, which needs code of its own (%s), and nothing that is read "
        "here can run code. If you trust it, load it yourself and give embed_many the pair "
        "(model, tokenizer)."
    )
    if names_kernel(folder):
        raise ValueError(needed % "a kernel as its attention")
    try:
        yield
    except (ValueError, OSError, KeyError) as error:
        if not brings_code(folder):
            raise
        raise ValueError(needed % "auto_map, trust_remote_code") from error


def _tokenizer(folder: Path, what: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; of a folder without one transformers would make up an empty one."""
    missing = ValueError(
        f"{what} is {str(folder)!r}, which holds no tokenizer: save the one that the model was "
        "fine-tuned with to the same folder with save_pretrained(), or give it to the Trainer as "
        "processing_class."
    )
    whole = has_vocabulary(folder)
    try:
        with _running_no_code(folder, what):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        if whole or brings_code(folder):
            raise
        raise missing from error
    # Tokenizers of bytes or characters have no vocabulary to read.
    if not whole and tokenizer.vocab_files_names:
        raise missing
    return tokenizer


def _classifier(
    folder: Path, dtype: str, what: str, kind: str | None = None, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load what the folder's configuration names, and tell which weights it does not hold."""
    # Safetensors alone: what is unpickled could run code.
    with _running_no_code(folder, what):
        model, report = _auto(kind or _architecture(folder)).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    return model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def _config(folder: Path) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return config


def _architecture(folder: Path) -> str:
    architectures = _config(folder).architectures or [""]
    return str(architectures[0])


def _auto(kind: str) -> Any:
    tokens = kind == "TOKEN_CLS" or kind.endswith("ForTokenClassification")
    return AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification


def _check_whole(missing: set[str], folder: Path, what: str, advice: str = "") -> None:
    if missing:
        names = ", ".join(sorted(missing)[:4]) + ", ..." * (len(missing) > 4)
        advice = advice or "fine-tune it on its task first and save it with save_pretrained()"
        raise ValueError(
            f"{what} is {str(folder)!r}, which lacks {names}: as a classifier it is not trained "
            f"yet, so {advice}."
        )


def _adapted(folder: Path, dtype: str, what: str, fetch: bool) -> tuple[Any, Path]:
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
    if getattr(adapter, "megatron_config", None):
        # PEFT imports whatever module such an adapter names.
        raise ValueError(f"{what} is {str(folder)!r}, an adapter for Megatron: merge it first.")
    with safe_open(folder / _ADAPTER_WEIGHTS, framework="numpy") as content:
        shapes = {
            key.removeprefix(_WRAPPER): content.get_slice(key).get_shape()
            for key in content.keys()  # noqa: SIM118  (it is no mapping)
        }
    base = _base(folder, what, fetch)
    kind = str(getattr(adapter.task_type, "value", adapter.task_type) or "") or None
    with _running_no_code(base, what):
        labels = _labels(base, kind, shapes)
    options = {"num_labels": labels, "ignore_mismatched_sizes": True} if labels else {}
    model, missing = _classifier(base, dtype, what, kind, **options)
    advice = "train the adapter with task_type='SEQ_CLS', or these modules in modules_to_save"
    _check_whole(missing - shapes.keys(), folder, what, advice)
    adapted = PeftModel.from_pretrained(model, str(folder))
    return adapted.to(getattr(torch, dtype)), base


def _labels(base: Path, kind: str | None, shapes: dict[str, list[int]]) -> int | None:
    """Tell how many labels an adapter's head has, which its base's configuration does not know.

    The head is, whatever it is called, the weights whose size goes with the number of labels.
    """
    auto = _auto(kind or _architecture(base))
    sizes = []
    for labels in (2, 3):
        config = _config(base)
        config.num_labels = labels
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
        sizes.append({key: tuple(x.shape) for key, x in model.state_dict().items()})
    for key, (two, three) in ((key, (sizes[0][key], sizes[1][key])) for key in sizes[0]):
        axes = [axis for axis, pair in enumerate(zip(two, three, strict=True)) if pair == (2, 3)]
        if axes and key in shapes:
            return shapes[key][axes[0]]
    return None


def _base(folder: Path, what: str, fetch: bool = True) -> Path:
    try:
        adapter = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        where, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{what} is {str(folder)!r}, whose {ADAPTER} is broken ({error!r}): save the adapter "
            "with save_pretrained()."
        ) from error
    if not where:
        raise ValueError(
            f"{what} is {str(folder)!r}, an adapter that does not know its base model: write the "
            f"base model's folder or hub id as base_model_name_or_path into its {ADAPTER}."
        )
    return _folder(where, _base_of(what), revision, fetch)


def _base_of(what: str) -> str:
    return f"the base model of {what}"
