"""What a search has tried of each pair, and which pair is next."""

from __future__ import annotations

from collections import Counter

import pytest

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.rule.tried import NextPair, Pair, Setting, TriedPairs, setting_of

TASKS = ["a", "b", "t"]
LOW, HIGH = setting_of({"lr": 0.1}), setting_of({"lr": 1.0})


def rule(a: float = 0.2, b: float = 0.1) -> EliminationRule:
    """Sources a and b of the target t, and what each is worth."""
    worth = {("a", "t"): a, ("b", "t"): b}
    return EliminationRule(
        {pair: Decision(False, 0.0, 0.5, "", priority) for pair, priority in worth.items()}, {}
    )


def pair_next(tried: TriedPairs, *running: Pair, lr: float = 0.1) -> Pair | None:
    return NextPair()(
        rule(), tried, setting_of({"lr": lr}), Counter(running), sources=TASKS, targets=["t"]
    )


def with_baseline() -> TriedPairs:
    tried = TriedPairs()
    tried.add((None, "t"), LOW, has_result=True)
    return tried


def test_the_baseline_comes_first_and_is_not_started_twice() -> None:
    tried = TriedPairs()
    assert pair_next(tried) == (None, "t")
    assert pair_next(tried, (None, "t")) == ("a", "t")
    tried.add((None, "t"), LOW, has_result=False, has_failed=True)
    assert pair_next(tried) == (None, "t")
    tried.add((None, "t"), LOW, has_result=True)
    assert tried.has_baseline("t")
    assert pair_next(tried) == ("a", "t")


def test_a_baseline_that_keeps_failing_holds_nothing_up() -> None:
    tried = TriedPairs()
    for _ in range(3):
        tried.add((None, "t"), LOW, has_result=False, has_failed=True)
    assert pair_next(tried) == ("a", "t")


def test_a_baseline_that_a_dead_worker_left_running_is_run_again() -> None:
    tried, dead = TriedPairs(), (None, "t")
    for i in range(3):
        taken = pair_next(tried, dead, lr=float(i))
        assert taken in {("a", "t"), ("b", "t")}
        tried.add(taken, setting_of({"lr": float(i)}), has_result=True)
    assert pair_next(tried, dead) == (None, "t")
    assert pair_next(tried, dead, (None, "t")) in {("a", "t"), ("b", "t")}
    tried.add((None, "t"), LOW, has_result=True)
    assert pair_next(tried, dead) in {("a", "t"), ("b", "t")}


def test_what_is_running_comes_last() -> None:
    tried = with_baseline()
    assert pair_next(tried, ("a", "t")) == ("b", "t")
    assert pair_next(tried, ("a", "t"), ("b", "t"), ("a", "t")) == ("b", "t")


def test_what_was_tried_at_these_settings_comes_after_what_is_running() -> None:
    tried = with_baseline()
    tried.add(("a", "t"), LOW, has_result=True, possible=2)
    assert tried.has(("a", "t"), LOW)
    assert not tried.has(("a", "t"), HIGH)
    assert pair_next(tried, ("b", "t"), ("b", "t")) == ("b", "t")
    assert pair_next(tried, lr=1.0) == ("a", "t")
    tried.add(("a", "t"), HIGH, has_result=True, possible=2)
    assert tried.done == {("a", "t")}
    assert pair_next(tried, lr=10.0) == ("b", "t")


def test_a_pair_of_which_every_setting_runs_comes_after_those_that_have_one_left() -> None:
    tried = with_baseline()
    for source in ("a", "b"):
        tried.add((source, "t"), LOW, has_result=True, possible=2)
    running: list[tuple[Pair, Setting]] = [(("a", "t"), HIGH)]
    high = {"sources": TASKS, "targets": ["t"]}
    assert NextPair()(rule(), tried, setting_of({}), tried.taken(running), **high) == ("b", "t")
    # b runs twice, at settings that are not known yet: fewer trials of a are behind it.
    running += [(("b", "t"), setting_of({})), (("b", "t"), setting_of({}))]
    taken = tried.taken(running)
    assert taken["a", "t"] < taken["b", "t"]
    assert tried.taken([(("a", "t"), LOW)])["a", "t"] == 1, "tried at it, and at it again"


