"""Which layers of a model are attributed: those that a user names, or its blocks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transfer_pruner.attribution.methods import Scorer


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Find the modules that a user named.

    Raises
    ------
    ValueError
        If there are none, or one is no module of the model; similar names are told.
    """
    modules = dict(model.named_modules())
    for name in names:
        if not name or name not in modules:
            known = [module for module in modules if module]
            close = difflib.get_close_matches(name, known, n=3) or known[:10]
            raise ValueError(
                f"layers holds {name!r}, which is no module of the model. Similar names: "
                f"{', '.join(close)}."
            )
    if not names:
        raise ValueError("layers must name at least one module of the model but is empty.")
    return {name: modules[name] for name in names}


def default_layers(scorer: Scorer, probe: Tensor) -> list[str]:
    """Choose the layers of a model that nobody named.

    The modules of a ModuleList, as a transformer's blocks are, or else all modules with weights
    but embeddings, normalisations over batches and the output head; of both those that run once.

    Raises
    ------
    ValueError
        If nothing but the output head is left.
    """
    model = scorer.model
    runs: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_hook(lambda *_, name=name: runs.append(name)))
    try:
        with torch.no_grad():
            scorer(probe)
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(model.named_modules())
    once = [name for name in dict.fromkeys(runs) if runs.count(name) == 1]
    blocks = [name for name in once if _is_block(modules, name)]
    if len(blocks) > 1:
        return blocks
    # An adapter's parts are no layers of their own: other models of the kind have none.
    adapted = [name for name in once if own_module(modules[name])]
    weighted = [
        name
        for name in once
        if not any(name.startswith(f"{outer}.") for outer in adapted)
        and next((own_module(modules[name]) or modules[name]).parameters(recurse=False), None)
        is not None
        and not isinstance(modules[name], (nn.Embedding, nn.modules.batchnorm._BatchNorm))
    ]
    # The last one is the output head: its attributions are the output change, whatever the task.
    if len(weighted) < 2:
        raise ValueError(
            "layers cannot be chosen for this model: no module with weights but the output head "
            f"runs exactly once. Name some of: {', '.join(list(modules)[1:11]) or 'none'}."
        )
    return weighted[:-1]


def own_module(module: Any) -> nn.Module | None:
    """Find the module that PEFT put an adapter, or a copy to train, in the place of."""
    if not hasattr(module, "adapter_layer_names"):
        return None
    own: nn.Module = module.base_layer if hasattr(module, "base_layer") else module.original_module
    return own


def _is_block(modules: dict[str, nn.Module], name: str) -> bool:
    parent, _, index = name.rpartition(".")
    return index.isdigit() and isinstance(modules.get(parent), nn.ModuleList)
