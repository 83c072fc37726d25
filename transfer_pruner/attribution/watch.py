"""What a forward pass runs: each call of each module, with the tensors that it took and gave.

What it must satisfy: the model answers as if nobody watched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transfer_pruner.attribution.scorer import Batch, Scorer
from transfer_pruner.attribution.structures import Path, tensors_in, with_tensor
from transfer_pruner.attribution.wrappers import named_modules

CallKey = tuple[str, int]
"""A module's name and which of its calls it is, from 0."""


@dataclass(frozen=True)
class Call:
    """One call of a module: the first tensor that it took, and all that it gave."""

    name: str
    module: nn.Module
    given: Tensor | None
    gave: dict[Path, Tensor]


@dataclass
class Watched:
    """A forward pass: its calls in the order in which they ended, its inputs and output."""

    inputs: Tensor
    output: Tensor
    calls: dict[CallKey, Call] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[str]:
        """How often each module ran, in the order of their first ends."""
        return Counter(name for name, _ in self.calls)

    def shapes(self, key: CallKey) -> dict[Path, tuple[int, ...]]:
        """Shapes of what a call gave; none if it was not made."""
        call = self.calls.get(key)
        return {} if call is None else {path: tuple(x.shape) for path, x in call.gave.items()}


def watch(scorer: Scorer, batch: Batch, *, with_gradients: bool = False) -> Watched:
    """Run a batch and keep what every call of every module took and gave.

    With gradients each tensor that is given has a place of its own in the graph of gradients.
    """
    calls: dict[CallKey, Call] = {}
    counts: Counter[str] = Counter()

    def hook(name: str, module: nn.Module, args: Any, named: Any, output: Any) -> Any:
        gave = dict(tensors_in(output))
        if with_gradients:
            for path, tensor in gave.items():
                if tensor.requires_grad:
                    gave[path] = tensor.view_as(tensor)
                    output = with_tensor(output, path, gave[path])
        given = next((x for _, x in tensors_in((*args, *named.values()))), None)
        calls[name, counts[name]] = Call(name, module, given, gave)
        counts[name] += 1
        return output

    handles = []
    for name, module in named_modules(scorer.model).items():

        def of_module(
            module: nn.Module, args: Any, named: Any, output: Any, name: str = name
        ) -> Any:
            return hook(name, module, args, named, output)

        handles.append(module.register_forward_hook(of_module, with_kwargs=True))
    scorer.extras = batch.extras
    inputs = batch.inputs.detach().requires_grad_(with_gradients)
    try:
        with torch.set_grad_enabled(with_gradients):
            output = scorer(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Watched(inputs, output, calls)


class Flow:
    """The ways that gradients take from a model's output back to its inputs."""

    def __init__(self, output: Tensor, inputs: Tensor) -> None:
        self.inputs = inputs
        order = _outputs_first(output.grad_fn)
        # How many ways lead from the output to a node, and from there to the inputs.
        self.to: dict[Any, int] = dict.fromkeys(order, 0)
        self.on: dict[Any, int] = dict.fromkeys(order, 0)
        if order:
            self.to[order[0]] = 1
        for node in order:
            for following in _following(node):
                self.to[following] += self.to[node]
        for node in reversed(order):
            ends = getattr(node, "variable", None) is inputs
            self.on[node] = int(ends) + sum(self.on[following] for following in _following(node))
        self.all = self.on[order[0]] if order else 0

    def reaches(self, tensor: Tensor) -> bool:
        """Whether a gradient of the output reaches a tensor."""
        return tensor.grad_fn in self.to

    def is_whole(self, tensor: Tensor) -> bool:
        """Whether every way from the output to the inputs leads through a tensor."""
        node = tensor.grad_fn
        return self.all > 0 and self.to.get(node, 0) * self.on.get(node, 0) == self.all


def _following(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions if following is not None]


def _outputs_first(start: Any) -> list[Any]:
    """Go through the graph of gradients, each node before those that it leads to."""
    ended: list[Any] = []
    seen: set[Any] = set()
    stack = [(start, iter(_following(start)))] if start is not None else []
    seen.add(start)
    while stack:
        node, rest = stack[-1]
        following = next((x for x in rest if x not in seen), None)
        if following is None:
            ended.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(_following(following))))
    return ended[::-1]
