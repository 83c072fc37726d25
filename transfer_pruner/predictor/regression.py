"""A regressor of the user's in place of the Gaussian process."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GroupKFold, KFold

from transfer_pruner.pairs import source_popularity
from transfer_pruner.shapley import shapley_values
from transfer_pruner.tasks import FloatArray

Tasks = NDArray[np.object_]


class Regression:
    r"""Predict :math:`\ell(t) + f(x(s, t))`, f any regressor, with one spread for all pairs.

    :math:`\ell(t)` is the mean measured gain of the target, shrunk towards the mean over targets by
    one target's worth of evidence (an unseen target gets that mean); f learns the gains relative to
    their target from the features and the source's popularity on other targets. The spread is the
    root mean square of what gains are missed by without their own target.

    Parameters
    ----------
    regressor : scikit-learn regressor
        f; a clone is fitted.
    measured : DataFrame
        Columns source, target, gain.
    features : DataFrame
        One row for each of `measured`.
    """

    def __init__(
        self, regressor: BaseEstimator, measured: pd.DataFrame, features: pd.DataFrame
    ) -> None:
        self._learn(regressor, measured, features)
        missed = self._missed(regressor, measured, features)
        self._std = float(np.sqrt(np.mean(missed**2))) if len(missed) else np.nan

    def __call__(
        self, sources: Tasks, targets: Tasks, features: pd.DataFrame
    ) -> tuple[FloatArray, FloatArray]:
        """Predict gains and their standard deviations; NaN where nothing is known of a pair."""
        gains = self._mean(sources, targets, features)
        return gains, np.where(np.isnan(gains), np.nan, self._std)

    def shapley_values(self, x: FloatArray) -> FloatArray:
        """Split what f says of rows over their features, from the mean of the measured pairs on."""
        found = np.full(x.shape, np.nan)
        known = ~np.isnan(x).all(axis=1)
        found[known] = shapley_values(self._predict, x[known], self._typical)
        return found

    def _predict(self, x: FloatArray) -> FloatArray:
        predicted: FloatArray = self.fitted.predict(self._without_unknown(x))
        return predicted

    def _without_unknown(self, x: FloatArray) -> FloatArray:
        """Make features constant of which no measured pair had a value.

        Regressors that take missing values fail where nothing else is there.
        """
        return np.where(np.isnan(self._typical), 0.0, x)

    def _mean(self, sources: Tasks, targets: Tasks, features: pd.DataFrame) -> FloatArray:
        popularity = source_popularity(sources, targets, self._measured)
        x = np.column_stack([features.to_numpy(dtype=float), popularity])
        known = ~np.isnan(x).all(axis=1)
        gains = np.full(len(x), np.nan)
        if known.any():
            gains[known] = self._predict(x[known])
        levels = np.array([self._levels.get(target, self._level) for target in targets])
        mean: FloatArray = gains + levels
        return mean

    def _learn(
        self, regressor: BaseEstimator, measured: pd.DataFrame, features: pd.DataFrame
    ) -> None:
        self._measured = measured
        by_target = measured.groupby("target")["gain"].agg(["mean", "count"])
        self._level = float(by_target["mean"].mean())
        weight = by_target["count"] / (by_target["count"] + by_target["count"].mean())
        self._levels = (weight * by_target["mean"] + (1 - weight) * self._level).to_dict()
        sources, targets = measured["source"].to_numpy(), measured["target"].to_numpy()
        popularity = source_popularity(sources, targets, measured)
        x = np.column_stack([features.to_numpy(dtype=float), popularity])
        there = ~np.isnan(x)
        self._typical = np.where(
            there.any(axis=0), np.nansum(x, axis=0) / np.maximum(there.sum(axis=0), 1), np.nan
        )
        relative = measured["gain"] - measured["target"].map(by_target["mean"])
        self.fitted = clone(regressor).fit(self._without_unknown(x), relative.to_numpy())

    def _missed(
        self, regressor: BaseEstimator, measured: pd.DataFrame, features: pd.DataFrame
    ) -> FloatArray:
        """Predict every measured gain without its own target, as for a target never seen."""
        groups = measured["target"]
        if groups.nunique() >= 3:
            splits = GroupKFold(min(5, groups.nunique())).split(measured, groups=groups)
        elif len(measured) >= 2:
            splits = KFold(min(5, len(measured))).split(measured)
        else:
            return np.zeros(0)
        missed = np.full(len(measured), np.nan)
        for rest, held_out in splits:
            fold = object.__new__(Regression)
            tables = (table.iloc[rest].reset_index(drop=True) for table in (measured, features))
            fold._learn(regressor, *tables)
            pairs = measured.iloc[held_out]
            predicted = fold._mean(
                pairs["source"].to_numpy(), pairs["target"].to_numpy(), features.iloc[held_out]
            )
            missed[held_out] = pairs["gain"].to_numpy() - predicted
        known: FloatArray = missed[np.isfinite(missed)]
        return known
