"""What a folder of a saved model holds, as far as can be told without loading it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CONFIG, ADAPTER = "config.json", "adapter_config.json"
VOCABULARY = (
    *("tokenizer.json", "vocab*", "*merges.txt", "*.model", "*.spm", "*.tiktoken"),
    *("bpe.codes", "tekken.json"),
)
"""Files of which a tokenizer has one at least, but for those that read bytes or characters."""
MODEL_FILES = (
    *(CONFIG, "*.safetensors", "*.safetensors.index.json", ADAPTER),
    *("tokenizer*", *VOCABULARY, "special_tokens_map.json", "added_tokens.json"),
)
"""What a classifier and its tokenizer are loaded from: no optimizer's state, no model card."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def is_model(folder: Path) -> bool:
    """Whether ``save_pretrained`` wrote a model or an adapter to this folder."""
    return (folder / CONFIG).is_file() or (folder / ADAPTER).is_file()


def model_folder(folder: Path) -> Path:
    """Find the model of a folder: in it, or in the checkpoint that a Trainer left there.

    Of several checkpoints that is the one which the Trainer calls the best, or else its last. A
    folder without any is given back as it is.
    """
    if is_model(folder):
        return folder
    steps = {
        int(step[1]): path
        for path in folder.glob("checkpoint-*")
        if (step := _CHECKPOINT.fullmatch(path.name)) and is_model(path)
    }
    if not steps:
        return folder
    last = steps[max(steps)]
    # Written where the Trainer ran: of its path only the name holds here.
    best = _json(last / "trainer_state.json").get("best_model_checkpoint")
    named = folder / re.split(r"[\\/]", str(best or ""))[-1]
    return named if named in steps.values() else last


def models_in(folder: Path) -> dict[str, Path]:
    """Find the models in the folders of a folder, by their folders' names."""
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: path for name, path in found.items() if is_model(model_folder(path))}


def files_of(folder: Path, patterns: Iterable[str] = MODEL_FILES) -> list[Path]:
    """List a folder's files of these patterns, but for what macOS writes beside files."""
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    return sorted(file for file in found if not file.name.startswith("._"))


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds what a tokenizer reads its vocabulary from."""
    return bool(files_of(folder, VOCABULARY))


def brings_code(folder: Path) -> bool:
    """Whether a folder names code of its own, which loading it could run."""
    configs = (CONFIG, "tokenizer_config.json", ADAPTER)
    return any("auto_map" in _json(folder / name) for name in configs)


def names_kernel(folder: Path) -> bool:
    """Whether the configuration takes its attention from somebody's repository of kernels."""

    def found(part: object, is_implementation: bool = False) -> bool:
        if isinstance(part, dict):
            return any(found(x, "_implementation" in key) for key, x in part.items())
        return is_implementation and "/" in str(part)

    return found(_json(folder / CONFIG))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
