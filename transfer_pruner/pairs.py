"""Features of ordered pairs, from task embeddings and from measured transfers.

Pure functions. A feature that cannot be computed for a pair (a task without an embedding, layers
that do not match, attributions that are all 0) is NaN: deciding what that means is left to the
predictor and the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.correspondence import copies_of_one_encoder as copies_of_one_encoder
from transfer_pruner.correspondence import correspondence as correspondence  # as in 0.1
from transfer_pruner.embedding import CHANGES, EXAMPLES, TaskEmbedding
from transfer_pruner.similarity import TINY, centred, unit_gram
from transfer_pruner.similarity import containment as containment  # as in 0.1, and below
from transfer_pruner.similarity import cosine as cosine
from transfer_pruner.similarity import effective_rank as effective_rank
from transfer_pruner.similarity import linear_cka as linear_cka
from transfer_pruner.tasks import FloatArray, task_name
from transfer_pruner.tasks import is_baseline as is_baseline


def pair_columns(
    pairs: pd.DataFrame, source: str = "source", target: str = "target", *, name: str = "pairs"
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Take the two task columns out of a table of pairs, as names; None where there is no task.

    Raises
    ------
    ValueError
        If it is no DataFrame or lacks one of the columns.
    """
    if not isinstance(pairs, pd.DataFrame):
        raise ValueError(
            f"{name} must be a pandas DataFrame with the columns {source!r} and {target!r} but got "
            f"{type(pairs).__name__}."
        )
    missing = [column for column in (source, target) if column not in pairs.columns]
    if missing:
        raise ValueError(
            f"{name} lacks the column {missing[0]!r}; it has: "
            f"{', '.join(map(str, pairs.columns)) or 'none'}."
        )
    return _names(pairs[source]), _names(pairs[target])


def named_pairs(pairs: Iterable[tuple[Any, Any]]) -> set[tuple[Any, Any]]:
    """Collect pairs, their tasks named as `pair_columns` names them."""
    return {(_name(source), _name(target)) for source, target in pairs}


def _names(column: pd.Series) -> NDArray[np.object_]:
    codes, tasks = pd.factorize(column)
    # Missing ones have the code -1.
    names = [*map(_name, tasks), None]
    return np.fromiter(names, dtype=object, count=len(names))[codes]


def _name(task: Any) -> Any:
    # Several sources in one cell stay as they are.
    return task if isinstance(task, tuple) else task_name(task)


