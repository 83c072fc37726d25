"""Features of ordered pairs, from task embeddings and from measured transfers.

Pure functions. A feature that cannot be computed for a pair (a task without an embedding, layers
that do not match) is NaN: deciding what that means is left to the predictor and the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from transfer_pruner.embedding import CHANGES, EXAMPLES, TaskEmbedding
from transfer_pruner.tasks import FloatArray
from transfer_pruner.tasks import is_baseline as is_baseline  # as in 0.1

_TINY = 1e-12


def pair_columns(
    pairs: pd.DataFrame, source: str = "source", target: str = "target"
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Take the two task columns out of a table of pairs.

    Raises
    ------
    ValueError
        If `pairs` is no DataFrame or lacks one of the columns.
    """
    if not isinstance(pairs, pd.DataFrame):
        raise ValueError(
            f"pairs must be a pandas DataFrame with the columns {source!r} and {target!r} but got "
            f"{type(pairs).__name__}."
        )
    missing = [column for column in (source, target) if column not in pairs.columns]
    if missing:
        raise ValueError(
            f"pairs lacks the column {missing[0]!r}; it has: "
            f"{', '.join(map(str, pairs.columns)) or 'none'}."
        )
    return pairs[source].to_numpy(dtype=object), pairs[target].to_numpy(dtype=object)


def ordered_pairs(tasks: Sequence[str]) -> pd.DataFrame:
    """List every ordered pair of two different tasks, columns source and target."""
    rows = [(source, target) for target in tasks for source in tasks if source != target]
    return pd.DataFrame(rows, columns=["source", "target"], dtype=object)


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    r"""Cosine of two attribution vectors.

    :math:`\langle a, b \rangle / (|a| |b|)`, in [-1, 1], symmetric; 0 if one of them is 0.
    """
    a, b = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), _TINY))


def containment(source: ArrayLike, target: ArrayLike) -> float:
    r"""Share of the target's attribution that the source has too, sign by sign (s -> t).

    :math:`\sum_j \min(|s_j|, |t_j|) [s_j t_j > 0] / \sum_j |t_j|`, in [0, 1]. Directed: a source
    with large attributions contains a target with small ones, and not the other way round. 0 if
    the target's vector is 0.
    """
    s, t = np.asarray(source, dtype=float), np.asarray(target, dtype=float)
    shared = np.where(s * t > 0, np.minimum(np.abs(s), np.abs(t)), 0.0).sum()
    return float(shared / max(float(np.abs(t).sum()), _TINY))


def effective_rank(examples: ArrayLike) -> float:
    r"""Effective number of directions in which a task's attributions vary between examples.

    :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p_k` the share of singular value k squared, of
    the centred (n_probe, width) matrix; in [1, min(n_probe, width)], 1 if nothing varies. The
    entropy form is that of Roy and Vetterli (2007). High for a source that uses many features.
    """
    return _effective_rank(_centred(examples))


def linear_cka(source: ArrayLike, target: ArrayLike) -> float:
    r"""Linear CKA of two tasks' example-wise attributions.

    :math:`|S^T T|_F^2 / (|S^T S|_F |T^T T|_F)` of centred (n_probe, width) matrices over the same
    probe examples, in [0, 1], symmetric (Kornblith et al. 2019, eq. 4; there of activations). It
    asks whether the examples that the attributions set apart are the same, so the neurons of the
    two models need not correspond. 0 if nothing varies.
    """
    return float(_unit_gram(_centred(source)) @ _unit_gram(_centred(target)))


def pair_features(
    pairs: pd.DataFrame,
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
    *,
    source: str = "source",
    target: str = "target",
) -> pd.DataFrame:
    """Compute the features of ordered pairs that attributions give.

    For every layer that some embedding has: ``cosine`` and ``containment`` of the two vectors;
    ``example_cosine`` and ``cka`` of the example-wise attributions, where both tasks were embedded
    on the same probe examples; ``source_rank`` and ``target_rank``, the effective rank of each
    task's own; ``norm_ratio``, log of the source's norm over the target's. All but ``cosine``,
    ``example_cosine`` and ``cka`` are directed. Of the whole model, ``change_correlation``:
    Pearson's correlation over the probe examples of what each changes the two outputs by, which is
    what its attributions add up to in every layer; symmetric.

    Parameters
    ----------
    pairs : DataFrame
        One ordered pair a row.
    embeddings : mapping of str to TaskEmbedding
    target_embeddings : mapping of str to TaskEmbedding, optional
        Of the tasks as targets, where the model that a target has is not the one that it would be
        a source with; the same as `embeddings` if left out.
    source, target : str
        Names of the two columns.

    Returns
    -------
    DataFrame
        One row a pair, with the index of `pairs`, and one float64 column ``"<feature>[<layer>]"``
        for each feature and layer, ``"change_correlation"`` and ``"attribution_score"``. NaN where
        it cannot be computed.
    """
    sources, targets = pair_columns(pairs, source, target)
    of_target = embeddings if target_embeddings is None else target_embeddings
    layers = dict.fromkeys(
        layer for embedding in embeddings.values() for layer in embedding.vectors
    )
    columns: dict[str, FloatArray] = {}
    for layer in layers:
        of_sources = _layer_of_tasks(layer, sources, embeddings)
        of_targets = _layer_of_tasks(layer, targets, of_target)
        cells = [
            (of_sources.get(source), of_targets.get(target))
            for source, target in zip(sources, targets, strict=True)
        ]
        for feature, values in _layer_features(cells).items():
            columns[f"{feature}[{layer}]"] = values
    columns["change_correlation"] = _change_correlations(sources, targets, embeddings, of_target)
    shared = _share_probe([*embeddings.values(), *of_target.values()])
    copies = [copies_of_one_encoder(layer, embeddings, of_target) for layer in layers]
    columns["attribution_score"] = _score(columns, len(pairs), shared, np.array(copies))
    return pd.DataFrame(columns, index=pairs.index)


