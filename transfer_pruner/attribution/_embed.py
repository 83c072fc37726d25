"""From a single-task model and probe examples to a task embedding.

With text.py, sweep.py and what they load the only modules that import torch.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfer_pruner import __version__
from transfer_pruner.attribution.outputs import SUM, Target, check_target, select, target_of
from transfer_pruner.embedding import (
    ABSOLUTE,
    CHANGES,
    EXAMPLES,
    STANDARD_ERROR,
    TaskEmbedding,
)

try:
    import torch
    from torch import Tensor, nn

    from transfer_pruner.attribution.layers import default_layers, named_layers, own_module
    from transfer_pruner.attribution.methods import INPUTS, Batch, Scorer, attribution_method
except ImportError as error:  # the wheel's check runs it in an environment without torch
    raise ImportError(
        "embedding a task needs torch and captum: pip install 'transfer-pruner[attribution]'."
    ) from error


def embed(
    model: nn.Module,
    inputs: Tensor,
    *,
    name: str,
    target: int | str | None = None,
    baselines: Tensor | float | None = None,
    layers: Sequence[str] | None = None,
    method: str | type = "conductance",
    n_steps: int = 8,
    batch_size: int = 64,
    keep_examples: bool = True,
) -> TaskEmbedding:
    r"""Embed a task by the attributions of its single-task model on probe examples.

    With the default method, neuron j of a layer is given its layer conductance, averaged over the
    probe examples x with baseline input x' and summed over positions:

    .. math:: a_j = E_x \int_0^1 \frac{\partial F}{\partial y_j}
              \frac{\partial y_j}{\partial \alpha} \, d\alpha, \quad y = y(x' + \alpha (x - x'))

    so that :math:`\sum_j a_j = E_x[F(x) - F(x')]` for a layer that everything passes through.

    To compare two tasks example by example, embed both on the same probe examples.

    Parameters
    ----------
    model : torch.nn.Module
        The single-task model. Its output has shape (n,) or (n, n_classes). It is put into eval
        mode while it is attributed, and back afterwards. A PEFT model is taken as the model that
        it wraps, adapters included, so that its layers have the names that they have without.
    inputs : Tensor of shape (n_probe, ...)
        The probe examples; labels are not needed. 64 or more, the same for all tasks, are enough to
        compare tasks by. Moved to the model's device a batch at a time.
    name : str
        The task.
    target : int or str, optional
        Which output to attribute; leave it out if the output has shape (n,). ``"predicted"``: of
        each probe example, the class that the model predicts for it. ``"sum"``: all outputs.
    baselines : Tensor or float, optional
        The baseline input, 0 if left out: a number, or a tensor of the shape of one example with a
        leading 1, or of `inputs`.
    layers : sequence of str, optional
        Names of modules as in ``model.named_modules()``. Left out: the blocks of a transformer
        (members of a ``ModuleList``), else every module that holds weights of its own, but for the
        output head; only modules that run exactly once in a forward pass.
    method : str or Captum class
        ``"conductance"``: layer conductance (Dhamdhere et al. 2018) as the paper uses it, all
        layers in one sweep. ``"gradient_x_activation"`` costs `n_steps` times less and needs no
        baseline input. ``"integrated_gradients"``, ``"deep_lift"``, ``"gradient_shap"`` or a layer
        attribution class of ``captum.attr``: by Captum, layer by layer.
    n_steps : int
        Steps of the integral. 8 rank pairs as many more do (CONTRIBUTING.md); for a vector whose
        sum is the change of the output to 2% or so it takes some hundreds.
    batch_size : int
        Probe examples attributed together. A sweep holds the activations of two steps at once, so
        memory does not grow with `n_steps`; Captum's methods hold those of all steps.
    keep_examples : bool
        Whether to keep the attributions of each probe example, without which two tasks can only be
        compared by their mean: n_probe times the bytes of the vectors.

    Returns
    -------
    TaskEmbedding
        With the signals ``"output_changes"`` and, for every layer, ``"absolute/<layer>"``,
        ``"standard_error/<layer>"`` and, unless `keep_examples` is off, ``"examples/<layer>"``.

    Raises
    ------
    ValueError
        If a parameter is out of range, a layer does not exist, gradients do not reach the inputs,
        or attributions are not finite.
    """
    _check(inputs)
    model = without_wrapper(model)
    device = device_of(model)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(inputs), batch_size):
            rows = inputs[start : start + batch_size].to(device)
            yield Batch(rows, _baseline(baselines, rows, start))

    return embed_batches(
        Scorer(model),
        batches,
        name=name,
        target=target,
        layers=layers,
        method=method,
        n_steps=n_steps,
        batch_size=batch_size,
        keep_examples=keep_examples,
        provenance={"probe": _fingerprint(inputs), "baselines": _describe(baselines)},
    )


def embed_batches(
    scorer: Scorer,
    batches: Callable[[], Iterable[Batch]],
    *,
    name: str,
    target: Target,
    layers: Sequence[str] | None,
    method: str | type,
    n_steps: int,
    batch_size: int,
    keep_examples: bool,
    provenance: Mapping[str, object],
    order: NDArray[np.intp] | None = None,
    observe_inputs: Callable[[Batch, Tensor], None] | None = None,
) -> TaskEmbedding:
    """Embed a task from batches of probe examples: what every kind of input has in common.

    Parameters
    ----------
    scorer : Scorer
    batches : callable
        Gives the batches, from the first on each time that it is called.
    name, target, layers, method, n_steps, batch_size, keep_examples
        As for `embed`.
    provenance : mapping
        What only the caller knows: the fingerprint of the probe, the baseline input.
    order : array of int, optional
        Which probe example each row of the batches is; theirs if left out.
    observe_inputs : callable, optional
        Called with each batch that has tokens and the attributions of its inputs, where the method
        gives them.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 but got {batch_size}.")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1 but got {n_steps}.")
    attribute = attribution_method(method, n_steps)
    examples: dict[str, list[NDArray[np.float32]]] = {}
    absolute: dict[str, NDArray[np.float64]] = {}
    change: list[NDArray[np.float64]] = []
    with evaluating(scorer):
        modules: dict[str, nn.Module] = {}
        for batch in batches():
            scorer.extras = batch.extras
            if not modules:
                few = batch.first(_CHECKED)
                scorer.extras = few.extras
                with torch.no_grad():
                    check_target(tuple(scorer(few.inputs).shape), target)
                scorer.summed = target == SUM
                _check_gradients(scorer, few, target)
                names = layers if layers is not None else default_layers(scorer, few.inputs)
                scorer.extras = batch.extras
                modules = named_layers(scorer.model, names)
                examples = {layer: [] for layer in modules}
            with torch.no_grad():
                of_batch = target_of(scorer, batch.inputs, target)
            change.append(_output_change(scorer, batch, of_batch))
            attributions = attribute(scorer, modules, batch, of_batch)
            of_inputs = attributions.pop(INPUTS, None)
            if of_inputs is not None and observe_inputs is not None:
                observe_inputs(batch, of_inputs)
            for layer, attributed in attributions.items():
                examples[layer].append(_sum_positions(modules[layer], attributed))
                total = _sum_positions(modules[layer], attributed.abs()).sum(axis=0, dtype=float)
                absolute[layer] = absolute.get(layer, np.zeros_like(total)) + total
    stacked = {layer: np.concatenate(parts) for layer, parts in examples.items()}
    changes = np.concatenate(change)
    if order is not None:
        stacked = {layer: values[np.argsort(order)] for layer, values in stacked.items()}
        changes = changes[np.argsort(order)]
    n_probe = len(changes)
    signals: dict[str, NDArray[np.float32]] = {
        ABSOLUTE + layer: (total / n_probe).astype(np.float32) for layer, total in absolute.items()
    }
    signals[CHANGES] = changes.astype(np.float32)
    for layer, values in stacked.items():
        deviation = values.std(axis=0, ddof=1) if n_probe > 1 else np.zeros(values.shape[1])
        signals[STANDARD_ERROR + layer] = deviation / np.sqrt(n_probe)
        if keep_examples:
            signals[EXAMPLES + layer] = values
    return TaskEmbedding(
        name=name,
        vectors={layer: values.mean(axis=0) for layer, values in stacked.items()},
        signals=signals,
        provenance={
            "task": name,
            "model": fingerprint_model(scorer.model),
            "n_probe": n_probe,
            "method": method if isinstance(method, str) else method.__name__,
            "target": target,
            "layers": list(stacked),
            "n_steps": n_steps,
            "output_change": float(changes.mean()),
            "seconds": time.perf_counter() - started,
            "versions": {
                "transfer_pruner": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "captum")},
            },
            **provenance,
        },
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def without_wrapper(model: Any) -> Any:
    """Take the model out of a PEFT wrapper, with its adapters, under the names of its own modules.

    Raises
    ------
    ValueError
        If the adapter is a prompt, which lives in the wrapper and not in the model's layers.
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return model
    if model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise ValueError(
            f"model must have an adapter in its layers, as LoRA and its kin, but has a prompt "
            f"({kind}): its tokens are no layer's, and other models have none to compare them with."
        )
    return model.get_base_model()


def _check(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() == 0 or len(inputs) == 0:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be a tensor of one or more probe examples but got {got}.")
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs must be floating-point numbers but got {inputs.dtype}: attributions follow "
            "the path from a baseline input, which whole numbers do not have."
        )


# So few examples are enough to see whether the model is as it must be.
_CHECKED = 4
# Along a path that is smooth between two points so close, a slope that is off by more than this is
# not a matter of curvature.
_PATH_STEP, _SLOPE_TOLERANCE = 0.01, 0.1


def _check_gradients(scorer: Scorer, batch: Batch, target: Target) -> None:
    """Compare the gradient's slope along the path with that of the output itself.

    An attention that detaches, or a model under no_grad, gives wrong gradients and no error.
    """
    if batch.inputs.dtype not in (torch.float32, torch.float64):
        return  # too coarse to take differences in
    with torch.no_grad():
        of_batch = target_of(scorer, batch.inputs, target)

    def score(alpha: float) -> tuple[Tensor, Tensor]:
        point = batch.baseline + alpha * (batch.inputs - batch.baseline)
        point = point.detach().requires_grad_()
        return point, select(scorer(point), of_batch)

    advice = "a layer detaches them or runs under torch.no_grad()"
    attention = getattr(getattr(scorer.model, "config", None), "_attn_implementation", None)
    if attention is not None:
        advice = f"load it with attn_implementation='eager' instead of {attention!r}"
    broken = ValueError(f"model gives wrong gradients with respect to its inputs: {advice}.")
    with torch.enable_grad():
        point, output = score(0.5)
        if not output.requires_grad:
            raise broken
        (gradient,) = torch.autograd.grad(output.sum(), point, materialize_grads=True)
    with torch.no_grad():
        direction = (batch.inputs - batch.baseline).flatten(1)
        slope = (gradient.flatten(1) * direction).sum(dim=1)
        low, high = (score(0.5 + sign * _PATH_STEP / 2)[1] for sign in (-1, 1))
        measured = (high - low) / _PATH_STEP
        # What the output's own digits leave uncertain of a difference.
        noise = 100 * torch.finfo(output.dtype).eps * output.norm() / _PATH_STEP
        allowed = _SLOPE_TOLERANCE * (slope.norm() + measured.norm()) + noise
        if (slope - measured).norm() > allowed:
            raise broken


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout and batch statistics off, and each module back to the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _baseline(baselines: Tensor | float | None, batch: Tensor, start: int) -> Tensor:
    if not isinstance(baselines, Tensor):
        return torch.full_like(batch, 0.0 if baselines is None else float(baselines))
    rows = baselines if len(baselines) == 1 else baselines[start : start + len(batch)]
    try:
        return rows.to(batch).expand_as(batch)
    except RuntimeError:
        raise ValueError(
            f"baselines of shape {tuple(baselines.shape)} do not fit inputs whose examples have "
            f"shape {tuple(batch.shape[1:])}."
        ) from None


def _output_change(
    scorer: Scorer, batch: Batch, target: int | Tensor | None
) -> NDArray[np.float64]:
    with torch.no_grad():
        change = select(scorer(batch.inputs) - scorer(batch.baseline), target)
    values: NDArray[np.float64] = change.double().cpu().numpy()
    return values


def _sum_positions(module: nn.Module, attributed: Tensor) -> NDArray[np.float32]:
    """Bring attributions of any shape to (n, width), float32."""
    if attributed.dim() == 1:
        attributed = attributed[:, None]
    convolution = isinstance(own_module(module) or module, nn.modules.conv._ConvNd)
    channels_first = attributed.dim() > 3 or convolution
    width_axis = 1 if channels_first else attributed.dim() - 1
    positions = [axis for axis in range(1, attributed.dim()) if axis != width_axis]
    summed = attributed.sum(dim=positions) if positions else attributed
    return summed.detach().float().cpu().numpy()


def _fingerprint(tensor: Tensor) -> str:
    array = tensor.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 of a model's class and weights."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{_fingerprint(tensor)}".encode())
    return digest.hexdigest()


def _describe(baselines: Tensor | float | None) -> float | str:
    if isinstance(baselines, Tensor):
        return _fingerprint(baselines)
    return 0.0 if baselines is None else float(baselines)
