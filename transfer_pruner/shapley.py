"""What each feature of a row adds to a model's prediction, whatever the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from transfer_pruner.tasks import FloatArray


def shapley_values(
    predict: Callable[[FloatArray], FloatArray],
    rows: FloatArray,
    baseline: FloatArray,
    *,
    n_orders: int = 16,
    seed: int = 0,
) -> FloatArray:
    r"""Split :math:`f(x) - f(x_0)` over the features of x (baseline Shapley values).

    :math:`\phi_j` is what changing feature j from its value in the baseline :math:`x_0` to its
    value in x changes f by, averaged over orders in which features are changed one after the other
    (Castro et al. 2009; Sundararajan and Najmi 2020). The values of a row add up exactly; they are
    exact for an additive model, such as a linear one, and a sample of `n_orders` orders and their
    reverses for others.

    Parameters
    ----------
    predict : callable
        f, from (n, n_features) to (n,).
    rows : array of shape (n_rows, n_features)
    baseline : array of shape (n_features,)
    n_orders, seed : int

    Returns
    -------
    array of shape (n_rows, n_features)
        In units of f.
    """
    values = np.zeros_like(rows, dtype=float)
    n_features = rows.shape[1]
    if not rows.size:
        return values
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(n_features) for _ in range(n_orders)]
    for order in [*drawn, *(order[::-1] for order in drawn)]:
        # Step k has the first k features of the order changed.
        changed = np.empty((n_features + 1, n_features), dtype=bool)
        changed[:, order] = np.tri(n_features + 1, n_features, -1, dtype=bool)
        steps = np.where(changed[:, None], rows, baseline).reshape(-1, n_features)
        path = np.asarray(predict(steps), dtype=float).reshape(n_features + 1, len(rows))
        values[:, order] += np.diff(path, axis=0).T
    return values / (2 * n_orders)
