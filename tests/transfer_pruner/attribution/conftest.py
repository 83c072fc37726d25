"""Conductance by its definition, which whatever is faster has to equal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_pruner.attribution.structures import tensors_in

ByDefinition = Callable[..., np.ndarray]


@pytest.fixture
def by_definition() -> ByDefinition:
    """One example at a time, a hook, torch.autograd: (examples, width)."""

    def conductance(
        model: nn.Module,
        module: nn.Module,
        inputs: Tensor,
        neurons: int | tuple[int, ...],
        *,
        target: int | None = 1,
        n_steps: int = 8,
        place: int = 0,
        call: int = 0,
        run: Callable[[Tensor], Tensor] | None = None,
    ) -> np.ndarray:
        """Attribute the module's tensor number `place`, whose axis `neurons` holds its neurons."""
        model.eval()
        alphas = (np.polynomial.legendre.leggauss(n_steps + 1)[0] + 1) / 2
        rows = []
        for example in inputs.split(1):
            tensors, gradients = [], []
            for alpha in alphas:
                seen: list[Tensor] = []

                def hook(_: nn.Module, __: object, output: object, seen: list = seen) -> None:
                    seen.append(list(tensors_in(output))[place][1])

                handle = module.register_forward_hook(hook)
                output = (run or model)((float(alpha) * example).requires_grad_())
                handle.remove()
                output = getattr(output, "logits", output)
                score = output.reshape(-1)[0 if target is None else target]
                (gradient,) = torch.autograd.grad(score, seen[call])
                tensors.append(seen[call].detach())
                gradients.append(gradient)
            each = sum(
                gradient * (after - before)
                for gradient, before, after in zip(gradients, tensors, tensors[1:], strict=False)
            )
            axes = (neurons,) if isinstance(neurons, int) else neurons
            axes = tuple(axis % each.dim() for axis in axes)
            others = [axis for axis in range(each.dim()) if axis not in axes]
            summed = each.sum(dim=others) if others else each
            rows.append(summed.flatten().numpy())
        return np.stack(rows)

    return conductance
