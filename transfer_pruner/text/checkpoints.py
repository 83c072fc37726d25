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

from transfer_pruner.text.adapters import base_called, base_of_adapter, load_adapted
from transfer_pruner.text.folders import ADAPTER, files_of, has_vocabulary
from transfer_pruner.text.loading import check_whole, load_classifier, load_tokenizer, located

try:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
except ImportError as error:
    raise ImportError(
        "embedding text tasks needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

InMemory = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Checkpoint = str | os.PathLike[str] | InMemory


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
    folder = located(checkpoint, what, fetch=fetch)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not (folder / ADAPTER).is_file():
        _files(folder, what)
        model, missing = load_classifier(folder, dtype, what)
        check_whole(missing, folder, what)
    else:
        model, base = load_adapted(folder, dtype, what, fetch)
        folder = folder if has_vocabulary(folder) else base
    tokenizer = load_tokenizer(folder, what)
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
    folder = located(checkpoint, what)
    for file in _files(folder, what):
        with file.open("rb") as content:
            yield f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}"
    if (folder / ADAPTER).is_file():
        yield from digests(base_of_adapter(folder, what), base_called(what))


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


def _files(folder: Path, what: str) -> list[Path]:
    files = files_of(folder)
    if not any(file.suffix == ".safetensors" for file in files):
        raise FileNotFoundError(
            f"{what} is {str(folder)!r}, which holds no .safetensors file: save the model with "
            "save_pretrained()."
        )
    return files
