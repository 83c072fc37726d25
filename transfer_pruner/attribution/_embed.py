"""From a single-task model and probe examples to a task embedding.

With text/ the only room that imports torch.
"""

from __future__ import annotations

import operator
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from transfer_pruner._version import __version__
from transfer_pruner.attribution.outputs import SUM, Target, check_target, plain_target
from transfer_pruner.embedding import GAPS, LARGEST_GAP, WHOLE, TaskEmbedding

try:
    import torch
    from torch import Tensor, nn

    from transfer_pruner.attribution.fingerprints import fingerprint
    from transfer_pruner.attribution.fingerprints import fingerprint_model as fingerprint_model
    from transfer_pruner.attribution.gather import (
        ADDING_UP,
        check_explained,
        enough_steps,
        gather,
    )
    from transfer_pruner.attribution.gradients import check_gradients
    from transfer_pruner.attribution.layers import Survey
    from transfer_pruner.attribution.methods import Batch, Scorer, attribution_method
    from transfer_pruner.attribution.taps import Tap
    from transfer_pruner.attribution.wrappers import device_of as device_of
    from transfer_pruner.attribution.wrappers import dtype_of
    from transfer_pruner.attribution.wrappers import evaluating as evaluating
    from transfer_pruner.attribution.wrappers import without_wrapper as without_wrapper
except ImportError as error:  # the wheel's check runs it in an environment without torch
    raise ImportError(
        "embedding a task needs torch and captum: pip install 'transfer-pruner[attribution]'."
    ) from error

N_STEPS = 8
"""Steps of the integral, where a user asks for no other number."""

# So few examples are enough to see whether the model is as it must be.
_CHECKED = 4


