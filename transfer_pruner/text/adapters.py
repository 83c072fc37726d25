"""PEFT adapters: their base model, with as many labels as the head that they bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from transfer_pruner.text.folders import ADAPTER
from transfer_pruner.text.loading import (
    architecture_of,
    auto_class,
    check_whole,
    load_classifier,
    load_config,
    located,
    running_no_code,
)

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What PEFT's file calls the module that it wraps.
_WRAPPER = "base_model.model."


def load_adapted(folder: Path, dtype: str, what: str, fetch: bool) -> tuple[Any, Path]:
    """Load an adapter on its base model; tell the base model's folder too."""
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
    base = base_of_adapter(folder, what, fetch)
    kind = str(getattr(adapter.task_type, "value", adapter.task_type) or "") or None
    with running_no_code(base, what):
        labels = _labels(base, kind, shapes)
    options = {"num_labels": labels, "ignore_mismatched_sizes": True} if labels else {}
    model, missing = load_classifier(base, dtype, what, kind, **options)
    advice = "train the adapter with task_type='SEQ_CLS', or these modules in modules_to_save"
    check_whole(missing - shapes.keys(), folder, what, advice)
    adapted = PeftModel.from_pretrained(model, str(folder))
    return adapted.to(getattr(torch, dtype)), base


def _labels(base: Path, kind: str | None, shapes: dict[str, list[int]]) -> int | None:
    """Tell how many labels an adapter's head has, which its base's configuration does not know.

    The head is, whatever it is called, the weights whose size goes with the number of labels.
    """
    auto = auto_class(kind or architecture_of(base))
    sizes = []
    for labels in (2, 3):
        config = load_config(base)
        config.num_labels = labels
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
        sizes.append({key: tuple(x.shape) for key, x in model.state_dict().items()})
    for key, (two, three) in ((key, (sizes[0][key], sizes[1][key])) for key in sizes[0]):
        axes = [axis for axis, pair in enumerate(zip(two, three, strict=True)) if pair == (2, 3)]
        if axes and key in shapes:
            return shapes[key][axes[0]]
    return None


def base_of_adapter(folder: Path, what: str, fetch: bool = True) -> Path:
    """Find the base model that an adapter names."""
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
    return located(where, base_called(what), revision, fetch)


def base_called(what: str) -> str:
    """Say what errors call the base model of an adapter."""
    return f"the base model of {what}"
