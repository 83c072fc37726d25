"""Whatever a module returns, its tensors are found and replaced in place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import BaseModelOutput

from transfer_pruner import TaskEmbedding, embed
from transfer_pruner.attribution.structures import first_tensor, tensors_in, with_tensor


class Named(NamedTuple):
    number: int
    hidden: Tensor


@dataclass
class Record:
    hidden: Tensor
    number: int


def packed(hidden: Tensor) -> PackedSequence:
    return pack_padded_sequence(hidden, [2, 4, 3], batch_first=True, enforce_sorted=False)


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda hidden: hidden,
    "tuple": lambda hidden: (None, hidden, 3),
    "list": lambda hidden: [torch.arange(3), hidden],
    "dict": lambda hidden: {"mask": torch.arange(3), "hidden": hidden},
    "nested": lambda hidden: ([{"a": (1, [hidden])}], None),
    "named tuple": lambda hidden: Named(3, hidden),
    "data class": lambda hidden: Record(hidden, 3),
    "ordered dict": lambda hidden: OrderedDict(hidden=hidden),
    "of transformers": lambda hidden: BaseModelOutput(last_hidden_state=hidden),
    "packed": packed,
    "packed in a tuple": lambda hidden: (packed(hidden), None),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_tensor_is_found_and_replaced_and_nothing_else_changes(kind: str) -> None:
    hidden = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    if "packed" in kind:
        hidden[0, 2:] = hidden[2, 3:] = 0
    output = OUTPUTS[kind](hidden)
    ((path, found),) = tensors_in(output)
    torch.testing.assert_close(found, hidden)
    torch.testing.assert_close(first_tensor(output), hidden)
    changed = with_tensor(output, path, 2 * found)
    assert type(changed) is type(output)
    ((path_of_changed, doubled),) = tensors_in(changed)
    assert path_of_changed == path
    torch.testing.assert_close(doubled, 2 * hidden)
    torch.testing.assert_close(first_tensor(output), hidden)


def test_a_model_answers_with_its_logits_whatever_stands_before_them() -> None:
    loss, logits = torch.ones(()), torch.ones(3, 2)
    assert first_tensor({"loss": loss, "logits": logits}) is logits
    assert first_tensor((logits, [loss])) is logits
    with pytest.raises(ValueError, match="must return a floating-point tensor but returned N"):
        first_tensor(None)


class Block(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, inputs: Any) -> Any:
        return self.wrap(torch.tanh(self.linear(first_tensor(inputs))))


class Model(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block(wrap) for _ in range(2)), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Any:
        output: Any = inputs
        for block in self.blocks:
            output = block(output)
        return self.head(first_tensor(output).mean(1))


@pytest.mark.parametrize("method", ["conductance", "integrated_gradients"])
@pytest.mark.parametrize("kind", [kind for kind in OUTPUTS if "packed" not in kind])
def test_what_a_block_returns_its_tensor_in_changes_no_embedding(kind: str, method: str) -> None:
    inputs = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    made: list[TaskEmbedding] = []
    for wrap in (OUTPUTS["tensor"], OUTPUTS[kind]):
        torch.manual_seed(0)
        made.append(embed(Model(wrap), inputs, name="t", target=1, method=method))
    assert made[0].layers == made[1].layers == ("blocks.0", "blocks.1")
    for layer in made[0].layers:
        np.testing.assert_allclose(made[0].vectors[layer], made[1].vectors[layer], rtol=1e-5)


class PackedText(nn.Module):
    """An LSTM over packed sequences, whose examples have lengths of their own."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.lstm, self.head, self.last = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3), last

    def forward(self, inputs: Tensor) -> Tensor:
        lengths = (inputs[:, :, 0] != 7).sum(1)
        sequence = pack_padded_sequence(
            inputs[:, :, 1:], lengths, batch_first=True, enforce_sorted=False
        )
        output, (final, _) = self.lstm(sequence)
        if self.last:
            return self.head(final[-1])
        return self.head(pad_packed_sequence(output, batch_first=True)[0].sum(1))


@pytest.mark.parametrize("last", [False, True])
def test_packed_sequences_are_taken_apart_by_example(last: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(6, 5, 5)
    for row, length in enumerate((3, 5, 2, 5, 1, 4)):
        inputs[row, length:, 0] = 7
    baselines = torch.zeros_like(inputs)
    baselines[:, :, 0] = inputs[:, :, 0]
    model = PackedText(last)
    whole = embed(model, inputs, name="t", target=1, baselines=baselines, n_steps=64)
    assert whole.layers == ("lstm",)
    assert whole.provenance["gaps"]["lstm"] < 0.01
    for row in range(6):
        alone = embed(
            *(model, inputs[row : row + 1]), name="t", target=1, n_steps=64,
            baselines=baselines[row : row + 1],
        )  # fmt: skip
        examples = whole.signals["examples/lstm"][row]
        np.testing.assert_allclose(alone.vectors["lstm"], examples, rtol=1e-3, atol=1e-6)
