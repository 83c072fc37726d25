"""The predictor of transfer gain: a scikit-learn estimator on (source, target) pairs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from transfer_pruner.autologging import unlogged
from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.pairs import (
    attribution_score,
    attribution_terms,
    pair_columns,
    pair_features,
    source_popularity,
)
from transfer_pruner.probability import probability_to_exceed
from transfer_pruner.shapley import shapley_values
from transfer_pruner.tasks import FloatArray, task_name

Tasks = NDArray[np.object_]
_POPULARITY = "source_popularity"


class TransferPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Predict the transfer gain of ordered pairs from attributions and measured transfers.

    Before `fit`, `predict` ranks pairs by `pairs.attribution_score`. After it, the gain s -> t is

    .. math:: \hat g(s, t) = \ell(t) + f(x(s, t))

    where :math:`\ell(t)` is the mean measured gain of the target, shrunk towards the mean over
    targets by one target's worth of evidence (an unseen target gets that mean), and f a ridge
    regression of the gains relative to their target on the standardised features of
    `pairs.pair_features`, the attribution score and the source's popularity on other targets. Ours.
    A regression that cannot split a feature finely, since popularity without a pair's own target
    falls as that pair's own gain rises, which trees find and mistake for knowledge.

    Parameters
    ----------
    embeddings : dict of str to TaskEmbedding, optional
        Task name -> embedding. Left out: measured transfers alone are learnt from.
    target_embeddings : dict of str to TaskEmbedding, optional
        Of the tasks as targets, where the model that a target has (trained on a few labels, say) is
        not the one that the task would be a source with. The same as `embeddings` if left out.
    feature_columns : sequence of str
        Further numeric columns of the tables of pairs that f is given: facts of a task (its size,
        its prevalence) or of a pair (`transferability.logme` of the source's features on the
        target's labels, the score of the source's head there), hyperparameters. NaN where unknown.
    regressor : scikit-learn regressor, optional
        f; it must take missing values. Left out: mean imputation, standardisation and a ridge whose
        penalty is chosen by leave-one-out.
    source_column, target_column : str
        Names of the two columns of a table of pairs.

    Attributes
    ----------
    regressor_ : the fitted f.
    residuals_ : array
        Measured minus predicted gains, each predicted without its own target (by groups of
        targets; by pairs if there are fewer than three targets). `predict_proba` rests on them.
    measured_ : DataFrame
        The transfers learnt from: source, target, gain.

    Examples
    --------
    Leave-target-out cross-validation::

        predictor = TransferPredictor(embeddings)
        cross_val_score(predictor, pairs, gains, groups=pairs["target"], cv=LeaveOneGroupOut())
    """

    def __init__(
        self,
        embeddings: Mapping[str, TaskEmbedding] | None = None,
        *,
        target_embeddings: Mapping[str, TaskEmbedding] | None = None,
        feature_columns: Sequence[str] = (),
        regressor: BaseEstimator | None = None,
        source_column: str = "source",
        target_column: str = "target",
    ) -> None:
        self.embeddings = embeddings
        self.target_embeddings = target_embeddings
        self.feature_columns = feature_columns
        self.regressor = regressor
        self.source_column = source_column
        self.target_column = target_column

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that pairs can be made of: embedded or measured, sorted."""
        known = {*(self.embeddings or ()), *(self.target_embeddings or ())}
        if hasattr(self, "measured_"):
            known |= {*self.measured_["source"], *self.measured_["target"]}
        return sorted({str(task_name(task)) for task in known})

    def fit(self, pairs: pd.DataFrame, gains: ArrayLike) -> Self:
        """Learn from measured transfer gains.

        Parameters
        ----------
        pairs : DataFrame of n_pairs rows
            The two task columns and `feature_columns`; others are ignored. A pair may stand more
            than once. A pair of a task with itself is its single-task baseline and is left out.
        gains : array of shape (n_pairs,)
            Score with transfer minus the single-task baseline. NaN gains are left out with a
            warning that counts them.

        Raises
        ------
        ValueError
            If there is no pair to learn from, a column is missing or lengths differ.
        """
        sources, targets = pair_columns(pairs, self.source_column, self.target_column)
        values = np.asarray(gains, dtype=float)
        if values.shape != (len(pairs),):
            raise ValueError(
                f"gains must have one value for each of the {len(pairs)} pairs but has shape "
                f"{values.shape}."
            )
        finite = np.isfinite(values)
        if not finite.all():
            warnings.warn(
                f"gains has {int((~finite).sum())} NaN or infinite values of {len(values)}: those "
                "pairs are left out.",
                TransferPrunerWarning,
                stacklevel=2,
            )
        usable = finite & pd.notna(sources) & (sources != targets)
        if not usable.any():
            raise ValueError(
                f"pairs must hold at least one ordered pair of two tasks with a finite gain but "
                f"has {len(pairs)} rows, none of them usable."
            )
        measured = pd.DataFrame(
            {"source": sources[usable], "target": targets[usable], "gain": values[usable]}
        )
        self.n_features_in_ = 2
        features = self._features_of(pairs[usable])
        with unlogged():
            self.residuals_ = self._out_of_fold_residuals(measured, features)
            self._learn(measured, features)
        return self

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        """Predict the gain of each pair; before `fit`, score it by attribution.

        Returns
        -------
        array of shape (n_pairs,)
            In units of the gain once fitted. NaN where nothing is known of the pair.
        """
        sources, targets = pair_columns(pairs, self.source_column, self.target_column)
        if not hasattr(self, "measured_"):
            if not self.embeddings:
                raise NotFittedError(
                    "this TransferPredictor has neither embeddings nor measured transfers: pass "
                    "embeddings to rank by attribution, or call fit()."
                )
            return attribution_score(
                pairs,
                self.embeddings,
                self.target_embeddings,
                source=self.source_column,
                target=self.target_column,
            )
        return self._predict(sources, targets, self._features_of(pairs))

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        """Probability that the gain of each pair is positive.

        `probability.probability_to_exceed` 0, by the out-of-fold residuals.

        Returns
        -------
        array of shape (n_pairs,)
            In (0, 1); rises with the predicted gain. NaN where the prediction is, and for every
            pair before `fit`: attributions alone rank pairs, they do not say how many can help.
        """
        predicted = self.predict(pairs)
        if not hasattr(self, "residuals_"):
            return np.full(len(predicted), np.nan)
        return probability_to_exceed(predicted, self.residuals_)

    def features(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Compute what the gain of each pair is predicted from.

        Returns
        -------
        DataFrame
            One row a pair: `pairs.pair_features`, `feature_columns` and, once fitted, the source's
            popularity. NaN where it is not known.
        """
        found = self._features_of(pairs)
        if hasattr(self, "measured_"):
            columns = pair_columns(pairs, self.source_column, self.target_column)
            found[_POPULARITY] = source_popularity(*columns, self.measured_)
        return found

    def contributions(self, pairs: pd.DataFrame) -> tuple[FloatArray, pd.DataFrame]:
        """Take `predict` apart: a base, and what each feature of a pair adds to it.

        Once fitted, what a feature adds is its Shapley value from the mean of the measured pairs
        on, and the base is the target's level and what f says of that mean: exact for the ridge,
        a sample for another `regressor`. Before `fit` they are `pairs.attribution_terms`.

        Returns
        -------
        base : array of shape (n_pairs,)
        contributions : DataFrame
            One row a pair, one column a feature. A row and its base add up to the prediction; NaN
            where that is.
        """
        predicted = self.predict(pairs)
        if not hasattr(self, "measured_"):
            names = {"source": self.source_column, "target": self.target_column}
            terms = attribution_terms(
                pairs, self.embeddings or {}, self.target_embeddings, **names
            ).reset_index(drop=True)
            return np.where(np.isnan(predicted), np.nan, 0.0), terms
        features = self.features(pairs)
        x = features.to_numpy(dtype=float)
        known = ~np.isnan(predicted)
        added = np.full(x.shape, np.nan)
        added[known] = shapley_values(self.regressor_.predict, x[known], self._typical)
        contributions = pd.DataFrame(added, columns=features.columns)
        return predicted - added.sum(axis=1), contributions

    def _features_of(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Take what is known of pairs but for measured transfers, one row a pair."""
        sources, targets = pair_columns(pairs, self.source_column, self.target_column)
        plain = pd.DataFrame({"source": sources, "target": targets}, dtype=object)
        parts = [pd.DataFrame(index=plain.index)]
        if self.embeddings:
            parts.append(pair_features(plain, self.embeddings, self.target_embeddings))
        for column in self.feature_columns:
            if column not in pairs:
                raise ValueError(
                    f"feature_columns names {column!r}, which pairs lacks; it has: "
                    f"{', '.join(map(str, pairs.columns))}."
                )
            parts.append(pd.DataFrame({column: pairs[column].to_numpy(dtype=float)}))
        return pd.concat(parts, axis=1)

    def _learn(self, measured: pd.DataFrame, features: pd.DataFrame) -> None:
        self.measured_ = measured
        by_target = measured.groupby("target")["gain"].agg(["mean", "count"])
        self._level = float(by_target["mean"].mean())
        weight = by_target["count"] / (by_target["count"] + by_target["count"].mean())
        self._levels = (weight * by_target["mean"] + (1 - weight) * self._level).to_dict()
        sources, targets = measured["source"].to_numpy(), measured["target"].to_numpy()
        relative = measured["gain"] - measured["target"].map(by_target["mean"])
        self.regressor_ = clone(self.regressor) if self.regressor is not None else self._ridge()
        x = self._all_features(sources, targets, features)
        there = ~np.isnan(x)
        self._typical = np.where(
            there.any(axis=0), np.nansum(x, axis=0) / np.maximum(there.sum(axis=0), 1), np.nan
        )
        # A single transfer leaves nothing to choose the penalty by: 0 / 0 in its leave-one-out.
        with np.errstate(invalid="ignore"):
            self.regressor_.fit(x, relative.to_numpy())

    def _predict(self, sources: Tasks, targets: Tasks, features: pd.DataFrame) -> FloatArray:
        x = self._all_features(sources, targets, features)
        known = ~np.isnan(x).all(axis=1)
        gains = np.full(len(x), np.nan)
        if known.any():
            gains[known] = self.regressor_.predict(x[known])
        levels = np.array([self._levels.get(target, self._level) for target in targets])
        predicted: FloatArray = gains + levels
        return predicted

    def _all_features(self, sources: Tasks, targets: Tasks, features: pd.DataFrame) -> FloatArray:
        popularity = source_popularity(sources, targets, self.measured_)
        return np.column_stack([features.to_numpy(dtype=float), popularity])

    def _ridge(self) -> BaseEstimator:
        return make_pipeline(
            SimpleImputer(keep_empty_features=True),
            StandardScaler(),
            RidgeCV(alphas=np.logspace(-1, 4, 11)),
        )

    def _out_of_fold_residuals(self, measured: pd.DataFrame, features: pd.DataFrame) -> FloatArray:
        """Predict every measured gain without its own target, as for a target never seen."""
        groups = measured["target"]
        if groups.nunique() >= 3:
            splits = GroupKFold(min(5, groups.nunique())).split(measured, groups=groups)
        elif len(measured) >= 2:
            splits = KFold(min(5, len(measured))).split(measured)
        else:
            return np.zeros(0)
        residuals = np.full(len(measured), np.nan)
        for rest, held_out in splits:
            fold = clone(self)
            fold._learn(
                *(table.iloc[rest].reset_index(drop=True) for table in (measured, features))
            )
            pairs = measured.iloc[held_out]
            predicted = fold._predict(
                pairs["source"].to_numpy(), pairs["target"].to_numpy(), features.iloc[held_out]
            )
            residuals[held_out] = pairs["gain"].to_numpy() - predicted
        known: FloatArray = residuals[np.isfinite(residuals)]
        return known
