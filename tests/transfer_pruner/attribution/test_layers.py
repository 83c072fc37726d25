"""Layers that nobody named are a model's blocks, or what has weights, and never its head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transfer_pruner import embed
from transfer_pruner.attribution.layers import default_layers, named_layers
from transfer_pruner.attribution.methods import Scorer

PROBE = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(n))
        self.head = nn.Linear(8, 2)

    def forward(self, values: Tensor) -> Tensor:
        values = self.first(values)
        for block in self.blocks:
            values = block(values)
        return self.head(values)


def test_the_blocks_of_a_model_are_its_layers() -> None:
    assert default_layers(Scorer(Blocks(3)), PROBE) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_single_block_is_not_all_there_is_to_a_model() -> None:
    assert default_layers(Scorer(Blocks(1)), PROBE) == ["first", "blocks.0.0"]


def test_without_blocks_all_modules_with_weights_are_but_batch_norms_and_the_head() -> None:
    model = nn.Sequential(
        *(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.Dropout()),
        nn.Linear(4, 2),
    ).eval()
    assert default_layers(Scorer(model), PROBE) == ["0", "3"]


def test_what_runs_twice_or_never_is_no_layer() -> None:
    class Twice(Blocks):
        def forward(self, values: Tensor) -> Tensor:
            hidden = self.first(values)
            return self.head(self.blocks[1](self.first(hidden)))

    assert default_layers(Scorer(Twice(2)), PROBE) == ["blocks.1.0"]
    with pytest.raises(ValueError, match=r"layers cannot be chosen .* Name some of: 0"):
        default_layers(Scorer(nn.Sequential(nn.Linear(8, 2))), PROBE)


def test_an_adapted_layer_is_one_layer_under_the_name_of_its_own() -> None:
    peft = pytest.importorskip("peft", reason="no adapters: pip install peft")
    model = peft.get_peft_model(Blocks(1), peft.LoraConfig(r=2, target_modules=["first"]))
    assert default_layers(Scorer(model.get_base_model()), PROBE) == ["first", "blocks.0.0"]


def test_a_layer_that_the_model_lacks_is_named_with_similar_ones() -> None:
    model = Blocks(2)
    assert list(named_layers(model, ["head", "blocks.1"])) == ["head", "blocks.1"]
    with pytest.raises(ValueError, match=r"layers holds 'haed', which is no module.*head"):
        embed(model, PROBE, name="t", target=1, layers=["haed"])
    with pytest.raises(ValueError, match="at least one module"):
        embed(model, PROBE, name="t", target=1, layers=[])