def embed(
    model: nn.Module,
    inputs: Tensor,
    *,
    name: str,
    target: int | str | None = None,
    baselines: Tensor | float | None = None,
    layers: Sequence[str] | None = None,
    neuron_axis: int | Mapping[str, int] | None = None,
    method: str | type = "conductance",
    n_steps: int | None = None,
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
        mode while it is attributed, and back afterwards. A compiled, ``DataParallel`` or PEFT
        model is taken as the model that it wraps, adapters included, so that its layers have the
        names that they have without.
    inputs : Tensor of shape (n_probe, ...)
        The probe examples; labels are not needed. 64 or more, the same for all tasks, are enough to
        compare tasks by. Moved to the model's device a batch at a time, and turned into the type
        of its weights if it takes no other.
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
        output head; only modules that run exactly once in a forward pass. A module that runs
        several times is as many layers, ``"<module>#1"`` and on. The axis of the examples may be
        any: it is found by runs with other numbers of them.
    neuron_axis : int or mapping of str to int, optional
        Which axis of a layer's output holds its neurons, of all layers or by layer, counted with
        that of the examples. Needed only where neither the module's kind, nor the modules around
        it, nor inputs of another size tell it from positions; an error says so.
    method : str or Captum class
        ``"conductance"``: layer conductance (Dhamdhere et al. 2018) as the paper uses it, all
        layers in one sweep. ``"gradient_x_activation"`` costs 8 times less and needs no
        baseline input. ``"integrated_gradients"``, ``"deep_lift"``, ``"gradient_shap"`` or a layer
        attribution class of ``captum.attr``: by Captum, layer by layer.
    n_steps : int, optional
        Steps of the integral; 8 if left out, which rank pairs as many more do (see the design
        notes, docs/design-notes.md); for a vector whose sum is the change of the output to 2% or so
        it takes some hundreds. Left out, four times as many are taken by conductance, and again, up
        to 128, where a layer that everything passes through leaves more than 80% of the output's
        changes unexplained and that helps.
    batch_size : int
        Probe examples attributed together. A sweep holds the activations of two steps at once, so
        memory does not grow with the steps; Captum's methods hold those of all steps.
    keep_examples : bool
        Whether to keep the attributions of each probe example, without which two tasks can only be
        compared by their mean: n_probe times the bytes of the vectors.

    Returns
    -------
    TaskEmbedding
        With the signals ``"output_changes"`` and, for every layer, ``"absolute/<layer>"``,
        ``"standard_error/<layer>"`` and, unless `keep_examples` is off, ``"examples/<layer>"``.
        ``provenance["gaps"]`` says of each layer what share of the output's changes its
        attributions leave unexplained, ``provenance["whole"]`` in which layers that is an error,
        since everything passes through them; ``provenance["n_steps"]`` the steps that were taken.

    Warns
    -----
    TransferPrunerWarning
        If more than 80% stay unexplained, with 8 steps or more, in a layer that everything passes
        through.

    Raises
    ------
    ValueError
        If a parameter is out of range, a layer does not exist or cannot be read, gradients do not
        reach the inputs, or attributions are not finite or all 0.

    Examples
    --------
    >>> import torch
    >>> from transfer_pruner import embed
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> embedding = embed(model, torch.rand(64, 6), name="news", target=1)
    >>> {layer: vector.shape for layer, vector in embedding.vectors.items()}
    {'0': (8,)}
    """
    _check(inputs)
    model = without_wrapper(model)
    device = device_of(model)
    scorer = Scorer(model)
    with torch.inference_mode(False), evaluating(model):
        scorer.dtype = _running_dtype(model, _normal(inputs[:1].to(device)))

    def batches() -> Iterator[Batch]:
        for start in range(0, len(inputs), batch_size):
            rows = _normal(inputs[start : start + batch_size].to(device))
            yield Batch(rows, _baseline(baselines, rows, start))

    return embed_batches(
        scorer,
        batches,
        name=name,
        target=target,
        layers=layers,
        neuron_axis=neuron_axis,
        method=method,
        n_steps=n_steps,
        batch_size=batch_size,
        keep_examples=keep_examples,
        provenance={"probe": fingerprint(inputs), "baselines": _describe(baselines)},
    )


def embed_batches(
    scorer: Scorer,
    batches: Callable[[], Iterable[Batch]],
    *,
    name: str,
    target: Target,
    layers: Sequence[str] | None,
    method: str | type,
    n_steps: int | None,
    batch_size: int,
    keep_examples: bool,
    provenance: Mapping[str, object],
    order: NDArray[np.intp] | None = None,
    observe_inputs: Callable[[Batch, Tensor], None] | None = None,
    neuron_axis: int | Mapping[str, int] | None = None,
) -> TaskEmbedding:
    """Embed a task from batches of probe examples: what every kind of input has in common.

    Parameters
    ----------
    scorer : Scorer
    batches : callable
        Gives the batches, from the first on each time that it is called.
    name, target, layers, method, n_steps, batch_size, keep_examples, neuron_axis
        As for `embed`.
    provenance : mapping
        What only the caller knows: the fingerprint of the probe, the baseline input.
    order : array of int, optional
        Which probe example each row of the batches is; theirs if left out.
    observe_inputs : callable, optional
        Called once with each batch that has tokens and the attributions of its inputs, where the
        method gives them, after the last batch.

    Examples
    --------
    >>> import torch
    >>> from transfer_pruner.attribution import embed_batches
    >>> from transfer_pruner.attribution.scorer import Batch, Scorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> inputs = torch.rand(64, 6)
    >>> batches = [Batch(rows, torch.zeros_like(rows)) for rows in inputs.split(32)]
    >>> how = {"method": "conductance", "n_steps": 8, "batch_size": 32, "keep_examples": True}
    >>> embedding = embed_batches(
    ...     Scorer(model), lambda: batches, name="news", target=1, layers=None, provenance={}, **how
    ... )
    >>> embedding.vectors["0"].shape
    (4,)
    """
    started = time.perf_counter()
    exactly = n_steps is not None
    batch_size, n_steps = int(batch_size), N_STEPS if n_steps is None else operator.index(n_steps)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 but got {batch_size}.")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1 but got {n_steps}.")
    target = plain_target(target)
    attribute = attribution_method(method, n_steps)
    with torch.inference_mode(False), evaluating(scorer):
        taps = _prepare(scorer, next(iter(batches())), target, layers, neuron_axis)
        observe = observe_inputs is not None
        totals = gather(scorer, taps, batches(), target, attribute, observe)
        if not exactly and method == "conductance" and totals.largest_gap > LARGEST_GAP:
            enough = enough_steps(scorer, taps, batches(), target, n_steps)
            if enough > n_steps:
                n_steps, attribute = enough, attribution_method(method, enough)
                totals = gather(scorer, taps, batches(), target, attribute, observe)
    if observe_inputs is not None:
        for observed in totals.observed:
            observe_inputs(*observed)
    adds_up = method in ADDING_UP
    # Who asks for fewer steps than usual has chosen to know less.
    check_explained(totals, name, n_steps, adds_up and n_steps >= N_STEPS)
    vectors, signals = totals.result(order, keep_examples)
    return TaskEmbedding(
        name=name,
        vectors=vectors,
        signals=signals,
        provenance={
            "task": name,
            "model": fingerprint_model(scorer.model),
            "n_probe": len(totals.changes),
            "method": method if isinstance(method, str) else method.__name__,
            "target": target,
            "layers": list(taps),
            "n_steps": n_steps,
            "output_change": float(totals.changes.mean()),
            **({GAPS: totals.gaps(), WHOLE: [*totals.gaps(whole=True)]} if adds_up else {}),
            "seconds": time.perf_counter() - started,
            "versions": {
                "transfer_pruner": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "captum")},
            },
            **provenance,
        },
    )


def _check(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() == 0 or len(inputs) == 0:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be a tensor of one or more probe examples but got {got}.")
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs must be floating-point numbers but got {inputs.dtype}: attributions follow "
            "the path from a baseline input, which whole numbers do not have."
        )


def _normal(inputs: Tensor) -> Tensor:
    """Take a tensor out of the inference mode that it was made in."""
    return inputs.clone() if inputs.is_inference() else inputs


def _running_dtype(model: nn.Module, example: Tensor) -> torch.dtype | None:
    """Find what type inputs have to be turned into, if the model does not take them as they are."""
    of_model = dtype_of(model)
    if of_model in (None, example.dtype):
        return None
    try:
        with torch.no_grad():
            model(example)
    except RuntimeError:
        return of_model
    return None


def _baseline(baselines: Tensor | float | None, batch: Tensor, start: int) -> Tensor:
    if not isinstance(baselines, Tensor) or baselines.dim() == 0:
        return torch.full_like(batch, 0.0 if baselines is None else float(baselines))
    rows = baselines if len(baselines) == 1 else baselines[start : start + len(batch)]
    try:
        return rows.to(batch).expand_as(batch)
    except RuntimeError:
        raise ValueError(
            f"baselines of shape {tuple(baselines.shape)} do not fit inputs whose examples have "
            f"shape {tuple(batch.shape[1:])}."
        ) from None


def _prepare(
    scorer: Scorer,
    batch: Batch,
    target: Target,
    layers: Sequence[str] | None,
    neuron_axis: int | Mapping[str, int] | None,
) -> dict[str, Tap]:
    """Check what the model is and does, and find out how its layers are read."""
    scorer.summed, scorer.n_outputs = False, None
    if any(parameter.is_inference() for parameter in scorer.model.parameters()):
        raise ValueError(
            "model was made under torch.inference_mode(), so that no gradient flows through its "
            "weights: make or load it outside."
        )
    few = batch.first(_CHECKED)
    survey = Survey(scorer, few)
    check_target(survey.shape, target)
    scorer.n_outputs = survey.shape[1] if len(survey.shape) == 2 else 0
    scorer.summed = target == SUM
    scorer.extras = few.extras
    check_gradients(scorer, few, target)
    names = survey.default_layers() if layers is None else layers
    return survey.taps(names, neuron_axis)


def _describe(baselines: Tensor | float | None) -> float | str:
    if isinstance(baselines, Tensor) and baselines.dim():
        return fingerprint(baselines)
    return 0.0 if baselines is None else float(baselines)
