"""A Gaussian process over ordered pairs: its kernel, its priors, and gains on a common scale.

What it must satisfy: exact and deterministic, in any order of the measured transfers; and where
nothing was measured it says what the attribution score says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel

from transfer_pruner.autologging import unlogged
from transfer_pruner.tasks import FloatArray

VARIANCES: Mapping[str, float] = {
    "mean": 4.0,
    "target": 0.5,
    "features": 0.003,
    "score": 0.05,
    "slope": 0.05,
    "source": 0.03,
    "source_alike": 0.03,
    "interaction": 0.5,
    "pair": 0.1,
    "noise": 0.3,
}
"""Prior variance of every effect, of gains in standard deviations of their target."""
SCORE_WEIGHT = 0.5
"""Prior mean of what one standard deviation of the attribution score adds."""
SCORE_WEIGHTS: Mapping[float, float] = {SCORE_WEIGHT: 0.5, SCORE_WEIGHT / 2: 0.25, 0.0: 0.25}
"""Prior means of the same and how likely each is: a score that misleads is left on evidence."""
PRIOR_SD = 1.0
"""Of the logarithm of a variance: wide, a factor of 2.7."""
FITTED_ON = 400
"""Rows, at most, that the variances are fitted on: one step takes the cube of their number."""
SHRINK = 5.0
"""Measured pairs that the pooled spread of gains counts as, beside a target's own."""
COLLAPSE = 20.0
"""Times the usual size of a gain, below which a training has collapsed and no gain is measured."""
SOURCE, TARGET, COUNT, SCORE, FEATURES = range(5)
"""Columns of a design: the last, and those after it, are the standardised features."""


class PairKernel(Kernel):  # type: ignore[misc]
    r"""Prior covariance of the gains of two pairs, a sum of effects with a variance each.

    A row of X is the source's and the target's number, how often it was measured, its score and its
    features (`SOURCE` to `FEATURES`). Of the effects in `VARIANCES`: ``mean`` is common to all
    pairs, ``target`` to those of a target, ``source`` to those of a source; ``source_alike`` has
    the covariance :math:`K_s(s, s')` and ``interaction`` :math:`K_s(s, s') K_t(t, t')`; ``pair`` is
    a pair's own, ``noise`` a measurement's; ``features`` and ``score`` are linear, and ``slope`` is
    what the score's weight differs by from target to target.

    Parameters
    ----------
    log_variances : tuple of float
        In the order of `VARIANCES`; -inf leaves an effect out.
    alike_sources, alike_targets : array of shape (n_tasks, n_tasks)
        :math:`K_s` and :math:`K_t`. A task with a higher number is like itself alone.
    """

    def __init__(
        self,
        log_variances: tuple[float, ...],
        alike_sources: FloatArray,
        alike_targets: FloatArray,
    ) -> None:
        self.log_variances = log_variances
        self.alike_sources = alike_sources
        self.alike_targets = alike_targets

    @property
    def free(self) -> NDArray[np.intp]:
        """Which variances are fitted: all that are there but the mean's, which is one effect."""
        there = np.isfinite(self.log_variances)
        there[0] = False
        return np.flatnonzero(there)

    @property
    def theta(self) -> FloatArray:
        """Logarithms of the variances that are fitted."""
        return np.array(self.log_variances)[self.free]

    @theta.setter
    def theta(self, theta: FloatArray) -> None:
        values = np.array(self.log_variances)
        values[self.free] = theta
        self.log_variances = tuple(values.tolist())

    @property
    def bounds(self) -> FloatArray:
        """Bounds of `theta`."""
        return np.tile(np.log([1e-5, 1e3]), (len(self.free), 1))

    @property
    def noise(self) -> float:
        """Variance of one measurement about its pair's gain."""
        return float(np.exp(self.log_variances[-1]))

    def effects(
        self, x: FloatArray, y: FloatArray | None = None
    ) -> Iterator[tuple[str, FloatArray]]:
        """Covariance of every effect that is there, shape (len(x), len(y)); of noise within x."""
        other = x if y is None else y
        sources, targets = x[:, SOURCE].astype(int), x[:, TARGET].astype(int)
        other_sources, other_targets = other[:, SOURCE].astype(int), other[:, TARGET].astype(int)
        variance = dict(zip(VARIANCES, np.exp(self.log_variances), strict=True))
        same_source = sources[:, None] == other_sources
        same_target = targets[:, None] == other_targets
        yield "mean", np.full(same_source.shape, variance["mean"])
        yield "target", variance["target"] * same_target
        if variance["features"]:
            yield "features", variance["features"] * x[:, FEATURES:] @ other[:, FEATURES:].T
        if variance["score"]:
            scores = np.outer(x[:, SCORE], other[:, SCORE])
            yield "score", variance["score"] * scores
            yield "slope", variance["slope"] * scores * same_target
        yield "source", variance["source"] * same_source
        if variance["source_alike"]:
            alike = _alike(self.alike_sources, sources, other_sources)
            yield "source_alike", variance["source_alike"] * alike
            alike *= _alike(self.alike_targets, targets, other_targets)
            yield "interaction", variance["interaction"] * alike
        yield "pair", variance["pair"] * (same_source & same_target)
        if y is None:
            yield "noise", np.diag(variance["noise"] / x[:, COUNT])

    def __call__(
        self, X: FloatArray, Y: FloatArray | None = None, eval_gradient: bool = False
    ) -> Any:
        """Covariance of the rows of X and Y, of measured ones if Y is left out."""
        total = np.zeros((len(X), len(X if Y is None else Y)))
        parts = []
        for name, effect in self.effects(X, Y):
            total += effect
            if eval_gradient and name != "mean":
                parts.append(effect)
        # The covariance is linear in every variance, so its derivative by the logarithm is itself.
        return (total, np.stack(parts, axis=-1)) if eval_gradient else total

    def diag(self, X: FloatArray) -> FloatArray:
        """Prior variance of the gain of every row, without noise."""
        variance = dict(zip(VARIANCES, np.exp(self.log_variances), strict=True))
        common = sum(variance[x] for x in VARIANCES if x not in ("features", "score", "slope"))
        of_score = (variance["score"] + variance["slope"]) * X[:, SCORE] ** 2
        of_features = variance["features"] * (X[:, FEATURES:] ** 2).sum(axis=1)
        total: FloatArray = common - variance["noise"] + of_score + of_features
        return total

    def is_stationary(self) -> bool:
        """Tell that where two pairs are counts, not only how far apart."""
        return False


