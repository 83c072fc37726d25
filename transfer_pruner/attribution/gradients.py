"""Whether a model's gradients are those of its output: attributions rest on them."""

from __future__ import annotations

import torch
from torch import Tensor

from transfer_pruner.attribution.outputs import Target, select, target_of
from transfer_pruner.attribution.scorer import Batch, Scorer

# Where on the path, and how far to both sides together, slopes are compared. Between two points so
# close a smooth output has no curvature to speak of; one with many kinks, such as a mixture of
# experts or a deep ReLU network, has its slope only closer by, or at most places.
_PLACES, _STEPS = (0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6), (0.01, 0.001)
_TOLERANCE = 0.1


def check_gradients(scorer: Scorer, batch: Batch, target: Target) -> None:
    """Compare the gradient's slope along the path with that of the output itself.

    An attention that detaches, or a model under no_grad, gives wrong gradients and no error.

    Raises
    ------
    ValueError
        If no gradient reaches the inputs, or if at most places along the path its slope is not
        that of the output.
    """
    coarse = (torch.float16, torch.bfloat16)
    if batch.inputs.dtype in coarse or scorer.dtype in coarse:
        return  # too coarse to take differences in
    with torch.no_grad():
        of_batch = target_of(scorer, batch.inputs, target)

    def output_at(alpha: float) -> tuple[Tensor, Tensor]:
        point = batch.baseline + alpha * (batch.inputs - batch.baseline)
        point = point.detach().requires_grad_()
        return point, select(scorer(point), of_batch)

    wrong = right = 0
    for place in _PLACES:
        with torch.enable_grad():
            point, output = output_at(place)
            if not output.requires_grad:
                raise _broken(scorer)
            (gradient,) = torch.autograd.grad(output.sum(), point, materialize_grads=True)
        with torch.no_grad():
            direction = (batch.inputs - batch.baseline).flatten(1)
            slope = (gradient.flatten(1) * direction).sum(dim=1)
            fits = told = torch.zeros_like(slope, dtype=torch.bool)
            for step in _STEPS:
                low, high = (output_at(place + sign * step / 2)[1] for sign in (-1, 1))
                measured = (high - low) / step
                # What the output's own digits leave uncertain of a difference.
                noise = 100 * torch.finfo(output.dtype).eps / step
                if (place, step) == (_PLACES[0], _STEPS[0]):
                    allowed = _TOLERANCE * (slope.norm() + measured.norm()) + noise * output.norm()
                    if (slope - measured).norm() <= allowed:
                        return
                size = slope.abs() + measured.abs()
                tells = size > noise * output.abs()
                fits = fits | tells & ((slope - measured).abs() <= _TOLERANCE * size)
                told = told | tells
            right, wrong = right + int(fits.sum()), wrong + int((told & ~fits).sum())
    if wrong and wrong >= right:
        raise _broken(scorer)


def _broken(scorer: Scorer) -> ValueError:
    attention = getattr(getattr(scorer.model, "config", None), "_attn_implementation", None)
    advice = "a layer detaches them, runs under torch.no_grad() or has a backward pass of its own"
    if attention not in (None, "eager"):
        advice = f"load it with attn_implementation='eager' instead of {attention!r}"
    return ValueError(f"model gives wrong gradients with respect to its inputs: {advice}.")
