"""Which axis of a layer's output is the examples, and which its neurons; the rest are positions.

What it must satisfy: nothing is guessed. The axis of the examples is the one that grows with their
number. The axis of the neurons is the one that the module's kind names, or that of the modules
that made the tensor or take it, or the one that inputs of other sizes leave as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from transfer_pruner.attribution.scorer import Batch, Scorer
from transfer_pruner.attribution.structures import Path
from transfer_pruner.attribution.watch import CallKey, Watched, watch
from transfer_pruner.attribution.wrappers import own_module

Fold = Literal["after", "before"] | None

MANY, FEW = 3, 2
"""Two numbers of examples that no axis of a layer follows by chance: both are run."""

# Modules whose neurons are on a known axis of what they take and give, by how they compute:
# a subclass that computes otherwise, such as a norm that turns its inputs first, is none of them.
_NEURONS = {
    getattr(kind, "forward", None): axis
    for axis, kinds in {
        1: (
            *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
            *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
            *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
            *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.PReLU),
        ),
        -1: (
            *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding),
            *(nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention, nn.Transformer),
            *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
            *(nn.TransformerEncoder, nn.TransformerDecoder),
        ),
    }.items()
    for kind in kinds
}


def examples_axis(many: tuple[int, ...], few: tuple[int, ...]) -> tuple[int, int] | None:
    """Find the axis that follows the number of examples, from the shapes with MANY and with FEW.

    Returns
    -------
    tuple of int, optional
        The axis, and how many rows of it each example has. None if there is no such axis, or more
        than one.
    """
    if len(many) != len(few):
        return None
    changed = [axis for axis in range(len(many)) if many[axis] != few[axis]]
    if len(changed) != 1:
        return None
    (axis,) = changed
    each, rest = divmod(many[axis], MANY)
    return (axis, each) if not rest and few[axis] == each * FEW else None


def fold_of(
    scorer: Scorer, batch: Batch, many: Watched, key: CallKey, path: Path, axis: int
) -> Fold:
    """Find out on which side of the examples positions are folded into their axis.

    One example is exchanged for its baseline input: the rows that change are its own. None if
    that does not show it.
    """
    rows = many.calls[key].gave[path].shape[axis]
    own: dict[Fold, list[Tensor]] = {"after": [], "before": []}
    for example in range(MANY):
        inputs = batch.inputs.clone()
        inputs[example] = batch.baseline[example]
        other = watch(scorer, Batch(inputs, batch.baseline, batch.extras, batch.tokens))
        before, after = many.calls[key].gave[path], other.calls[key].gave[path]
        if before.shape != after.shape:
            return None
        change = (after - before).detach().abs().movedim(axis, 0).flatten(1).amax(dim=1)
        # Rows of other examples may differ in their last digits.
        changed = change > 1e-3 * change.max()
        place = torch.arange(rows, device=change.device)
        for fold, examples in (("after", place // (rows // MANY)), ("before", place % MANY)):
            own[fold].append(not bool((changed & (examples != example)).any()))  # type: ignore
    found: list[Fold] = [fold for fold, fits in own.items() if all(fits)]
    return found[0] if len(found) == 1 else None


class NeuronAxes:
    """Tells the axis of the neurons of tensors that a forward pass made.

    Parameters
    ----------
    scorer : Scorer
    batch : Batch
        MANY examples.
    many : Watched
        Their forward pass.
    """

    def __init__(self, scorer: Scorer, batch: Batch, many: Watched) -> None:
        self.scorer, self.batch, self.many = scorer, batch, many
        self._known: dict[int, set[tuple[int, int]]] = {}
        self._stretched: list[Watched] | None = None
        alike = []
        for call in many.calls.values():
            axis = _of_kind(call.module)
            tensors = [x for x in (call.given, *list(call.gave.values())[:1]) if x is not None]
            if axis is not None:
                for tensor in tensors:
                    self._note(tensor, axis)
            elif len(tensors) == 2 and next(call.module.children(), None) is None:
                alike.append((tensors[0], tensors[1]))
        # What has no parts, as an activation or a pooling, keeps the order of axes.
        for one, other in (*alike, *((b, a) for a, b in reversed(alike))):
            for axis in self._axes(one) if one.dim() == other.dim() else ():
                if one.shape[axis] == other.shape[axis]:
                    self._note(other, axis)

    def __call__(self, key: CallKey, path: Path, examples: int) -> tuple[int, ...] | None:
        """Find the axes of a layer's neurons; None if they cannot be told."""
        call = self.many.calls[key]
        tensor = call.gave[path]
        others = [axis for axis in range(tensor.dim()) if axis != examples]
        if len(others) < 2:
            return tuple(others)
        if isinstance(own_module(call.module) or call.module, nn.RNNBase) and path[:1] == (1,):
            return tuple(others)  # The last state of each layer and direction has no positions.
        axis = _of_kind(call.module)
        if axis is not None:
            axis %= tensor.dim()
            return (axis,) if axis in others else None
        known = self._axes(tensor) & {*others}
        if len(known) == 1:
            return tuple(known)
        kept = self._kept(key, path, others)
        likely = self._axes(call.given) if call.given is not None else set()
        if call.given is None or call.given.shape != tensor.shape:
            likely = set()
        for axes in (kept, kept & known, kept & likely):
            if len(axes) == 1:
                return tuple(axes)
        return None

    def _note(self, tensor: Tensor, axis: int) -> None:
        if tensor.dim() > 1 and tensor.shape[axis] > 1 and tensor.stride(axis):
            # Views of a tensor, turned ones too, share its memory and the steps through it.
            known = self._known.setdefault(tensor.untyped_storage().data_ptr(), set())
            known.add((tensor.stride(axis), tensor.shape[axis]))

    def _axes(self, tensor: Tensor) -> set[int]:
        known = self._known.get(tensor.untyped_storage().data_ptr(), set())
        steps = zip(tensor.stride(), tensor.shape, strict=True)
        return {axis for axis, step in enumerate(steps) if step in known}

    def _kept(self, key: CallKey, path: Path, others: list[int]) -> set[int]:
        """Which axes no inputs of another size change."""
        if self._stretched is None:
            self._stretched = list(_stretched(self.scorer, self.batch))
        shape = self.many.shapes(key)[path]
        kept = {*others}
        for other in self._stretched:
            changed = other.shapes(key).get(path, ())
            if len(changed) == len(shape):
                kept -= {axis for axis in kept if changed[axis] != shape[axis]}
        return kept


def _of_kind(module: nn.Module) -> int | None:
    module = own_module(module) or module
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) > 1:
        return None
    return _NEURONS.get(type(module).forward)


def _stretched(scorer: Scorer, batch: Batch) -> Iterator[Watched]:
    """Run inputs of twice the size, along each axis in turn, where the model takes them."""
    length = batch.inputs.shape[1] if batch.inputs.dim() > 1 else 0
    for axis in range(1, batch.inputs.dim()):
        inputs, baseline = (torch.cat([x, x], dim=axis) for x in (batch.inputs, batch.baseline))
        extras: Mapping[str, Tensor] = batch.extras
        if axis == 1:
            extras = {
                name: torch.cat([x, x], dim=1) if x.dim() > 1 and x.shape[1] == length else x
                for name, x in extras.items()
            }
        try:
            yield watch(scorer, Batch(inputs, baseline, dict(extras)))
        except Exception:
            continue
    scorer.extras = batch.extras
