"""The rule of now is a function of what has finished, whoever asks and however often."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import (
    EliminationRule,
    LearningRule,
    TransferPredictor,
    TransferPrunerWarning,
    TrialRecord,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule.current import CurrentRule, Finished, learnt_from
from transfer_pruner.rule.tried import NextPair, TriedPairs

TASKS = ("a", "b", "c")


def learning(refit_every: int = 3) -> LearningRule:
    return LearningRule(
        TransferPredictor(), pairs=ordered_pairs(TASKS), refit_every=refit_every, min_targets=1
    )


def finished(number: int, source: str | None, value: float, length: float = 0) -> Finished:
    record = TrialRecord(number, source, "c", "trained", 1.0, value)
    return Finished((number,), record, length)


SEARCH = [
    finished(number, source, value)
    for number, (source, value) in enumerate(
        [(None, 0.5), ("a", 0.6), ("b", 0.4), (None, 0.5), ("a", 0.7), ("b", 0.3), ("a", 0.65)] * 2
    )
]


def rule_after(trials: Sequence[Finished], current: CurrentRule | None = None) -> EliminationRule:
    return (current or CurrentRule(learning()))("search", trials)


def test_a_rule_that_does_not_learn_is_the_rule() -> None:
    rule = learning().refitted()
    assert CurrentRule(rule)("search", SEARCH) is rule
    assert not CurrentRule(rule).learns


@pytest.mark.parametrize("wrong", ["rule/", None, TransferPredictor(), EliminationRule])
def test_what_is_no_rule_is_refused_when_it_is_given(wrong: object) -> None:
    with pytest.raises(ValueError, match="rule must be an EliminationRule or a LearningRule"):
        CurrentRule(wrong)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:the rule has learnt nothing")  # no baseline is seen yet
@settings(deadline=None, max_examples=30)
@given(st.permutations(SEARCH), st.lists(st.integers(0, len(SEARCH)), max_size=4))
def test_it_does_not_matter_when_and_in_which_order_trials_become_visible(
    seen: list[Finished], cuts: list[int]
) -> None:
    current = CurrentRule(learning())
    start = 0
    for cut in sorted(cuts):
        current("search", seen[start:cut])
        start = cut
    late = rule_after(seen[start:], current)
    assert late.fingerprint == rule_after(SEARCH).fingerprint


def test_it_learns_in_whole_steps_only() -> None:
    current = CurrentRule(learning())
    rules = [current("search", [trial]) for trial in SEARCH]
    changed = [n + 1 for n in range(1, len(rules)) if rules[n] is not rules[n - 1]]
    # The first three trials hold two transfers: too few to eliminate by, but they give an order.
    assert changed == [3, 6, 9, 12]


def test_a_long_search_learns_at_counts_that_grow() -> None:
    assert [learnt_from(n, 1) for n in range(50)] == list(range(50))
    assert [learnt_from(n, 20) for n in (0, 19, 20, 39, 999, 1000)] == [0, 0, 20, 20, 980, 1000]
    counts = {learnt_from(n, 1) for n in range(5000)}
    assert len(counts) < 320
    known = sorted(counts)
    assert all(later - count <= max(1, count / 50) for count, later in pairwise(known))
    assert all(learnt_from(count, 1) == count for count in counts), "whoever counts, and whenever"


def test_a_search_of_very_many_pairs_learns_from_several_trials_at_once() -> None:
    assert [learnt_from(n, 1, 199_999) for n in range(50)] == list(range(50))
    counts = {learnt_from(n, 1, 1_000_000) for n in range(700)}
    assert sorted(counts)[:4] == [0, 1, 11, 21]
    assert learnt_from(25, 20, 1_000_000) == 20
    assert all(learnt_from(count, 1, 1_000_000) == count for count in counts)


def test_the_best_pair_is_not_taken_again_and_again_until_the_next_refit() -> None:
    pairs, current, choose = TASKS[:2], CurrentRule(learning(refit_every=6)), NextPair()
    tried, taken = TriedPairs(), []
    trials = [finished(n, None, 0.5) for n in range(2)]
    for number in range(2, 18):
        rule = current("search", trials[-1:] if number > 2 else trials)
        # A continuous hyperparameter: no setting comes twice.
        setting = frozenset({("lr", str(number))})
        tried.add((None, "c"), setting, has_result=True)
        pair = choose(rule, tried, setting, {}, sources=pairs, targets=["c"])
        assert (pair is None) == (number < 6), "at first the rule tells no order"
        pair = pair or (pairs[number % 2], "c")
        taken.append(pair[0])
        tried.add(pair, setting, has_result=True)
        trials.append(finished(number, pair[0], 0.6 + 0.01 * (number * 7 % 11)))
    # Between two refits, at 12 and 18 trials, each pair has its turn.
    assert sorted(taken[10:]) == ["a", "a", "a", "b", "b", "b"]
    rules = [CurrentRule(learning(6))("search", trials[:n]) for n in (11, 12)]
    assert [sum(rule.not_learnt.values()) for rule in rules] == [5, 0]
    given = learning(6)
    assert CurrentRule(given)("search", trials[:3]).not_learnt
    assert not given.refitted().not_learnt


def test_each_search_learns_for_itself_and_is_forgotten_alone() -> None:
    current = CurrentRule(learning())
    learnt = current("one", SEARCH)
    assert current("two", []).fingerprint == current.first.fingerprint
    current.forget("one")
    assert current("one", []).fingerprint == current.first.fingerprint
    assert current("one", SEARCH).fingerprint == learnt.fingerprint


def test_only_the_longest_count_where_others_were_stopped() -> None:
    short = [finished(100 + n, "a", 0.0, length=1) for n in range(9)]
    long = [Finished(trial.order, trial.record, 2.0) for trial in SEARCH]
    expected = rule_after(SEARCH).fingerprint
    for trials in (short + long, long + short, [*long[:4], *short, *long[4:]]):
        current = CurrentRule(learning(), longest_only=True)
        assert rule_after(trials, current).fingerprint == expected


def test_without_baselines_it_goes_on_by_attributions_and_says_so_once() -> None:
    current = CurrentRule(learning())
    transfers = [trial for trial in SEARCH if trial.record.source]
    with pytest.warns(TransferPrunerWarning, match="has learnt nothing from .* finished trials"):
        rule = current("search", transfers[:3])
    assert rule.fingerprint == current.first.fingerprint
    current("search", transfers[3:6])


def test_a_copy_starts_anew() -> None:
    current = CurrentRule(learning())
    learnt = current("search", SEARCH)
    copy = pickle.loads(pickle.dumps(current))  # noqa: S301
    assert copy("search", SEARCH).fingerprint == learnt.fingerprint
    assert copy.fingerprint == current.fingerprint
