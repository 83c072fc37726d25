"""A layer's vectors are conductance by definition, whatever axes its output has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_pruner import TaskEmbedding, embed
from transfer_pruner.attribution.axes import examples_axis

ByDefinition = Callable[..., np.ndarray]
STEPS = 6


class Model(nn.Module):
    """A body, a head, and how the one leads to the other."""

    def __init__(self, body: nn.Module, head: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(self.body, self.head, inputs)


def equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def recurrent(kind: str, batch_first: bool, two_ways: bool, last: bool) -> nn.Module:
    layer = getattr(nn, kind)(6, 5, 2, batch_first=batch_first, bidirectional=two_ways)
    n_ways = 1 + two_ways

    def forward(body: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
        states, final = body(inputs if batch_first else inputs.transpose(0, 1))
        if last:
            final = final[0] if isinstance(final, tuple) else final
            return head(torch.cat(list(final[-n_ways:]), dim=1))
        return head(states.mean(1 if batch_first else 0))

    return Model(layer, nn.Linear(5 * n_ways, 3), forward)


@pytest.mark.parametrize("two_ways", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_has_its_examples_on_any_axis(
    kind: str, batch_first: bool, two_ways: bool, by_definition: ByDefinition
) -> None:
    torch.manual_seed(0)
    # As many examples as steps in time: their number alone tells nothing.
    inputs = torch.randn(7, 7, 6)
    for last, neurons in ((False, -1), (True, (0, 2))):
        model = recurrent(kind, batch_first, two_ways, last)
        embedding = embed(model, inputs, name="t", target=1, n_steps=STEPS, batch_size=4)
        assert embedding.layers == ("body",)
        expected = by_definition(model, model.body, inputs, neurons, n_steps=STEPS, place=int(last))
        equal(embedding.signals["examples/body"], expected)


def encoder(batch_first: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(*(8, 2, 12, 0.1), batch_first=batch_first, norm_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(body: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
        if batch_first:
            return head(body(inputs).mean(1))
        return head(body(inputs.transpose(0, 1)).mean(0))

    return Model(body, nn.Linear(8, 3), forward)


@pytest.mark.parametrize("n", [1, 5, 9])
def test_batch_first_or_not_gives_equal_embeddings(n: int) -> None:
    inputs = torch.randn(n, 9, 8, generator=torch.Generator().manual_seed(1))
    first, second = (
        embed(encoder(batch_first), inputs, name="t", target=1, layers=layers)
        for batch_first in (True, False)
        for layers in [["body.layers.0", "body.layers.1", "body.layers.1.self_attn"]]
    )
    for layer in first.layers:
        equal(first.signals[f"examples/{layer}"], second.signals[f"examples/{layer}"])


def test_captums_methods_find_examples_on_any_axis_too() -> None:
    inputs = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(1))
    for method in ("integrated_gradients", "deep_lift", "gradient_x_activation"):
        first, second = (
            embed(encoder(batch_first), inputs, name="t", target=1, method=method, n_steps=5)
            for batch_first in (True, False)
        )
        for layer in first.layers:
            equal(first.signals[f"examples/{layer}"], second.signals[f"examples/{layer}"])


def test_a_mask_that_fuses_layers_changes_nothing(by_definition: ByDefinition) -> None:
    torch.manual_seed(0)
    body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.1, batch_first=True), 1)

    def forward(body: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
        mask = torch.zeros(inputs.shape[:2], dtype=torch.bool)
        mask[:, -2:] = True
        return head(body(inputs, src_key_padding_mask=mask)[:, :-2].mean(1))

    model = Model(body, nn.Linear(8, 3), forward).requires_grad_(False)
    inputs = 3 * torch.randn(4, 6, 8)
    embedding = embed(model, inputs, name="t", target=1, layers=["body.layers.0"], n_steps=64)
    expected = by_definition(
        model, body.layers[0], inputs, -1, n_steps=embedding.provenance["n_steps"]
    )
    equal(embedding.signals["examples/body.layers.0"], expected)


class Residual1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs + self.norm(self.convolution(inputs)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.tanh(self.linear(self.norm(inputs) * inputs))


class ChannelsLastWithin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.inner = ChannelsLast()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(self.depthwise(inputs).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TurningNorm(nn.LayerNorm):
    """A LayerNorm of channels that are not last, as SqueezeBERT and ConvNeXt have one."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.transpose(1, -1)).transpose(1, -1) * inputs


