"""Very many decisions in little room, each as it was made."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.rule.columns import packed, unpacked
from transfer_pruner.rule.decision import Decisions
from transfer_pruner.tasks import FloatArray

TASKS = st.sampled_from(["a", "b", "ab", "", " a", "1 for a", "for"])
REASONS = st.one_of(
    st.text(max_size=20),
    st.builds(
        "rank {} of {} for {}{}".format,
        st.one_of(st.integers(-1, 3), st.integers(10**8, 10**10), st.just("01"), st.just("٣")),
        st.integers(0, 3),
        TASKS,
        st.sampled_from(["", "; the rule keeps 1", "b", " by proxy score"]),
    ),
)
NUMBERS = st.one_of(st.just(math.nan), st.floats(allow_nan=False))
DECISIONS = st.dictionaries(
    st.tuples(st.sampled_from(list("abcd")), TASKS.filter(bool)),
    st.builds(Decision, st.booleans(), NUMBERS, NUMBERS, REASONS, NUMBERS),
    max_size=12,
)


def without_priority(
    decisions: Mapping[tuple[str, str], Decision],
) -> dict[tuple[str, str], Decision]:
    return {pair: replace(said, priority=math.nan) for pair, said in decisions.items()}


@settings(deadline=None)
@given(DECISIONS)
def test_without_priorities_the_order_of_scores_is_one_kept_pairs_first(
    decisions: dict[tuple[str, str], Decision],
) -> None:
    table = EliminationRule(without_priority(decisions), {}).table()
    # A kept pair's score is raised above all those of eliminated ones, as ranks.
    rank = table["score"].rank(method="dense") + 100 * ~table["eliminated"].astype(bool)
    expected = rank.groupby(table["target"]).rank(method="max", pct=True)
    np.testing.assert_allclose(table["priority"], expected.to_numpy(dtype=float))


@settings(deadline=None)
@given(DECISIONS, st.randoms())
def test_decisions_come_back_to_the_letter_in_whatever_order(
    decisions: dict[tuple[str, str], Decision], random: Any
) -> None:
    compact = Decisions.of(decisions)
    ordered = any(not math.isnan(said.priority) for said in decisions.values())
    for copied in (compact, pickle.loads(pickle.dumps(compact))):  # noqa: S301
        assert (dict(copied) if ordered else without_priority(copied)) == decisions
    shuffled = list(decisions.items())
    random.shuffle(shuffled)
    rule, again = EliminationRule(decisions, {}), EliminationRule(dict(shuffled), {})
    assert again.fingerprint == rule.fingerprint
    for pair in decisions:
        changed = {**decisions, pair: Decision(True, 0.0, 0.5, "something else")}
        equal = changed[pair] == decisions[pair]
        assert (EliminationRule(changed, {}).fingerprint == rule.fingerprint) == equal


@settings(deadline=None)
@given(DECISIONS)
def test_what_is_not_there_is_not_found(decisions: dict[tuple[str, str], Decision]) -> None:
    compact = Decisions.of(decisions)
    for source in ("a", "b", "c", "d", "e"):
        for target in ("a", "b", "ab", "nobody"):
            found, given = compact.get((source, target)), decisions.get((source, target))
            assert (found is None) == (given is None)
            assert found is None or found.reason == given.reason
    assert Decisions.of(compact) is copy.deepcopy(compact) is compact


@settings(deadline=None)
@given(st.lists(st.floats(width=64)), st.sampled_from(["<f8", "<u2", "|b1", "<i8"]))
def test_columns_come_back_bit_by_bit(values: list[float], dtype: str) -> None:
    column = np.nan_to_num(np.array(values), posinf=1, neginf=0) if dtype != "<f8" else values
    with np.errstate(all="ignore"):
        column = np.array(column, dtype=float).astype(dtype)
    found = unpacked(packed(column), dtype, len(column))
    assert found.tobytes() == column.tobytes()
    assert found.dtype == column.dtype


def test_a_column_can_only_become_numbers() -> None:
    with pytest.raises(ValueError, match="holds no numbers"):
        unpacked(packed(np.zeros(3)), "O", 3)
    with pytest.raises(ValueError, match="reshape"):
        unpacked(packed(np.zeros(3)), "<f8", 4)
    with pytest.raises(ValueError, match="a column is damaged"):
        unpacked(b"nonsense", "<f8", 1)


def test_a_pair_that_stands_twice_is_refused() -> None:
    names = ("source", "eliminated", "score", "probability", "rank", "candidates", "why")
    columns = {name: np.zeros(2, dtype=int) for name in names}
    with pytest.raises(ValueError, match="the pair 'a' -> 'b' occurs more than once"):
        Decisions(["a", "b"], ["told so"], columns | {"target": np.ones(2, dtype=int)})


def test_one_pair_under_two_types_of_name_is_refused() -> None:
    kept = Decision(False, 0.5, 0.5, "")
    with pytest.raises(ValueError, match="the pair '1' -> 'a' occurs more than once"):
        EliminationRule({("1", "a"): kept, (1, "a"): kept}, {})  # type: ignore[dict-item]


class Numbers:
    """A predictor of very many pairs, no two of them alike."""

    @property
    def tasks(self) -> list[str]:
        return [f"task-{i:03}" for i in range(150)]

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        return np.random.default_rng(0).normal(size=len(pairs))

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        return np.random.default_rng(1).random(len(pairs))


def peak(action: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_million_pairs_would_take_20_mb_and_300_while_made_saved_and_loaded(
    tmp_path: Path,
) -> None:
    rule = EliminationRule.top_k(Numbers(), k=3)
    few = 50_000  # what does not grow with the pairs: names, imports
    assert len(rule) == 22_350
    assert len(pickle.dumps(rule)) < 20 * len(rule)
    rule.save(tmp_path)
    assert (tmp_path / "rule.json").stat().st_size < 20 * len(rule) + few
    for action in (
        lambda: EliminationRule.top_k(Numbers(), k=3),
        lambda: EliminationRule.top_k(Numbers(), k=3).save(tmp_path),
        lambda: EliminationRule.load(tmp_path),
    ):
        assert peak(action) < 250 * len(rule) + few
    assert EliminationRule.load(tmp_path).fingerprint == rule.fingerprint
    assert rule.fingerprint is rule.fingerprint, "computed once"
