"""One way from a trial's parameters to what becomes of it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_pruner import Decision, EliminationRule, PairParams, TransferPrunerWarning
from transfer_pruner.rule.verdict import Decider, Verdict, check_fraction, is_audited


def rule(**eliminated: bool) -> EliminationRule:
    """A rule over the sources that are named, for the target t."""
    decisions = {
        (source, "t"): Decision(gone, 0.25, math.nan, f"why {source}")
        for source, gone in eliminated.items()
    }
    return EliminationRule(decisions, {})


A_HELPS = rule(a=False, b=True)


def verdict(decider: Decider, source: object, **more: Any) -> Verdict:
    params = {"source": source, "target": "t", "lr": 0.1}
    found = decider(A_HELPS, params, search="s", trial=0, **more)
    assert found is not None
    return found


def test_the_draw_is_the_same_everywhere_and_takes_its_share() -> None:
    drawn = [is_audited(0.1, "study", number, "a", "b") for number in range(20_000)]
    assert drawn == [is_audited(0.1, "study", number, "a", "b") for number in range(20_000)]
    assert pytest.approx(np.mean(drawn), abs=4 * math.sqrt(0.09 / 20_000)) == 0.1


def test_another_search_draws_anew() -> None:
    drawn = [[is_audited(0.5, name, n, "a", "b") for n in range(200)] for name in ("one", "two")]
    both = np.mean(np.array(drawn[0]) & np.array(drawn[1]))
    assert 0.1 < both < 0.4, "as independent draws do"


@given(st.text(), st.integers(), st.text(), st.text())
def test_nothing_and_everything_are_shares_too(name: str, n: int, source: str, to: str) -> None:
    assert not is_audited(0, name, n, source, to)
    assert is_audited(1, name, n, source, to)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_what_is_no_share_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="audit_fraction must be from 0 to 1 but got"):
        check_fraction(fraction)


def test_a_kept_pair_trains_and_an_eliminated_one_does_not() -> None:
    decider = Decider(PairParams())
    assert not verdict(decider, "a").eliminated
    assert verdict(decider, "b").eliminated
    assert not verdict(decider, None).eliminated
    assert not verdict(decider, "t").eliminated


def test_marks_are_numbers_and_say_which_rule_decided() -> None:
    marks = verdict(Decider(PairParams()), "a").marks("p.")
    said = {"p.score": 0.25, "p.priority": A_HELPS.decide("a", "t").priority}
    assert marks == {"p.eliminated": 0, "p.rule": A_HELPS.fingerprint, **said}, "no NaN"
    assert said["p.priority"] > 0
    marks = verdict(Decider(PairParams(), 1.0), "b").marks("")
    assert marks["eliminated"] == marks["audit"] == 1
    assert marks["reason"] == "why b"


def test_without_a_pair_there_is_no_verdict_and_the_parameters_are_named_once() -> None:
    decider = Decider(PairParams())
    params = {"src": "a", "tgt": "t"}
    assert decider(A_HELPS, params, search="s", trial=0) is None
    with pytest.warns(TransferPrunerWarning, match="there are: src, tgt"):
        decider.warn_without_pair(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decider.warn_without_pair(params)


def test_a_parameter_that_holds_a_task_under_another_name_is_seen() -> None:
    decider = Decider(PairParams())
    assert decider.names_a_task(A_HELPS, {"src": "a", "lr": 0.1})
    assert not decider.names_a_task(A_HELPS, {"source": "a", "optimizer": "adam", "layers": 2})


class Broken(EliminationRule):
    def decide(self, source: Any, target: Any) -> Decision:
        raise OSError("the disk is gone")


def test_whatever_fails_the_trial_trains() -> None:
    decider = Decider(PairParams())
    broken = Broken({("a", "t"): Decision(False, 0.0, 0.0, "")}, {})
    with pytest.warns(TransferPrunerWarning, match="the rule failed and the trial is kept"):
        found = decider(broken, {"source": "a", "target": "t"}, search="s", trial=0)
    assert found is not None
    assert not found.eliminated
    assert "OSError: the disk is gone" in found.decision.reason

    def fails(params: object) -> object:
        raise OSError("no network")

    reading = Decider(PairParams(fails))
    with pytest.warns(TransferPrunerWarning, match="source_param failed and the trial is kept"):
        assert reading(A_HELPS, {"target": "t"}, search="s", trial=0) is None


def test_a_rule_that_keeps_nothing_says_so_once() -> None:
    decider = Decider(PairParams())
    nothing = rule(a=True, b=True)
    params = {"source": "a", "target": "t"}
    with pytest.warns(TransferPrunerWarning, match="the rule eliminates every pair that it knows"):
        decider(nothing, params, search="s", trial=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decider(nothing, params, search="s", trial=1)


def test_a_rule_that_keeps_nothing_of_the_studys_target_says_so() -> None:
    more = EliminationRule(
        {("a", "t"): Decision(True, 0, 0, ""), ("a", "u"): Decision(False, 0, 0, "")}, {}
    )
    with pytest.warns(TransferPrunerWarning, match="every pair of target 't'"):
        Decider(PairParams(target="t"))(more, {"source": "a"}, search="s", trial=0)
