"""The nearest sources of each task among very many, in bounded memory.

One float32 matrix of all tasks is held, and blocks of scores: never all tasks by all tasks. Every
pair is compared: single precision only chooses whom to score again in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.embedding import TaskEmbedding

_DECIMALS = 6
_PAIRS_AT_ONCE = 4096


def top_sources(
    embeddings: Mapping[str, TaskEmbedding] | Iterable[TaskEmbedding],
    k: int = 10,
    *,
    targets: Iterable[str] | None = None,
    block: int = 1024,
) -> pd.DataFrame:
    r"""Find the k sources of every target whose attributions point most nearly the same way.

    By :math:`\frac{1}{L} \sum_l \cos(s_l, t_l)`, the mean over layers of the cosine of the two
    vectors as in `pair_features`; in [-1, 1], symmetric, higher is better. All pairs are compared,
    in time that grows with n_targets times n_tasks; memory is 4 bytes for each number of the
    vectors, the answer, and at most some 100 times `block` squared.

    Parameters
    ----------
    embeddings : mapping of str to TaskEmbedding, or iterable of TaskEmbedding
        All tasks, with the same layers. Only the vectors are held, so that an iterable which loads
        one task at a time needs no memory for the rest.
    k : int
        How many sources; all others if there are fewer.
    targets : iterable of str, optional
        The tasks to find sources for; all tasks if left out.
    block : int
        How many targets are compared with how many sources at once.

    Returns
    -------
    DataFrame
        Columns target, source, rank from 1, and score to six decimals: a target after the other,
        its best source first. Sources of equal score are sorted by name. A task is never its own
        source, so that of a single task the table is empty.

    Raises
    ------
    ValueError
        If there is no embedding, two have the same name, the layers or widths of two tasks differ,
        a target has no embedding, or `k` or `block` is less than 1.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding, top_sources
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> tasks = [TaskEmbedding(task, {"last": vector}) for task, vector in vectors.items()]
    >>> top_sources(tasks, k=1, targets=["news"])
      target  source  rank     score
    0   news  advice     1  0.948683
    """
    for parameter, value in (("k", k), ("block", block)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{parameter} must be a whole number from 1 up but got {value!r}.")
    names, units = _unit_rows(embeddings)
    wanted = _rows_of(names, targets)
    k = min(k, len(names) - 1)
    place = np.argsort(sorted(range(len(names)), key=names.__getitem__))
    sources = np.empty((len(wanted), k), dtype=np.int64)
    scores = np.empty((len(wanted), k))
    for start in range(0, len(wanted) if k else 0, block):
        rows = slice(start, start + block)
        sources[rows], scores[rows] = _best_of_targets(units, wanted[rows], place, k, block)
    task = np.array(names, dtype=object)
    return pd.DataFrame(
        {
            "target": pd.Series(np.repeat(task[wanted], k), dtype=object),
            "source": pd.Series(task[sources.ravel()], dtype=object),
            "rank": np.tile(np.arange(1, k + 1), len(wanted)),
            "score": scores.ravel(),
        }
    )


def _best_of_targets(
    units: NDArray[np.float32],
    targets: NDArray[np.int64],
    place: NDArray[np.int64],
    k: int,
    block: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the k best sources of some targets, given as rows: their rows and their scores."""
    n, of_targets = len(targets), units[targets]
    best, scores = np.zeros((n, k), dtype=np.int64), np.full((n, k), -np.inf)
    # More than the errors of single precision and the rounding to decimals can hide together.
    slack = units.shape[1] * np.finfo(np.float32).eps + 2 * 10.0**-_DECIMALS
    for start in range(0, len(units), block):
        rough = of_targets @ units[start : start + block].T
        own = np.flatnonzero((targets >= start) & (targets < start + block))
        rough[own, targets[own] - start] = -np.inf
        enough = scores[:, -1]
        if rough.shape[1] > k and np.isneginf(enough).any():
            enough = np.maximum(enough, np.partition(rough, -k, axis=1)[:, -k])
        bound = np.maximum(enough - slack, -2).astype(np.float32)
        row, source = np.nonzero(rough >= bound[:, None])
        source += start
        row = np.concatenate([np.repeat(np.arange(n), k), row])
        source = np.concatenate([best.ravel(), source])
        score = np.concatenate(
            [scores.ravel(), _scores(units, targets[row[n * k :]], source[n * k :])]
        )
        order = np.lexsort((place[source], -score, row))
        # Every target brought k along, so it has at least those: its first k stay.
        first = np.searchsorted(row[order], np.arange(n))
        chosen = order[first[:, None] + np.arange(k)]
        best, scores = source[chosen], score[chosen]
    return best, scores


def _scores(
    units: NDArray[np.float32], targets: NDArray[np.int64], sources: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Score pairs of rows in double precision, rounded: what the order of sources rests on."""
    scores = np.empty(len(targets))
    for start in range(0, len(targets), _PAIRS_AT_ONCE):
        pairs = slice(start, start + _PAIRS_AT_ONCE)
        t, s = units[targets[pairs]], units[sources[pairs]]
        scores[pairs] = np.einsum("ij,ij->i", t, s, dtype=np.float64)
    return scores.round(_DECIMALS) + 0.0  # without -0.0


def _unit_rows(
    embeddings: Mapping[str, TaskEmbedding] | Iterable[TaskEmbedding],
) -> tuple[list[str], NDArray[np.float32]]:
    """Lay all vectors out as rows whose inner product is the mean over layers of the cosine."""
    if isinstance(embeddings, Mapping):
        tasks = iter(embeddings.items())
    else:
        tasks = ((embedding.name, embedding) for embedding in embeddings)
    names: dict[str, None] = {}
    widths: dict[str, int] = {}
    # Grows in place: a list of rows that is stacked in the end would take the memory twice.
    content = bytearray()
    for name, embedding in tasks:
        if name in names:
            raise ValueError(f"embeddings hold the task {name!r} more than once.")
        names[name] = None
        found = {layer: len(vector) for layer, vector in embedding.vectors.items()}
        widths = widths or found
        for layer in (widths | found) if found != widths else ():
            if found.get(layer) != widths.get(layer):
                raise ValueError(
                    f"embeddings must all have the same layers but layer {layer!r} has "
                    f"{_width(found, layer)} in task {name!r} and {_width(widths, layer)} in "
                    f"task {next(iter(names))!r}: embed both tasks with the same layers."
                )
        for layer in widths:
            vector = embedding.vectors[layer].astype(np.float64)
            norm = float(np.linalg.norm(vector)) * np.sqrt(len(widths))
            content += (vector / (norm or 1.0)).astype(np.float32).tobytes()
    if not names:
        raise ValueError("embeddings must hold at least one task but hold none.")
    units = np.frombuffer(content, dtype=np.float32).reshape(len(names), -1)
    return list(names), units


def _width(widths: Mapping[str, int], layer: str) -> str:
    return f"{widths[layer]} numbers" if layer in widths else "no vector"


def _rows_of(names: list[str], targets: Iterable[str] | None) -> NDArray[np.int64]:
    if targets is None:
        return np.arange(len(names))
    row_of = {name: row for row, name in enumerate(names)}
    wanted = list(dict.fromkeys(targets))
    unknown = [target for target in wanted if target not in row_of]
    if unknown:
        raise ValueError(
            f"targets holds {len(unknown)} tasks without an embedding, such as {unknown[0]!r}: "
            "embed them or leave them out."
        )
    return np.array([row_of[target] for target in wanted], dtype=np.int64)