def ordered_pairs(tasks: Sequence[str]) -> pd.DataFrame:
    """List every ordered pair of two different tasks, columns source and target.

    Examples
    --------
    >>> from transfer_pruner.pairs import ordered_pairs
    >>> ordered_pairs(["news", "advice"])
       source  target
    0  advice    news
    1    news  advice
    """
    names = np.array([*tasks, None], dtype=object)[:-1]
    source, target = np.tile(names, len(names)), np.repeat(names, len(names))
    two = source != target
    return pd.DataFrame({"source": source[two], "target": target[two]}, dtype=object, copy=False)


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

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import TaskEmbedding, pair_features
    >>> vectors = {"news": [1.0, 0.0], "advice": [1.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> pairs = pd.DataFrame({"source": ["news", "advice"], "target": ["advice", "news"]})
    >>> pair_features(pairs, embeddings)[["cosine[last]", "containment[last]"]].round(2)
       cosine[last]  containment[last]
    0          0.71                0.5
    1          0.71                1.0
    """
    columns, terms = _features(*pair_columns(pairs, source, target), embeddings, target_embeddings)
    columns["attribution_score"] = _total(terms, len(pairs))
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
    layer's `correspondence`. Directed through the source's effective rank. Ours; the design notes
    (docs/design-notes.md) tell how it was chosen. Unless all tasks were embedded on the same probe
    examples, it is the mean over layers of the cosine of the two vectors instead, for every pair.

    Returns
    -------
    array of shape (n_pairs,)
        Higher is better; only the order within a target means something. NaN where a task has no
        embedding or the two have no layer in common.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.pairs import attribution_score
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> attribution_score(pairs, embeddings).round(2)
    array([0.95, 0.  ])
    """
    features = pair_features(pairs, embeddings, target_embeddings, source=source, target=target)
    return features["attribution_score"].to_numpy(dtype=float)


def attribution_terms(
    pairs: pd.DataFrame,
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
    *,
    source: str = "source",
    target: str = "target",
) -> pd.DataFrame:
    """Take `attribution_score` apart: the terms that it is the sum of.

    Returns
    -------
    DataFrame
        One row a pair, with the index of `pairs`, and a float64 column for each term that some
        layer has: ``"cka[<layer>]"``, ``"log source_rank[<layer>]"`` and ``"change_correlation"``,
        or ``"cosine[<layer>]"``, weighted as they are in the score. 0 for a layer that the pair
        lacks; NaN in the whole row where the score is.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.pairs import attribution_terms
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> attribution_terms(pairs, embeddings).round(2)
       cosine[last]
    0          0.95
    1          0.00
    """
    _, terms = _features(*pair_columns(pairs, source, target), embeddings, target_embeddings)
    return pd.DataFrame(terms, index=pairs.index)


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

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from transfer_pruner.pairs import source_popularity
    >>> measured = pd.DataFrame(
    ...     {"source": ["news", "advice"], "target": ["weather", "weather"], "gain": [0.06, 0.02]}
    ... )
    >>> source_popularity(np.array(["news"]), np.array(["advice"]), measured).round(2)
    array([0.02])
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


def _check_embeddings(given: object, parameter: str) -> None:
    of = [*given.values()] if isinstance(given, Mapping) else [given]
    wrong = next((one for one in of if not isinstance(one, TaskEmbedding)), None)
    if wrong is not None:
        raise ValueError(
            f"{parameter} must be a mapping of task to TaskEmbedding, such as load_embeddings() "
            f"returns, but got {'one with ' * (wrong is not given)}{wrong!r}."
        )


def _features(
    sources: NDArray[np.object_],
    targets: NDArray[np.object_],
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Compute the features of pairs, and the terms of their attribution score."""
    of_target = embeddings if target_embeddings is None else target_embeddings
    for parameter, given in (("embeddings", embeddings), ("target_embeddings", of_target)):
        _check_embeddings(given, parameter)
    embeddings, of_target = (
        {str(task_name(task)): embedding for task, embedding in tasks.items()}
        for tasks in (embeddings, of_target)
    )
    layers = list(
        dict.fromkeys(layer for embedding in embeddings.values() for layer in embedding.vectors)
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
    if not _share_probe([*embeddings.values(), *of_target.values()]):
        return columns, _terms_of_cosines(columns, layers)
    copies = np.array([copies_of_one_encoder(layer, embeddings, of_target) for layer in layers])
    return columns, _terms(columns, layers, copies)


def _layer_of_tasks(
    layer: str, tasks: NDArray[np.object_], embeddings: Mapping[str, TaskEmbedding]
) -> dict[str, _LayerOfTask]:
    return {
        task: _LayerOfTask(embeddings[task], layer)
        for task in dict.fromkeys(tasks)
        if task in embeddings and _is_attributed(embeddings[task], layer)
    }


def _is_attributed(embedding: TaskEmbedding, layer: str) -> bool:
    """Whether an embedding says anything of a layer: attributions that are all 0 do not."""
    if layer not in embedding.vectors:
        return False
    examples = embedding.signals.get(EXAMPLES + layer)
    return bool((embedding.vectors[layer] if examples is None else examples).any())


def _layer_features(
    cells: Sequence[tuple[_LayerOfTask | None, _LayerOfTask | None]],
) -> dict[str, FloatArray]:
    features = {name: np.full(len(cells), np.nan) for name in _FEATURES}
    for row, (s, t) in enumerate(cells):
        if s is None or t is None:
            continue
        features["source_rank"][row] = s.rank
        features["target_rank"][row] = t.rank
        features["norm_ratio"][row] = np.log(max(s.norm, TINY) / max(t.norm, TINY))
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
            self.gram = unit_gram(self.examples)
            self.rank = effective_rank(self.examples)


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
        changes = centred(embedding.signals[CHANGES])
        return embedding.provenance.get("probe"), changes / max(
            float(np.linalg.norm(changes)), TINY
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


def _terms(
    columns: Mapping[str, FloatArray], layers: Sequence[str], copies: FloatArray
) -> dict[str, FloatArray]:
    """Make the terms of `attribution_score` from the features of the layers."""
    if not layers:
        return {}
    cka, rank = _by_layer(columns, "cka", layers), _by_layer(columns, "source_rank", layers)
    share = _share_of_layers(cka + rank)
    # A model whose output never changes says nothing for or against a pair.
    changes = np.nan_to_num(columns["change_correlation"])
    alike = share * np.nan_to_num(cka)
    rich = share * (1 - copies) * np.nan_to_num(np.log(rank))
    return {
        **{f"cka[{layer}]": alike[:, i] for i, layer in enumerate(layers)},
        **{f"log source_rank[{layer}]": rich[:, i] for i, layer in enumerate(layers)},
        "change_correlation": (share @ copies) * changes,
    }


def _terms_of_cosines(
    columns: Mapping[str, FloatArray], layers: Sequence[str]
) -> dict[str, FloatArray]:
    """Make the terms of `attribution_score` of tasks that different examples were attributed on."""
    if not layers:
        return {}
    cosines = _by_layer(columns, "cosine", layers)
    terms = _share_of_layers(cosines) * np.nan_to_num(cosines)
    return {f"cosine[{layer}]": terms[:, i] for i, layer in enumerate(layers)}


def _by_layer(columns: Mapping[str, FloatArray], feature: str, layers: Sequence[str]) -> FloatArray:
    return np.column_stack([columns[f"{feature}[{layer}]"] for layer in layers])


def _share_of_layers(values: FloatArray) -> FloatArray:
    """Weigh the layers that a pair has, one a column, for their mean; NaN for a pair with none."""
    there = ~np.isnan(values)
    count = there.sum(axis=1, keepdims=True)
    return np.where(count > 0, there / np.maximum(count, 1), np.nan)


def _total(terms: Mapping[str, FloatArray], n_pairs: int) -> FloatArray:
    return np.sum([*terms.values()], axis=0) if terms else np.full(n_pairs, np.nan)


def _share_probe(embeddings: Sequence[TaskEmbedding]) -> bool:
    probes = {embedding.provenance.get("probe") for embedding in embeddings}
    return len(probes) == 1 and all(
        EXAMPLES + layer in embedding.signals
        for embedding in embeddings
        for layer in embedding.vectors
    )
