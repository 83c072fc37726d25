"""Re-ranking looks at what is kept only, and loses nothing for want of a proxy score."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from transfer_pruner import Decision, EliminationRule, TransferPrunerWarning

TASKS = list("abcde")
STRENGTH = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 4.0, "e": 3.0}


def ranked_rule(k: int) -> EliminationRule:
    """A rule that keeps the k sources that come first after the target in the alphabet."""
    decisions = {}
    for t, target in enumerate(TASKS):
        for rank in range(1, 5):
            source = TASKS[(t + rank) % 5]
            reason = f"rank {rank} of 4 for {target}; the rule keeps {k}"
            decisions[source, target] = Decision(rank > k, -rank / 10, math.nan, reason)
    return EliminationRule(decisions, {"rule": "top_k", "k": k})


FIRST = ranked_rule(3)


def pairs_of(rule: EliminationRule, *, eliminated: bool) -> set[tuple[str, str]]:
    return {pair for pair, decision in rule.decisions.items() if decision.eliminated == eliminated}


def kept_pairs(rule: EliminationRule) -> set[tuple[str, str]]:
    return pairs_of(rule, eliminated=False)


def decided(rule: EliminationRule, source: str, target: str) -> Decision:
    """What the rule decides, its place in the order aside."""
    return replace(rule.decide(source, target), priority=math.nan)


def scores_of(rule: EliminationRule) -> pd.DataFrame:
    rows = [(s, t, STRENGTH[s]) for s, t in sorted(kept_pairs(rule))]
    return pd.DataFrame(rows, columns=["source", "target", "score"])


def test_only_kept_pairs_are_scored_and_the_best_of_them_stay() -> None:
    scored: list[tuple[str, str]] = []

    def strength(source: str, target: str) -> float:
        scored.append((source, target))
        return STRENGTH[source]

    rule = FIRST.refine(strength, 1)
    # Source by source: each source's model is needed once.
    assert scored == sorted(kept_pairs(FIRST))
    for target in TASKS:
        best = max(FIRST.kept(target), key=STRENGTH.__getitem__)
        assert rule.kept(target) == [best]
        said = rule.decide(best, target)
        assert said == Decision(
            False,
            STRENGTH[best],
            math.nan,
            f"rank 1 of 3 for {target} by proxy score; the rule keeps 1",
            priority=1.0,
        )
        # Whatever proxy scores are beside attribution scores: what is kept comes first.
        table = rule.table()[rule.table()["target"] == target]
        looked_at = table["reason"].str.contains("by proxy score")
        assert table["priority"][looked_at].min() > table["priority"][~looked_at].max()
    for pair in pairs_of(FIRST, eliminated=True):
        assert decided(rule, *pair) == decided(FIRST, *pair)
    assert rule.settings == {"rule": "refine", "k": 1, "first": FIRST.settings}


def test_a_table_says_the_same_as_a_callable() -> None:
    called = FIRST.refine(lambda source, _: STRENGTH[source], k=2)
    table = scores_of(FIRST)
    assert FIRST.refine(table, k=2).fingerprint == called.fingerprint
    everything = pd.DataFrame(
        [(s, t, STRENGTH[s], "told") for s in TASKS for t in TASKS],
        columns=["source", "target", "score", "note"],
    )
    assert FIRST.refine(everything.sample(frac=1, random_state=0), k=2).fingerprint == (
        called.fingerprint
    )


def test_numbers_name_the_tasks_of_a_table_too() -> None:
    decisions = {(s, t): Decision(False, 0.0, math.nan, "") for s in (1, 2) for t in (3, 4)}
    first = EliminationRule(decisions, {})  # type: ignore[arg-type]
    table = pd.DataFrame({"source": [1, 2, 1, 2], "target": [3.0, 3.0, 4.0, 4.0]})
    rule = first.refine(table.assign(score=[0.1, 0.2, 0.4, 0.3]), k=1)
    assert [rule.kept(task) for task in ("3", "4")] == [["2"], ["1"]]


@pytest.mark.parametrize("as_table", [True, False])
def test_pairs_without_a_proxy_score_stay_kept_and_are_counted(as_table: bool) -> None:
    table = scores_of(FIRST)
    table.loc[table["source"] == "a", "score"] = [math.nan, math.inf, math.nan]
    table = table[table["source"] != "b"]
    known = {(s, t): score for s, t, score in table.itertuples(index=False)}
    scores = table if as_table else lambda s, t: known.get((s, t), math.nan)
    with pytest.warns(TransferPrunerWarning, match="6 of 15 kept pairs have no proxy") as warned:
        rule = FIRST.refine(scores, k=0)
    assert len(warned) == 1
    assert kept_pairs(rule) == {pair for pair in kept_pairs(FIRST) if pair[0] in "ab"}
    assert decided(rule, "a", "e") == decided(FIRST, "a", "e")


def test_a_proxy_score_that_fails_costs_its_own_pair_only() -> None:
    def fails(source: str, target: str) -> float:
        if source == "a":
            raise RuntimeError("no such model")
        return 1.0

    told = "3 of 15 kept pairs have no proxy score and stay kept; scoring failed for 3, first 'a' "
    with pytest.warns(TransferPrunerWarning, match=told + "-> 'c': RuntimeError: no such model"):
        rule = FIRST.refine(fails, k=0)
    assert kept_pairs(rule) == {pair for pair in kept_pairs(FIRST) if pair[0] == "a"}


def test_tasks_of_a_table_that_the_rule_does_not_know_are_named() -> None:
    table = scores_of(FIRST)
    more = pd.DataFrame({"source": ["a ", "gossip"], "target": ["b", "gossip"], "score": 0.5})
    with pytest.warns(TransferPrunerWarning, match="names 2 of 7 tasks .*: 'a ', 'gossip'.") as w:
        rule = FIRST.refine(pd.concat([table, more]), k=1)
    assert len(w) == 1
    assert rule.fingerprint == FIRST.refine(table, k=1).fingerprint


def test_what_is_no_table_of_scores_is_refused() -> None:
    table = scores_of(FIRST)
    twice = pd.concat([table, table[table["source"] == "b"]])
    with pytest.raises(ValueError, match="scores has the pair 'b' -> 'a' more than once"):
        FIRST.refine(twice)
    with pytest.raises(ValueError, match="scores lacks the column 'score'; it has: source, target"):
        FIRST.refine(table[["source", "target"]])
    with pytest.raises(ValueError, match="scores lacks the column 'target'"):
        FIRST.refine(table.drop(columns="target"))
    with pytest.raises(ValueError, match=r"scores must be a callable of .* but got 1"):
        FIRST.refine(1, table)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be a whole number, 0 or more, but got 'two'"):
        FIRST.refine(table, "two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k cannot be negative but got -1"):
        FIRST.refine(table, -1)


def test_a_refined_rule_is_saved_and_refined_again(tmp_path: Path) -> None:
    rule = FIRST.refine(scores_of(FIRST), k=2)
    rule.save(tmp_path)
    assert EliminationRule.load(tmp_path).fingerprint == rule.fingerprint
    again = rule.refine(lambda source, _: -STRENGTH[source], k=1)
    assert all(len(again.kept(target)) == 1 for target in TASKS)
    assert again.settings["first"]["first"] == FIRST.settings


def test_a_rule_that_keeps_nothing_has_nothing_to_rank_again() -> None:
    nothing = ranked_rule(0)
    for scores in (lambda *_: 1.0, scores_of(FIRST)):
        assert kept_pairs(nothing.refine(scores, k=3)) == set()
    empty = pd.DataFrame({"source": [], "target": [], "score": np.zeros(0)})
    with pytest.warns(TransferPrunerWarning, match="15 of 15 kept pairs have no proxy score"):
        assert kept_pairs(FIRST.refine(empty)) == kept_pairs(FIRST)


def test_a_rule_knows_what_its_proxy_scores_took_and_goes_by_them_in_no_other_way(
    tmp_path: Path,
) -> None:
    table = scores_of(FIRST)
    timed = table.assign(seconds=0.5)
    # What was scored and is not used was paid for too; what is no number of seconds was not told.
    timed.loc[len(timed)] = ["a", "b", 9.0, 2.0]
    timed.loc[0, "seconds"] = math.nan
    rule = FIRST.refine(timed, k=2)
    assert FIRST.scoring_seconds == FIRST.refine(table, k=2).scoring_seconds == 0
    assert rule.scoring_seconds == pytest.approx(0.5 * (len(table) - 1) + 2.0)
    assert rule.fingerprint == FIRST.refine(table, k=2).fingerprint
    rule.save(tmp_path)
    for same in (EliminationRule.load(tmp_path), rule.with_settings({"k": 2})):
        assert same.scoring_seconds == rule.scoring_seconds
    again = rule.refine(table.assign(seconds=0.1), k=1)
    assert again.scoring_seconds == pytest.approx(rule.scoring_seconds + 0.1 * len(table))


def test_a_callable_is_timed() -> None:
    def slow(source: str, _: str) -> float:
        time.sleep(0.002)
        return STRENGTH[source]

    assert FIRST.refine(slow, 1).scoring_seconds >= 0.002 * len(kept_pairs(FIRST))
