"""Binary tasks out of a CSV of texts with several labels each, dealt out into splits.

One task for each label. The texts of the first CSV are dealt at random into a pool (to train on), a
dev split (to choose by) and a test split (to report); the second CSV, of other events, is a test
split of its own, "shifted".
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Rows = NDArray[np.int64]
NEGATIVES_PER_POSITIVE = 3
"""In every sample, so that a score is not a matter of how rare the label is."""


@dataclass(frozen=True)
class Tasks:
    """Texts, one column of labels a task, and the rows of each split."""

    texts: list[str]
    names: list[str]
    labels: NDArray[np.bool_]
    splits: dict[str, Rows]

    def positive(self, task: str, rows: Rows) -> NDArray[np.bool_]:
        """Which of the rows are positives of the task."""
        return self.labels[rows, self.names.index(task)]

    def sample(self, task: str, split: str, n_positive: int, seed: int = 0) -> Rows:
        """Draw positives, and three negatives for each, out of a split."""
        rng = np.random.default_rng([zlib.crc32(f"{task}/{split}".encode()), seed])
        rows = rng.permutation(self.splits[split])
        positive = self.positive(task, rows)
        chosen = rows[positive][:n_positive]
        negatives = rows[~positive][: NEGATIVES_PER_POSITIVE * len(chosen)]
        return rng.permutation(np.concatenate([chosen, negatives]))

    def probe(self, n: int) -> list[str]:
        """Take n texts of the pool, the same for every task; no label is looked at."""
        rows = np.random.default_rng(0).permutation(self.splits["pool"])
        return [self.texts[row] for row in rows[:n]]


def read_tasks(
    train: Path, test: Path, text_column: str, labels_column: str, separator: str, split_seed: int
) -> Tasks:
    """Read both CSVs, without texts that have no label, and without the second's that are in both.

    A task that has no positive in the first CSV is left out.
    """
    first, second = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (train, test))
    for path, frame in ((train, first), (test, second)):
        for column in (text_column, labels_column):
            if column not in frame:
                raise SystemExit(f"{path} has no column {column!r}: {', '.join(frame.columns)}.")
    first, second = (frame[frame[labels_column] != ""] for frame in (first, second))
    second = second[~second[text_column].isin(first[text_column])]
    both = pd.concat([first, second], ignore_index=True)
    labels = both[labels_column].str.get_dummies(separator).astype(bool)
    names = [name for name in labels.columns if labels[name][: len(first)].any()]
    shuffled = np.random.default_rng(split_seed).permutation(len(first))
    pool, dev, test_rows = np.split(shuffled, [int(0.6 * len(first)), int(0.75 * len(first))])
    return Tasks(
        texts=list(both[text_column]),
        names=names,
        labels=labels[names].to_numpy(),
        splits={
            "pool": pool,
            "dev": dev,
            "test": test_rows,
            "shifted": np.arange(len(first), len(both)),
        },
    )
