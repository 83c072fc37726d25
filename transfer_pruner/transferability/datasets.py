"""The labelled dev examples of target tasks, pooled so that what several tasks share is there once.

What it must satisfy: two examples are one if they hold the same, whatever task they came with; and
a row without a label is no row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Example = str | NDArray[Any]


class Dev(NamedTuple):
    """A target's dev set.

    Attributes
    ----------
    rows : array of int
        Where its examples are in the pool.
    labels : array of shape (n,)
        Whole numbers or texts, which are classes, or floating-point numbers of a regression.
    """

    rows: NDArray[np.intp]
    labels: NDArray[Any]

    @property
    def is_regression(self) -> bool:
        """Whether the labels are continuous."""
        return self.labels.dtype.kind == "f"


@dataclass
class Pool:
    """The different examples of all targets.

    Attributes
    ----------
    examples : list of str or array
    keys : list of bytes
        SHA-256 of each.
    of_target : dict of str to Dev
    """

    examples: list[Example] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    of_target: dict[str, Dev] = field(default_factory=dict)
    _places: dict[bytes, int] = field(default_factory=dict)

    def add(self, target: str, examples: Iterable[Example], labels: NDArray[Any]) -> None:
        """Add a target's dev set, its examples only where they are new."""
        rows = []
        for example in examples:
            key = _key(example)
            place = self._places.setdefault(key, len(self.keys))
            if place == len(self.keys):
                self.keys.append(key)
                self.examples.append(example)
            rows.append(place)
        self.of_target[target] = Dev(np.array(rows, dtype=np.intp), labels)

    @property
    def is_text(self) -> bool | None:
        """Whether the examples are texts; None if there are none."""
        return isinstance(self.examples[0], str) if self.examples else None


def read_datasets(datasets: Mapping[str, Any], text_column: str, label_column: str) -> Pool:
    """Pool dev sets, each a pair (inputs, labels), a DataFrame or a DataLoader of such pairs.

    Raises
    ------
    ValueError
        If one is something else, its inputs and labels are not of one length, or some hold texts
        and others arrays.
    """
    pool = Pool()
    for target, dataset in datasets.items():
        what = f"datasets[{target!r}]"
        inputs, labels = _parts(dataset, what, text_column, label_column)
        examples = _examples(inputs, what)
        if len(examples) != len(labels):
            raise ValueError(
                f"{what} has {len(examples)} inputs and {len(labels)} labels: give one label for "
                "each input."
            )
        kept = [n for n, x in enumerate(labels) if not (_missing(x) or _missing(examples[n]))]
        values = _labels([_scalar(labels[n], what) for n in kept], what)
        pool.add(target, [examples[n] for n in kept], values)
    if len({isinstance(example, str) for example in pool.examples}) > 1:
        raise ValueError(
            "datasets must hold either texts or arrays but hold both: score them apart."
        )
    return pool


def _parts(dataset: Any, what: str, text_column: str, label_column: str) -> tuple[Any, list[Any]]:
    if isinstance(dataset, pd.DataFrame):
        for name, column in (("text_column", text_column), ("label_column", label_column)):
            if column not in dataset.columns:
                raise ValueError(
                    f"{what} lacks the column {column!r}; it has: "
                    f"{', '.join(map(str, dataset.columns))}. Name another with {name}= "
                    f"(--{name.replace('_', '-')})."
                )
        return dataset[text_column].tolist(), dataset[label_column].tolist()
    if hasattr(dataset, "dataset") and hasattr(dataset, "__iter__"):
        inputs: list[Any] = []
        labels: list[Any] = []
        for batch in dataset:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError(
                    f"{what} must give batches (inputs, labels) but gave a {type(batch).__name__}."
                )
            inputs += _examples(batch[0], what)
            labels += _listed(batch[1])
        return inputs, labels
    if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
        raise ValueError(
            f"{what} must be a pair (inputs, labels), a DataFrame or a DataLoader but got "
            f"{type(dataset).__name__}."
        )
    return dataset[0], _listed(dataset[1])


def _examples(inputs: Any, what: str) -> list[Example]:
    """Take inputs apart: texts, or one array for each example."""
    if isinstance(inputs, str):
        raise ValueError(f"{what} has the string {inputs[:40]!r} as inputs: write [text].")
    if isinstance(inputs, Mapping):
        raise ValueError(
            f"{what} has inputs that are named ({', '.join(map(str, inputs))}): give texts, or one "
            "tensor."
        )
    if not _is_tensor(inputs):
        listed = list(inputs)
        if any(isinstance(one, str) for one in listed):
            if strange := [one for one in listed if not (isinstance(one, str) or _missing(one))]:
                raise ValueError(f"{what} must hold texts but has {strange[0]!r}.")
            return listed
        if listed and all(isinstance(one, np.ndarray) for one in listed):
            return listed
        if all(_missing(one) for one in listed):
            return listed
        inputs = listed if any(map(_is_tensor, listed)) else inputs
        if isinstance(inputs, list) and any(map(_is_tensor, inputs)):
            return [_array(one) for one in inputs]
    values = _array(inputs)
    if values.ndim == 0 or values.dtype.kind not in "biuf":
        raise ValueError(
            f"{what} must have texts or a tensor (n, ...) as inputs but has {type(inputs).__name__}"
            f" of {values.dtype}."
        )
    return list(values)


def _listed(labels: Any) -> list[Any]:
    # An array of numbers and texts would make texts of all.
    return list(labels) if isinstance(labels, (list, tuple)) else list(_array(labels).tolist())


def _array(values: Any) -> NDArray[Any]:
    if not _is_tensor(values):
        return np.asarray(values)
    from transfer_pruner.attribution.features import as_array

    return as_array(values)


def _is_tensor(values: Any) -> bool:
    return hasattr(values, "detach") and hasattr(values, "cpu")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _scalar(label: Any, what: str) -> Any:
    label = _array(label).tolist() if _is_tensor(label) else label
    if isinstance(label, (list, tuple, np.ndarray)):
        if len(label) == 1:
            return _scalar(label[0], what)
        raise ValueError(
            f"{what} has {len(label)} labels for an example: make a task of each label."
        )
    return label.item() if isinstance(label, np.generic) else label


def _labels(given: list[Any], what: str) -> NDArray[Any]:
    """Make classes of whole numbers and texts, and a regression of other numbers."""
    texts = [label for label in given if isinstance(label, str)]
    if texts and len(texts) < len(given):
        other = next(label for label in given if not isinstance(label, str))
        raise ValueError(f"{what} mixes the labels {texts[0]!r} and {other!r}.")
    if texts:
        truths = {"true": 1, "false": 0}
        if all(text.strip().lower() in truths for text in texts):
            return np.array([truths[text.strip().lower()] for text in texts])
        try:
            given = [float(text) for text in texts]
        except ValueError:
            return np.array(texts)
    values = np.array(given, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{what} has a label that is infinite or NaN: leave such rows out.")
    whole = bool((values == np.round(values)).all())
    return values.astype(np.int64) if whole else values


def _key(example: Example) -> bytes:
    if isinstance(example, str):
        return hashlib.sha256(example.encode("utf-8", "surrogatepass")).digest()
    header = f"{example.dtype.str}{example.shape}\0".encode()
    return hashlib.sha256(header + np.ascontiguousarray(example).tobytes()).digest()
