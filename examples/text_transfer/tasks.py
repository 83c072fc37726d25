"""Text classification tasks, dealt out into splits: from one CSV of many labels, or one CSV each.

What both kinds give a benchmark: texts, the rows of a task that a source or a target is trained on
and those that it is scored on, and what is true of them.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Rows = NDArray[np.int64]
NEGATIVES_PER_POSITIVE = 3
"""In every sample of a label, so that a score is not a matter of how rare the label is."""
FEWEST_SCORED = 4
"""Texts of a class that a task with many of them is scored on, on average."""


class Tasks(ABC):
    """Texts and the tasks on them; a row is a place in `texts`."""

    texts: list[str]
    names: list[str]
    splits: tuple[str, ...]
    """What models are scored on: dev, test, and what else there is."""

    @abstractmethod
    def n_outputs(self, task: str) -> int:
        """How many logits a head has: 1 of a label that is there or not, or one a class."""

    @abstractmethod
    def same_labels(self, source: str, target: str) -> bool:
        """Whether a head of the source answers with the target's labels."""

    @abstractmethod
    def truth(self, task: str, rows: Rows) -> NDArray[np.int64]:
        """Give the class of each row, from 0; of a label, 1 where it is there."""

    @abstractmethod
    def source_rows(self, task: str, size: int, seed: int) -> Rows:
        """Draw what a source is trained on."""

    @abstractmethod
    def target_rows(self, task: str, size: int, seed: int) -> Rows:
        """Draw what a target is trained on."""

    @abstractmethod
    def scored_rows(self, task: str, split: str, size: int) -> Rows:
        """Draw what is scored, the same for every model."""

    @abstractmethod
    def probe(self, n: int) -> list[str]:
        """Take n texts to train on, the same for every task; no label is looked at."""


@dataclass(frozen=True)
class ManyLabels(Tasks):
    """One binary task for each label of texts that have several; sizes count positives."""

    texts: list[str]
    names: list[str]
    labels: NDArray[np.bool_]
    rows_of: dict[str, Rows]
    splits = ("dev", "test", "shifted")

    def n_outputs(self, task: str) -> int:
        """One: the label is there or not."""
        return 1

    def same_labels(self, source: str, target: str) -> bool:
        """Every head says whether a label is there."""
        return True

    def truth(self, task: str, rows: Rows) -> NDArray[np.int64]:
        """1 for a positive of the task."""
        return self.positive(task, rows).astype(np.int64)

    def positive(self, task: str, rows: Rows) -> NDArray[np.bool_]:
        """Which of the rows are positives of the task."""
        return self.labels[rows, self.names.index(task)]

    def sample(self, task: str, split: str, n_positive: int, seed: int = 0) -> Rows:
        """Draw positives, and three negatives for each, out of a split."""
        rng = _random(f"{task}/{split}", seed)
        rows = rng.permutation(self.rows_of[split])
        positive = self.positive(task, rows)
        chosen = rows[positive][:n_positive]
        negatives = rows[~positive][: NEGATIVES_PER_POSITIVE * len(chosen)]
        return rng.permutation(np.concatenate([chosen, negatives]))

    def source_rows(self, task: str, size: int, seed: int) -> Rows:
        """So many positives, or as many as there are."""
        return self.sample(task, "pool", size, 100 + seed)

    def target_rows(self, task: str, size: int, seed: int) -> Rows:
        """So many positives."""
        return self.sample(task, "pool", size, seed)

    def scored_rows(self, task: str, split: str, size: int) -> Rows:
        """So many positives of the split, or as many as there are."""
        return self.sample(task, split, size)

    def probe(self, n: int) -> list[str]:
        """Take n texts of the pool."""
        rows = np.random.default_rng(0).permutation(self.rows_of["pool"])
        return [self.texts[row] for row in rows[:n]]


