"""Load classifiers and tokenizers from a folder: whole, and running no code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfer_pruner.text.folders import (
    MODEL_FILES,
    brings_code,
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
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
except ImportError as error:
    raise ImportError(
        "embedding text tasks needs transformers: pip install 'transfer-pruner[text]'."
    ) from error


def located(
    where: str | os.PathLike[str], what: str, revision: str | None = None, fetch: bool = True
) -> Path:
    """Find the folder of a model, here or of a hub id, which is fetched if need be."""
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


@contextmanager
def running_no_code(folder: Path, what: str) -> Iterator[None]:
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


def load_tokenizer(folder: Path, what: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; of a folder without one transformers would make up an empty one."""
    missing = ValueError(
        f"{what} is {str(folder)!r}, which holds no tokenizer: save the one that the model was "
        "fine-tuned with to the same folder with save_pretrained(), or give it to the Trainer as "
        "processing_class."
    )
    whole = has_vocabulary(folder)
    try:
        with running_no_code(folder, what):
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


def load_classifier(
    folder: Path, dtype: str, what: str, kind: str | None = None, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load what the folder's configuration names, and tell which weights it does not hold."""
    # Safetensors alone: what is unpickled could run code.
    with running_no_code(folder, what):
        model, report = auto_class(kind or architecture_of(folder)).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    return model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def load_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of a folder's model."""
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return config


def architecture_of(folder: Path) -> str:
    """Name the class that a folder's model was saved as."""
    architectures = load_config(folder).architectures or [""]
    return str(architectures[0])


def auto_class(kind: str) -> Any:
    """Choose transformers' loader for a class or for PEFT's kind of a task."""
    tokens = kind == "TOKEN_CLS" or kind.endswith("ForTokenClassification")
    return AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification


def check_whole(missing: set[str], folder: Path, what: str, advice: str = "") -> None:
    """Refuse a model of which weights were not in its files."""
    if missing:
        names = ", ".join(sorted(missing)[:4]) + ", ..." * (len(missing) > 4)
        advice = advice or "fine-tune it on its task first and save it with save_pretrained()"
        raise ValueError(
            f"{what} is {str(folder)!r}, which lacks {names}: as a classifier it is not trained "
            f"yet, so {advice}."
        )
