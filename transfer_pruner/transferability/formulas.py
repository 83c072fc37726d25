"""How well a source's features predict a target's labels, without training anything.

Features are what the source's single-task model computes on the target's texts, so every score is
directed (s -> t); higher is better. More columns than rows cost no more than fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
_MOST_SIGNAL = 1e12  # over noise: labels that features determine exactly have no largest evidence


def logme(features: ArrayLike, labels: ArrayLike, *, centre: bool = True) -> float:
    r"""LogME: log evidence a row of the best Bayesian linear model from features to labels.

    :math:`\max_{\alpha, \beta} \log p(y \mid F, \alpha, \beta) / n`, :math:`y = F w + \epsilon`,
    :math:`w \sim N(0, \alpha^{-1} I)`, :math:`\epsilon \sim N(0, \beta^{-1} I)`; the mean over
    classes, one against the rest (You et al. 2021, arXiv 2102.11005). Any real number. What noise
    scores moves with prevalence: compare sources of one target, or use `null_corrected`.

    Parameters
    ----------
    features : array of shape (n, width)
    labels : array of shape (n,) or (n, n_labels)
        A class for each row, or a column of 0 and 1 for each label; then the mean over columns.
    centre : bool
        Whether there is an intercept, with a flat prior: the evidence is then that of the n - 1
        contrasts of the rows. Without, as published, noise whose mean is far from 0 beats real
        signal, because its weights make up for the intercept.

    Raises
    ------
    ValueError
        If features or labels have a bad shape or value, or there is only one class.

    Examples
    --------
    >>> import numpy as np
    >>> from transfer_pruner.transferability import logme
    >>> rng = np.random.default_rng(0)
    >>> labels = np.array([0, 1] * 20)
    >>> signal = labels[:, None] + rng.normal(size=(40, 3))
    >>> logme(signal, labels) > logme(rng.normal(size=(40, 3)), labels)
    True
    """
    axes = _axes(features, centre)
    first = np.ndim(labels) - 1  # of a column of 0 and 1, only the ones are asked for
    columns = np.hstack([members[:, first:] for members in _members(labels, axes)])
    columns -= centre * columns.mean(axis=0)
    n_free = len(columns) - centre
    return float(np.mean([_largest_log_evidence(axes, y, n_free) for y in columns.T])) / n_free


def h_score(features: ArrayLike, labels: ArrayLike) -> float:
    r"""Shrunk H-score: how far the classes' means lie apart, in units of the features' spread.

    :math:`(1 - \lambda) \mathrm{tr}(\Sigma_\lambda^{-1} \Sigma_z)`, :math:`\Sigma_z` the covariance
    of the rows' class means, :math:`\Sigma_\lambda = (1 - \lambda) \Sigma + \lambda
    \frac{\mathrm{tr} \Sigma}{width} I` that of the features, shrunk as by Ledoit and Wolf (2004)
    (Ibrahim et al. 2021, arXiv 2110.06893). In [0, (n_classes - 1) n / (n - 1)]; 0 if no feature
    varies. Features are centred.

    Parameters
    ----------
    features : array of shape (n, width)
    labels : array of shape (n,) or (n, n_labels)
        As for `logme`, and refused for the same reasons.

    Examples
    --------
    >>> import numpy as np
    >>> from transfer_pruner.transferability import h_score
    >>> labels = np.array([0, 1] * 20)
    >>> features = labels[:, None] + np.random.default_rng(0).normal(size=(40, 3))
    >>> round(h_score(features, labels), 2)
    0.25
    """
    axes = _axes(features, centre=True)
    n, variances = len(axes.rows), axes.singular**2 / len(axes.rows)
    shrinkage = _ledoit_wolf_shrinkage(axes, variances)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.sum() / axes.width
    whitened = axes.rows * axes.singular / np.sqrt(shrunk)
    members = _members(labels, axes)
    scores = [(((m.T @ whitened) ** 2).sum(axis=1) / m.sum(axis=0)).sum() for m in members]
    # The means' covariance is over n - 1, the features' over n: so in published implementations.
    return float((1 - shrinkage) * np.mean(scores)) / (n - 1)


def null_corrected(
    score: Callable[[Any, Any], float],
    features: ArrayLike,
    labels: ArrayLike,
    n_permutations: int = 20,
    seed: int = 0,
) -> float:
    r"""Score minus its mean over labels whose rows are shuffled.

    :math:`S(F, y) - \frac{1}{P} \sum_{p=1}^{P} S(F, y_{\pi_p})`: about 0 for features that say
    nothing of the labels, at every prevalence and width.

    Parameters
    ----------
    score : callable
        ``score(features, labels) -> float``. `logme` and `h_score` decompose the features once.
    features : array of shape (n, width)
    labels : array of shape (n,) or (n, n_labels)
    n_permutations, seed : int

    Examples
    --------
    >>> import numpy as np
    >>> from transfer_pruner.transferability import h_score, null_corrected
    >>> labels = np.array([0, 1] * 20)
    >>> noise = np.random.default_rng(0).normal(size=(40, 3))
    >>> round(null_corrected(h_score, noise, labels), 2)
    0.01
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1 but got {n_permutations}.")
    remembering, labels = np.array(features).view(_RememberingArray), np.asarray(labels)
    remembering.known_axes, remembering.flags.writeable = {}, False
    observed, rng = score(remembering, labels), np.random.default_rng(seed)
    null = [score(remembering, rng.permutation(labels)) for _ in range(n_permutations)]
    return float(observed - np.mean(null))


class _Axes(NamedTuple):
    """Thin singular value decomposition of features: the axes along which they vary."""

    rows: FloatArray  # of shape (n, rank), with orthonormal columns
    singular: FloatArray  # of shape (rank,)
    width: int


class _RememberingArray(np.ndarray[Any, np.dtype[Any]]):
    """Features with their decompositions; an array that is made from them has none."""

    known_axes: dict[bool, _Axes]


def _axes(features: ArrayLike, centre: bool) -> _Axes:
    known: dict[bool, _Axes] = getattr(features, "known_axes", {})
    if centre in known:
        return known[centre]
    values = np.array(features, dtype=np.float64, subok=False)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"features must have the shape (n, width) but have {values.shape}.")
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(f"features have NaN or infinite values in {bad} rows: leave those out.")
    # No score depends on the unit of the features; squares of very large ones would overflow.
    values /= np.abs(values).max() or 1.0
    rounding = np.finfo(np.float64).eps * max(values.shape) * np.linalg.norm(values)
    if centre:
        values -= values.mean(axis=0)
    rows, singular, _ = np.linalg.svd(values, full_matrices=False)
    varies = singular > rounding  # what centring leaves of a constant column is no feature
    known[centre] = axes = _Axes(rows[:, varies], singular[varies], values.shape[1])
    return axes


def _members(labels: ArrayLike, axes: _Axes) -> list[FloatArray]:
    """Turn each column of the labels into a matrix of 0 and 1 with a column for each class."""
    values, n = np.asarray(labels), len(axes.rows)
    if values.ndim not in (1, 2) or len(values) != n or values.size == 0:
        raise ValueError(
            f"labels must have the shape ({n},) or ({n}, n_labels), a row for each of features, "
            f"but have {values.shape}."
        )
    for value in values.ravel().tolist():
        whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
        if not (whole or isinstance(value, str) if values.ndim == 1 else whole and 0 <= value <= 1):
            raise ValueError(
                f"labels must be {('classes', '0 or 1')[values.ndim - 1]} but got {value!r}: leave "
                "rows without a label out, and cut continuous ones into classes."
            )
    found = [np.unique(column, return_inverse=True) for column in values.reshape(n, -1).T]
    for column, (classes, _) in enumerate(found):
        if len(classes) < 2:
            raise ValueError(
                f"labels must hold two classes or more but column {column} holds only "
                f"{classes[0]!r}: add rows of another class or leave the task out."
            )
    return [np.eye(len(classes))[numbers] for classes, numbers in found]


def _ledoit_wolf_shrinkage(axes: _Axes, variances: FloatArray) -> float:
    """Noise of the covariance over its distance from a sphere, at most 1."""
    spectrum = np.pad(variances, (0, axes.width - len(variances)))
    distance = ((spectrum - spectrum.mean()) ** 2).sum()
    norms = axes.rows**2 @ axes.singular**2
    noise = ((norms**2).mean() - (variances**2).sum()) / len(norms)
    return float(np.clip(noise / distance, 0, 1)) if distance > 0 else 0.0


def _largest_log_evidence(axes: _Axes, y: FloatArray, n_free: int) -> float:
    """Log evidence of one column of labels where alpha and beta are best."""
    # It depends on t = alpha / beta alone: the best beta is n / (y^T (I + F F^T / t)^-1 y).
    power, along = axes.singular**2, axes.rows.T @ y
    beyond = float(((y - axes.rows @ along) ** 2).sum())

    def log_evidence(t: FloatArray) -> FloatArray:
        ratio = power / t[:, None]
        beta = n_free / ((along**2 / (1 + ratio)).sum(axis=1) + beyond)
        twice: FloatArray = n_free * np.log(beta / (2 * np.pi * np.e)) - np.log1p(ratio).sum(axis=1)
        return twice / 2

    # There can be several maxima: the iteration begins near the highest.
    coarse = (power.max(initial=0) or 1) * np.geomspace(1 / _MOST_SIGNAL, _MOST_SIGNAL, 49)
    t = coarse[log_evidence(coarse).argmax()]
    for _ in range(1000):
        noise = t / (power + t)
        gamma, n_noise = (1 - noise).sum(), n_free - len(power) + noise.sum()
        alpha = gamma / max((power * (along / (power + t)) ** 2).sum(), 1e-300)
        beta = n_noise / (((along * noise) ** 2).sum() + beyond)
        previous, t = t, np.clip(alpha / beta, coarse[0], coarse[-1])
        if abs(np.log(t / previous)) < 1e-6:
            break
    return float(log_evidence(np.append(coarse, t)).max())