class PairProcess(GaussianProcessRegressor):  # type: ignore[misc]
    """scikit-learn's Gaussian process with a prior on the logarithms of the kernel's variances.

    Parameters
    ----------
    kernel : PairKernel
    optimize : bool
        Whether `fit` looks for the most likely variances.
    scatter : (int, float)
        Degrees of freedom and sum of squares of measurements about the means that it is fitted to:
        all that the means leave out of the likelihood.
    """

    alpha_: FloatArray
    y_train_: FloatArray

    def __init__(
        self, kernel: PairKernel, *, optimize: bool = True, scatter: tuple[int, float] = (0, 0.0)
    ) -> None:
        optimizer = "fmin_l_bfgs_b" if optimize else None
        super().__init__(kernel, alpha=1e-9, optimizer=optimizer)
        self.optimize = optimize
        self.scatter = scatter

    def weigh_score(self) -> float:
        r"""Move from `SCORE_WEIGHT`, which was fitted with, to the weight that the data speak for.

        The mean of `SCORE_WEIGHTS` by their posterior probabilities,
        :math:`\pi_m \exp(-(y - w_m a)^T K^{-1} (y - w_m a) / 2)`, a the score. Predictions are
        linear in the weight, so this is what all of them predict, averaged.

        Returns
        -------
        float
            The weight; what the process predicts now comes on top of it times the score.
        """
        score = self.X_train_[:, SCORE]
        means, prior = np.array([*SCORE_WEIGHTS]), np.array([*SCORE_WEIGHTS.values()])
        of_score = cho_solve((self.L_, True), score)
        left = SCORE_WEIGHT - means
        # Of -2 log likelihood, what depends on the weight.
        misfit = 2 * left * (score @ self.alpha_) + left**2 * (score @ of_score)
        log_posterior = np.log(prior) - misfit / 2
        posterior = np.exp(log_posterior - log_posterior.max())
        weight = float(means @ posterior / posterior.sum())
        self.y_train_ = self.y_train_ + (SCORE_WEIGHT - weight) * score
        self.alpha_ = self.alpha_ + (SCORE_WEIGHT - weight) * of_score
        return weight

    def log_marginal_likelihood(
        self,
        theta: FloatArray | None = None,
        eval_gradient: bool = False,
        clone_kernel: bool = True,
    ) -> Any:
        """Log-likelihood of the measured gains plus the log prior, and its gradient."""
        found = super().log_marginal_likelihood(theta, eval_gradient, clone_kernel)
        if theta is None:
            return found
        freedom, squares = self.scatter
        away = (theta - self.kernel.theta) / PRIOR_SD
        noise = theta[-1]
        more = -(freedom * noise + squares / np.exp(noise) + away @ away) / 2
        if not eval_gradient:
            return found + more
        gradient = found[1] - away / PRIOR_SD
        gradient[-1] += (squares / np.exp(noise) - freedom) / 2
        return found[0] + more, gradient


