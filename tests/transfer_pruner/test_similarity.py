from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.pairwise import cosine_similarity

from transfer_pruner.similarity import containment, cosine, effective_rank, linear_cka

numbers = st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3)
matrices = arrays(np.float64, st.tuples(st.just(12), st.integers(1, 6)), elements=numbers)
vectors = arrays(np.float64, 6, elements=numbers)


@given(vectors, vectors)
def test_cosine_is_scikit_learns(a: np.ndarray, b: np.ndarray) -> None:
    assert cosine(a, b) == pytest.approx(cosine_similarity([a], [b])[0, 0], abs=1e-9)


@given(vectors, vectors)
def test_containment_is_a_share_and_full_for_a_multiple(s: np.ndarray, t: np.ndarray) -> None:
    assert 0 <= containment(s, t) <= 1 + 1e-9
    if np.abs(t).sum() > 0:
        assert containment(2 * t, t) == pytest.approx(1)
        assert containment(t / 2, t) == pytest.approx(0.5)
        assert containment(-t, t) == 0


@given(matrices, matrices)
def test_cka_is_the_published_ratio_of_hsic(s: np.ndarray, t: np.ndarray) -> None:
    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        centring = np.eye(len(a)) - 1 / len(a)
        return float(np.trace(a @ a.T @ centring @ b @ b.T @ centring))

    own = hsic(s, s) * hsic(t, t)
    if own > 1e-6:
        assert linear_cka(s, t) == pytest.approx(hsic(s, t) / np.sqrt(own), abs=1e-6)
        assert linear_cka(s, t) == pytest.approx(linear_cka(t, s), abs=1e-9)


def test_cka_does_not_ask_which_neuron_is_which() -> None:
    rng = np.random.default_rng(0)
    attributions = rng.normal(size=(30, 5))
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert linear_cka(attributions, 3 * attributions @ rotation + 7) == pytest.approx(1)
    assert linear_cka(attributions, rng.normal(size=(30, 5))) < 0.5


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_effective_rank_counts_equal_directions(directions: int) -> None:
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))
    centred = basis[:, :directions] - basis[:, :directions].mean(axis=0)
    orthonormal = np.linalg.qr(centred)[0]
    assert effective_rank(orthonormal @ np.eye(directions, 6)) == pytest.approx(directions)
    assert effective_rank(np.ones((5, 3))) == 1