def test_a_pair_that_runs_at_just_these_settings_comes_after_one_that_runs_at_others() -> None:
    tried = with_baseline()
    running: list[tuple[Pair, Setting]] = [(("a", "t"), LOW), (("b", "t"), HIGH)]
    for setting, pair in ((LOW, ("b", "t")), (HIGH, ("a", "t"))):
        found = NextPair()(
            rule(), tried, setting, tried.taken(running, setting), sources=TASKS, targets=["t"]
        )
        assert found == pair


def test_a_failed_trial_may_be_tried_again_and_three_are_enough() -> None:
    tried = with_baseline()
    for times in range(3):
        assert pair_next(tried) == ("a", "t"), times
        tried.add(("a", "t"), LOW, has_result=False, has_failed=True, possible=1)
    assert pair_next(tried) == ("b", "t")
    assert ("a", "t") in tried.done


def test_a_pair_that_keeps_failing_is_no_better_than_one_of_which_nothing_is_left() -> None:
    tried = with_baseline()
    for _ in range(3):
        tried.add(("a", "t"), LOW, has_result=False, has_failed=True, possible=1)
    # When all is through, others are run again as often as it was tried.
    fitted = rule().with_settings({"rule": "learning", "transfers": 100})
    ask, taken = NextPair(), []
    for _ in range(8):
        taken.append(ask(fitted, tried, LOW, {}, sources=TASKS, targets=["t"]))
        failed = taken[-1] == ("a", "t")
        tried.add(taken[-1], LOW, has_result=not failed, has_failed=failed, possible=1)
    assert Counter(taken) == {("b", "t"): 5, ("a", "t"): 3}


def test_a_pair_whose_gain_cannot_be_measured_is_not_taken_again_and_again() -> None:
    tried = TriedPairs()
    for _ in range(3):
        tried.add((None, "t"), LOW, has_result=False, has_failed=True)
    fitted = rule().with_settings({"rule": "learning", "transfers": 100})
    ask, taken = NextPair(), []
    for i in range(6):
        setting = setting_of({"lr": float(i)})
        taken.append(ask(fitted, tried, setting, {}, sources=TASKS, targets=["t"]))
        tried.add(taken[-1], setting, has_result=True)
    # It learns nothing of a, which is worth most, and all the same b has its turn.
    assert taken == [("a", "t"), ("b", "t")] * 3
    tried.add((None, "t"), LOW, has_result=True)
    assert ask(fitted, tried, HIGH, {}, sources=TASKS, targets=["t"]) == ("a", "t")
    assert not tried.without_baseline


@pytest.mark.parametrize("proposed", [("u", "t"), ("a", "u")])
def test_a_proposal_of_which_nothing_is_told_stands(proposed: Pair) -> None:
    found = NextPair()(
        rule(), with_baseline(), LOW, {}, sources=TASKS, targets=["t"], instead_of=proposed
    )
    assert found is None


def test_without_an_order_nothing_but_a_baseline_is_chosen() -> None:
    equal = rule(0.1, 0.1)
    ask = NextPair()
    assert ask(equal, TriedPairs(), LOW, {}, sources=TASKS, targets=["t"]) == (None, "t")
    assert ask(equal, with_baseline(), LOW, {}, sources=TASKS, targets=["t"]) is None


def test_a_source_that_somebody_wants_needs_no_baseline() -> None:
    assert NextPair()(rule(), TriedPairs(), LOW, {}, sources=["b"], targets=["t"]) == ("b", "t")


def test_two_results_are_enough_of_a_pair_until_the_model_knows_what_repeats_vary_by() -> None:
    tried = with_baseline()
    first = rule()
    learnt = first.with_settings({"rule": "learning", "transfers": 9})
    fitted = first.with_settings({"rule": "learning", "transfers": 10})
    ask = NextPair()

    def taken(decides: EliminationRule, lr: float) -> Pair | None:
        setting = setting_of({"lr": lr})
        return ask(decides, tried, setting, {}, sources=TASKS, targets=["t"])

    for i in range(4):
        # Another rate each time: nothing is ever tried at these settings.
        assert taken(fitted, 0.2 + i) == ("a", "t")
        expected = ("a", "t") if i < 2 else ("b", "t")
        assert taken(first, 0.2 + i) == taken(learnt, 0.2 + i) == expected
        tried.add(("a", "t"), setting_of({"lr": 0.2 + i}), has_result=True)
    for i in range(5):
        tried.add(("b", "t"), setting_of({"lr": 7.0 + i}), has_result=True)
    assert taken(learnt, 100.0) == ("a", "t"), "the one that has fewer"
