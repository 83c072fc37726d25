"""The pairs that a rule learns of, with all that is known of them before any is measured.

What it must satisfy: a million pairs are a few arrays, and small where a host pickles them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.pairs import pair_columns, pair_features
from transfer_pruner.rule.decision import Decisions
from transfer_pruner.rule.ranking import candidate_pairs, task_codes, task_columns
from transfer_pruner.tasks import FloatArray

if TYPE_CHECKING:
    from transfer_pruner.predictor import TransferPredictor

SCORE = "attribution_score"


@dataclass(frozen=True)
class Candidates:
    """Ordered pairs, each once, and the predictor's features of them.

    Attributes
    ----------
    table : DataFrame
        The two task columns, named as the predictor reads them, and its `feature_columns`.
    columns : list of two str
        Of the source and the target.
    tasks : list of str
        Sorted.
    """

    table: pd.DataFrame
    columns: list[str]
    tasks: list[str]

    @classmethod
    def of(cls, predictor: TransferPredictor, pairs: pd.DataFrame | None) -> Candidates:
        """Take the candidate pairs once each, with the predictor's columns and no others.

        Raises
        ------
        ValueError
            If `pairs` lacks a column.
        """
        table = candidate_pairs(predictor, pairs)
        columns = task_columns(predictor)
        features = list(predictor.feature_columns)
        missing = [feature for feature in features if feature not in table]
        if missing:
            raise ValueError(
                f"pairs lacks {missing[0]!r}, which the predictor's feature_columns names: pass "
                "pairs= with a value of it for every candidate pair."
            )
        tasks, (source, target) = task_codes(*pair_columns(table, *columns))
        there = (source >= 0) & (target >= 0) & (source != target)
        there &= ~pd.Series(source * (len(tasks) + 1) + target).duplicated().to_numpy()
        source, target = source[there], target[there]
        named = {
            column: pd.Categorical.from_codes(codes, pd.Index(tasks, dtype=object))
            for column, codes in zip(columns, (source, target), strict=True)
        }
        known = table.loc[there, features].reset_index(drop=True)
        return cls(pd.concat([pd.DataFrame(named), known], axis=1), columns, tasks)

    @property
    def source(self) -> NDArray[np.int64]:
        """Positions of the sources in `tasks`."""
        return np.asarray(self.table[self.columns[0]].cat.codes, dtype=np.int64)

    @property
    def target(self) -> NDArray[np.int64]:
        """Positions of the targets in `tasks`."""
        return np.asarray(self.table[self.columns[1]].cat.codes, dtype=np.int64)

    @property
    def pairs(self) -> pd.DataFrame:
        """The two task columns."""
        return self.table[self.columns]

    def with_features(self, features: pd.DataFrame) -> Candidates:
        """Take further features of the same pairs, or others in their place."""
        rest = self.table[[x for x in self.table.columns if x not in features.columns]]
        return replace(self, table=pd.concat([rest, features], axis=1))

    def known(self, rows: NDArray[np.int64], pairs: pd.DataFrame) -> pd.DataFrame:
        """Take what is known of pairs, columns source and target, that stand in these rows.

        NaN of those in the row -1.
        """
        known = self.table.drop(columns=self.columns).reindex(rows).reset_index(drop=True)
        for column, side in zip(self.columns, ("source", "target"), strict=True):
            known[column] = pairs[side].to_numpy()
        return known

    def order(self) -> NDArray[np.int64]:
        """Order the pairs as `Decisions` are: by target, and then by source."""
        return np.lexsort((self.source, self.target))

    def best(self, values: FloatArray, k: int | None) -> NDArray[np.int64]:
        """Find the k pairs of every target with the highest values; all of them if k is None.

        Equal values are ordered by source name.
        """
        order = np.lexsort((self.source, -values, self.target))
        if k is None:
            return order
        target = self.target[order]
        return order[np.arange(len(order)) - np.searchsorted(target, target) < k]

    def decided(self, whys: list[str], columns: dict[str, Any]) -> Decisions:
        """Make decisions of all the pairs; columns that are left out say nothing."""
        n = len(self.table)
        nothing: dict[str, Any] = {
            **dict.fromkeys(("rank", "candidates", "why"), np.zeros(n, dtype=int)),
            **dict.fromkeys(("score", "probability"), np.full(n, np.nan)),
            "eliminated": np.zeros(n, dtype=bool),
        }
        pair = {"source": self.source, "target": self.target}
        return Decisions(self.tasks, whys, nothing | pair | columns)

    def by_target(self, values: pd.Series) -> FloatArray:
        """Look a value of every pair's target up; NaN where there is none."""
        found: FloatArray = values.reindex(self.tasks).to_numpy(dtype=float)[self.target]
        return found


def tabulated(
    predictor: TransferPredictor, candidates: Candidates
) -> tuple[TransferPredictor, Candidates]:
    """Turn embeddings into columns of the candidate pairs: the predictor learns the same."""
    from sklearn.base import clone

    slim = clone(predictor)
    if not predictor.embeddings:
        return slim, candidates
    from transfer_pruner.predictor.design import alike_tasks

    source, target = task_columns(predictor)
    features = pair_features(
        candidates.pairs,
        predictor.embeddings,
        predictor.target_embeddings,
        source=source,
        target=target,
    )
    slim.set_params(
        embeddings=None,
        target_embeddings=None,
        feature_columns=[*features.columns, *predictor.feature_columns],
        similarity=alike_tasks(
            predictor.similarity, predictor.embeddings, predictor.target_embeddings
        ),
    )
    return slim, candidates.with_features(features)
