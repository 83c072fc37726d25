"""Gradients that are not the output's are refused, and those of outputs with kinks are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfer_pruner import embed

INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Experts(nn.Module):
    """Each example by one expert of eight, so that the output jumps where another takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = 9 * torch.sin(9 * self.first(inputs))
        chosen = self.router(hidden).argmax(dim=-1)
        every = torch.stack([expert(hidden) for expert in self.experts], dim=1)
        return self.head(torch.relu(every[torch.arange(len(inputs)), chosen]))


# Its output jumps, so that no sum of slopes explains all of it.
@pytest.mark.filterwarnings("ignore::transfer_pruner.exceptions.TransferPrunerWarning")
def test_a_mixture_of_experts_has_the_gradients_of_its_pieces() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        embedding = embed(Experts(), INPUTS, name="t", target=1, layers=["first"], n_steps=128)
        assert embedding.vectors["first"].any()


class Shifted(torch.autograd.Function):
    """A backward pass that is not that of the forward pass, as an approximation has it."""

    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        context.save_for_backward(inputs)
        return torch.sin(inputs)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.sin(context.saved_tensors[0])


class Wrong(nn.Module):
    def __init__(self, attention: str | None) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 2)
        if attention:
            self.config = SimpleNamespace(_attn_implementation=attention)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(Shifted.apply(self.first(inputs)))


@pytest.mark.parametrize(
    ("attention", "advice"),
    [
        (None, "a layer detaches them, .* or has a backward pass of its own"),
        ("eager", "a layer detaches them, .* or has a backward pass of its own"),
        ("sdpa", "load it with attn_implementation='eager' instead of 'sdpa'"),
    ],
)
def test_wrong_gradients_are_refused_with_advice_that_fits(
    attention: str | None, advice: str
) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match=f"model gives wrong gradients .*{advice}"):
            embed(Wrong(attention), INPUTS, name="t", target=1)