def fitted_process(
    design: FloatArray, gains: FloatArray, kernel: PairKernel, theta: FloatArray | None = None
) -> PairProcess:
    """Fit the process to gains on the common scale; variances are kept if `theta` gives them."""
    rows, means, squares = repeats_merged(design, gains)
    with warnings.catch_warnings(), unlogged():
        # A variance at its bound, or an optimiser that stops early, is no reason to warn users.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if theta is None and len(gains) > 1:
            part = np.unique(np.linspace(0, len(rows) - 1, FITTED_ON).astype(int))
            scatter = int(rows[part, COUNT].sum()) - len(part), float(squares[part].sum())
            fitted = PairProcess(kernel, scatter=scatter)
            fitted.fit(rows[part], means[part])
            if len(part) == len(rows):
                return fitted
            theta = fitted.kernel_.theta
        if theta is not None:
            kernel = kernel.clone_with_theta(theta)
        fitted = PairProcess(kernel, optimize=False)
        fitted.fit(rows, means)
    return fitted


def repeats_merged(
    design: FloatArray, gains: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Merge equal rows, into an order of their own: rows with counts, means, sums of squares."""
    # In the order of their gains first, so that the order of the table makes no difference.
    order = np.argsort(gains, kind="stable")
    keys, gains = np.delete(design[order], COUNT, axis=1), gains[order]
    unique, index, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    means, squares = np.zeros((2, len(unique)))
    np.add.at(means, index.ravel(), gains)
    means /= counts
    np.add.at(squares, index.ravel(), (gains - means[index.ravel()]) ** 2)
    return np.insert(unique, COUNT, counts.astype(float), axis=1), means, squares


def first_kernel(
    alike_sources: FloatArray, alike_targets: FloatArray, n_features: int, scored: bool
) -> PairKernel:
    """Make the kernel before any transfer was measured, without the effects that cannot be told."""
    variances = dict(VARIANCES)
    if not n_features:
        variances["features"] = 0.0
    if not scored:
        variances |= {"score": 0.0, "slope": 0.0}
    if all((k == np.eye(len(k))).all() for k in (alike_sources, alike_targets)):
        variances["pair"] += variances["interaction"]
        variances |= {"source_alike": 0.0, "interaction": 0.0}
    with np.errstate(divide="ignore"):
        return PairKernel(
            tuple(np.log([*variances.values()]).tolist()), alike_sources, alike_targets
        )


def without_collapse(gains: FloatArray) -> FloatArray:
    """Raise gains of trainings that collapsed to the lowest that can be one.

    By how much a loss diverged says nothing of the pair, and one such gain would be the scale of
    all the others. The bound is `COLLAPSE` times the median size of gains that are not 0, beyond
    what pairs of benchmarks lose (12 times at most); how much is gained is not bounded.
    """
    sizes = np.abs(gains[gains != 0])
    return np.maximum(gains, -COLLAPSE * np.median(sizes)) if len(sizes) else gains


def spreads(targets: NDArray[Any], gains: FloatArray) -> tuple[dict[str, float], float]:
    r"""Estimate the spread of every target's gains, shrunk, and that of a target not measured.

    :math:`s_t^2 = (\nu s^2 + \sum (g - \bar g_t)^2) / (\nu + n_t - 1)`, s pooled over targets and
    :math:`\nu` = `SHRINK`. Not below a tenth of the gains' own size, where they hardly differ.
    """
    table = pd.DataFrame({"target": targets, "gain": gains}).groupby("target")["gain"]
    squares, counts = table.var(ddof=0).sort_index() * table.size(), table.size()
    freedom, size = int((counts - 1).sum()), float(np.sqrt(np.mean(gains**2)))
    pooled = float(np.sqrt(squares.sum() / freedom)) if freedom else size
    pooled = max(pooled, size / 10) or 1.0
    shrunk = ((SHRINK * pooled**2 + squares) / (SHRINK + counts - 1)) ** 0.5
    return {str(target): float(value) for target, value in shrunk.items()}, pooled


def nearest_correlation(similarity: FloatArray) -> FloatArray:
    """Make a similarity a correlation: symmetric, positive semidefinite, 1 on the diagonal."""
    values = np.nan_to_num((similarity + similarity.T) / 2)
    np.fill_diagonal(values, 1.0)
    if (values == np.eye(len(values))).all():
        return values
    eigenvalues, vectors = np.linalg.eigh(values)
    values = (vectors * np.maximum(eigenvalues, 1e-6)) @ vectors.T
    size = np.sqrt(np.diag(values))
    correlation: FloatArray = values / np.outer(size, size)
    return correlation


def _alike(known: FloatArray, a: NDArray[np.intp], b: NDArray[np.intp]) -> FloatArray:
    n = len(known)
    if not n:
        same: FloatArray = (a[:, None] == b).astype(float)
        return same
    # Columns first, then rows: from a large table a quarter of the time that cell by cell takes.
    values: FloatArray = known[:, np.minimum(b, n - 1)][np.minimum(a, n - 1)]
    if max(a.max(initial=0), b.max(initial=0)) < n:
        return values
    strange = (a >= n)[:, None] | (b >= n)
    alike: FloatArray = np.where(strange, a[:, None] == b, values)
    return alike
