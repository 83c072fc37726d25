"""Scores of features and labels against published values, optimisers and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import helmert
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from transfer_pruner.transferability import h_score, logme, null_corrected

Score = Callable[..., float]
both = pytest.mark.parametrize("score", [logme, h_score])
seeds = st.integers(0, 2**16)


def signal(
    n: int, width: int, shift: float, seed: int = 0, prevalence: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < max(2, round(prevalence * n))).astype(int)
    return rng.normal(size=(n, width)) + shift * (2 * labels[:, None] - 1), labels


@pytest.fixture(scope="module")
def golden() -> tuple[np.ndarray, np.ndarray]:
    """Labels are drawn first, then features whose mean is 0.1 in one class and -0.1 in the other.

    The values that go with it were agreed between independent implementations of both papers.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    return rng.normal(size=(1000, 384)) + 0.1 * (2 * labels[:, None] - 1), labels


def test_logme_without_an_intercept_gives_the_value_that_other_implementations_agree_on(
    golden: tuple[np.ndarray, np.ndarray],
) -> None:
    assert logme(*golden, centre=False) == pytest.approx(-0.9076, abs=5e-5)


def test_h_score_gives_the_value_that_other_implementations_agree_on(
    golden: tuple[np.ndarray, np.ndarray],
) -> None:
    assert h_score(*golden) == pytest.approx(0.2751, abs=5e-5)


def largest_evidence(features: np.ndarray, y: np.ndarray) -> float:
    """Search alpha and beta for the largest density of y, written out as one normal density."""

    def negative(log_parameters: np.ndarray) -> float:
        alpha, beta = np.exp(log_parameters)
        covariance = np.eye(len(y)) / beta + features @ features.T / alpha
        return -float(multivariate_normal(cov=covariance).logpdf(y))

    starts = [(a, b) for a in (-3, 0, 3, 9) for b in (0, 3)]
    bounds = [(-9, 20), (-9, 12)]  # what keeps the covariance invertible
    found = [minimize(negative, s, method="L-BFGS-B", bounds=bounds) for s in starts]
    return -min(float(result.fun) for result in found) / len(y)


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("width", [1, 4, 12])
def test_logme_is_the_evidence_that_an_optimiser_finds(width: int, shift: float) -> None:
    features, labels = signal(40, width, shift)
    classes = [(labels == c).astype(float) for c in (0, 1)]
    expected = np.mean([largest_evidence(features, y) for y in classes])
    assert logme(features, labels, centre=False) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("width", [1, 4, 12])
def test_logme_with_an_intercept_is_the_evidence_of_the_contrasts_of_the_rows(width: int) -> None:
    features, labels = signal(40, width, 0.3)
    contrasts = helmert(40)  # 39 orthonormal rows that every constant is invisible to
    expected = largest_evidence(contrasts @ features, contrasts @ labels)
    assert logme(features + 3, labels) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_more_columns_than_rows_still_reach_the_largest_evidence(seed: int) -> None:
    features, labels = signal(12, 30, 0.3, seed)
    contrasts = helmert(12)
    expected = largest_evidence(contrasts @ features, contrasts @ labels)
    assert logme(features, labels) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "width"), [(60, 5), (60, 60), (20, 70), (30, 1)])
def test_h_score_is_the_trace_over_scikit_learns_ledoit_wolf_covariance(n: int, width: int) -> None:
    features, _ = signal(n, width, 0.0)
    features[:, 0] *= 5
    classes = np.arange(n) % 3
    covariance, shrinkage = ledoit_wolf(features)
    means = np.stack([features[classes == c].mean(axis=0) for c in classes])
    between = np.atleast_2d(np.cov(means, rowvar=False))
    expected = (1 - shrinkage) * np.trace(np.linalg.inv(covariance) @ between)
    assert h_score(features, classes) == pytest.approx(expected, rel=1e-9)


