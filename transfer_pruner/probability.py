"""From a predicted gain and its spread to probabilities, and to what one more trial is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from transfer_pruner.tasks import FloatArray


def probability_to_exceed(
    predicted: ArrayLike, std: ArrayLike, threshold: ArrayLike = 0.0
) -> FloatArray:
    r"""Probability that the gain of each pair exceeds a threshold.

    :math:`\Phi((\hat g - b) / \sigma)`, in [0, 1]; rises with the prediction, falls with the
    threshold.

    Parameters
    ----------
    predicted : array of shape (n_pairs,)
    std : float or array of shape (n_pairs,)
        :math:`\sigma`, standard deviation of the gain, above 0: the second array of
        `TransferPredictor.predict`.
    threshold : float or array of shape (n_pairs,)
        b, in units of the gain.

    Returns
    -------
    array of shape (n_pairs,)
        NaN where the prediction or its spread is.

    Examples
    --------
    >>> from transfer_pruner.probability import probability_to_exceed
    >>> probability_to_exceed([0.02, 0.0, -0.02], std=0.02).round(2)
    array([0.84, 0.5 , 0.16])
    """
    from scipy.special import ndtr

    above = np.asarray(predicted, dtype=float) - np.asarray(threshold, dtype=float)
    probability: FloatArray = ndtr(above / np.asarray(std, dtype=float))
    return probability


def expected_improvement(predicted: ArrayLike, std: ArrayLike, best: ArrayLike = 0.0) -> FloatArray:
    r"""How much better than the best so far a gain is expected to be.

    :math:`E[\max(g - b, 0)] = \sigma (u \Phi(u) + \varphi(u))`, :math:`u = (\hat g - b) / \sigma`,
    of a normal g; 0 or more. Rises with the prediction and with its spread (Jones et al. 1998).

    Parameters
    ----------
    predicted : array of shape (n_pairs,)
    std : float or array of shape (n_pairs,)
        :math:`\sigma`, above 0.
    best : float or array of shape (n_pairs,)
        b, in units of the gain.

    Returns
    -------
    array of shape (n_pairs,)
        In units of the gain; NaN where the prediction or its spread is.

    Examples
    --------
    >>> from transfer_pruner.probability import expected_improvement
    >>> expected_improvement([0.02, 0.0, -0.02], std=0.02).round(3)
    array([0.022, 0.008, 0.002])
    """
    from scipy.special import ndtr

    spread = np.asarray(std, dtype=float)
    u = (np.asarray(predicted, dtype=float) - np.asarray(best, dtype=float)) / spread
    density = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    # Far below the best the two terms cancel out to less than nothing.
    improvement: FloatArray = spread * np.maximum(u * ndtr(u) + density, 0.0)
    return improvement
