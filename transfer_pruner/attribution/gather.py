"""Attributions of all probe examples, gathered batch by batch, and what they leave unexplained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfer_pruner.attribution.methods import INPUTS, Attribute, attribution_method
from transfer_pruner.attribution.outputs import Target, select, target_of
from transfer_pruner.attribution.scorer import Batch, Scorer
from transfer_pruner.attribution.taps import Tap
from transfer_pruner.embedding import ABSOLUTE, CHANGES, EXAMPLES, LARGEST_GAP, STANDARD_ERROR
from transfer_pruner.exceptions import TransferPrunerWarning

ADDING_UP = ("conductance", "integrated_gradients", "deep_lift")
"""Methods whose attributions add up to the change of the output, but for what the steps miss."""
MOST_STEPS = 128
"""So many steps the integral is given by itself, where a layer explains too little with fewer."""
# More steps are tried on so few examples; they help if they leave less than this of the gap.
_TRIED, _HELPS = 4, 0.9

Examples = dict[str, NDArray[np.float32]]


class Totals:
    """What one run over the probe examples gives.

    Attributes
    ----------
    observed : list of (Batch, Tensor)
        The attributions of the inputs of each batch, if they are wanted.
    """

    def __init__(self, taps: Mapping[str, Tap]) -> None:
        self.taps = taps
        self._examples: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in taps}
        self._absolute: dict[str, NDArray[np.float64]] = {}
        self._changes: list[NDArray[np.float64]] = []
        self.observed: list[tuple[Batch, Tensor]] = []

    def add(self, attributions: Mapping[str, Tensor], change: Tensor) -> None:
        """Add a batch: the attributions of each layer and the changes of the output."""
        self._changes.append(change.double().cpu().numpy())
        for layer, attributed in attributions.items():
            tap = self.taps[layer]
            self._examples[layer].append(_numbers(tap.sum_positions(attributed)))
            total = _numbers(tap.sum_positions(attributed.abs())).sum(axis=0, dtype=float)
            self._absolute[layer] = self._absolute.get(layer, np.zeros_like(total)) + total

    @property
    def changes(self) -> NDArray[np.float64]:
        """What each probe example changes the output by, (n_probe,)."""
        return np.concatenate(self._changes)

    @property
    def examples(self) -> Examples:
        """The attributions of each probe example, (n_probe, width), by layer."""
        return {layer: np.concatenate(parts) for layer, parts in self._examples.items()}

    def gaps(self, *, whole: bool = False) -> dict[str, float]:
        r"""Say what share of the output's changes the attributions of each layer leave unexplained.

        :math:`\sum_i |\sum_j a_{ij} - c_i| / \sum_i |c_i|`, with :math:`a_{ij}` the attribution of
        neuron j and :math:`c_i` the output's change, of probe example i; 0 or more. Of a layer that
        part of the change passes by, that part is in it.

        Parameters
        ----------
        whole : bool
            Of those layers only that everything passes through, where a gap is an error.
        """
        changes = self.changes
        size = max(float(np.abs(changes).sum()), float(np.finfo(float).tiny))
        return {
            layer: float(np.abs(values.sum(axis=1, dtype=float) - changes).sum() / size)
            for layer, values in self.examples.items()
            if self.taps[layer].whole or not whole
        }

    @property
    def largest_gap(self) -> float:
        """The largest gap of a layer that everything passes through; 0 if there is none."""
        return max(self.gaps(whole=True).values(), default=0.0)

    def result(
        self, order: NDArray[np.intp] | None, keep_examples: bool
    ) -> tuple[Examples, Examples]:
        """Give the vectors and the signals of the task embedding.

        Parameters
        ----------
        order : array of int, optional
            Which probe example each row is; as they came if left out.
        keep_examples : bool
        """
        changes, examples = self.changes, self.examples
        if order is not None:
            changes = changes[np.argsort(order)]
            examples = {layer: values[np.argsort(order)] for layer, values in examples.items()}
        n_probe = len(changes)
        signals: Examples = {
            ABSOLUTE + layer: (total / n_probe).astype(np.float32)
            for layer, total in self._absolute.items()
        }
        signals[CHANGES] = changes.astype(np.float32)
        for layer, values in examples.items():
            deviation = values.std(axis=0, ddof=1) if n_probe > 1 else np.zeros(values.shape[1])
            signals[STANDARD_ERROR + layer] = deviation / np.sqrt(n_probe)
            if keep_examples:
                signals[EXAMPLES + layer] = values
        return {layer: values.mean(axis=0) for layer, values in examples.items()}, signals


def gather(
    scorer: Scorer,
    taps: Mapping[str, Tap],
    batches: Iterable[Batch],
    target: Target,
    attribute: Attribute,
    observe: bool = False,
) -> Totals:
    """Attribute all batches.

    Parameters
    ----------
    scorer, taps, batches, target, attribute
    observe : bool
        Whether to keep the attributions of the inputs.
    """
    totals = Totals(taps)
    for batch in batches:
        scorer.extras = batch.extras
        with torch.no_grad():
            of_batch = target_of(scorer, batch.inputs, target)
            change = select(scorer(batch.inputs) - scorer(batch.baseline), of_batch)
        attributions = attribute(scorer, taps, batch, of_batch)
        of_inputs = attributions.pop(INPUTS, None)
        totals.add(attributions, change)
        if observe and of_inputs is not None:
            totals.observed.append((batch, of_inputs))
    return totals


def enough_steps(
    scorer: Scorer,
    taps: Mapping[str, Tap],
    batches: Iterable[Batch],
    target: Target,
    n_steps: int,
) -> int:
    """Find how many steps close the gap of conductance, four times as many at a time.

    Tried on the first few probe examples. As many as now if no number up to MOST_STEPS helps.
    """
    few = list(_first(batches, _TRIED))

    def gap_with(steps: int) -> float:
        attribute = attribution_method("conductance", steps)
        return gather(scorer, taps, few, target, attribute).largest_gap

    steps, before = n_steps, gap_with(n_steps)
    gap = before
    while gap > LARGEST_GAP / 2 and steps < MOST_STEPS:
        steps = min(4 * steps, MOST_STEPS)
        gap = gap_with(steps)
    return steps if gap < _HELPS * before else n_steps


def check_explained(totals: Totals, name: str, n_steps: int, warn: bool) -> None:
    """Refuse attributions that say nothing, and warn of those that say little.

    Raises
    ------
    ValueError
        If all attributions are 0.
    """
    if not any(values.any() for values in totals.examples.values()):
        what = "nothing in the layers moves the output" if totals.changes.any() else ""
        raise ValueError(
            f"inputs of task {name!r} have attributions that are all 0: along the path from the "
            f"baseline input {what or 'the output never changes'}. Check that the probe examples "
            "are of the model's kind, and not the baseline input itself."
        )
    gaps = totals.gaps(whole=True) if warn else {}
    wide = {layer: gap for layer, gap in gaps.items() if gap > LARGEST_GAP}
    if wide:
        warnings.warn(
            f"attributions of task {name!r} leave {max(wide.values()):.0%} of what the probe "
            f"examples change the output by unexplained in {len(wide)} of {len(totals.taps)} "
            f"layers ({', '.join(list(wide)[:3])}; {n_steps} steps): its pairs are ranked by "
            "little. Try more steps, another baseline input, or layers that are smoother.",
            TransferPrunerWarning,
            stacklevel=4,
        )


def _first(batches: Iterable[Batch], n: int) -> Iterator[Batch]:
    for batch in batches:
        yield batch.first(n)
        n -= len(batch.inputs)
        if n <= 0:
            return


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = tensor.detach().to(torch.float32).cpu().numpy()
    return numbers
