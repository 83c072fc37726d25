"""The order of a rule's surviving pairs, where priorities tell it and where they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer_pruner import Decision, EliminationRule, LearningRule, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule.order import PairOrder

TASKS = ["a", "b", "c", "t"]


def test_where_no_improvement_is_likely_at_all_the_least_hopeless_pair_comes_first() -> None:
    scores = {"a": -3.0, "b": -1.0, "c": math.nan}
    rule = EliminationRule(
        {(x, "t"): Decision(False, score, 0.0, "", 0.0) for x, score in scores.items()}, {}
    )
    order = PairOrder(rule)
    assert order.tells
    assert order.best(TASKS, ["t"]) == ("b", "t")
    assert order.best(TASKS, ["t"], {("b", "t"): 1}) == ("a", "t")
    assert order.best(TASKS, ["t"], {("b", "t"): 1, ("a", "t"): 1}) == ("c", "t")
    assert order.highest(TASKS, ["t"]) == 0


def test_the_best_of_a_target_is_what_a_hopeless_pair_misses() -> None:
    pairs = ordered_pairs(TASKS)
    # All that was measured is certain, and what is not the best of its target is worth nothing.
    worth = {"a": -0.5, "b": 0.1, "c": 0.3, "t": 0.2}
    measured = pairs.assign(gain=pairs["source"].map(worth).astype(float))
    measured = measured.loc[np.repeat(measured.index, 40)]
    learnt = LearningRule(TransferPredictor(), pairs=pairs, min_probability=0.0).refitted(measured)
    hopeless = learnt.table().query("priority == 0")
    assert len(hopeless) == 8
    order, waiting, found = PairOrder(learnt), dict.fromkeys(learnt.decisions, 1), []
    for pair in hopeless[["source", "target"]].itertuples(index=False, name=None):
        del waiting[pair]
    for _ in range(8):
        found.append(order.best(TASKS, TASKS, waiting))
        waiting[found[-1]] = 2  # type: ignore[index]
    # 0.3 is the best of a, b and t, 0.2 of c.
    missing = [(0.2 if target == "c" else 0.3) - worth[source] for source, target in found]  # type: ignore[misc]
    assert missing == pytest.approx(sorted(missing))


def test_equal_priorities_tell_no_order() -> None:
    blind = LearningRule(TransferPredictor(), pairs=ordered_pairs(TASKS)).refitted()
    assert not PairOrder(blind).tells
    scored = EliminationRule({("a", "t"): Decision(False, 0.1, 0.5, "", 0.2)}, {})
    assert not PairOrder(scored).tells
