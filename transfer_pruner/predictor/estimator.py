"""The predictor of transfer gain: a scikit-learn estimator on (source, target) pairs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, Self, overload

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError

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
from transfer_pruner.predictor.design import Design, Rows, alike_tasks, looked_up
from transfer_pruner.predictor.process import (
    SCORE,
    SCORE_WEIGHT,
    fitted_process,
    spreads,
    without_collapse,
)
from transfer_pruner.predictor.regression import Regression
from transfer_pruner.probability import probability_to_exceed
from transfer_pruner.tasks import FloatArray, task_name

Tasks = NDArray[np.object_]
_POPULARITY, _SIMILAR = "source_popularity", "similar_pairs"
_BLOCK = 2000
"""Pairs that are predicted at once, which bounds the memory."""


class TransferPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""Predict the transfer gain of ordered pairs from attributions and measured transfers.

    Before `fit`, `predict` ranks pairs by `pairs.attribution_score`. After it, the gain s -> t is a
    Gaussian process over pairs, in units of the target's spread :math:`\sigma_t` (shrunk towards
    that of all targets):

    .. math:: g(s, t) / \sigma_t = \ell(t) + x(s, t)^T w + w_t a(s, t) + u(s) + v(s, t) + e

    where a is the attribution score within its target, whose weight is positive before anything is
    measured and is given up where the measured gains speak against it; x are the other features,
    each standardised within its target; the source's effect u, its popularity, has the covariance
    :math:`\alpha + \beta K(s, s')`, and the interaction v
    :math:`\gamma K(s, s') K(t, t') + \delta`. K is how alike two tasks' outputs change on the probe
    examples. The variances are those of the highest likelihood under wide priors. So with few
    transfers it ranks as the attribution score does, and leaves that on evidence only. Ours.

    Fitting is exact: the variances on at most 400 rows, the posterior on all, in the cube of their
    number; equal rows (a pair that was measured several times, with equal features) are one row.

    Parameters
    ----------
    embeddings : dict of str to TaskEmbedding, optional
        Task name -> embedding. Left out: measured transfers alone are learnt from.
    target_embeddings : dict of str to TaskEmbedding, optional
        Of the tasks as targets, where the model that a target has (trained on a few labels, say) is
        not the one that the task would be a source with. The same as `embeddings` if left out.
    feature_columns : sequence of str
        Further numeric columns of the tables of pairs that x is given: facts of a task (its size,
        its prevalence) or of a pair (`transferability.logme` of the source's features on the
        target's labels, the score of the source's head there), hyperparameters. NaN where unknown.
        One that is called ``attribution_score`` is a.
    similarity : DataFrame or pair of DataFrame, optional
        K, task by task, in [-1, 1]: of sources and of targets if two. That of `embeddings` if left
        out; without either, no two tasks are alike.
    regressor : scikit-learn regressor, optional
        Learns the gains relative to their target in place of the Gaussian process, from the same
        features and the source's popularity; it must take missing values.
    source_column, target_column : str
        Names of the two columns of a table of pairs.

    Attributes
    ----------
    regressor_ : the fitted process, or the fitted `regressor`.
    theta_ : array
        Logarithms of the fitted variances; empty with a `regressor`.
    measured_ : DataFrame
        The transfers learnt from: source, target, gain.

    Examples
    --------
    Before any transfer was measured, it ranks pairs by their attributions:

    >>> import pandas as pd
    >>> from transfer_pruner import TaskEmbedding, TransferPredictor
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> TransferPredictor(embeddings).predict(pairs).round(2)
    array([0.95, 0.  ])

    Afterwards it predicts gains:

    >>> predictor = TransferPredictor(embeddings).fit(pairs, [0.04, -0.03])
    >>> predictor.predict_proba(pairs) > 0.5
    array([ True, False])
    """

    def __init__(
        self,
        embeddings: Mapping[str, TaskEmbedding] | None = None,
        *,
        target_embeddings: Mapping[str, TaskEmbedding] | None = None,
        feature_columns: Sequence[str] = (),
        similarity: pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame] | None = None,
        regressor: BaseEstimator | None = None,
        source_column: str = "source",
        target_column: str = "target",
    ) -> None:
        self.embeddings = embeddings
        self.target_embeddings = target_embeddings
        self.feature_columns = feature_columns
        self.similarity = similarity
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

    def fit(
        self,
        pairs: pd.DataFrame,
        gains: ArrayLike,
        *,
        candidates: pd.DataFrame | None = None,
        theta: ArrayLike | None = None,
    ) -> Self:
        """Learn from measured transfer gains.

        Parameters
        ----------
        pairs : DataFrame of n_pairs rows
            The two task columns and `feature_columns`; others are ignored. A pair may stand more
            than once. A pair of a task with itself is its single-task baseline and is left out;
            so are transfers from several sources at once.
        gains : array of shape (n_pairs,)
            Score with transfer minus the single-task baseline. NaN gains are left out with a
            warning that counts them. Losses of more than 20 times the median size of a gain, such
            as of a training that diverged, count as that.
        candidates : DataFrame, optional
            The pairs that will be predicted, with the same columns: features and the score are
            standardised within their target over them. Left out, over the pairs of the
            embedded tasks, and `feature_columns` over `pairs`.
        theta : array, optional
            A `theta_` that was fitted before, which is taken as it is. Empty: the prior's.

        Raises
        ------
        ValueError
            If there is no pair to learn from, a column is missing or lengths differ.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
        >>> predictor.measured_["gain"].tolist()
        [0.04, -0.02]
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
        several = np.array([isinstance(source, tuple) for source in sources], dtype=bool)
        usable = finite & ~several & pd.notna(sources) & (sources != targets)
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
        learnt = measured.assign(gain=without_collapse(values[usable]))
        with unlogged():
            if self.regressor is not None:
                self._regression = Regression(self.regressor, learnt, features)
                self.regressor_ = self._regression.fitted
                self.theta_ = np.zeros(0)
            else:
                self._learn(learnt, features, candidates, theta)
        self.measured_ = measured
        return self

    @overload
    def predict(self, pairs: pd.DataFrame, return_std: Literal[False] = False) -> FloatArray: ...

    @overload
    def predict(
        self, pairs: pd.DataFrame, return_std: Literal[True]
    ) -> tuple[FloatArray, FloatArray]: ...

    def predict(
        self, pairs: pd.DataFrame, return_std: bool = False
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Predict the gain of each pair; before `fit`, score it by attribution.

        Parameters
        ----------
        pairs : DataFrame of n_pairs rows
        return_std : bool
            Whether to return the standard deviation of each gain, measured once, too.

        Returns
        -------
        array of shape (n_pairs,), or two
            In units of the gain once fitted. NaN where nothing is known of the pair; the standard
            deviation is NaN before `fit` too.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
        >>> gains, spread = predictor.predict(pairs, return_std=True)
        >>> bool(gains[0] > gains[1])
        True
        """
        mean, std = self._mean_and_std(pairs, return_std)
        return (mean, std) if return_std else mean

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        """Probability that the gain of each pair, measured once, is positive.

        Returns
        -------
        array of shape (n_pairs,)
            In [0, 1]. NaN where the prediction is, and for every pair before `fit`: attributions
            alone rank pairs, they do not say how many can help.

        Examples
        --------
        >>> import pandas as pd
        >>> from transfer_pruner import TransferPredictor
        >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
        >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
        >>> predictor.predict_proba(pairs) > 0.5
        array([ True, False])
        """
        return probability_to_exceed(*self._mean_and_std(pairs, True))

    def covariance(self, pairs: pd.DataFrame) -> FloatArray:
        """Covariance of the pairs' gains, given what was measured; of their means over repeats.

        Returns
        -------
        array of shape (n_pairs, n_pairs)

        Raises
        ------
        NotFittedError
            Before `fit`, and of a `regressor`, which tells no covariance.
        """
        design = self._design_of(pairs)
        if not len(pairs):
            return np.zeros((0, 0))
        _, covariance = self.regressor_.predict(design.rows, return_cov=True)
        # Among themselves the rows are taken for measurements, with noise.
        covariance = covariance - self.regressor_.kernel_.noise * np.eye(len(pairs))
        scale = self._scale_of(design.targets)
        found: FloatArray = covariance * np.outer(scale, scale)
        return found

    def features(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Compute what the gain of each pair is predicted from.

        Returns
        -------
        DataFrame
            One row a pair: `pairs.pair_features`, `feature_columns` and, once fitted, the source's
            ``source_popularity`` and, of the Gaussian process, ``similar_pairs``: the gain, beyond
            all that, that is known from this pair and from pairs of tasks like its own. NaN where
            it is not known.
        """
        found = self._features_of(pairs)
        if hasattr(self, "measured_"):
            columns = pair_columns(pairs, self.source_column, self.target_column)
            found[_POPULARITY] = source_popularity(*columns, self.measured_)
            if self.regressor is None:
                found[_SIMILAR] = self._parts(pairs)[_SIMILAR]
        return found

    def contributions(self, pairs: pd.DataFrame) -> tuple[FloatArray, pd.DataFrame]:
        """Take `predict` apart: a base, and what each feature of a pair adds to it.

        Once fitted, the base is the target's level, and what a feature adds is the posterior mean
        of its effect; of another `regressor`, its Shapley value from the mean of the measured pairs
        on, a sample. Before `fit` they are `pairs.attribution_terms`.

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
        if self.regressor is not None:
            features = self.features(pairs)
            added = self._regression.shapley_values(features.to_numpy(dtype=float))
            return predicted - added.sum(axis=1), pd.DataFrame(added, columns=features.columns)
        parts = self._parts(pairs)
        parts[np.isnan(predicted)] = np.nan
        return parts.pop("").to_numpy(), parts

    def _parts(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Posterior means of the effects on each pair, in units of the gain; "" is the target's."""
        design = self._design_of(pairs)
        process, kernel = self.regressor_, self.regressor_.kernel_
        effects = {
            name: values @ process.alpha_
            for name, values in kernel.effects(design.rows, process.X_train_)
        }

        def added(*names: str) -> FloatArray:
            total = np.zeros(len(pairs))
            for name in names:
                total += effects.get(name, 0.0)
            return total

        parts = {"": added("mean", "target"), **design.linear(kernel, process)}
        if design.scored:
            of_score = self._score_weight * design.rows[:, SCORE]
            parts["attribution_score"] = of_score + added("score", "slope")
        columns = ["", *self._features_of(pairs.iloc[:0]).columns]
        table = pd.DataFrame(parts)[columns]
        table[_POPULARITY] = added("source", "source_alike")
        table[_SIMILAR] = added("interaction", "pair")
        return table.mul(self._scale_of(design.targets), axis=0)

    def _mean_and_std(self, pairs: pd.DataFrame, return_std: bool) -> tuple[FloatArray, FloatArray]:
        sources, targets = pair_columns(pairs, self.source_column, self.target_column)
        if hasattr(self, "measured_"):
            return self._posterior(sources, targets, self._features_of(pairs), return_std)
        if not self.embeddings:
            raise NotFittedError(
                "this TransferPredictor has neither embeddings nor measured transfers: pass "
                "embeddings to rank by attribution, or call fit()."
            )
        scores = attribution_score(
            pairs,
            self.embeddings,
            self.target_embeddings,
            source=self.source_column,
            target=self.target_column,
        )
        return scores, np.full(len(scores), np.nan)

    def _learn(
        self,
        measured: pd.DataFrame,
        features: pd.DataFrame,
        candidates: pd.DataFrame | None,
        theta: ArrayLike | None,
    ) -> None:
        sources, targets = measured["source"].to_numpy(), measured["target"].to_numpy()
        alike = alike_tasks(self.similarity, self.embeddings, self.target_embeddings)
        self._design = Design(
            alike,
            self._yardstick(features, targets, candidates),
            self._scored(),
            [*sources, *targets],
        )
        self._scales, self._scale = spreads(targets, measured["gain"].to_numpy())
        self._sources = frozenset(sources)
        design = self._design(sources, targets, features)
        gains = measured["gain"].to_numpy() / self._scale_of(targets)
        gains = gains - SCORE_WEIGHT * design.rows[:, SCORE]
        kernel = self._design.kernel()
        given = None if theta is None else np.asarray(theta, dtype=float)
        if given is not None and not given.size:
            given = kernel.theta
        self.regressor_ = fitted_process(design.rows, gains, kernel, given)
        self.theta_ = self.regressor_.kernel_.theta
        self._score_weight = self.regressor_.weigh_score()

    def _yardstick(
        self, features: pd.DataFrame, targets: Tasks, candidates: pd.DataFrame | None
    ) -> pd.DataFrame:
        """Take the features of the pairs that features are standardised over, and their target."""
        if candidates is not None:
            _, named = pair_columns(candidates, self.source_column, self.target_column)
            return self._features_of(candidates).assign(**{"": named})
        own = features.assign(**{"": targets})
        if not self.embeddings:
            return own
        of_target = self.embeddings if self.target_embeddings is None else self.target_embeddings
        pairs = [(s, t) for t in sorted(of_target) for s in sorted(self.embeddings) if s != t]
        if not pairs:
            return own
        # Every so many of very many pairs: means and spreads take no more.
        table = pd.DataFrame(pairs[:: 1 + len(pairs) // 5000], columns=["source", "target"])
        known = pair_features(table, self.embeddings, self.target_embeddings)
        further = own[[*self.feature_columns]]
        return pd.concat([known.assign(**{"": table["target"]}), further], ignore_index=True)

    def _posterior(
        self, sources: Tasks, targets: Tasks, features: pd.DataFrame, return_std: bool
    ) -> tuple[FloatArray, FloatArray]:
        if self.regressor is not None:
            return self._regression(sources, targets, features)
        design = self._design(sources, targets, features)
        known = ~features.isna().all(axis=1).to_numpy()
        known |= looked_up(sources, dict.fromkeys(self._sources, 1.0), 0.0) > 0
        mean, variance = np.full((2, len(sources)), np.nan)
        for part in np.array_split(np.flatnonzero(known), 1 + int(known.sum()) // _BLOCK):
            if not len(part):
                continue
            rows = design.rows[part]
            if return_std:
                mean[part], std = self.regressor_.predict(rows, return_std=True)
                variance[part] = std**2
            else:
                mean[part] = self.regressor_.predict(rows)
        scale = self._scale_of(targets)
        mean = (mean + self._score_weight * design.rows[:, SCORE]) * scale
        return mean, np.sqrt(variance + self.regressor_.kernel_.noise) * scale

    def _design_of(self, pairs: pd.DataFrame) -> Rows:
        if not hasattr(self, "_design") or self.regressor is not None:
            raise NotFittedError(
                "this TransferPredictor has no fitted Gaussian process: call fit(), without a "
                "regressor of your own."
            )
        sources, targets = pair_columns(pairs, self.source_column, self.target_column)
        return self._design(sources, targets, self._features_of(pairs))

    def _scale_of(self, targets: Tasks) -> FloatArray:
        return looked_up(targets, self._scales, self._scale)

    def _scored(self) -> bool:
        return bool(self.embeddings) or "attribution_score" in self.feature_columns

    def _features_of(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Take what is known of pairs but for measured transfers, one row a pair."""
        sources, targets = pair_columns(pairs, self.source_column, self.target_column)
        plain = pd.DataFrame({"source": sources, "target": targets}, dtype=object)
        parts = [pd.DataFrame(index=plain.index)]
        if self.embeddings:
            parts.append(pair_features(plain, self.embeddings, self.target_embeddings))
        if isinstance(self.feature_columns, str):
            raise ValueError(
                f"feature_columns must be a list of names but got {self.feature_columns!r}: write "
                f"[{self.feature_columns!r}]."
            )
        columns = list(self.feature_columns)
        missing = [column for column in columns if column not in pairs]
        if missing:
            raise ValueError(
                f"feature_columns names {missing[0]!r}, which pairs lacks; it has: "
                f"{', '.join(map(str, pairs.columns))}."
            )
        if columns:
            parts.append(pd.DataFrame({name: _numbers(pairs[name]) for name in columns}))
            ours = [*parts[-2].columns, *columns]
            if twice := next((name for name in columns if ours.count(name) > 1), None):
                raise ValueError(
                    f"feature_columns names {twice!r}, which is there already, as a feature by "
                    "embeddings or another column: give it another name."
                )
        return pd.concat(parts, axis=1)


def _numbers(column: pd.Series) -> FloatArray:
    try:
        numbers: FloatArray = column.to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"feature_columns names {column.name!r}, which must hold numbers: {error}. Write what "
            "is unknown as NaN, and a category as a column of 0 and 1 each."
        ) from error
    return numbers
