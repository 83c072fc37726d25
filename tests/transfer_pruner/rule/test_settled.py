"""When nothing is expected any more."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.settled import PairSeconds, settled
from transfer_pruner.rule.tried import TriedPairs, setting_of


def learnt(transfers: int = 5, **worth: float) -> EliminationRule:
    """A rule of the target t that has learnt, by what its sources are worth."""
    decisions = {(s, "t"): Decision(False, math.nan, 0.5, "", p) for s, p in worth.items()}
    return EliminationRule(decisions, {"transfers": transfers} if transfers else {})


def tried(*sources: str | None, possible: float = math.inf) -> TriedPairs:
    pairs = TriedPairs()
    for source in sources:
        pairs.add((source, "t"), setting_of({}), has_result=True, possible=possible)
    return pairs


def test_it_says_what_it_expects() -> None:
    done = tried(None, "a", "b")
    told = settled(learnt(a=0.001, b=0.02), done, ["a", "b"], ["t"], 0.05)
    assert told is not None
    assert (told["priority"], told["tolerance"]) == (0.02, 0.05)
    assert told["reason"].endswith("the most is 0.02; learnt from 5 transfers to 1 targets.")
    assert settled(learnt(a=0.001, b=0.02), done, ["a", "b"], ["t"], 0.01) is None
    # Of what is not searched nothing is asked.
    assert settled(learnt(a=0.001, b=0.02), tried(None, "a"), ["a"], ["t"], 0.01) is not None


def test_repeats_of_few_pairs_do_not_tell_how_different_gains_are() -> None:
    rule = learnt(19, **dict.fromkeys("abcdefg", 0.0))
    for several in ("a", "aaaa", "abcde", "abcdee"):
        assert settled(rule, tried(None, *several), [*"abcdefg"], ["t"], 1) is None, several
    assert settled(rule, tried(None, *"abcdef"), [*"abcdefg"], ["t"], 1) is not None
    of_all = learnt(20, **dict.fromkeys("abcdefg", 0.0))
    assert settled(of_all, tried(None, "a"), [*"abcdefg"], ["t"], 1) is not None
    # Fewer are enough where there are no others, or the others keep failing.
    assert settled(rule, tried(None, *"ab"), [*"ab"], ["t"], 1) is not None
    failing = tried(None, *"ab")
    for _ in range(3):
        failing.add(("c", "t"), setting_of({}), has_result=False, has_failed=True)
    assert settled(rule, failing, [*"abc"], ["t"], 1) is not None
    # Baselines are no pairs, and other targets are not asked about.
    failing.add(("g", "u"), setting_of({}), has_result=True)
    assert settled(rule, failing, [*"abcd"], ["t"], 1) is None


def test_without_baseline_or_transfers_or_priority_the_search_goes_on() -> None:
    assert settled(learnt(a=0), tried("a"), ["a"], ["t"], 1) is None
    assert settled(learnt(0, a=0), tried(None), ["a"], ["t"], 1) is None
    # What gains are like is not known from one or two of them.
    assert settled(learnt(4, a=0), tried(None), ["a"], ["t"], 1) is None
    assert settled(learnt(a=math.nan), tried(None), ["a"], ["t"], 1) is None
    assert settled(learnt(a=0), tried(None), ["a"], [], 1) is None


def test_a_target_whose_baseline_keeps_failing_holds_no_search_up() -> None:
    pairs = tried(None, "a")
    rule = EliminationRule(
        {
            ("a", "t"): Decision(False, math.nan, 0.5, "", 0.0),
            ("a", "u"): Decision(False, math.nan, 0.5, "", 1.0),
        },
        {"transfers": 5},
    )

    def told() -> dict[str, Any] | None:
        return settled(rule, pairs, ["a"], ["t", "u"], 0.01)

    for _ in range(3):
        assert told() is None
        pairs.add((None, "u"), setting_of({}), has_result=False, has_failed=True)
    # Its pairs are to be tried once: one of them may be the best there is.
    assert told() is None
    pairs.add(("a", "u"), setting_of({}), has_result=True)
    found = told()
    assert found is not None
    assert found["reason"].endswith(
        "5 transfers to 1 targets. Left out, since their baselines keep failing: 'u'."
    )
    assert settled(rule, pairs, ["a"], ["u"], 0.01) is None


def test_what_has_no_next_trial_does_not_count() -> None:
    done = tried(None, "a", possible=1)
    told = settled(learnt(1, a=0.5), done, ["a"], ["t"], 0)
    assert told is not None
    assert "priority" not in told
    assert told["reason"].startswith("every surviving pair has been tried at every setting")


def test_a_share_of_what_was_gained_in_the_time_of_a_trial_is_a_tolerance_too() -> None:
    def record(number: int, source: str | None, value: float, outcome: str = "trained") -> Any:
        return TrialRecord(number, source, "t", outcome, 3.0, value)  # type: ignore[arg-type]

    records = [record(0, None, 0.5), record(1, "a", 0.7), record(2, "b", 0.4)]
    records += [record(3, None, 0.3), record(4, "a", math.nan, "failed")]
    gained = PairSeconds(records).gained_per_second
    assert gained == pytest.approx(0.2 / 12)
    assert PairSeconds([replace(r, maximize=False) for r in records]).gained_per_second == 0
    assert PairSeconds([]).gained_per_second == 0
    # Where seconds are not known trials count.
    assert PairSeconds(
        [replace(r, seconds=0.0) for r in records]
    ).gained_per_second == pytest.approx(0.05)
    args = learnt(a=0.001, b=0.02), tried(None, "a", "b"), ["a", "b"], ["t"]
    assert settled(*args, 0.001, 0.3, lambda: records) is None
    told = settled(*args, 0.001, 0.5, lambda: records)
    assert told is not None
    assert told["tolerance"] == pytest.approx(0.025)
    assert "0.5 of the gain per second so far is 0.025 in a trial of 3 seconds" in told["reason"]


def timed(source: str | None, target: str, seconds: float, value: float = 0.5) -> TrialRecord:
    return TrialRecord(0, source, target, "trained", seconds, value)


def test_a_pair_takes_its_own_seconds_or_what_its_target_and_its_source_take() -> None:
    seconds = PairSeconds(
        [
            *(timed(None, "t", 1.0), timed(None, "u", 3.0)),
            *(timed("a", "t", 2.0), timed("a", "t", 4.0), timed("b", "t", 9.0)),
        ]
    )
    assert seconds.of(("a", "t")) == 3.0
    assert seconds.of(("b", "t")) == 9.0
    # Transfers to t take 5 times what its baseline takes; a takes less than that, and b more.
    assert seconds.of(("x", "u")) == pytest.approx(3 * 5)
    assert seconds.of(("a", "u")) == pytest.approx(3 * 5 * 3 / 5)
    assert seconds.of(("b", "u")) == pytest.approx(3 * 5 * 9 / 5)
    assert seconds.of(("x", "new")) == pytest.approx(2 * 5), "two are the mean of baselines"
    assert PairSeconds([]).of(("x", "t")) == 1


def test_a_pair_that_takes_long_has_to_be_worth_more() -> None:
    rule = EliminationRule(
        {
            ("a", "long"): Decision(False, math.nan, 0.5, "", 0.02),
            ("a", "short"): Decision(False, math.nan, 0.5, "", 0.01),
        },
        {"transfers": 5},
    )
    pairs = TriedPairs()
    records = [timed("b", "short", 1.0, 0.6)]
    for target, took in (("long", 30.0), ("short", 1.0)):
        for source in (None, "a"):
            pairs.add((source, target), setting_of({}), has_result=True)
        records.append(timed(None, target, took))
    # Gained: 0.1 in 32 seconds. Of a trial of 30 seconds as much is asked as of 30 trials of one.
    assert [PairSeconds(records).of(("a", target)) for target in ("short", "long")] == [1, 30]

    def ends(share: float) -> bool:
        targets = ["short", "long"]
        return settled(rule, pairs, ["a"], targets, 0.001, share, lambda: records) is not None

    assert ends(0.01 / (0.1 / 32) * 1.01)
    # With the mean seconds of all it would have ended.
    assert not ends(0.01 / (0.1 / 32) * 0.99)
    assert 0.01 / (0.1 / 32) * 0.99 * (0.1 / 3) > 0.02
