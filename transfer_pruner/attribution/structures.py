"""The tensors inside what a module returns, whatever it returns, and how to put others in place.

What it must satisfy: a module's output is read and rebuilt without a change of its type, so that
what follows cannot tell.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

Path = tuple[Any, ...]
"""Keys that lead from a module's output to one of its tensors; () if it is one."""


def tensors_in(output: Any) -> Iterator[tuple[Path, Tensor]]:
    """Go through the floating-point tensors of an output, in order.

    Packed sequences are given as padded ones, (n, positions, width).
    """
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield (), output
        return
    if isinstance(output, PackedSequence):
        yield (), pad_packed_sequence(output, batch_first=True)[0]
        return
    for key, value in _items(output):
        for path, tensor in tensors_in(value):
            yield (key, *path), tensor


def tensor_at(output: Any, path: Path) -> Tensor:
    """Take the tensor that `tensors_in` gave under this path."""
    for key in path:
        output = dict(_items(output))[key]
    if isinstance(output, PackedSequence):
        return pad_packed_sequence(output, batch_first=True)[0]
    tensor: Tensor = output
    return tensor


def with_tensor(output: Any, path: Path, tensor: Tensor) -> Any:
    """Copy an output with another tensor in the place of one of its own."""
    if not path:
        return _packed_like(output, tensor) if isinstance(output, PackedSequence) else tensor
    key, *rest = path
    value = with_tensor(dict(_items(output))[key], tuple(rest), tensor)
    if isinstance(output, (tuple, list)):
        values = [value if place == key else old for place, old in enumerate(output)]
        # A named tuple takes its values one by one, every other sequence as one.
        return output._make(values) if hasattr(output, "_make") else type(output)(values)
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[key] = value
        return changed
    return dataclasses.replace(output, **{key: value})


def first_tensor(output: Any) -> Tensor:
    """Take what a model answers out of what it returned: its logits, or its first tensor.

    Raises
    ------
    ValueError
        If it returned no floating-point tensor.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", None) if logits is None else logits
    for _, tensor in tensors_in(output if logits is None else logits):
        return tensor
    raise ValueError(
        f"model must return a floating-point tensor but returned {type(output).__name__}."
    )


def _items(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, (tuple, list)):
        yield from enumerate(output)
    elif isinstance(output, Mapping):
        yield from output.items()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield field.name, getattr(output, field.name)


def _packed_like(packed: PackedSequence, padded: Tensor) -> PackedSequence:
    """Pack (n, positions, width) as another packed sequence was, in its order."""
    places = packed._replace(data=torch.arange(1, len(packed.data) + 1, device=padded.device))
    order, _ = pad_packed_sequence(places, batch_first=True)
    filled = order > 0
    return packed._replace(data=padded[filled][order[filled].argsort()])
