"""What is wrapped around a model, or switched on around it, changes no embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_pruner import TaskEmbedding, embed
from transfer_pruner.attribution.wrappers import named_modules


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return self.head(inputs)


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def same(one: TaskEmbedding, other: TaskEmbedding) -> None:
    assert one.layers == other.layers
    for layer in one.layers:
        np.testing.assert_allclose(one.vectors[layer], other.vectors[layer], rtol=1e-5, atol=1e-7)


def one_compiled_block(model: Blocks) -> nn.Module:
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


def compiled_in_place(model: Blocks) -> nn.Module:
    model.blocks[1].compile(backend="eager")
    return model


WRAPPERS: dict[str, Callable[[Blocks], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "one compiled block": one_compiled_block,
    "compiled in place": compiled_in_place,
    "in parallel": nn.DataParallel,
    "in parallel and compiled": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_layers_have_the_names_that_they_have_without_a_wrapper(
    wrapper: str, model: Blocks, inputs: Tensor
) -> None:
    expected = embed(model, inputs, name="t", target=1)
    assert expected.layers == ("blocks.0", "blocks.1")
    wrapped = WRAPPERS[wrapper](model)
    same(embed(wrapped, inputs, name="t", target=1), expected)
    same(embed(wrapped, inputs, name="t", target=1, layers=expected.layers), expected)


def test_modules_are_named_as_torch_names_them(model: Blocks) -> None:
    expected = {name: module for name, module in model.named_modules() if name}
    assert list(named_modules(model).items()) == list(expected.items())


@pytest.mark.parametrize(
    "target", [np.int64(1), np.array(1), torch.tensor(1), np.arange(3)[1], torch.arange(3)[1]]
)
def test_a_target_may_be_a_number_of_numpys_or_torchs(
    target: object, model: Blocks, inputs: Tensor
) -> None:
    found = embed(model, inputs, name="t", target=target)  # type: ignore[arg-type]
    assert found.fingerprint == embed(model, inputs, name="t", target=1).fingerprint
    assert found.provenance["target"] == 1


@pytest.mark.parametrize("target", [1.0, np.arange(2), torch.tensor(1.5), [1]])
def test_a_target_that_is_no_whole_number_is_refused(
    target: object, model: Blocks, inputs: Tensor
) -> None:
    with pytest.raises(ValueError, match="target must be a whole number, 'predicted', 'sum' or"):
        embed(model, inputs, name="t", target=target)  # type: ignore[arg-type]


@pytest.mark.parametrize("baseline", [torch.tensor(0.5), np.float32(0.5), torch.full((1, 6), 0.5)])
def test_a_baseline_input_may_be_a_number_of_any_kind(
    baseline: Tensor, model: Blocks, inputs: Tensor
) -> None:
    same(
        embed(model, inputs, name="t", target=1, baselines=baseline, n_steps=np.int64(8)),
        embed(model, inputs, name="t", target=1, baselines=0.5),
    )


def test_a_model_that_squeezes_its_output_may_get_a_batch_of_one(inputs: Tensor) -> None:
    class Squeezed(Blocks):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs)[:, : self.n_outputs].squeeze()

    for n_outputs, target in ((1, None), (2, 1)):
        torch.manual_seed(0)
        model = Squeezed()
        model.n_outputs = n_outputs
        whole, single, left = (
            embed(model, inputs, name="t", target=target, batch_size=size) for size in (8, 1, 4)
        )
        same(whole, single)
        same(whole, left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_takes_the_inputs_as_they_are(
    dtype: torch.dtype, model: Blocks, inputs: Tensor
) -> None:
    expected = embed(model, inputs, name="t", target=1)
    found = embed(model.to(dtype), inputs, name="t", target=1)
    for layer in expected.layers:
        scale = np.abs(expected.vectors[layer]).max()
        np.testing.assert_allclose(found.vectors[layer], expected.vectors[layer], atol=0.03 * scale)


def test_under_inference_mode_gradients_flow_all_the_same(model: Blocks) -> None:
    with torch.inference_mode():
        inputs = torch.arange(30.0).reshape(5, 6) / 30
        found = embed(model, inputs, name="t", target=1)
        other = embed(model, inputs, name="t", target=1, method="gradient_x_activation")
        made_here = Blocks()
    inputs = inputs.clone()
    assert found.fingerprint == embed(model, inputs, name="t", target=1).fingerprint
    expected = embed(model, inputs, name="t", target=1, method="gradient_x_activation")
    assert other.fingerprint == expected.fingerprint
    with pytest.raises(ValueError, match=r"model was made under torch.inference_mode\(\)"):
        embed(made_here, inputs, name="t", target=1)