def chain(*blocks: nn.Module, width: int, positions: tuple[int, ...]) -> nn.Module:
    def forward(body: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
        for block in body:
            inputs = block(inputs)
        return head(inputs.mean(positions))

    return Model(nn.ModuleList(blocks), nn.Linear(width, 3), forward)


# What each model's layers are, the shape of its inputs, and the axis of the neurons.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "1-d residual blocks": (
        lambda: chain(Residual1d(), Residual1d(), width=4, positions=(2,)),
        (4, 9),
        {"body.0": 1, "body.1": 1, "body.0.norm": 1},
    ),
    "channels last": (
        lambda: chain(ChannelsLast(), ChannelsLast(), width=6, positions=(1, 2)),
        (5, 4, 6),
        {"body.0": -1, "body.1": -1, "body.1.norm": -1},
    ),
    "channels last within": (
        lambda: chain(ChannelsLastWithin(), ChannelsLastWithin(), width=6, positions=(2, 3)),
        (6, 6, 6),
        {"body.0": 1, "body.1": 1, "body.0.inner.linear": -1, "body.1.inner": -1},
    ),
    "after a 1-d convolution": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 6, 3), nn.GroupNorm(2, 6), nn.PReLU(6), nn.PReLU(), TurningNorm(6)),
            *(nn.MaxPool1d(2), nn.ELU(), nn.Flatten(), nn.Linear(24, 3)),
        ),
        (2, 10),
        dict.fromkeys("0123456", 1),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_are_told_from_positions(kind: str, by_definition: ByDefinition) -> None:
    torch.manual_seed(0)
    make, shape, axes = KINDS[kind]
    model, inputs = make(), torch.randn(4, *shape)
    embedding = embed(model, inputs, name="t", target=1, layers=list(axes), n_steps=STEPS)
    for layer, axis in axes.items():
        module = model.get_submodule(layer)
        expected = by_definition(model, module, inputs, axis, n_steps=STEPS)
        equal(embedding.signals[f"examples/{layer}"], expected)


class Mixer(nn.Module):
    """Made and taken by no module that tells its axes: (n, 4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, 6))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("nk,kij->nij", inputs, self.weight))


def test_where_neurons_cannot_be_told_the_user_says(by_definition: ByDefinition) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Mixer(), nn.Flatten(), nn.Linear(24, 3))
    inputs = torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"'0', of whose .* \(3, 4, 6\) .*neuron_axis"):
        embed(model, inputs, name="t", target=1, layers=["0"])
    for given, axis in ((1, 1), ({"0": -1}, -1), ({"0": 1}, 1)):
        embedding = embed(
            model, inputs, name="t", target=1, layers=["0"], neuron_axis=given, n_steps=STEPS
        )
        expected = by_definition(model, model[0], inputs, axis, n_steps=STEPS)
        equal(embedding.signals["examples/0"], expected)
    for given, message in (
        (0, "none that holds the examples"),
        (3, "must be an axis of the output of '0', .* but got 3"),
        ({"1": 1}, "holds '1', which is none of the layers: 0"),
    ):
        with pytest.raises(ValueError, match=f"neuron_axis .*{message}"):
            embed(model, inputs, name="t", target=1, layers=["0"], neuron_axis=given)


class Folded(nn.Module):
    """Blocks that see each of four patches of an example as an example, before or after it."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before = before
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        n = len(inputs)
        values = (inputs.transpose(0, 1) if self.before else inputs).flatten(0, 1)
        for block in self.blocks:
            values = block(values)
        if self.before:
            return self.head(values.unflatten(0, (-1, n)).mean((0, 2)))
        return self.head(values.unflatten(0, (n, -1)).mean((1, 2)))


@pytest.mark.parametrize("method", ["conductance", "integrated_gradients"])
def test_positions_that_are_folded_into_the_examples_are_taken_out(method: str) -> None:
    inputs = torch.randn(5, 4, 3, 6, generator=torch.Generator().manual_seed(1))
    made: list[TaskEmbedding] = []
    for before in (False, True):
        torch.manual_seed(0)
        made.append(embed(Folded(before), inputs, name="t", target=1, method=method))
    for layer in made[0].layers:
        assert made[0].signals[f"examples/{layer}"].shape == (5, 6)
        equal(made[0].signals[f"examples/{layer}"], made[1].signals[f"examples/{layer}"])
    assert max(made[0].provenance["gaps"].values()) < 0.1


def test_rows_that_mix_examples_are_no_layer() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.pairs, self.head = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            rows = self.rows(torch.cat([inputs, inputs.flip(0)]))
            self.pairs(inputs @ inputs.T)
            return self.head(rows[: len(inputs)] + rows[len(inputs) :].flip(0))

    inputs = torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"'rows', .* 2 rows for each of them, in an order"):
        embed(Mixed(), inputs, name="t", target=1)
    with pytest.raises(ValueError, match=r"'pairs', .* has no axis that follows their number"):
        embed(Mixed(), inputs, name="t", target=1, layers=["pairs"])


@pytest.mark.parametrize(
    ("many", "few", "axis"),
    [
        ((3, 8), (2, 8), (0, 1)),
        ((3, 3, 3), (3, 2, 3), (1, 1)),
        ((12, 5), (8, 5), (0, 4)),
        ((7, 5), (4, 5), None),  # so many rows as a router sends here
        ((3, 3), (2, 2), None),
        ((5, 8), (5, 8), None),
        ((3, 5), (2, 5, 1), None),
        ((0, 5), (0, 5), None),
    ],
)
def test_the_axis_of_examples_grows_with_their_number(
    many: tuple[int, ...], few: tuple[int, ...], axis: tuple[int, int] | None
) -> None:
    assert examples_axis(many, few) == axis
