"""From pairs and their features to the rows that the Gaussian process takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.embedding import CHANGES, TaskEmbedding
from transfer_pruner.predictor.process import (
    FEATURES,
    SCORE,
    PairKernel,
    PairProcess,
    first_kernel,
    nearest_correlation,
)
from transfer_pruner.tasks import FloatArray

_SCORE = "attribution_score"
Similarity = pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class Rows:
    """Pairs as rows of a design, and what their columns are."""

    rows: FloatArray
    targets: NDArray[np.object_]
    features: list[str]
    scored: bool

    def linear(self, kernel: PairKernel, process: PairProcess) -> dict[str, FloatArray]:
        """Tell what every feature adds: its value times its weight's posterior mean."""
        if not self.features:
            return {}
        variance = np.exp(kernel.log_variances[2])
        weights = variance * process.X_train_[:, FEATURES:].T @ process.alpha_
        return dict(zip(self.features, (self.rows[:, FEATURES:] * weights).T, strict=True))


class Design:
    """Turns pairs into rows: numbers of their tasks, the score and features on a yardstick.

    Parameters
    ----------
    alike : two DataFrames
        As of `alike_tasks`.
    yardstick : DataFrame
        Features of the pairs that they are standardised over, and a column "" of their targets.
    scored : bool
        Whether one of the features is the attribution score.
    tasks : iterable of str
        Those that were measured.
    """

    def __init__(
        self,
        alike: tuple[pd.DataFrame, pd.DataFrame],
        yardstick: pd.DataFrame,
        scored: bool,
        tasks: Iterable[str],
    ) -> None:
        of_sources, of_targets = alike
        known = sorted({*of_sources.index, *of_targets.index})
        sources = _correlation(of_sources, known)
        same = of_targets.equals(of_sources)
        self._alike = sources, sources if same else _correlation(of_targets, known)
        names = dict.fromkeys([*known, *sorted(set(tasks))])
        self._numbers = {name: number for number, name in enumerate(names)}
        self._scored = scored
        self.features = [str(name) for name in yardstick.columns if name not in ("", _SCORE)]
        values = yardstick[self.features].to_numpy(dtype=float)
        self._mean, self._std = _mean_and_spread(values)
        if scored:
            score = yardstick[_SCORE].astype(float)
            centres = score.groupby(yardstick[""]).mean().dropna()
            self._centres = centres.to_dict()
            self._centre = float(score.mean()) if score.notna().any() else 0.0
            within = score.to_numpy() - yardstick[""].map(self._centres).to_numpy(dtype=float)
            self._spread = float(_mean_and_spread(within[:, None], abs(self._centre))[1][0])

    def __call__(
        self, sources: NDArray[np.object_], targets: NDArray[np.object_], features: pd.DataFrame
    ) -> Rows:
        """Make the rows of pairs; a feature that is not known is an average one."""
        rows = np.ones((len(sources), FEATURES + len(self.features)))
        rows[:, 0], rows[:, 1] = self._number(sources), self._number(targets)
        rows[:, SCORE] = 0.0
        if self._scored:
            centres = looked_up(targets, self._centres, self._centre)
            score = features[_SCORE].to_numpy(dtype=float)
            rows[:, SCORE] = np.nan_to_num((score - centres) / self._spread)
        values = (features[self.features].to_numpy(dtype=float) - self._mean) / self._std
        rows[:, FEATURES:] = np.nan_to_num(values)
        return Rows(rows, targets, self.features, self._scored)

    def kernel(self) -> PairKernel:
        """Make the kernel over these rows, before anything was measured."""
        return first_kernel(*self._alike, len(self.features), self._scored)

    def _number(self, tasks: NDArray[np.object_]) -> NDArray[np.intp]:
        """Give tasks their numbers; those that were never seen have some beyond the others."""
        found = looked_up(tasks, self._numbers, -1).astype(int)
        codes, _ = pd.factorize(tasks[found < 0])
        found[found < 0] = len(self._numbers) + codes
        return found


def looked_up(
    tasks: NDArray[np.object_], values: Mapping[Any, float], otherwise: float
) -> FloatArray:
    """Look a number of every task up, each task once."""
    codes, names = pd.factorize(tasks, use_na_sentinel=False)
    found = np.array([values.get(name, otherwise) for name in names], dtype=float)
    return found[codes]


def alike_tasks(
    similarity: Similarity | None,
    embeddings: Mapping[str, TaskEmbedding] | None,
    target_embeddings: Mapping[str, TaskEmbedding] | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take how alike sources are, and targets: as given, else by their embeddings.

    Raises
    ------
    ValueError
        If `similarity` is no square table of finite numbers.
    """
    if similarity is None:
        of_sources = output_similarity(embeddings or {})
        if target_embeddings is None:
            return of_sources, of_sources
        return of_sources, output_similarity(target_embeddings)
    tables = similarity if isinstance(similarity, tuple) else (similarity, similarity)
    for table in tables:
        if not isinstance(table, pd.DataFrame) or list(table.index) != list(table.columns):
            raise ValueError(
                "similarity must be a DataFrame with the same tasks as index and as columns, or "
                f"two of them, but got {similarity!r}."
            )
        if not np.isfinite(table.to_numpy(dtype=float)).all():
            raise ValueError("similarity must hold finite numbers; leave out unknown tasks.")
    return tables[0], tables[-1]


def output_similarity(embeddings: Mapping[str, TaskEmbedding]) -> pd.DataFrame:
    """Pearson's correlation of what the probe examples change the tasks' outputs by.

    Returns
    -------
    DataFrame
        Square, of the tasks that were embedded on the probe that most were.
    """
    changes: dict[tuple[str, int], dict[str, FloatArray]] = {}
    for task in sorted(embeddings):
        values = embeddings[task].signals.get(CHANGES)
        if values is None:
            continue
        flat = np.asarray(values, dtype=float).ravel()
        if np.ptp(flat) > 0:
            probe = str(embeddings[task].provenance.get("probe")), len(flat)
            changes.setdefault(probe, {})[task] = flat
    if not changes:
        return pd.DataFrame(dtype=float)
    shared = max(changes.values(), key=len)
    return pd.DataFrame(np.atleast_2d(np.corrcoef([*shared.values()])), [*shared], [*shared])


def _correlation(table: pd.DataFrame, tasks: list[str]) -> FloatArray:
    there = table.reindex(index=tasks, columns=tasks).to_numpy(dtype=float)
    return nearest_correlation(there)


def _mean_and_spread(values: FloatArray, size: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of columns; 0 and 1 where there is none but rounding."""
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / count
    spread = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / count)
    return mean, np.where(spread > 1e-9 * np.maximum(np.abs(mean), size), spread, 1.0)
