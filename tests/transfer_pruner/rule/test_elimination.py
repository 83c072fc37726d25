from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
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


def test_a_damaged_rule_is_named(predictor: Table, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"rule\.json' does not exist"):
        EliminationRule.load(tmp_path)
    EliminationRule.top_k(predictor, k=2).save(tmp_path)
    path = tmp_path / "rule.json"
    whole = path.read_text()
    path.write_text(whole[:-40])
    with pytest.raises(ValueError, match="is not a whole elimination rule"):
        EliminationRule.load(tmp_path)
    path.write_text(whole.replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="format is 99, this version reads 1"):
        EliminationRule.load(tmp_path)


def test_bad_parameters_stop_early(predictor: Table) -> None:
    with pytest.raises(ValueError, match="k cannot be negative but got -1"):
        EliminationRule.top_k(predictor, k=-1)
    with pytest.raises(ValueError, match=r"fraction must be from 0 to 1 but got 1\.5"):
        EliminationRule.fraction(predictor, 1.5)
    with pytest.raises(ValueError, match="seconds cannot be negative but got nan"):
        EliminationRule.budget(predictor, math.nan, seconds_per_pair=1)
    with pytest.raises(ValueError, match="seconds_per_pair must be positive but got 0"):
        EliminationRule.budget(predictor, 1, seconds_per_pair=0)
    with pytest.raises(ValueError, match="min_gain must be a number but got nan"):
        EliminationRule.min_gain(predictor, math.nan)
    with pytest.raises(ValueError, match="pairs must hold at least one pair but is empty"):
        EliminationRule.top_k(predictor, pairs=pd.DataFrame({"source": [], "target": []}))
    with pytest.raises(ValueError, match="at least two tasks but knows 0"):
        EliminationRule.top_k(Table({}))


def test_a_rule_from_a_real_predictor_gives_probabilities(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    rule = EliminationRule.min_gain(predictor, 0.0)
    decision = rule.decide("weather", "news")
    assert not decision.eliminated
    assert decision.probability > 0.7
    assert rule.decide("advice", "news").eliminated


def test_a_second_look_is_taken_only_at_what_is_kept(predictor: Table) -> None:
    first = EliminationRule.top_k(predictor, k=3)
    looked: list[tuple[str, str]] = []

    def look(source: str, target: str) -> float:
        looked.append((source, target))
        return {"a": 1.0, "b": 5.0, "c": 2.0, "d": 4.0, "e": 3.0}[source]

    rule = first.refine(look, k=1)
    # Source by source: a look needs each source's model once.
    assert looked == sorted(kept_pairs(first))
    for target in predictor.tasks:
        assert rule.kept(target) == [max(first.kept(target), key=lambda s: look(s, target))]
    for pair in set(predictor.scores) - kept_pairs(first):
        assert rule.decide(*pair) == first.decide(*pair)
    lost = (kept_pairs(first) - kept_pairs(rule)).pop()
    assert "by a second look; the rule keeps 1" in rule.decide(*lost).reason
    assert rule.settings["first"] == first.settings


def test_a_look_that_fails_keeps_its_pair(predictor: Table) -> None:
    first = EliminationRule.top_k(predictor, k=3)

    def look(source: str, target: str) -> float:
        if source == "a":
            raise RuntimeError("no such model")
        return math.nan if source == "b" else 1.0

    with pytest.warns(TransferPrunerWarning, match="looks failed .* no such model"):
        rule = first.refine(look, k=0)
    assert kept_pairs(rule) == {pair for pair in kept_pairs(first) if pair[0] in "ab"}


def test_a_refined_rule_is_saved_and_loaded(predictor: Table, tmp_path: Path) -> None:
    rule = EliminationRule.top_k(predictor, k=3).refine(lambda source, _: ord(source), k=2)
    rule.save(tmp_path)
    assert EliminationRule.load(tmp_path).fingerprint == rule.fingerprint
    with pytest.raises(ValueError, match="k cannot be negative but got -1"):
        rule.refine(lambda *_: 0.0, k=-1)


def test_a_rule_that_keeps_nothing_has_nothing_to_look_at(predictor: Table) -> None:
    nothing = EliminationRule.top_k(predictor, k=0)
    assert kept_pairs(nothing.refine(lambda *_: 1.0, k=3)) == set()
