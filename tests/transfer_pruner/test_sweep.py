"""The sweep over all layers equals Captum, which walks one layer at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum import attr
from torch import Tensor, nn

from transfer_pruner import embed


class Residual(nn.Module):
    """Blocks that return tuples, add to what they got and change tensors in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            (inputs,) = block(inputs)
        return self.head(inputs.mean(dim=1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (inputs + self.act(self.linear(self.norm(inputs))),)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(3, 3)),
    )


Case = tuple[nn.Module, Tensor, list[str], tuple[int, ...]]
# How to make the model, the shape of its inputs, some layers, and which axes are positions.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], tuple[int, ...]]] = {
    "mlp": (mlp, (7, 6), ["0", "1", "2"], ()),
    "cnn": (cnn, (5, 2, 4, 4), ["0", "1", "4"], (2, 3)),
    "transformer-like": (Residual, (4, 5, 6), ["blocks.0", "blocks.3", "blocks.1.linear"], (1,)),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    make, shape, layers, positions = MODELS[request.param]
    torch.manual_seed(0)
    return make().eval(), torch.randn(shape), layers, positions


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
@pytest.mark.parametrize("n_steps", [1, 7, 20])
def test_conductance_of_all_layers_is_captums_of_each(
    case: Case, dtype: torch.dtype, tolerance: float, n_steps: int
) -> None:
    model, inputs, layers, positions = case[0].to(dtype), case[1].to(dtype), *case[2:]
    embedding = embed(model, inputs, name="t", target=2, layers=layers, n_steps=n_steps)
    for layer in layers:
        reference = attr.LayerConductance(model, model.get_submodule(layer)).attribute(
            inputs, target=2, n_steps=n_steps
        )
        reference = reference[0] if isinstance(reference, tuple) else reference
        mine = embedding.signals[f"examples/{layer}"]
        expected = reference.detach().numpy().sum(axis=positions)
        scale = np.abs(expected).max()
        # Embeddings are stored as float32, whatever the model computes in.
        np.testing.assert_allclose(mine, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("method", "captum_class", "options"),
    [
        ("integrated_gradients", attr.LayerIntegratedGradients, {"n_steps": 9}),
        ("deep_lift", attr.LayerDeepLift, {}),
        (attr.LayerDeepLift, attr.LayerDeepLift, {}),
    ],
)
def test_every_other_method_is_captums(
    method: str | type, captum_class: type, options: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    inputs = torch.randn(7, 6)
    embedding = embed(model, inputs, name="t", target=2, method=method, n_steps=9)
    expected = captum_class(model, model[2]).attribute(
        inputs, torch.zeros_like(inputs), target=2, **options
    )
    np.testing.assert_allclose(
        embedding.signals["examples/2"], expected.detach(), rtol=1e-4, atol=1e-6
    )


def test_a_method_that_samples_gives_the_same_embedding_and_leaves_the_users_seed() -> None:
    model, inputs = mlp(), torch.randn(7, 6)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = embed(model, inputs, name="t", target=1, method="gradient_shap", layers=["2"])
    assert torch.equal(torch.rand(3), expected)
    second = embed(model, inputs, name="t", target=1, method="gradient_shap", layers=["2"])
    assert first.fingerprint == second.fingerprint


def test_frozen_models_are_attributed_too() -> None:
    model, inputs = mlp(), torch.randn(7, 6)
    thawed = embed(model, inputs, name="t", target=1)
    frozen = embed(model.requires_grad_(False), inputs, name="t", target=1)
    with torch.no_grad():
        without = embed(model, inputs, name="t", target=1)
    assert thawed.fingerprint == frozen.fingerprint == without.fingerprint
