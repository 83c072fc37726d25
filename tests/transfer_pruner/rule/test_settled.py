"""When nothing is expected any more."""

from __future__ import annotations

import math

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.rule.settled import settled
from transfer_pruner.rule.tried import TriedPairs, setting_of


def learnt(transfers: int = 5, **worth: float) -> EliminationRule:
    """A rule of the target t that has learnt, by what its sources are worth."""
    decisions = {(s, "t"): Decision(False, 0.0, 0.5, "", p) for s, p in worth.items()}
    return EliminationRule(decisions, {"transfers": transfers} if transfers else {})


def tried(*sources: str | None, possible: float = math.inf) -> TriedPairs:
    pairs = TriedPairs()
    for source in sources:
        pairs.add((source, "t"), setting_of({}), has_result=True, possible=possible)
    return pairs


def test_it_says_what_it_expects() -> None:
    told = settled(learnt(a=0.001, b=0.02), tried(None), ["a", "b"], ["t"], 0.05)
    assert told is not None
    assert (told["priority"], told["tolerance"]) == (0.02, 0.05)
    assert told["reason"].endswith("the most is 0.02; learnt from 5 transfers to 1 targets.")
    assert settled(learnt(a=0.001, b=0.02), tried(None), ["a", "b"], ["t"], 0.01) is None
    # Of what is not searched nothing is asked.
    assert settled(learnt(a=0.001, b=0.02), tried(None), ["a"], ["t"], 0.01) is not None


def test_without_baseline_or_transfer_or_priority_the_search_goes_on() -> None:
    assert settled(learnt(a=0), tried("a"), ["a"], ["t"], 1) is None
    assert settled(learnt(0, a=0), tried(None), ["a"], ["t"], 1) is None
    assert settled(learnt(a=math.nan), tried(None), ["a"], ["t"], 1) is None
    assert settled(learnt(a=0), tried(None), ["a"], [], 1) is None


def test_what_has_no_next_trial_does_not_count() -> None:
    done = tried(None, "a", possible=1)
    told = settled(learnt(a=0.5), done, ["a"], ["t"], 0)
    assert told is not None
    assert "priority" not in told
    assert told["reason"].startswith("every surviving pair has been tried at every setting")
