from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import (
    EliminationRule,
    TaskEmbedding,
    TransferPredictor,
    TransferPrunerWarning,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.tasks import FloatArray


class Table:
    """A predictor that says what it is told to: scores by (source, target)."""

    def __init__(self, scores: dict[tuple[str, str], float]) -> None:
        self.scores = scores

    @property
    def tasks(self) -> list[str]:
        return sorted({task for pair in self.scores for task in pair})

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        keys = zip(pairs["source"], pairs["target"], strict=True)
        return np.array([self.scores.get(key, math.nan) for key in keys])

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        return np.full(len(pairs), math.nan)


@pytest.fixture
def predictor() -> Table:
    tasks = ["a", "b", "c", "d", "e"]
    pairs = ordered_pairs(tasks)
    scores = np.random.default_rng(0).normal(size=len(pairs))
    keys = zip(pairs["source"], pairs["target"], strict=True)
    return Table(dict(zip(keys, scores.tolist(), strict=True)))


def kept_pairs(rule: EliminationRule) -> set[tuple[str, str]]:
    table = rule.table()
    kept = table[~table["eliminated"]]
    return set(zip(kept["source"], kept["target"], strict=True))


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_top_k_keeps_the_k_best_sources_of_every_target(k: int, seed: int) -> None:
    pairs = ordered_pairs(["a", "b", "c", "d", "e"])
    scores = np.random.default_rng(seed).normal(size=len(pairs))
    keys = list(zip(pairs["source"], pairs["target"], strict=True))
    rule = EliminationRule.top_k(Table(dict(zip(keys, scores, strict=True))), k=k)
    for target, rows in pairs.assign(score=scores).groupby("target"):
        expected = rows.nlargest(k, "score")["source"].tolist()
        assert rule.kept(str(target)) == expected


def test_a_decision_says_why(predictor: Table) -> None:
    rule = EliminationRule.top_k(predictor, k=1)
    best = rule.kept("a")[0]
    kept = rule.decide(best, "a")
    assert (kept.eliminated, kept.score) == (False, predictor.scores[best, "a"])
    assert kept.reason == "rank 1 of 4 for a; the rule keeps 1"
    assert math.isnan(kept.probability)
    others = [rule.decide(source, "a") for source in "bcde" if source != best]
    assert all(decision.eliminated for decision in others)


@pytest.mark.parametrize(("fraction", "left"), [(0, 4), (0.5, 2), (0.74, 2), (0.75, 1), (1, 0)])
def test_fraction_rounds_down_to_whole_sources(
    predictor: Table, fraction: float, left: int
) -> None:
    rule = EliminationRule.fraction(predictor, fraction)
    assert [len(rule.kept(target)) for target in "abcde"] == [left] * 5


def test_seven_tenths_of_ten_are_seven() -> None:
    scores = {(f"s{i}", "t"): float(i) for i in range(10)}
    pairs = pd.DataFrame(list(scores), columns=["source", "target"])
    assert len(EliminationRule.fraction(Table(scores), 0.7, pairs=pairs).kept("t")) == 3


def test_min_gain_asks_for_a_gain(predictor: Table) -> None:
    rule = EliminationRule.min_gain(predictor, 0.25)
    assert kept_pairs(rule) == {pair for pair, x in predictor.scores.items() if x >= 0.25}


def test_min_gain_refuses_a_predictor_that_only_ranks(
    embeddings: dict[str, TaskEmbedding],
) -> None:
    with pytest.raises(ValueError, match="min_gain needs a predictor that learnt"):
        EliminationRule.min_gain(TransferPredictor(embeddings), 0.0)


def test_a_budget_serves_every_targets_first_choice_first(predictor: Table) -> None:
    rule = EliminationRule.budget(predictor, 65.0, seconds_per_pair=10.0)
    assert len(kept_pairs(rule)) == 6
    first = {(EliminationRule.top_k(predictor, k=1).kept(t)[0], t) for t in "abcde"}
    assert first < kept_pairs(rule)
    assert kept_pairs(rule) < kept_pairs(EliminationRule.top_k(predictor, k=2))


@settings(deadline=None)
@given(st.floats(0, 200), st.lists(st.floats(0.1, 30), min_size=20, max_size=20))
def test_a_budget_is_never_overspent(seconds: float, costs: list[float]) -> None:
    keys = list(ordered_pairs(list("abcde")).itertuples(index=False, name=None))
    cost = dict(zip(keys, costs, strict=True))
    scores = dict(zip(keys, costs[::-1], strict=True))
    rule = EliminationRule.budget(Table(scores), seconds, seconds_per_pair=cost)
    assert sum(cost[pair] for pair in kept_pairs(rule)) <= seconds + 1e-9


def test_a_budget_needs_the_seconds_of_every_pair(predictor: Table) -> None:
    with pytest.raises(ValueError, match=r"seconds_per_pair lacks 19 of 20 pairs"):
        EliminationRule.budget(predictor, 10, seconds_per_pair={("a", "b"): 1.0})


@pytest.mark.parametrize("source", [None, "", math.nan, "a"])
def test_the_single_task_baseline_is_never_eliminated(predictor: Table, source: str | None) -> None:
    decision = EliminationRule.top_k(predictor, k=0).decide(source, "a")
    assert not decision.eliminated
    assert decision.reason == "single-task baseline: never eliminated"


def test_unknown_pairs_are_kept_warned_about_once_and_counted(predictor: Table) -> None:
    rule = EliminationRule.top_k(predictor, k=0)
    with pytest.warns(TransferPrunerWarning, match="does not know the pair 'gossip' -> 'a'"):
        assert not rule.decide("gossip", "a").eliminated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not rule.decide("a", "gossip").eliminated
        assert rule.decide("b", "a").eliminated
    assert rule.unknown_pairs == {("gossip", "a"), ("a", "gossip")}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_pairs_without_a_score_are_kept_and_use_up_no_place(predictor: Table, bad: float) -> None:
    predictor.scores["b", "a"] = bad
    with pytest.warns(TransferPrunerWarning, match="1 of 20 pairs have no score and are kept"):
        rule = EliminationRule.top_k(predictor, k=1)
    assert not rule.decide("b", "a").eliminated
    assert rule.decide("b", "a").reason == "no score: kept"
    assert len(rule.kept("a")) == 2


def test_a_predictor_that_fails_eliminates_nothing(predictor: Table) -> None:
    def fail(pairs: pd.DataFrame) -> FloatArray:
        raise RuntimeError("out of memory")

    predictor.predict = fail  # type: ignore[method-assign]
    with pytest.warns(TransferPrunerWarning) as warned:
        rule = EliminationRule.top_k(predictor, k=0)
    assert "every pair is kept: RuntimeError: out of memory" in str(warned[0].message)
    assert not rule.table()["eliminated"].any()


def test_ties_are_ordered_by_name_and_given_pairs_bound_the_choice() -> None:
    scores = {(source, "t"): 1.0 for source in ("delta", "alpha", "charlie", "bravo")}
    pairs = pd.DataFrame(list(scores), columns=["source", "target"])
    rule = EliminationRule.top_k(Table(scores), k=2, pairs=pairs)
    assert rule.kept("t") == ["alpha", "bravo"]
    assert len(rule) == 4


def test_a_saved_rule_decides_the_same(predictor: Table, tmp_path: Path) -> None:
    rule = EliminationRule.top_k(predictor, k=2)
    rule.save(tmp_path / "rule")
    loaded = EliminationRule.load(tmp_path / "rule")
    pd.testing.assert_frame_equal(
        loaded.table().sort_values(["target", "source"], ignore_index=True),
        rule.table().sort_values(["target", "source"], ignore_index=True),
    )
    assert loaded.fingerprint == rule.fingerprint
    assert loaded.settings == {"rule": "top_k", "k": 2}
    json.loads((tmp_path / "rule/rule.json").read_text())


def test_a_worker_decides_without_scikit_learn_or_torch(predictor: Table, tmp_path: Path) -> None:
    EliminationRule.top_k(predictor, k=1).save(tmp_path)
    code = (
        "import sys; from transfer_pruner import EliminationRule; "
        f"EliminationRule.load({str(tmp_path)!r}).decide('a', 'b'); "
        "print(sorted({'torch', 'sklearn', 'optuna', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_rule_is_small_when_pickled_and_decides_the_same(predictor: Table) -> None:
    rule = EliminationRule.top_k(predictor, k=2)
    content = pickle.dumps(rule)
    assert len(content) < 10_000
    assert pickle.loads(content).fingerprint == rule.fingerprint  # noqa: S301


def test_bad_parameters_stop_early(predictor: Table) -> None:
    with pytest.raises(ValueError, match="k cannot be negative but got -1"):
        EliminationRule.top_k(predictor, k=-1)
    for k in (2.5, math.nan, "3", None):
        with pytest.raises(ValueError, match=f"k must be a whole number, 0 or more, but got {k!r}"):
            EliminationRule.top_k(predictor, k=k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fraction must be from 0 to 1 but got 1\.5"):
        EliminationRule.fraction(predictor, 1.5)
    with pytest.raises(ValueError, match="seconds cannot be negative but got nan"):
        EliminationRule.budget(predictor, math.nan, seconds_per_pair=1)
    with pytest.raises(ValueError, match="seconds_per_pair must be positive but got 0"):
        EliminationRule.budget(predictor, 1, seconds_per_pair=0)
    with pytest.raises(ValueError, match="seconds must be finite but got inf"):
        EliminationRule.budget(predictor, math.inf, seconds_per_pair=1)
    for gain in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"min_gain must be a number but got {gain}"):
            EliminationRule.min_gain(predictor, gain)
    with pytest.raises(ValueError, match="pairs must hold at least one pair but is empty"):
        EliminationRule.top_k(predictor, pairs=pd.DataFrame({"source": [], "target": []}))
    with pytest.raises(ValueError, match="at least two tasks but knows 0"):
        EliminationRule.top_k(Table({}))


def test_arguments_in_other_places_are_told_where_they_belong(predictor: Table) -> None:
    pairs = pd.DataFrame(list(predictor.scores), columns=["source", "target"])
    for make in (EliminationRule.top_k, EliminationRule.fraction, EliminationRule.min_gain):
        with pytest.raises(ValueError, match="but got a DataFrame: pass tables by name, as pairs="):
            make(predictor, pairs)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"but got 3, .*: pass the predictor first, as in"):
            make(3, predictor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"predictor must be .* but got 3, which lacks tasks"):
        EliminationRule.calibrate(3, pairs, np.ones(20))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"risk must be a number but got '0\.1'"):
        EliminationRule.calibrate(predictor, pairs, np.ones(20), "0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decisions must be .* EliminationRule\.top_k\(predictor"):
        EliminationRule(predictor, {"k": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="settings must be a mapping of str to JSON values but"):
        EliminationRule({}, {"k": {3}})


def test_a_rule_takes_numbers_of_numpy_and_can_be_saved(predictor: Table, tmp_path: Path) -> None:
    rules = [
        EliminationRule.top_k(predictor, np.int64(2)),
        EliminationRule.fraction(predictor, np.float32(0.5)),
        EliminationRule.min_gain(predictor, np.float32(0.25)),
        EliminationRule.budget(predictor, np.int64(50), seconds_per_pair=np.float32(10)),
    ]
    for rule in rules:
        rule.save(tmp_path)
        assert EliminationRule.load(tmp_path).fingerprint == rule.fingerprint


class Task(Enum):
    NEWS = 7
    ADVICE = "advice"


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ([3, 5, 7], ["3", "5", "7"]),
        ([np.int64(3), np.int32(5), 7], ["3", "5", "7"]),
        ([3.0, 5.0, 7.0], ["3", "5", "7"]),
        ([3, "5", Task.NEWS], ["3", "5", "7"]),
        ([Task.NEWS, Task.ADVICE, 3.5], ["7", "advice", "3.5"]),
    ],
)
def test_tasks_of_any_type_are_one_task_with_their_name(tasks: list[Any], names: list[str]) -> None:
    named = [(s, t) for s in names for t in names if s != t]
    predictor = Table({pair: float(i) for i, pair in enumerate(named)})
    raw = pd.DataFrame(
        [(s, t) for s in tasks for t in tasks if s is not t], columns=["source", "target"]
    )
    expected = EliminationRule.top_k(predictor, 1)
    rule = EliminationRule.top_k(predictor, 1, pairs=raw)
    assert rule.fingerprint == expected.fingerprint
    for task, name in zip(tasks, names, strict=True):
        assert rule.kept(task) == expected.kept(name) != []
        assert rule.keeps_any(task)
        for other, its_name in zip(tasks, names, strict=True):
            assert rule.decide(task, other) == expected.decide(name, its_name)
    cost = dict.fromkeys(raw.itertuples(index=False, name=None), 1.0)
    afforded = EliminationRule.budget(predictor, 3, seconds_per_pair=cost, pairs=raw)
    assert [len(afforded.kept(name)) for name in names] == [1, 1, 1]


