"""Embeddings equal what Captum computes layer by layer, and add up to the output's change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance, LayerGradientXActivation
from torch import Tensor, nn

from transfer_pruner import embed, load_embeddings, save_embeddings


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.hidden = nn.Linear(4 * 16, 6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.max_pool2d(torch.relu(self.conv(images)), 2).flatten(1)
        return self.head(self.drop(torch.tanh(self.hidden(features))))


@pytest.fixture
def model() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_vectors_are_captums_conductance_summed_over_positions(
    model: ConvNet, images: Tensor
) -> None:
    embedding = embed(model, images, name="t", target=1, n_steps=30)
    model.eval()
    conv = LayerConductance(model, model.conv).attribute(images, target=1, n_steps=30)
    hidden = LayerConductance(model, model.hidden).attribute(images, target=1, n_steps=30)
    assert embedding.layers == ("conv", "hidden")
    np.testing.assert_allclose(
        embedding.vectors["conv"], conv.sum((2, 3)).mean(0).detach(), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        embedding.signals["examples/hidden"], hidden.detach(), rtol=1e-4, atol=1e-7
    )


def test_a_vector_adds_up_to_the_change_of_the_output(model: ConvNet, images: Tensor) -> None:
    embedding = embed(model, images, name="t", target=1, n_steps=300)
    model.eval()
    with torch.no_grad():
        change = (model(images) - model(torch.zeros_like(images)))[:, 1].mean().item()
    assert embedding.provenance["output_change"] == pytest.approx(change, rel=1e-5)
    for layer in embedding.layers:
        assert embedding.vectors[layer].sum() == pytest.approx(change, rel=2e-2)


def test_gradient_x_activation_is_captums(model: ConvNet, images: Tensor) -> None:
    embedding = embed(model, images, name="t", target=0, method="gradient_x_activation")
    model.eval()
    expected = LayerGradientXActivation(model, model.hidden).attribute(images, target=0)
    np.testing.assert_allclose(
        embedding.vectors["hidden"], expected.mean(0).detach(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_do_not_change_the_embedding(
    model: ConvNet, images: Tensor, batch_size: int
) -> None:
    whole = embed(model, images, name="t", target=1)
    parts = embed(model, images, name="t", target=1, batch_size=batch_size)
    for layer in whole.layers:
        np.testing.assert_allclose(whole.vectors[layer], parts.vectors[layer], rtol=1e-4, atol=1e-7)


def test_same_inputs_same_embedding_and_the_model_is_left_as_it_was(
    model: ConvNet, images: Tensor
) -> None:
    model.train()
    model.conv.eval()
    first, second = (embed(model, images, name="t", target=1) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert model.training
    assert model.drop.training
    assert not model.conv.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_baseline_input_of_ones_example_is_used_for_all(model: ConvNet, images: Tensor) -> None:
    single = embed(model, images, name="t", target=1, baselines=torch.ones(1, 1, 8, 8))
    number = embed(model, images, name="t", target=1, baselines=1.0)
    each = embed(model, images, name="t", target=1, baselines=torch.ones_like(images), batch_size=3)
    np.testing.assert_allclose(single.vectors["conv"], number.vectors["conv"], rtol=1e-5)
    np.testing.assert_allclose(single.vectors["conv"], each.vectors["conv"], rtol=1e-4, atol=1e-7)


def test_a_model_with_one_output_needs_no_target(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0))
    embedding = embed(model, images, name="t")
    assert embedding.layers == ("1",)
    assert embedding.vectors["1"].shape == (5,)


def test_a_transformers_vision_transformer_is_embedded_by_its_blocks(images: Tensor) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=2,
        )
    )
    embedding = embed(model, images, name="t", target=1, n_steps=100)
    assert len(embedding.layers) == 3
    for layer in embedding.layers:
        assert embedding.vectors[layer].shape == (16,)
        assert embedding.vectors[layer].sum() == pytest.approx(
            embedding.provenance["output_change"], rel=5e-2, abs=1e-3
        )


def test_provenance_tells_models_and_probes_apart_and_survives_saving(
    model: ConvNet, images: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(9)
    first = embed(model, images, name="a", target=1)
    other_model = embed(ConvNet(), images, name="b", target=1)
    other_probe = embed(model, images[:5], name="c", target=1)
    assert first.provenance["model"] == other_probe.provenance["model"]
    assert first.provenance["model"] != other_model.provenance["model"]
    assert first.provenance["probe"] == other_model.provenance["probe"]
    assert first.provenance["probe"] != other_probe.provenance["probe"]
    save_embeddings([first], tmp_path)
    assert dict(load_embeddings(tmp_path)["a"].provenance) == dict(first.provenance)


def test_a_model_that_gives_nan_stops_with_the_layer(model: ConvNet, images: Tensor) -> None:
    with torch.no_grad():
        model.hidden.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"of task 't' has \d+ NaN or infinite values"):
        embed(model, images, name="t", target=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "target must say which of the model's 2 outputs"),
        ({"target": 2}, "from 0 to 1, or be 'predicted' or 'sum', but got 2"),
        ({"target": -1}, "but got -1"),
        ({"n_steps": 0}, "n_steps must be at least 1 but got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1 but got 0"),
        ({"method": "magic"}, "method must be one of conductance, .* but got 'magic'"),
        ({"inputs": torch.rand(0, 1, 8, 8)}, r"inputs must be a tensor .* got \(0, 1, 8, 8\)"),
        ({"inputs": torch.ones(2, 1, 8, 8).long()}, "floating-point numbers but got torch.int64"),
        ({"baselines": torch.ones(1, 5)}, r"baselines of shape \(1, 5\) do not fit"),
    ],
)
def test_bad_parameters_stop_early(
    model: ConvNet, images: Tensor, change: dict[str, object], message: str
) -> None:
    arguments = {"inputs": images, "name": "t", "target": 1} | change
    with pytest.raises(ValueError, match=message):
        embed(model, **arguments)  # type: ignore[arg-type]
