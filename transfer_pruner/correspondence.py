"""Whether the neurons of several models are the same ones: copies of one encoder, or not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from transfer_pruner.embedding import CHANGES, EXAMPLES, TaskEmbedding
from transfer_pruner.similarity import TINY
from transfer_pruner.tasks import FloatArray


def correspondence(
    layer: str,
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
) -> float:
    r"""How far the neurons of a layer are the same ones in all models (copies of one encoder, say).

    The mean over ordered pairs of two tasks of :math:`\langle a_s, a_t \rangle / (|a_s| |a_t|)`,
    where a are absolute attributions (n_probe, width), centred over the neurons of each probe
    example. In [-1, 1]: about 0 if the neurons of the models are permuted at random, 1 if the same
    neurons matter in all of them, for or against the output. 0 where no two tasks have attributions
    of the same examples and widths. Ours.

    Parameters
    ----------
    layer : str
    embeddings, target_embeddings
        As for `pair_features`.

    Examples
    --------
    >>> import numpy as np
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.pairs import correspondence
    >>> examples = np.random.default_rng(0).normal(size=(20, 8))
    >>> embeddings = {
    ...     task: TaskEmbedding(task, {"last": x[0]}, {"examples/last": x}, {"probe": "same"})
    ...     for task, x in {"news": examples, "advice": 2 * examples}.items()
    ... }
    >>> round(correspondence("last", embeddings), 2)
    1.0
    """
    totals: list[dict[tuple[int, ...], FloatArray]] = [{}, {}]
    counts: list[dict[tuple[int, ...], int]] = [{}, {}]
    units: list[dict[str, FloatArray]] = [{}, {}]
    of_target = embeddings if target_embeddings is None else target_embeddings
    for side, tasks in enumerate((embeddings, of_target)):
        for task, embedding in tasks.items():
            signal = embedding.signals.get(EXAMPLES + layer)
            if signal is None or not signal.any():
                continue
            values = np.abs(signal.astype(float))
            values = values - values.mean(axis=1, keepdims=True)
            unit = values / max(float(np.linalg.norm(values)), TINY)
            units[side][task] = unit
            totals[side][unit.shape] = totals[side].get(unit.shape, 0.0) + unit
            counts[side][unit.shape] = counts[side].get(unit.shape, 0) + 1
    found, n_pairs = 0.0, 0
    for shape in totals[0].keys() & totals[1].keys():
        found += float((totals[0][shape] * totals[1][shape]).sum())
        n_pairs += counts[0][shape] * counts[1][shape]
    for task in units[0].keys() & units[1].keys():
        if units[0][task].shape == units[1][task].shape:
            found -= float((units[0][task] * units[1][task]).sum())
            n_pairs -= 1
    return found / n_pairs if n_pairs else 0.0


def copies_of_one_encoder(
    layer: str,
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
) -> float:
    r"""How far a layer's models are taken for copies of one encoder: w of `attribution_score`.

    :math:`\min(\max(2 \kappa, 0), 1)`, :math:`\kappa` the layer's `correspondence`; 0 if some
    embedding lacks what its examples change the output by, which then cannot be compared. Ours.

    Parameters
    ----------
    layer : str
    embeddings, target_embeddings
        As for `pair_features`.
    """
    of_target = embeddings if target_embeddings is None else target_embeddings
    tasks = [*embeddings.values(), *of_target.values()]
    if not all(CHANGES in task.signals for task in tasks):
        return 0.0
    return min(max(2 * correspondence(layer, embeddings, of_target), 0.0), 1.0)
