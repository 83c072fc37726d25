"""Attribute a model's output to the neurons of all requested layers.

Conductance of all layers takes one sweep along the path from baseline to input, not one a layer.
Captum is the reference that it must equal, and the way to every other method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from captum import attr
from torch import Tensor, nn

from transfer_pruner.attribution.outputs import select
from transfer_pruner.attribution.scorer import Batch as Batch
from transfer_pruner.attribution.scorer import Scorer as Scorer
from transfer_pruner.attribution.structures import first_tensor as first_tensor
from transfer_pruner.attribution.taps import Tap, tapped

CAPTUM_METHODS = {
    "deep_lift": attr.LayerDeepLift,
    "gradient_shap": attr.LayerGradientShap,
    "integrated_gradients": attr.LayerIntegratedGradients,
}
METHODS = ("conductance", "gradient_x_activation", *CAPTUM_METHODS)
INPUTS = ""
"""Beside the layers, under torch's name for the model itself: the attributions of the inputs.

Given by the two methods that are ours, for batches that say which tokens their inputs embed.
"""


Attribute = Callable[[Scorer, Mapping[str, Tap], Batch, int | Tensor | None], dict[str, Tensor]]


def attribution_method(method: str | type, n_steps: int) -> Attribute:
    """Find the function that attributes a batch to all layers, by name or by Captum class.

    Raises
    ------
    ValueError
        If there is no such method.
    """
    if method == "conductance":
        return partial(_conductance, n_steps=n_steps)
    if method == "gradient_x_activation":
        return _gradient_x_activation
    captum_class = CAPTUM_METHODS.get(method) if isinstance(method, str) else method
    if not isinstance(captum_class, type) or not hasattr(captum_class, "attribute"):
        raise ValueError(
            f"method must be one of {', '.join(METHODS)} or a layer attribution class of "
            f"captum.attr but got {method!r}."
        )
    return partial(_by_captum, captum_class=captum_class, n_steps=n_steps)


def _conductance(
    scorer: Scorer,
    taps: Mapping[str, Tap],
    batch: Batch,
    target: int | Tensor | None,
    *,
    n_steps: int,
) -> dict[str, Tensor]:
    """Sum over steps of gradient times change of activation, every layer in the same sweep.

    The quadrature is that of `captum.attr.LayerConductance`: activations at the n_steps + 1
    Gauss-Legendre nodes, gradients at the first n_steps.
    """
    nodes, _ = np.polynomial.legendre.leggauss(n_steps + 1)
    conductance: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    for step, alpha in enumerate((nodes + 1) / 2):
        point = batch.baseline + float(alpha) * (batch.inputs - batch.baseline)
        activations, new_gradients = _sweep(
            scorer, taps, point, target, step < n_steps, batch.tokens is not None
        )
        for layer, gradient in gradients.items():
            # Of half-precision models too, the sum over steps is taken in float32 or better.
            change = activations[layer] - before[layer]
            part = gradient * change if change.dtype == torch.float64 else gradient.float() * change
            conductance[layer] = conductance[layer] + part if layer in conductance else part
        before, gradients = activations, new_gradients
    return conductance


def _gradient_x_activation(
    scorer: Scorer, taps: Mapping[str, Tap], batch: Batch, target: int | Tensor | None
) -> dict[str, Tensor]:
    with_inputs = batch.tokens is not None
    activations, gradients = _sweep(scorer, taps, batch.inputs, target, True, with_inputs)
    return {layer: gradient * activations[layer] for layer, gradient in gradients.items()}


def _sweep(
    scorer: Scorer,
    taps: Mapping[str, Tap],
    point: Tensor,
    target: int | Tensor | None,
    with_gradients: bool,
    with_inputs: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations of all layers at a point and the output's gradients: one pass each way."""
    point = point.detach().requires_grad_(with_gradients)
    activations: dict[str, Tensor] = {INPUTS: point} if with_inputs else {}

    def keep(layer: str, tensor: Tensor) -> Tensor:
        activations[layer] = tensor
        # What follows in place, as nn.ReLU(inplace=True) does, must not change what was kept.
        return tensor.clone()

    with torch.set_grad_enabled(with_gradients), tapped(scorer, taps, keep):
        score = select(scorer(point), target).sum()
    for layer in taps:
        if layer not in activations:
            raise ValueError(f"layers holds {layer!r}, which does not run for every probe example.")
    gradients: tuple[Tensor, ...] = ()
    if with_gradients:
        gradients = torch.autograd.grad(score, list(activations.values()), allow_unused=True)
    for layer, gradient in zip(activations, gradients, strict=False):
        if gradient is None:
            raise ValueError(
                f"layers holds {layer!r}, from which no gradient reaches the output: leave it out."
            )
    kept = {layer: tensor.detach() for layer, tensor in activations.items()}
    return kept, dict(zip(activations, gradients, strict=False))


def _by_captum(
    scorer: Scorer,
    taps: Mapping[str, Tap],
    batch: Batch,
    target: int | Tensor | None,
    *,
    captum_class: type,
    n_steps: int,
) -> dict[str, Tensor]:
    attributions = {}
    accepted = inspect.signature(captum_class.attribute).parameters  # type: ignore[attr-defined]
    extras = tuple(batch.extras.values()) or None
    offered = {
        "baselines": batch.baseline,
        "n_steps": n_steps,
        "additional_forward_args": extras,
    }
    options = {key: value for key, value in offered.items() if key in accepted}
    for layer, tap in taps.items():
        # Captum takes modules that return a tensor, once, examples first: others it reads in a
        # module that changes nothing.
        module = tap.module if tap.is_plain else nn.Identity()
        passed = {} if tap.is_plain else {layer: tap}
        attribution = captum_class(scorer, module)

        def show(_: str, tensor: Tensor, module: nn.Module = module) -> Tensor:
            shown: Tensor = module(tensor)
            return shown

        with _seeded(), tapped(scorer, passed, show):
            attributed = attribution.attribute(batch.inputs, target=target, **options)
        attributions[layer] = first_tensor(attributed).detach()
    return attributions


@contextmanager
def _seeded() -> Iterator[None]:
    """Make methods that sample give the same embedding every time, and the user's seeds back."""
    of_numpy = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
