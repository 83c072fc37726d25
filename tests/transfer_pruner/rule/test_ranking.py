"""What is ranked, by whom: candidate pairs that are read, and predictors that are none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from transfer_pruner import EliminationRule, LearningRule, TaskEmbedding, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule.ranking import check_predictor, ranked
from transfer_pruner.tasks import is_baseline, task_name


def search(fitted: bool, embeddings: dict[str, TaskEmbedding], pairs: pd.DataFrame) -> GridSearchCV:
    grid = {"regressor": [RandomForestRegressor(2)]}
    found = GridSearchCV(TransferPredictor(embeddings), grid, cv=2)
    return found.fit(pairs, pairs["gain"]) if fitted else found


def test_a_search_over_predictors_is_told_apart_from_its_best(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    fitted = search(True, embeddings, transfers)
    remedy = r"got GridSearchCV\(.*, which lacks tasks.*: pass its best_estimator_\."
    with pytest.raises(ValueError, match=remedy):
        EliminationRule.top_k(fitted)
    with pytest.raises(ValueError, match=remedy):
        EliminationRule.calibrate(fitted, transfers, transfers["gain"])
    with pytest.raises(ValueError, match="fit it, and pass its best_estimator_"):
        EliminationRule.fraction(search(False, embeddings, transfers))
    with pytest.raises(ValueError, match="fit it, and pass its best_estimator_"):
        LearningRule(search(False, embeddings, transfers))
    assert len(EliminationRule.top_k(fitted.best_estimator_)) == 30


@pytest.mark.parametrize("make", [EliminationRule.top_k, EliminationRule.fraction, LearningRule])
def test_a_class_is_told_apart_from_an_instance(make: Any) -> None:
    with pytest.raises(ValueError, match=r"but got the class TransferPredictor: pass an instance"):
        make(TransferPredictor)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([0.1, 0.2], r"\[0\.1, 0\.2\], which lacks tasks, predict, predict_proba"),
        ({("a", "b"): 0.1}, r"\{\('a', 'b'\): 0\.1\}, which lacks"),
        (np.zeros(3), "a ndarray, which lacks"),
        (pd.DataFrame({"a": [1]}), "a DataFrame, which lacks"),
        (None, "None, which lacks"),
        ("rule/", "'rule/', which lacks"),
        (make_pipeline(RandomForestRegressor()), "Pipeline.*, which lacks tasks, predict_proba"),
        (EliminationRule({}, {}), "EliminationRule.*, which lacks tasks, predict, predict_proba"),
    ],
)
def test_what_is_no_predictor_is_named_with_what_it_lacks(wrong: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"predictor must be .* but got {named}"):
        check_predictor(wrong)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", 3, "3", None, ""]),
            st.sampled_from(["a", "b", "c", 3]),
            st.one_of(st.sampled_from([0.0, 1.0, math.nan]), st.floats(-9, 9)),
        ),
        max_size=30,
    )
)
def test_ranks_are_those_of_a_reference(rows: list[tuple[Any, Any, float]]) -> None:
    table = pd.DataFrame(rows, columns=["source", "target", "score"]).astype(
        {"source": object, "target": object, "score": float}
    )
    first: dict[tuple[str, str], float] = {}
    for source, target, score in rows:
        if not is_baseline(source, target):
            first.setdefault((str(source), str(target)), score)
    expected = []
    for target in sorted({target for _, target in first}):
        of_target = [(-score, source) for (source, to), score in first.items() if to == target]
        # Without a score last, by name too.
        of_target.sort(key=lambda pair: (math.isnan(pair[0]), np.nan_to_num(pair[0]), pair[1]))
        expected += [
            (source, target, rank, len(of_target)) for rank, (_, source) in enumerate(of_target, 1)
        ]
    found = ranked(table)
    named = [
        # pandas makes 3.0 of a 3 beside a None.
        (task_name(s), task_name(t), rank, candidates)
        for s, t, rank, candidates in found[["source", "target", "rank", "candidates"]].itertuples(
            index=False
        )
    ]
    assert named == expected


def test_pairs_are_listed_target_by_target() -> None:
    expected = [(s, t) for t in "abc" for s in "abc" if s != t]
    assert list(ordered_pairs(list("abc")).itertuples(index=False, name=None)) == expected
    assert ordered_pairs([]).empty
    assert list(ordered_pairs([]).columns) == ["source", "target"]