def attribution_score(
    pairs: pd.DataFrame,
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
    *,
    source: str = "source",
    target: str = "target",
) -> FloatArray:
    r"""Score ordered pairs by attributions alone, before any transfer was measured.

    The mean over layers of :math:`\mathrm{CKA}(s, t) + (1 - w) \log \mathrm{rank}(s) + w\,r(s, t)`:
    do the source's attributions set the same probe examples apart as the target's? Of models that
    were trained on their own (:math:`w = 0`), in how many directions do the source's vary? Of
    copies of one encoder (:math:`w = 1`), which are all as rich, do the two outputs change alike
    (r, the ``change_correlation``)? :math:`w = \min(\max(2 \kappa, 0), 1)`, :math:`\kappa` the
    layer's `correspondence`. Directed through the source's effective rank. Ours; CONTRIBUTING.md
    tells how it was chosen. Unless all tasks were embedded on the same probe examples, it is the
    mean over layers of the cosine of the two vectors instead, for every pair.

    Returns
    -------
    array of shape (n_pairs,)
        Higher is better; only the order within a target means something. NaN where a task has no
        embedding or the two have no layer in common.
    """
    features = pair_features(pairs, embeddings, target_embeddings, source=source, target=target)
    return features["attribution_score"].to_numpy(dtype=float)


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
    """
    totals: list[dict[tuple[int, ...], FloatArray]] = [{}, {}]
    counts: list[dict[tuple[int, ...], int]] = [{}, {}]
    units: list[dict[str, FloatArray]] = [{}, {}]
    of_target = embeddings if target_embeddings is None else target_embeddings
    for side, tasks in enumerate((embeddings, of_target)):
        for task, embedding in tasks.items():
            if EXAMPLES + layer not in embedding.signals:
                continue
            values = np.abs(embedding.signals[EXAMPLES + layer].astype(float))
            values = values - values.mean(axis=1, keepdims=True)
            unit = values / max(float(np.linalg.norm(values)), _TINY)
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


def source_popularity(
    sources: NDArray[np.object_],
    targets: NDArray[np.object_],
    measured: pd.DataFrame,
) -> FloatArray:
    r"""Mean measured gain of each source on targets other than the pair's own (s -> t).

    :math:`\frac{1}{|T_s \setminus t|} \sum_{t' \in T_s \setminus t} (g(s, t') - \bar g(t'))`: gains
    are taken relative to the mean of their target, so that a source is not popular for having been
    tried on easy targets. What it says of a pair never rests on that pair's own target.

    Parameters
    ----------
    sources, targets : array of shape (n_pairs,)
    measured : DataFrame
        Columns source, target and gain.

    Returns
    -------
    array of shape (n_pairs,)
        In units of the gain; NaN for a source without measured transfers to other targets.
    """
    relative = measured["gain"] - measured.groupby("target")["gain"].transform("mean")
    cells = relative.groupby([measured["source"], measured["target"]]).agg(["sum", "count"])
    of_source = cells.groupby(level="source").sum()
    pairs = pd.DataFrame({"source": sources, "target": targets}, dtype=object)
    everywhere = pairs.join(of_source, on="source")[["sum", "count"]].to_numpy(dtype=float)
    here = pairs.join(cells, on=["source", "target"])[["sum", "count"]].to_numpy(dtype=float)
    total, count = (everywhere - np.nan_to_num(here)).T
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


_FEATURES = (
    "cosine",
    "containment",
    "example_cosine",
    "cka",
    "source_rank",
    "target_rank",
    "norm_ratio",
)


def _layer_of_tasks(
    layer: str, tasks: NDArray[np.object_], embeddings: Mapping[str, TaskEmbedding]
) -> dict[str, _LayerOfTask]:
    return {
        task: _LayerOfTask(embeddings[task], layer)
        for task in dict.fromkeys(tasks)
        if task in embeddings and layer in embeddings[task].vectors
    }


def _layer_features(
    cells: Sequence[tuple[_LayerOfTask | None, _LayerOfTask | None]],
) -> dict[str, FloatArray]:
    features = {name: np.full(len(cells), np.nan) for name in _FEATURES}
    for row, (s, t) in enumerate(cells):
        if s is None or t is None:
            continue
        features["source_rank"][row] = s.rank
        features["target_rank"][row] = t.rank
        features["norm_ratio"][row] = np.log(max(s.norm, _TINY) / max(t.norm, _TINY))
        if s.vector.shape == t.vector.shape:
            features["cosine"][row] = cosine(s.vector, t.vector)
            features["containment"][row] = containment(s.vector, t.vector)
        if s.examples is not None and t.examples is not None and s.probe == t.probe:
            features["cka"][row] = float(s.gram @ t.gram)
            if s.examples.shape == t.examples.shape:
                features["example_cosine"][row] = cosine(s.examples, t.examples)
    return features


class _LayerOfTask:
    """One layer of one task, with what every pair that it is in asks for computed once."""

    def __init__(self, embedding: TaskEmbedding, layer: str) -> None:
        self.vector = embedding.vectors[layer].astype(float)
        self.norm = float(np.linalg.norm(self.vector))
        signal = embedding.signals.get(EXAMPLES + layer)
        self.examples = None if signal is None else signal.astype(float)
        # Examples are comparable only one by one: the same probe, in the same order.
        self.probe = (embedding.provenance.get("probe"), None if signal is None else len(signal))
        self.gram = np.zeros(0)
        self.rank = np.nan
        if self.examples is not None:
            centred = _centred(self.examples)
            self.gram = _unit_gram(centred)
            self.rank = _effective_rank(centred)


def _change_correlations(
    sources: NDArray[np.object_],
    targets: NDArray[np.object_],
    of_source: Mapping[str, TaskEmbedding],
    of_target: Mapping[str, TaskEmbedding],
) -> FloatArray:
    """Correlate what the probe examples change two outputs by; NaN for different probes."""

    def standardised(embedding: TaskEmbedding | None) -> tuple[object, FloatArray | None]:
        if embedding is None or CHANGES not in embedding.signals:
            return None, None
        changes = _centred(embedding.signals[CHANGES])
        return embedding.provenance.get("probe"), changes / max(
            float(np.linalg.norm(changes)), _TINY
        )

    of_sources, of_targets = (
        {task: standardised(embeddings.get(task)) for task in dict.fromkeys(tasks)}
        for tasks, embeddings in ((sources, of_source), (targets, of_target))
    )
    found = np.full(len(sources), np.nan)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        (probe, s), (other, t) = of_sources[source], of_targets[target]
        if s is not None and t is not None and probe == other and s.shape == t.shape:
            found[row] = float(s @ t)
    return found


def _score(
    columns: Mapping[str, FloatArray],
    n_pairs: int,
    shared_probe: bool,
    copies: FloatArray,
) -> FloatArray:
    """Score pairs as `attribution_score` says, from the features of their layers."""

    def by_layer(feature: str) -> FloatArray:
        chosen = [x for name, x in columns.items() if name.startswith(f"{feature}[")]
        return np.column_stack(chosen) if chosen else np.full((n_pairs, 1), np.nan)

    if not shared_probe or not len(copies):
        return _row_mean(by_layer("cosine"))
    rich = (1 - copies) * np.log(by_layer("source_rank"))
    # A model whose output never changes says nothing for or against a pair.
    changes = np.nan_to_num(columns["change_correlation"])
    return _row_mean(by_layer("cka") + rich + copies * changes[:, None])


def _share_probe(embeddings: Sequence[TaskEmbedding]) -> bool:
    probes = {embedding.provenance.get("probe") for embedding in embeddings}
    return len(probes) == 1 and all(
        EXAMPLES + layer in embedding.signals
        for embedding in embeddings
        for layer in embedding.vectors
    )


def _centred(examples: ArrayLike) -> FloatArray:
    examples = np.asarray(examples, dtype=float)
    centred: FloatArray = examples - examples.mean(axis=0)
    return centred


def _unit_gram(centred: FloatArray) -> FloatArray:
    gram = (centred @ centred.T).ravel()
    unit: FloatArray = gram / max(float(np.linalg.norm(gram)), _TINY)
    return unit


def _effective_rank(centred: FloatArray) -> float:
    power = np.linalg.svd(centred, compute_uv=False) ** 2
    if power.sum() < _TINY:
        return 1.0
    share = power[power > 0] / power.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _row_mean(values: FloatArray) -> FloatArray:
    """Mean of the values of each row that are there; NaN where none is."""
    count = (~np.isnan(values)).sum(axis=1)
    total = np.nansum(values, axis=1)
    mean: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
