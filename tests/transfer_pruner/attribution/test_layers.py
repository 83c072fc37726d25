"""Layers that nobody named are a model's blocks, or what has weights, and never its head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
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


def test_a_layer_without_an_output_of_its_own_is_told_with_those_in_it() -> None:
    class Silent(Blocks):
        def __init__(self) -> None:
            super().__init__(2)
            self.unused = nn.Linear(8, 8)
            self.names = nn.Identity()

        def forward(self, values: Tensor) -> Tensor:
            self.names("no tensor")
            return super().forward(values)

    for layer, message in {
        "blocks": r"which has no output of its own: name .* such as blocks\.0, blocks\.1",
        "unused": "which does not run, or not as a module: leave it out",
        "names": "which returns no floating-point tensor: name others",
    }.items():
        with pytest.raises(ValueError, match=f"layers holds '{layer}', {message}"):
            embed(Silent(), PROBE, name="t", target=1, layers=[layer])
    with pytest.raises(ValueError, match="must be a sequence of names but got the string 'first'"):
        embed(Silent(), PROBE, name="t", target=1, layers="first")


def test_a_block_that_all_depths_share_is_as_many_layers_as_it_has_calls(
    by_definition: Callable[..., np.ndarray],
) -> None:
    class Shared(Blocks):
        def forward(self, values: Tensor) -> Tensor:
            for _ in range(3):
                values = self.blocks[0](values)
            return self.head(values)

    torch.manual_seed(0)
    model = Shared(1)
    embedding = embed(model, PROBE, name="t", target=1)
    assert embedding.layers == ("blocks.0#1", "blocks.0#2", "blocks.0#3")
    for call, layer in enumerate(embedding.layers):
        expected = by_definition(model, model.blocks[0], PROBE, -1, call=call)
        np.testing.assert_allclose(embedding.signals[f"examples/{layer}"], expected, rtol=1e-4)
    some = embed(model, PROBE, name="t", target=1, layers=["blocks.0#2"], method="deep_lift")
    assert some.layers == ("blocks.0#2",)
    with pytest.raises(ValueError, match=r"'blocks.0#4', but 'blocks.0' runs 3 times: name"):
        embed(model, PROBE, name="t", target=1, layers=["blocks.0#4"])


def test_what_makes_a_weight_is_no_layer_and_the_module_that_holds_it_is_one() -> None:
    class Parametrized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.utils.parametrizations.weight_norm
            self.first = norm(nn.Linear(8, 6, bias=False))
            self.second = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4))
            self.head = norm(nn.Linear(4, 2))

        def forward(self, values: Tensor) -> Tensor:
            return self.head(torch.tanh(self.second(torch.tanh(self.first(values)))))

    torch.manual_seed(0)
    assert default_layers(Scorer(Parametrized().eval()), PROBE) == ["first", "second"]
    assert embed(Parametrized(), PROBE, name="t", target=1).vectors["first"].shape == (6,)


def test_what_the_output_does_not_depend_on_is_left_out() -> None:
    class Pooled(Blocks):
        def __init__(self) -> None:
            super().__init__(1)
            self.pooler = nn.Linear(8, 8)

        def forward(self, values: Tensor) -> Tensor:
            self.pooler(values)
            return super().forward(values)

    assert default_layers(Scorer(Pooled()), PROBE) == ["first", "blocks.0.0"]


def test_experts_that_see_some_of_the_examples_are_no_layers() -> None:
    class Routed(Blocks):
        def forward(self, values: Tensor) -> Tensor:
            for block in self.blocks:
                values = block(values)
            chosen = torch.tensor([True] + [False] * (len(values) - 1))
            values = values.clone()
            values[chosen] = self.experts[0](values[chosen])
            return self.head(values)

    torch.manual_seed(0)
    model = Routed(2)
    model.experts = nn.ModuleList([nn.Linear(8, 8)])
    assert default_layers(Scorer(model), PROBE) == ["blocks.0", "blocks.1"]