@both
@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(4, 30), width=st.integers(1, 40), shift=st.floats(-1e3, 1e3))
def test_rotating_shifting_scaling_and_shuffling_change_nothing(
    score: Score, seed: int, n: int, width: int, shift: float
) -> None:
    features, labels = signal(n, width, 0.5, seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    rows = rng.permutation(n)
    expected = pytest.approx(score(features, labels), rel=1e-5, abs=1e-5)
    assert score(features @ rotation, labels) == expected
    assert score(features + shift, labels) == expected
    assert score(1e6 * features, labels) == expected
    assert score(features[rows], labels[rows]) == expected


@both
@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(4, 30), width=st.integers(1, 40))
def test_every_score_is_finite_and_an_h_score_is_in_its_range(
    score: Score, seed: int, n: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % 3
    value = score(rng.integers(-2, 3, (n, width)), classes)
    assert np.isfinite(value)
    assert score is logme or 0 <= value <= 2 * n / (n - 1) + 1e-9


@both
def test_more_signal_scores_higher(score: Score) -> None:
    scores = [score(*signal(200, 20, shift)) for shift in (0.05, 0.2, 0.5, 2.0)]
    assert scores == sorted(scores)


def test_noise_with_a_shifted_mean_beats_signal_as_published_and_not_with_an_intercept(
    golden: tuple[np.ndarray, np.ndarray],
) -> None:
    features, labels = golden
    noise = np.random.default_rng(1).normal(size=features.shape) + 3
    published = partial(logme, centre=False)
    assert published(noise, labels) > published(features, labels)
    assert logme(noise, labels) < logme(features, labels)
    assert null_corrected(logme, noise, labels) < 0.01 < null_corrected(logme, features, labels)


@both
def test_the_correction_takes_away_what_prevalence_gives(score: Score) -> None:
    noise = [signal(300, 60, 0.0, seed=3, prevalence=p) for p in (0.5, 0.02)]
    raw = [score(*data) for data in noise]
    corrected = [null_corrected(score, *data) for data in noise]
    assert score is h_score or abs(raw[0] - raw[1]) > 0.5
    assert corrected == pytest.approx([0, 0], abs=0.06)
    assert null_corrected(score, *signal(300, 60, 0.3, seed=3)) > 0.1


@both
def test_the_correction_is_the_score_minus_its_mean_over_shuffled_labels(score: Score) -> None:
    features, labels = signal(50, 4, 0.5)
    rng = np.random.default_rng(7)
    null = np.mean([score(features, rng.permutation(labels)) for _ in range(3)])
    expected = score(features, labels) - null
    assert null_corrected(score, features, labels, 3, seed=7) == pytest.approx(expected)
    assert null_corrected(score, features, labels) == null_corrected(score, features, labels)


def test_the_correction_decomposes_the_features_once(monkeypatch: pytest.MonkeyPatch) -> None:
    svd, calls = np.linalg.svd, []
    monkeypatch.setattr(np.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    null_corrected(logme, *signal(30, 4, 0.5), n_permutations=5)
    assert len(calls) == 1


def test_the_correction_takes_any_score_even_one_of_some_columns() -> None:
    features, labels = signal(50, 4, 0.5)

    def of_two_columns(features: np.ndarray, labels: np.ndarray) -> float:
        return logme(features[:, :2], labels) + logme(features, labels)

    expected = null_corrected(logme, features[:, :2], labels)
    expected += null_corrected(logme, features, labels)
    assert null_corrected(of_two_columns, features, labels) == pytest.approx(expected)


@both
def test_a_matrix_of_labels_scores_the_mean_of_its_columns(score: Score) -> None:
    features, labels = signal(60, 5, 0.4)
    other = np.arange(60) % 4 == 0
    expected = (score(features, labels) + score(features, other)) / 2
    assert score(features, np.column_stack([labels, other])) == pytest.approx(expected)
    assert np.isfinite(null_corrected(score, features, np.column_stack([labels, other])))


@both
def test_what_the_classes_are_called_does_not_matter(score: Score) -> None:
    features, labels = signal(60, 5, 0.4)
    expected = pytest.approx(score(features, labels))
    for named in (
        labels == 1,
        labels * 7.0 - 3,
        np.where(labels, "rescue", "news"),
        pd.Series(np.where(labels, "rescue", "news"), index=range(60, 0, -1)),
        labels.tolist(),
    ):
        assert score(features, named) == expected
    assert score(pd.DataFrame(features), labels) == expected


@both
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_features_that_do_not_vary_say_nothing(score: Score, constant: float) -> None:
    _, labels = signal(50, 1, 0.0)
    silent = np.full((50, 3), constant)
    contrast_variance = labels.var() * 50 / 49
    nothing = {h_score: 0.0, logme: -0.5 * np.log(2 * np.pi * np.e * contrast_variance)}
    assert score(silent, labels) == pytest.approx(nothing[score])
    assert null_corrected(score, silent, labels) == pytest.approx(0, abs=1e-9)
    features, labels = signal(50, 3, 0.5)
    assert logme(np.hstack([features, silent]), labels) == pytest.approx(logme(features, labels))


@both
def test_features_that_are_the_label_score_high_and_finite(score: Score) -> None:
    _, labels = signal(50, 1, 0.0)
    told = score(np.column_stack([labels, -labels]), labels)
    assert score(*signal(50, 2, 1.0)) < told < 50


@both
@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros(4), [0, 1, 0, 1], r"features must have the shape \(n, width\) .* \(4,\)"),
        (np.zeros((4, 0)), [0, 1, 0, 1], r"features .* have \(4, 0\)"),
        (np.zeros((0, 3)), [], r"features .* have \(0, 3\)"),
        ([[1.0], [np.nan]], [0, 1], "features have NaN or infinite values in 1 rows: leave"),
        ([[1.0], [np.inf]], [0, 1], "features have NaN or infinite values in 1 rows: leave"),
        ([[1.0], [2.0]], [0, 1, 1], r"labels must have the shape \(2,\) .* have \(3,\)"),
        ([[1.0], [2.0]], [[[0]], [[1]]], r"labels must have the shape .* have \(2, 1, 1\)"),
        ([[1.0], [2.0]], np.zeros((2, 0)), r"labels must have the shape .* have \(2, 0\)"),
        ([[1.0], [2.0]], [1, 1], "two classes or more but column 0 holds only .*1.* leave the"),
        ([[1.0], [2.0]], [[0, 1], [1, 1]], "two classes or more but column 1 holds only"),
        ([[1.0], [2.0]], [0.5, 1], "labels must be classes but got 0.5: leave rows"),
        ([[1.0], [2.0]], [np.nan, 1], "labels must be classes but got nan: leave rows"),
        ([[1.0], [2.0]], ["news", None], "labels must be classes but got None: leave rows"),
        ([[1.0], [2.0]], [[0, 2], [1, 0]], "labels must be 0 or 1 but got 2"),
        ([[1.0], [2.0]], [["a"], ["b"]], "labels must be 0 or 1 but got 'a'"),
    ],
)
def test_bad_data_is_refused_with_advice(
    score: Score, features: object, labels: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(features, labels)
    with pytest.raises(ValueError, match=message):
        null_corrected(score, features, labels)


def test_a_correction_by_no_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="n_permutations must be at least 1 but got 0"):
        null_corrected(logme, *signal(10, 2, 0.5), n_permutations=0)
