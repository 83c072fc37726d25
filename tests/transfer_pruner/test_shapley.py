"""Shapley values split a prediction over its features."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from transfer_pruner.shapley import shapley_values


def by_definition(predict: object, row: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    values = np.zeros(len(row))
    orders = list(permutations(range(len(row))))
    for order in orders:
        at = baseline.copy()
        for feature in order:
            before = predict(at[None])[0]  # type: ignore[operator]
            at[feature] = row[feature]
            values[feature] += predict(at[None])[0] - before  # type: ignore[operator]
    return values / len(orders)


def test_a_linear_model_is_split_exactly() -> None:
    rng = np.random.default_rng(0)
    weights, rows, baseline = rng.normal(size=6), rng.normal(size=(4, 6)), rng.normal(size=6)
    found = shapley_values(lambda x: x @ weights + 3, rows, baseline, n_orders=1)
    np.testing.assert_allclose(found, weights * (rows - baseline))


def test_interactions_are_shared_as_the_definition_says() -> None:
    def predict(x: np.ndarray) -> np.ndarray:
        return x[:, 0] * x[:, 1] + np.maximum(x[:, 2], x[:, 3])

    rng = np.random.default_rng(0)
    rows, baseline = rng.normal(size=(3, 4)), rng.normal(size=4)
    found = shapley_values(predict, rows, baseline, n_orders=500)
    expected = [by_definition(predict, row, baseline) for row in rows]
    np.testing.assert_allclose(found, expected, atol=0.05)
    change = predict(rows) - predict(baseline[None])
    assert found.sum(axis=1) == pytest.approx(change)
    np.testing.assert_array_equal(found, shapley_values(predict, rows, baseline, n_orders=500))


def test_a_feature_that_is_missing_stays_missing() -> None:
    def predict(x: np.ndarray) -> np.ndarray:
        return np.nan_to_num(x, nan=7.0).sum(axis=1)

    found = shapley_values(predict, np.array([[np.nan, 2.0]]), np.array([1.0, np.nan]))
    assert found.tolist() == [[6.0, -5.0]]
    assert shapley_values(predict, np.empty((0, 2)), np.zeros(2)).shape == (0, 2)