def test_embeddings_by_number_are_found(embeddings: dict[str, TaskEmbedding]) -> None:
    numbered: dict[Any, TaskEmbedding] = dict(enumerate(embeddings.values()))
    pairs = ordered_pairs(list(embeddings))
    raw = pairs.replace({name: number for number, name in enumerate(embeddings)}).astype(int)
    expected = EliminationRule.top_k(TransferPredictor(embeddings), pairs=pairs)
    for candidates in (raw, None):
        rule = EliminationRule.top_k(TransferPredictor(numbered), pairs=candidates)
        names = dict(zip(map(str, numbered), embeddings, strict=True))
        for source, target in rule.decisions:
            found = rule.decide(source, target)
            assert found.score == pytest.approx(expected.decide(names[source], names[target]).score)


def test_tasks_that_the_predictor_does_not_know_are_kept_and_named(
    predictor: Table, embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    pairs = pd.DataFrame({"source": ["b", "b ", "c"], "target": ["a", "a", "gossip"]})
    told = r"2 of 3 pairs have no score and are kept; the predictor does not know 2 of 5 tasks"
    with pytest.warns(TransferPrunerWarning, match=told + ": 'b ', 'gossip'.") as warned:
        rule = EliminationRule.top_k(predictor, k=0, pairs=pairs)
    assert len(warned) == 1
    assert kept_pairs(rule) == {("b ", "a"), ("c", "gossip")}
    # The popularity of its sources scores a target that was never met, or that is misspelt.
    learnt = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    pairs = pd.DataFrame({"source": ["advice", "weather"], "target": ["news ", "news"]})
    with pytest.warns(TransferPrunerWarning, match="does not know 1 of 4 tasks: 'news '"):
        EliminationRule.top_k(learnt, pairs=pairs)


def test_a_rule_does_not_change_once_it_is_made(predictor: Table) -> None:
    rule = EliminationRule.top_k(predictor, k=2)
    before = rule.fingerprint
    rule.settings["k"] = 9
    assert rule.settings == {"rule": "top_k", "k": 2}
    with pytest.raises(AttributeError):
        rule.settings = {}  # type: ignore[misc]
    other = rule.with_settings({"k": 9})
    assert other.decisions is rule.decisions
    assert other.settings == {"k": 9}
    assert other.fingerprint != before == rule.fingerprint
    with pytest.warns(TransferPrunerWarning, match="does not know the pair"):
        other.decide("gossip", "a")
    assert not rule.unknown_pairs
    assert not rule.with_settings({}, unknown_pairs=other.unknown_pairs).decide("x", "y").eliminated


def test_a_rule_from_a_real_predictor_gives_probabilities(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    rule = EliminationRule.min_gain(predictor, 0.0)
    decision = rule.decide("weather", "news")
    assert not decision.eliminated
    assert decision.probability > 0.7
    assert rule.decide("advice", "news").eliminated
