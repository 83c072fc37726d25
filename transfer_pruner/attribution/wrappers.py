"""A model as it is inside what others wrap around it, and as it runs while it is attributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def without_wrapper(model: Any) -> Any:
    """Take the model out of what wraps it, under the names of its own modules.

    Of ``torch.compile``, ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and PEFT;
    of the last with its adapters.

    Raises
    ------
    ValueError
        If the adapter is a prompt, which lives in the wrapper and not in the model's layers.
    """
    while True:
        wrapped = _wrapped(model)
        if wrapped is not None:
            model = getattr(model, wrapped)
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            if model.active_peft_config.is_prompt_learning:
                kind = model.active_peft_config.peft_type.value
                raise ValueError(
                    f"model must have an adapter in its layers, as LoRA and its kin, but has a "
                    f"prompt ({kind}): its tokens are no layer's, and other models have none to "
                    "compare them with."
                )
            model = model.get_base_model()
        else:
            return model


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name the modules of a model, those in wrappers as if there were none."""
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        wrapped = _wrapped(module)
        while wrapped is not None:
            module = getattr(module, wrapped)
            wrapped = _wrapped(module)
        if module in seen:
            continue
        seen.add(module)
        found[name] = module
        children = [(f"{name}.{key}".lstrip("."), x) for key, x in module.named_children()]
        waiting.extend(reversed(children))
    del found[""]
    return found


def own_module(module: Any) -> nn.Module | None:
    """Find the module that PEFT put an adapter, or a copy to train, in the place of."""
    if not hasattr(module, "adapter_layer_names"):
        return None
    own: nn.Module = module.base_layer if hasattr(module, "base_layer") else module.original_module
    return own


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Tell what the model computes in, the type of its first floating-point parameter."""
    floating = (x.dtype for x in model.parameters() if x.is_floating_point())
    return next(floating, None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout and batch statistics off, and each module back to the mode that it was in.

    Compiled and fused ways, which pass hooks by, are not taken meanwhile.
    """
    modules = list(model.modules())
    modes = {module: module.training for module in modules}
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if any(_is_compiled(module) for module in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for module, mode in modes.items():
                module.training = mode


def _is_compiled(module: nn.Module) -> bool:
    compiled: Any = getattr(module, "_compiled_call_impl", None)
    return compiled is not None or "_orig_mod" in module._modules


def _wrapped(module: Any) -> str | None:
    """Name the attribute that a wrapper keeps its module in; None if it is none."""
    if "_orig_mod" in getattr(module, "_modules", {}):  # torch.compile
        return "_orig_mod"
    wrappers = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    return "module" if isinstance(module, wrappers) else None
