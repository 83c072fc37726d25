"""The proxy scores by their names: what a source's model gives on a target's dev set -> a number.

Each is higher for a better source, and compares sources of one target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfer_pruner.transferability.formulas import h_score, logme, null_corrected

METHODS = ("zero_shot", "logme", "h_score", "linear_probe")
FOLDS = 5

Numbers = NDArray[np.float32]


def check_labels(labels: NDArray[Any]) -> None:
    """Refuse labels that no source can be scored on.

    Raises
    ------
    ValueError
        If there are none, or they are all one.
    """
    if not len(labels):
        raise ValueError("the target's dev set is empty")
    if (labels == labels[0]).all():
        raise ValueError(f"the target's dev set holds only the label {labels[0].item()!r}")


def check_head(n_outputs: int, labels: NDArray[Any]) -> None:
    """Refuse a head that cannot answer with these labels.

    Raises
    ------
    ValueError
        If labels are continuous or the head has outputs for another number of classes.
    """
    if labels.dtype.kind == "f":
        raise ValueError("the target's labels are continuous, which no head's classes fit")
    n_classes = _n_classes(labels, n_outputs)
    if n_outputs != n_classes and (n_outputs, n_classes) != (1, 2):
        raise ValueError(
            f"the source's head has {n_outputs} outputs and the target {n_classes} classes"
        )


def proxy_score(
    method: str,
    outputs: Numbers,
    features: Numbers,
    labels: NDArray[Any],
    names: Sequence[str] = (),
    seed: int = 0,
) -> float:
    """Score a source on a target's dev set by one of `METHODS`.

    Parameters
    ----------
    method : str
    outputs : array of shape (n, n_outputs)
    features : array of shape (n, width)
    labels : array of shape (n,)
    names : sequence of str
        What the outputs stand for, where that is known.
    seed : int
        Of the folds of the linear probe and of the labels that are shuffled.

    Raises
    ------
    ValueError
        If there is no such score of these.
    """
    check_labels(labels)
    if method == "zero_shot":
        check_head(outputs.shape[1], labels)
    values = outputs if method == "zero_shot" else features
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        kind = "outputs" if method == "zero_shot" else "features"
        raise ValueError(f"the source's {kind} have NaN or infinite values in {bad} rows")
    if method == "zero_shot":
        return zero_shot(outputs, labels, names)
    if method == "linear_probe":
        return linear_probe(features, labels, seed)
    if labels.dtype.kind == "f":
        raise ValueError(f"{method} takes classes and the target's labels are continuous")
    return null_corrected(logme if method == "logme" else h_score, features, labels, seed=seed)


def zero_shot(outputs: Numbers, labels: NDArray[Any], names: Sequence[str] = ()) -> float:
    """Score the source's own head on the target's labels, without any training.

    Average precision of the positive class where there are two, in (0, 1]; macro F1 where there are
    more, in [0, 1]. The positive class is the second, in order, of the target's labels, and the
    second of the head's outputs or its only one. Classes of a head are whole numbers from 0, or
    go by `names` where those are the target's labels, or by their order.
    """
    from sklearn.metrics import average_precision_score, f1_score

    if outputs.shape[1] <= 2:
        truth = _numbered(labels, 2, names) == 1
        logits = outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]
        return float(average_precision_score(truth, logits))
    truth, predicted = _numbered(labels, outputs.shape[1], names), outputs.argmax(axis=1)
    present = np.unique(truth)
    return float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0))


def linear_probe(features: Numbers, labels: NDArray[Any], seed: int = 0) -> float:
    """Score a linear model of the source's features by cross-validation in five folds.

    Classes: logistic regression; average precision where there are two, macro F1 where there are
    more. Continuous labels: ridge regression, whose penalty is chosen within each fold; R². The
    features are standardized. Fewer folds where the smallest class has fewer examples. A class of
    one example, which cannot be both trained and scored on, is left out.

    Raises
    ------
    ValueError
        If there are too few examples for two folds.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if labels.dtype.kind == "f":
        n_folds = min(FOLDS, len(labels) // 2)
        model, scoring = RidgeCV(np.logspace(-2, 5, 15)), "r2"
        splitter = KFold
    else:
        _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
        several = counts[places] > 1
        features, labels = features[several], labels[several]
        classes, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
        n_folds = min(FOLDS, int(counts.min())) if len(classes) > 1 else 0
        model = LogisticRegression(max_iter=1000)
        scoring = "average_precision" if len(classes) == 2 else "f1_macro"
        splitter = StratifiedKFold
    if n_folds < 2:
        raise ValueError(
            "the target's dev set is too small for two folds: it needs two classes of two examples"
        )
    folds = splitter(n_folds, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), model)
    scores = cross_val_score(
        probe, features.astype(np.float64), labels, cv=folds, scoring=scoring, error_score="raise"
    )
    return float(scores.mean())


def _n_classes(labels: NDArray[Any], n_outputs: int) -> int:
    """Count classes; a class that numbers tell of may be missing from a dev set."""
    found = np.unique(labels)
    if len(found) == 2 or labels.dtype.kind not in "iu":
        return len(found)
    numbered = bool(found[0] >= 0 and found[-1] < n_outputs)
    return n_outputs if numbered else len(found)


def _numbered(labels: NDArray[Any], n_outputs: int, names: Sequence[str]) -> NDArray[np.int64]:
    """Say which output each label is."""
    found, places = np.unique(labels, return_inverse=True)
    known = {name: place for place, name in enumerate(names)}
    if len(names) == n_outputs and all(str(label) in known for label in found):
        return np.array([known[str(label)] for label in found])[places]
    if labels.dtype.kind in "iu" and found[0] >= 0 and found[-1] < n_outputs:
        return labels.astype(np.int64)
    return places.astype(np.int64)
