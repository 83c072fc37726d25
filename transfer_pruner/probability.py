"""From predicted gains and out-of-fold residuals to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from transfer_pruner.tasks import FloatArray


def probability_to_exceed(
    predicted: ArrayLike, residuals: ArrayLike, threshold: ArrayLike = 0.0
) -> FloatArray:
    r"""Probability that the gain of each pair exceeds a threshold, by a predictor's residuals.

    :math:`(1 + |\{r : \hat g + r > b\}|) / (2 + n)` over the n residuals r, in (0, 1); rises with
    the prediction, falls with the threshold. Ours.

    Parameters
    ----------
    predicted : array of shape (n_pairs,)
    residuals : array of shape (n_transfers,)
        Measured minus predicted gains, out of fold: `TransferPredictor.residuals_`.
    threshold : float or array of shape (n_pairs,)
        b, in units of the gain.

    Returns
    -------
    array of shape (n_pairs,)
        NaN where the prediction is.
    """
    above = np.asarray(predicted, dtype=float) - np.asarray(threshold, dtype=float)
    sorted_misses = np.sort(-np.asarray(residuals, dtype=float))
    exceeding = np.searchsorted(sorted_misses, above, side="left")
    probability = (1 + exceeding) / (2 + len(sorted_misses))
    return np.where(np.isnan(above), np.nan, probability)
