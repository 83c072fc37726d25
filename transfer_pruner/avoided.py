"""What trials that did not run would have taken, from those that did: the model of their cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.autologging import unlogged
from transfer_pruner.records import TrialRecord
from transfer_pruner.tasks import FloatArray


class AvoidedSeconds:
    """Seconds of trials that did not run: a mean, and draws of a bootstrap.

    Parameters
    ----------
    trained : sequence of TrialRecord
    n_resamples, seed : int
    """

    def __init__(self, trained: Sequence[TrialRecord], n_resamples: int, seed: int) -> None:
        self._trained = trained
        self._seconds = np.array([record.seconds for record in trained])
        self._n = n_resamples
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._factor: FloatArray | None = None

    def of_eliminated(self, eliminated: Sequence[TrialRecord]) -> tuple[float, FloatArray]:
        """Estimate by their hyperparameters, of which a tree groups those of similar duration."""
        if not eliminated:
            return 0.0, np.zeros(self._n)
        if not len(self._seconds):
            return math.nan, np.full(self._n, math.nan)
        groups = self._groups(eliminated)
        of_trained, of_eliminated = np.split(groups, [len(self._seconds)])
        mean, draws = 0.0, np.zeros(self._n)
        for group, count in zip(*np.unique(of_eliminated, return_counts=True), strict=True):
            added, drawn = self._several(self._seconds[of_trained == group], count)
            mean += added
            draws += drawn
        return mean, draws * self._another_time(of_trained)

    def of_any(self, count: int) -> tuple[float, FloatArray]:
        """Estimate a number of trials of which nothing is known; fewer than none are a loss."""
        if not count:
            return 0.0, np.zeros(self._n)
        if not len(self._seconds):
            return math.nan, np.full(self._n, math.nan)
        with_source = np.array([r.source is not None for r in self._trained])
        seconds = self._seconds[with_source] if with_source.any() else self._seconds
        mean, draws = self._several(seconds, count)
        return mean, draws * self._another_time(self._groups([]))

    def _groups(self, more: Sequence[TrialRecord]) -> NDArray[np.int64]:
        """Tell the group of every trained trial, and of more trials."""
        from sklearn.tree import DecisionTreeRegressor

        settings = pd.DataFrame([dict(r.hyperparameters) for r in [*self._trained, *more]])
        encoded = np.zeros((len(settings), 1))
        if len(settings.columns):
            encoded = np.column_stack([_encoded(settings[name]) for name in settings])
        # Five trials are enough to average over and few enough to tell the settings apart.
        tree = DecisionTreeRegressor(min_samples_leaf=5, random_state=self._seed)
        n = len(self._seconds)
        with unlogged():
            groups: NDArray[np.int64] = tree.fit(encoded[:n], self._seconds).apply(encoded)
        return groups

    def _several(self, alike: FloatArray, count: int) -> tuple[float, FloatArray]:
        """Estimate what so many trials take that are like these."""
        # Uncertain twice over: of the group's mean, and of the trials that did not run.
        means = self._rng.choice(alike, (self._n, len(alike))).mean(axis=1)
        spread = alike.std(ddof=1) if len(alike) > 1 else 0.0
        noise = self._rng.normal(0.0, spread * math.sqrt(abs(count)), self._n)
        return float(count * alike.mean()), count * means + noise

    def _another_time(self, groups: NDArray[np.int64]) -> FloatArray:
        """Draw the machine's factor once: all that did not run would run at one time."""
        if self._factor is None:
            means = pd.Series(self._seconds).groupby(groups).transform("mean").to_numpy()
            order = np.argsort([record.number for record in self._trained], kind="stable")
            # Trials that took no time at all cannot tell how unsteady the machine is.
            order = order[means[order] > 0]
            self._factor = _another_time(self._seconds[order] / means[order], self._n, self._rng)
        return self._factor


def distinct_trials(
    eliminated: Iterable[TrialRecord], but: Iterable[TrialRecord]
) -> list[TrialRecord]:
    """Take each setting of a pair once, without those that trained."""

    def point(record: TrialRecord) -> tuple[Any, ...]:
        settings = sorted((name, repr(value)) for name, value in record.hyperparameters.items())
        return record.source, record.target, tuple(settings)

    seen = {point(record) for record in but}
    once: dict[tuple[Any, ...], TrialRecord] = {}
    for record in eliminated:
        once.setdefault(point(record), record)
    return [record for at, record in once.items() if at not in seen]


def _another_time(relative: FloatArray, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """Draw by what factor the machine of another time differs from the one that was measured.

    `relative` are seconds by the mean of trials alike, in order. Stretches of a search that differ
    by more than their trials' spread explains tell how unsteady the machine is; the eliminated
    trials are one stretch more.
    """
    n = min(5, len(relative) // 5)
    if n < 2:
        return np.ones(n_resamples)
    stretches = np.array_split(relative, n)
    means = np.array([stretch.mean() for stretch in stretches])
    by_chance = np.mean([stretch.var(ddof=1) / len(stretch) for stretch in stretches])
    unsteady = math.sqrt(max(0.0, means.var(ddof=1) - by_chance))
    factor = 1 + unsteady * math.sqrt(1 + 1 / n) * rng.standard_t(n - 1, n_resamples)
    return np.maximum(factor, 0.0)


def _encoded(values: pd.Series) -> FloatArray:
    """Numbers as they are, anything else by the order of its text; missing ones below all."""
    # A tree takes 32 bits: infinity, and what is as good as that, is the largest number.
    numbers = pd.to_numeric(values, errors="coerce").astype(float).clip(-3e38, 3e38)
    if numbers.isna().equals(values.isna()):
        below = max(numbers.min() - 1, -3e38) if numbers.notna().any() else 0.0
        return np.asarray(numbers.fillna(below), dtype=np.float64)
    return pd.factorize(values.astype(str), sort=True)[0].astype(float)
