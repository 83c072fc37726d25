"""How alike two attributions are, and how rich one is: measures of arrays, of no task or pair."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from transfer_pruner.tasks import FloatArray

TINY = 1e-12


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    r"""Cosine of two attribution vectors.

    :math:`\langle a, b \rangle / (|a| |b|)`, in [-1, 1], symmetric; 0 if one of them is 0.

    Examples
    --------
    >>> from transfer_pruner.pairs import cosine
    >>> round(cosine([1.0, 0.0], [1.0, 1.0]), 2)
    0.71
    """
    a, b = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), TINY))


def containment(source: ArrayLike, target: ArrayLike) -> float:
    r"""Share of the target's attribution that the source has too, sign by sign (s -> t).

    :math:`\sum_j \min(|s_j|, |t_j|) [s_j t_j > 0] / \sum_j |t_j|`, in [0, 1]. Directed: a source
    with large attributions contains a target with small ones, and not the other way round. 0 if
    the target's vector is 0.

    Examples
    --------
    >>> from transfer_pruner.pairs import containment
    >>> containment([1.0, 0.0], [1.0, 1.0]), containment([1.0, 1.0], [1.0, 0.0])
    (0.5, 1.0)
    """
    s, t = np.asarray(source, dtype=float), np.asarray(target, dtype=float)
    shared = np.where(s * t > 0, np.minimum(np.abs(s), np.abs(t)), 0.0).sum()
    return float(shared / max(float(np.abs(t).sum()), TINY))


def effective_rank(examples: ArrayLike) -> float:
    r"""Effective number of directions in which a task's attributions vary between examples.

    :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p_k` the share of singular value k squared, of
    the centred (n_probe, width) matrix; in [1, min(n_probe, width)], 1 if nothing varies. The
    entropy form is that of Roy and Vetterli (2007). High for a source that uses many features.

    Examples
    --------
    >>> import numpy as np
    >>> from transfer_pruner.pairs import effective_rank
    >>> round(effective_rank(np.eye(3)), 2), effective_rank(np.ones((3, 3)))
    (2.0, 1.0)
    """
    power = np.linalg.svd(centred(examples), compute_uv=False) ** 2
    if power.sum() < TINY:
        return 1.0
    share = power[power > 0] / power.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def linear_cka(source: ArrayLike, target: ArrayLike) -> float:
    r"""Linear CKA of two tasks' example-wise attributions.

    :math:`|S^T T|_F^2 / (|S^T S|_F |T^T T|_F)` of centred (n_probe, width) matrices over the same
    probe examples, in [0, 1], symmetric (Kornblith et al. 2019, eq. 4; there of activations). It
    asks whether the examples that the attributions set apart are the same, so the neurons of the
    two models need not correspond. 0 if nothing varies.

    Examples
    --------
    >>> import numpy as np
    >>> from transfer_pruner.pairs import linear_cka
    >>> s = np.random.default_rng(0).normal(size=(20, 3))
    >>> turned = s[:, ::-1] * 2
    >>> round(linear_cka(s, turned), 2)
    1.0
    """
    return float(unit_gram(source) @ unit_gram(target))


def unit_gram(examples: ArrayLike) -> FloatArray:
    """Inner products of the centred examples, as one vector of length 1; CKA is that of two."""
    values = centred(examples)
    gram = (values @ values.T).ravel()
    unit: FloatArray = gram / max(float(np.linalg.norm(gram)), TINY)
    return unit


def centred(examples: ArrayLike) -> FloatArray:
    """Subtract the mean over examples."""
    values = np.asarray(examples, dtype=float)
    difference: FloatArray = values - values.mean(axis=0)
    return difference
