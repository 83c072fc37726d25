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
    spreads,
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
        columns = [*self.features, *([_SCORE] if scored else [])]
        codes, targets = pd.factorize(yardstick[""].to_numpy(), use_na_sentinel=False)
        self._yardsticks = {
            name: _Yardstick(
                yardstick[name].to_numpy(dtype=float), codes, targets, one_scale=name == _SCORE
            )
            for name in columns
        }

    def __call__(
        self, sources: NDArray[np.object_], targets: NDArray[np.object_], features: pd.DataFrame
    ) -> Rows:
        """Make the rows of pairs; a feature that is not known is an average one."""
        rows = np.ones((len(sources), FEATURES + len(self.features)))
        rows[:, 0], rows[:, 1] = self._number(sources), self._number(targets)
        rows[:, SCORE] = 0.0
        places = {_SCORE: SCORE} if self._scored else {}
        places |= {name: FEATURES + place for place, name in enumerate(self.features)}
        codes, of_codes = pd.factorize(targets, use_na_sentinel=False)
        for name, place in places.items():
            values = features[name].to_numpy(dtype=float)
            rows[:, place] = self._yardsticks[name](values, codes, of_codes)
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


class _Yardstick:
    """Standardises a feature: centred within its target, in units of its spread within targets.

    What tells a target's sources apart is how they differ from each other: LogME of one target says
    nothing beside that of another one, and has another scale. So the unit is a target's own spread,
    shrunk as that of its gains is; of the attribution score, whose scale is the same for all, it is
    that of all targets. A target that is not known is centred at the mean of all.
    """

    def __init__(
        self,
        values: FloatArray,
        codes: NDArray[np.intp],
        targets: NDArray[np.object_],
        *,
        one_scale: bool,
    ) -> None:
        there = np.isfinite(values)
        values, codes = values[there], codes[there]
        counts = np.bincount(codes, minlength=len(targets))
        means = np.bincount(codes, values, minlength=len(targets)) / np.maximum(counts, 1)
        known = np.flatnonzero(counts)
        self._centres = dict(zip(targets[known], means[known].tolist(), strict=True))
        self._centre = float(values.mean()) if len(values) else 0.0
        within = values - means[codes]
        # Rounding is no spread: divided by infinity, such values are average ones.
        size = float(np.abs(values).max(initial=0.0))
        self._spread = float(np.sqrt(np.mean(within**2))) if len(values) else 0.0
        self._spreads: dict[Any, float] = {}
        if not self._spread > 1e-9 * size:
            self._spread = np.inf
        elif not one_scale:
            own, _ = spreads(codes, within)
            self._spreads = {targets[int(code)]: value for code, value in own.items()}

    def __call__(
        self, values: FloatArray, codes: NDArray[np.intp], targets: NDArray[np.object_]
    ) -> FloatArray:
        """Standardise; a value that is not known is an average one."""
        centres = np.array([self._centres.get(target, self._centre) for target in targets])
        units = np.array([self._spreads.get(target, self._spread) for target in targets])
        with np.errstate(invalid="ignore"):
            standard = (values - centres[codes]) / units[codes]
        return np.where(np.isfinite(values), standard, 0.0)


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
