"""Gradients that are not the output's are refused, and those of outputs with kinks are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfer_pruner import embed

INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Folds(nn.Module):
    """A network of straight pieces that are shorter than the step of the first look."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head((60 * self.first(inputs)).remainder(2).sub(1).abs())


class Experts(Folds):
    """Each example by one expert of eight, so that the output jumps where another takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (60 * self.first(inputs)).remainder(2).sub(1).abs()
        chosen = self.router(inputs).argmax(dim=-1)
        every = torch.stack([expert(hidden) for expert in self.experts], dim=1)
        return self.head(every[torch.arange(len(inputs)), chosen])


# So many kinks are more than 8 steps can follow.
@pytest.mark.filterwarnings("ignore::transfer_pruner.exceptions.TransferPrunerWarning")
@pytest.mark.parametrize("kind", [Folds, Experts])
def test_an_output_with_kinks_has_the_gradients_of_its_pieces(kind: type[nn.Module]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        embedding = embed(kind(), INPUTS, name="t", target=1, layers=["first"], n_steps=8)
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
