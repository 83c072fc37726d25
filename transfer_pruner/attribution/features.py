"""What a model answers to examples, and the features that its head answers from.

What it must satisfy: each example goes through the model once, in evaluation mode and without
gradients, and no example changes what another one gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError(
        "scoring pairs needs torch: pip install 'transfer-pruner[attribution]'."
    ) from error

from transfer_pruner.attribution.fingerprints import fingerprint_model
from transfer_pruner.attribution.structures import first_tensor
from transfer_pruner.attribution.wrappers import device_of, dtype_of, evaluating, without_wrapper

# The head is among the last modules to answer: an auxiliary head, and what wraps them, are few.
_LAST_CALLS = 8
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Numbers = NDArray[np.float32]


class Seen(NamedTuple):
    """What a model gave for some examples.

    Attributes
    ----------
    rows : list of int
        Which of the examples.
    outputs : array of shape (n, n_outputs)
    features : array of shape (n, width)
    """

    rows: list[int]
    outputs: Numbers
    features: Numbers


class _Call(NamedTuple):
    module: nn.Module
    inputs: Any
    output: Any


def see(
    model: nn.Module, *inputs: Tensor, named: Mapping[str, Tensor] | None = None
) -> tuple[Numbers, Numbers]:
    """Run a model once: its outputs (n, n_outputs) and the features of its head (n, width).

    The head is the module whose output is the model's; or else the last module with parameters.
    Its features are what goes into it: of a head that answers at each position those of the
    position which the model answers with, or else the mean over positions. A model whose head
    takes no features gives its outputs in their place. Outputs of each token are averaged.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    *inputs : Tensor of shape (n, ...)
    named : mapping of str to Tensor, optional
        Keyword arguments.
    """
    named = named or {}
    n = len(next(iter([*inputs, *named.values()])))
    calls: deque[_Call] = deque(maxlen=_LAST_CALLS)

    def remember(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if given:
            calls.append(_Call(module, given[0], output))

    handles = [
        module.register_forward_hook(remember)
        for module in model.modules()
        if (module is not model or _is_leaf(model)) and any(True for _ in module.parameters())
    ]
    try:
        with torch.no_grad():
            answer = first_tensor(model(*inputs, **named))
    finally:
        for handle in handles:
            handle.remove()
    features = _features(calls, answer, n)
    if answer.dim() == 3 and len(answer) == n:
        answer = answer.mean(dim=1)
    outputs = answer.reshape(n, -1)
    return _numbers(outputs), _numbers(outputs if features is None else features)


def see_arrays(
    model: nn.Module, examples: Sequence[NDArray[Any]], batch_size: int
) -> Iterator[Seen]:
    """Run a module on arrays of one example each, those of one shape together, batch by batch."""
    model = without_wrapper(model)
    device, dtype = device_of(model), dtype_of(model)
    shapes: dict[Any, list[int]] = {}
    for row, example in enumerate(examples):
        shapes.setdefault((example.shape, example.dtype.str), []).append(row)
    with evaluating(model):
        for group in shapes.values():
            for start in range(0, len(group), batch_size):
                rows = group[start : start + batch_size]
                batch = torch.from_numpy(np.stack([examples[row] for row in rows])).to(device)
                if batch.is_floating_point() and dtype is not None:
                    batch = batch.to(dtype)
                yield Seen(rows, *see(model, batch))


def is_module(model: object) -> bool:
    """Whether a model is a torch module."""
    return isinstance(model, nn.Module)


def digests_of_module(model: nn.Module) -> Iterator[str]:
    """Fingerprint a module: its class, what it is made of, and its weights."""
    yield f"{type(model).__module__}\0{model!r}"
    yield f"{dtype_of(model)}\0{fingerprint_model(model)}"


def as_array(values: Any) -> NDArray[Any]:
    """Take a tensor, wherever it is, or anything like an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    return np.asarray(values)


def _features(calls: Sequence[_Call], answer: Tensor, n: int) -> Tensor | None:
    """Take what goes into the head; None if it is no tensor of so many examples."""
    head = next((call for call in calls if _answers(call, answer)), None)
    leaves = [call for call in calls if _is_leaf(call.module)]
    if head is None and leaves:
        head = leaves[-1]
    if head is None or not _has_rows(head.inputs, n):
        return None
    given: Tensor = head.inputs
    if given.dim() <= 2:
        return given.reshape(n, -1)
    if isinstance(head.module, _CONVOLUTIONS):
        return given.flatten(2).mean(dim=2)
    given = given.reshape(n, -1, given.shape[-1])
    place = _place(head.output, answer)
    return (
        given.mean(dim=1) if place is None else given[torch.arange(n, device=given.device), place]
    )


def _answers(call: _Call, answer: Tensor) -> bool:
    """Whether a module's output is the model's, reshaped or at one of its positions."""
    output = call.output
    if not isinstance(output, Tensor):
        return False
    if output.numel() == answer.numel():
        return torch.equal(output.reshape(-1), answer.reshape(-1))
    return _place(output, answer) is not None


def _place(output: Any, answer: Tensor) -> Tensor | None:
    """Find at which position a head's output is the model's, of each example."""
    if not isinstance(output, Tensor) or output.dim() != 3 or answer.dim() != 2:
        return None
    if (len(output), output.shape[2]) != tuple(answer.shape):
        return None
    same = (output == answer[:, None]).all(dim=2)
    # Of equal ones the last: decoders answer with the last token.
    backwards = same.flip(1).int().argmax(dim=1)
    return same.shape[1] - 1 - backwards if bool(same.any(dim=1).all()) else None


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _has_rows(values: Any, n: int) -> bool:
    return (
        isinstance(values, Tensor)
        and values.is_floating_point()
        and values.dim() > 0
        and len(values) == n
    )


def _numbers(tensor: Tensor) -> Numbers:
    numbers: Numbers = tensor.detach().to(torch.float32).cpu().numpy()
    return numbers
