"""The sweep over all layers equals Captum, which walks one layer at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum import attr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from transfer_pruner import embed
from transfer_pruner.attribution.layers import Survey
from transfer_pruner.attribution.methods import Batch, Scorer, attribution_method


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


class VisionTransformer(nn.Module):
    """A transformers ViT: images in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
        self.vit = ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=2,
                num_channels=2,
                intermediate_size=24,
                num_labels=3,
                **sizes,
            )
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.vit(pixel_values=inputs).logits


Case = tuple[nn.Module, Tensor, list[str], tuple[int, ...]]
# How to make the model, the shape of its inputs, some layers, and which axes are positions.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], tuple[int, ...]]] = {
    "mlp": (mlp, (7, 6), ["0", "1", "2"], ()),
    "cnn": (cnn, (5, 2, 4, 4), ["0", "1", "4"], (2, 3)),
    "vision transformer": (
        VisionTransformer,
        (3, 2, 8, 8),
        # The last of each block; its name depends on the version of transformers.
        [
            name
            for name, module in VisionTransformer().named_modules()
            if isinstance(module, nn.Linear) and module.in_features == 24
        ],
        (1,),
    ),
    "transformer-like": (Residual, (4, 5, 6), ["blocks.0", "blocks.3", "blocks.1.linear"], (1,)),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    make, shape, layers, positions = MODELS[request.param]
    torch.manual_seed(0)
    return make().eval(), torch.randn(shape), layers, positions


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("n_steps", [1, 7, 20])
def test_conductance_of_all_layers_is_captums_of_each(
    case: Case, dtype: torch.dtype, tolerance: float, n_steps: int
) -> None:
    model, inputs, layers = case[0].to(dtype), case[1].to(dtype), case[2]
    batch = Batch(inputs, torch.zeros_like(inputs))
    taps = Survey(Scorer(model), batch).taps(layers)
    swept = attribution_method("conductance", n_steps)(Scorer(model), taps, batch, 2)
    assert set(swept) == set(layers)
    for layer, tap in taps.items():
        reference = attr.LayerConductance(model, tap.module).attribute(
            inputs, target=2, n_steps=n_steps
        )
        reference = reference[0] if isinstance(reference, tuple) else reference
        difference = (swept[layer] - reference).abs().max() / reference.abs().max()
        assert difference < tolerance


def test_an_embedding_holds_the_sum_over_positions_and_the_mean_over_examples(case: Case) -> None:
    model, inputs, layers, positions = case
    embedding = embed(model, inputs, name="t", target=2, layers=layers, n_steps=5, batch_size=2)
    for layer in layers:
        reference = attr.LayerConductance(model, model.get_submodule(layer)).attribute(
            inputs, target=2, n_steps=5
        )
        reference = reference[0] if isinstance(reference, tuple) else reference
        values = reference.detach().numpy()
        examples = values.sum(axis=positions)
        scale = np.abs(examples).max()
        expected = {
            f"examples/{layer}": examples,
            f"absolute/{layer}": np.abs(values).sum(axis=positions).mean(axis=0),
            f"standard_error/{layer}": sem(examples, axis=0),
        }
        for signal, value in expected.items():
            np.testing.assert_allclose(
                embedding.signals[signal], value, rtol=1e-3, atol=1e-4 * scale
            )
        np.testing.assert_allclose(
            embedding.vectors[layer], examples.mean(axis=0), rtol=1e-3, atol=1e-4 * scale
        )


def test_examples_may_be_left_out(case: Case) -> None:
    model, inputs, layers, _ = case
    whole = embed(model, inputs, name="t", target=2, layers=layers)
    light = embed(model, inputs, name="t", target=2, layers=layers, keep_examples=False)
    assert set(whole.signals) - set(light.signals) == {f"examples/{layer}" for layer in layers}
    for layer in layers:
        np.testing.assert_array_equal(light.vectors[layer], whole.vectors[layer])


@pytest.mark.parametrize("which", ["mlp", "cnn"])
def test_a_layer_that_all_passes_through_adds_up_to_the_change_of_the_output(which: str) -> None:
    make, shape, layers, _ = MODELS[which]
    torch.manual_seed(0)
    model, inputs, last = make().eval(), torch.randn(shape), layers[-1]
    embedding = embed(model, inputs, name="t", target=2, layers=[last], n_steps=500)
    change = embedding.provenance["output_change"]
    assert embedding.vectors[last].sum() == pytest.approx(change, rel=0.02)


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 9), order=st.permutations(range(7)))
def test_batch_size_and_order_of_examples_change_nothing(batch_size: int, order: list[int]) -> None:
    torch.manual_seed(0)
    model, inputs = cnn().eval(), torch.randn(7, 2, 4, 4)
    expected = embed(model, inputs, name="t", target=1, n_steps=4)
    other = embed(model, inputs[order], name="t", target=1, n_steps=4, batch_size=batch_size)
    for layer, vector in expected.vectors.items():
        scale = np.abs(expected.signals[f"examples/{layer}"]).max()
        np.testing.assert_allclose(other.vectors[layer], vector, atol=1e-5 * scale)
        np.testing.assert_allclose(
            other.signals[f"examples/{layer}"],
            expected.signals[f"examples/{layer}"][order],
            atol=1e-5 * scale,
        )


def test_a_model_that_detaches_is_refused() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(inputs + self.share * torch.tanh(self.first(inputs)).detach())

    torch.manual_seed(0)
    model, inputs = Detached(), torch.randn(7, 6)
    model.share = 3.0
    with pytest.raises(ValueError, match=r"wrong gradients .* a layer detaches them"):
        embed(model, inputs, name="t", target=1)
    model.share = 0.0
    with pytest.raises(ValueError, match="'first', from which no gradient reaches the output"):
        embed(model, inputs, name="t", target=1)


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