@dataclass(frozen=True)
class OneFileEach(Tasks):
    """Tasks of different origin: texts, classes and sizes of their own; sizes count texts."""

    texts: list[str]
    names: list[str]
    classes: dict[str, list[str]]
    labels: NDArray[np.int64]
    rows_of: dict[tuple[str, str], Rows]
    most_texts: int
    """A target of many classes has fewer texts of each, but two."""
    splits = ("dev", "test")

    def n_outputs(self, task: str) -> int:
        """One a class."""
        return len(self.classes[task])

    def same_labels(self, source: str, target: str) -> bool:
        """Whether the classes have the same names, whatever they stand for."""
        return self.classes[source] == self.classes[target]

    def truth(self, task: str, rows: Rows) -> NDArray[np.int64]:
        """Give the place of a row's class among the task's."""
        return self.labels[rows]

    def source_rows(self, task: str, size: int, seed: int) -> Rows:
        """So many texts, or as many as there are."""
        rows = self.rows_of[task, "train"]
        return _random(f"{task}/train", 100 + seed).permutation(rows)[:size]

    def target_rows(self, task: str, size: int, seed: int) -> Rows:
        """So many texts of each class, within what a target may have; 0: all that there are."""
        rows = _random(f"{task}/train", seed).permutation(self.rows_of[task, "train"])
        if not size:
            return rows
        size = min(size, max(2, self.most_texts // self.n_outputs(task)))
        # The place of every row among those of its class.
        order = np.argsort(self.labels[rows], kind="stable")
        of_class = np.bincount(self.labels[rows], minlength=self.n_outputs(task))
        place = np.empty(len(rows), dtype=int)
        place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(of_class) - of_class, of_class)
        return rows[place < size]

    def scored_rows(self, task: str, split: str, size: int) -> Rows:
        """So many texts, or more if there are many classes."""
        rows = _random(f"{task}/{split}", 0).permutation(self.rows_of[task, split])
        return rows[: max(size, FEWEST_SCORED * self.n_outputs(task))]

    def probe(self, n: int) -> list[str]:
        """Take n texts to train on, of every task as many, give or take one."""
        shuffled = [
            _random(f"{name}/probe", 0).permutation(self.rows_of[name, "train"])
            for name in self.names
        ]
        rounds = range(max(len(rows) for rows in shuffled))
        rows = [rows[place] for place in rounds for rows in shuffled if place < len(rows)]
        return [self.texts[row] for row in rows[:n]]


def _random(what: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(what.encode()), seed])


def read_many_labels(
    train: Path,
    test: Path,
    text_column: str,
    labels_column: str,
    separator: str,
    split_seed: int | None,
) -> ManyLabels:
    """Read both CSVs, without texts that have no label, and without the second's that are in both.

    The texts of the first are dealt at random into a pool (to train on), a dev split (to choose by)
    and a test split (to report); the second, of other events, is a test split of its own,
    "shifted". A split seed of None deals the first out in its order: if that is one of time, dev is
    later than the pool, and test later than both. A task that has no positive in the first CSV is
    left out.
    """
    first, second = (_read_csv(path, text_column, labels_column) for path in (train, test))
    first, second = (frame[frame[labels_column] != ""] for frame in (first, second))
    second = second[~second[text_column].isin(first[text_column])]
    both = pd.concat([first, second], ignore_index=True)
    labels = both[labels_column].str.get_dummies(separator).astype(bool)
    names = [name for name in labels.columns if labels[name][: len(first)].any()]
    dealt = np.arange(len(first))
    if split_seed is not None:
        dealt = np.random.default_rng(split_seed).permutation(len(first))
    pool, dev, test_rows = np.split(dealt, [int(0.6 * len(first)), int(0.75 * len(first))])
    return ManyLabels(
        texts=list(both[text_column]),
        names=names,
        labels=labels[names].to_numpy(),
        rows_of={
            "pool": pool,
            "dev": dev,
            "test": test_rows,
            "shifted": np.arange(len(first), len(both)),
        },
    )


def read_folder(
    folder: Path,
    text_column: str,
    label_column: str,
    split_column: str,
    most_texts: int,
    split_seed: int = 0,
) -> OneFileEach:
    """Read every CSV of a folder as a task, with a column of splits: train, dev, test.

    A split seed other than 0 deals the rows of train out anew, into train, dev and test, and leaves
    the given dev and test alone: to choose sizes by.
    """
    texts: list[str] = []
    names, classes, rows_of, labels = [], {}, {}, []
    for path in sorted(folder.glob("*.csv")):
        frame = _read_csv(path, text_column, label_column, split_column)
        name, found = path.stem, sorted(frame[label_column].unique())
        names.append(name)
        classes[name] = found
        labels.append(frame[label_column].map({label: n for n, label in enumerate(found)}))
        split = frame[split_column].to_numpy()
        for part in ("train", "dev", "test"):
            rows_of[name, part] = np.flatnonzero(split == part) + len(texts)
        if split_seed:
            rows = _random(f"{name}/deal", split_seed).permutation(rows_of[name, "train"])
            parts = np.split(rows, [int(0.6 * len(rows)), int(0.75 * len(rows))])
            rows_of |= {
                (name, part): its for part, its in zip(("train", "dev", "test"), parts, strict=True)
            }
        texts += list(frame[text_column])
    if len(names) < 2:
        raise SystemExit(f"{folder} must hold two or more CSVs but holds {len(names)}.")
    return OneFileEach(texts, names, classes, np.concatenate(labels), rows_of, most_texts)


def _read_csv(path: Path, *columns: str) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in columns:
        if column not in frame:
            raise SystemExit(f"{path} has no column {column!r}: {', '.join(frame.columns)}.")
    return frame
