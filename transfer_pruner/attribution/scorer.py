"""A model as a function of the inputs that are attributed, and the examples to attribute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transfer_pruner.attribution.structures import first_tensor


@dataclass(frozen=True)
class Batch:
    """Probe examples that are attributed together.

    Attributes
    ----------
    inputs, baseline : Tensor of shape (n, ...)
        The two ends of the path.
    extras : dict of str to Tensor
        Further keyword arguments of the model, which stay the same along the path.
    tokens : Tensor of shape (n, positions), optional
        Which token stands where, for inputs that embed tokens.
    """

    inputs: Tensor
    baseline: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None

    def first(self, n: int) -> Batch:
        """Take the first n examples."""
        return self.take(slice(n))

    def take(self, rows: slice | Tensor) -> Batch:
        """Take some of the examples, in the order of `rows`."""
        extras = {name: value[rows] for name, value in self.extras.items()}
        tokens = None if self.tokens is None else self.tokens[rows]
        return Batch(self.inputs[rows], self.baseline[rows], extras, tokens)


class Scorer(nn.Module):
    """The model as a function of the attributed inputs alone, returning its output tensor.

    Attributes
    ----------
    extras : dict of str to Tensor
        Further keyword arguments of the model, of the batch that is attributed.
    summed : bool
        Whether to sum all outputs.
    dtype : torch.dtype, optional
        What the model computes in, if it does not take inputs of another type.
    n_outputs : int, optional
        How many outputs an example has, once that is known; 0 for outputs of shape (n,).
    rows : int
        How many examples the forward pass that is running, or ran last, has.
    """

    def __init__(self, model: nn.Module, inputs_name: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.inputs_name = inputs_name
        self.extras: dict[str, Tensor] = {}
        self.summed = False
        self.dtype: torch.dtype | None = None
        self.n_outputs: int | None = None
        self.rows = 0

    def forward(self, inputs: Tensor, *extras: Tensor) -> Tensor:
        """Map inputs (n, ...) to outputs (n,) or (n, n_classes).

        Outputs of each token are averaged over those that are not padding. Captum, which repeats
        the inputs, hands the extras in as often repeated.
        """
        named = dict(zip(self.extras, extras, strict=True)) if extras else self.extras
        self.rows = len(inputs)
        inputs = inputs if self.dtype is None else inputs.to(self.dtype)
        output = first_tensor(self.call(inputs, named))
        if output.dim() == 3 and "attention_mask" in named:
            mask = named["attention_mask"][:, :, None].to(output.dtype)
            output = (output * mask).sum(dim=1) / mask.sum(dim=1)
        if self.rows == 1 and self.n_outputs is not None:
            # A model that squeezes its output drops the axis of a single example too.
            output = output.reshape((1, self.n_outputs) if self.n_outputs else (1,))
        return output.sum(dim=1) if self.summed else output

    def call(self, inputs: Tensor, named: Mapping[str, Tensor]) -> Any:
        """Run the model with what is attributed and what stays the same along the path."""
        if self.inputs_name is None:
            return self.model(inputs, **named)
        return self.model(**{self.inputs_name: inputs}, **named)
