"""Where a layer's output is read in a forward pass, examples first whatever the layer's axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from transfer_pruner.attribution.scorer import Scorer
from transfer_pruner.attribution.structures import Path, tensor_at, with_tensor


@dataclass(frozen=True)
class Tap:
    """One tensor of what a module returns, at one of its calls.

    Attributes
    ----------
    module : torch.nn.Module
    call, calls : int
        Which of its calls in a forward pass, from 0, and how many there are.
    path : tuple
        Which tensor of its output.
    examples : int
        The axis of the examples.
    fold : {None, "after", "before"}
        Whether positions are folded into that axis too, and if so whether they come after the
        example, (n * k), or before it, (k * n).
    neurons : tuple of int
        The axes of the neurons; all others are positions.
    dims : int
        How many axes the tensor has.
    whole : bool
        Whether everything that changes the model's output passes through it.
    """

    module: nn.Module
    call: int = 0
    calls: int = 1
    path: Path = ()
    examples: int = 0
    fold: Literal["after", "before"] | None = None
    neurons: tuple[int, ...] = (-1,)
    dims: int = 2
    whole: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the layer returns one tensor, once, with the examples on its first axis."""
        return self.calls == 1 and not (self.path or self.examples or self.fold)

    def read(self, output: Any, n_examples: int) -> Tensor:
        """Take the layer's tensor out of the module's output, as (n, ...)."""
        tensor = tensor_at(output, self.path)
        if self.examples:
            tensor = tensor.movedim(self.examples, 0)
        if self.fold == "after":
            return tensor.reshape(n_examples, -1, *tensor.shape[1:])
        if self.fold == "before":
            return tensor.reshape(-1, n_examples, *tensor.shape[1:]).movedim(1, 0)
        return tensor

    def put(self, output: Any, tensor: Tensor) -> Any:
        """Put a tensor of the form of `read` into the module's output."""
        if self.fold is not None:
            tensor = (tensor if self.fold == "after" else tensor.movedim(0, 1)).flatten(0, 1)
        if self.examples:
            tensor = tensor.movedim(0, self.examples)
        return with_tensor(output, self.path, tensor)

    def sum_positions(self, attributed: Tensor) -> Tensor:
        """Bring attributions of the form of `read` to (n, width)."""
        if self.dims == 1:
            return attributed.flatten(1).sum(dim=1, keepdim=True)
        others = [axis for axis in range(self.dims) if axis != self.examples]
        shift = attributed.dim() - len(others)
        neurons = [others.index(axis % self.dims) + shift for axis in self.neurons]
        positions = [axis for axis in range(1, attributed.dim()) if axis not in neurons]
        summed = attributed.sum(dim=positions) if positions else attributed
        return summed.flatten(1)


@contextmanager
def tapped(
    scorer: Scorer, taps: Mapping[str, Tap], keep: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Hand each layer's tensor to `keep`, and what that returns on in its place.

    Parameters
    ----------
    scorer : Scorer
    taps : mapping of str to Tap
    keep : callable of the layer's name and its tensor, (n, ...)
    """
    waiting: dict[nn.Module, dict[int, str]] = {}
    for layer, tap in taps.items():
        waiting.setdefault(tap.module, {})[tap.call] = layer
    calls: Counter[nn.Module] = Counter()

    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        layer = waiting[module].get(calls[module])
        calls[module] += 1
        if layer is None:
            return None
        tap = taps[layer]
        return tap.put(output, keep(layer, tap.read(output, scorer.rows)))

    def begin(*_: Any) -> None:
        calls.clear()

    hooks = [scorer.register_forward_pre_hook(begin)]
    hooks += [module.register_forward_hook(hook) for module in waiting]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
