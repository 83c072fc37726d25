"""What is not known does not make two equal things differ, whichever NaN says so."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest

from transfer_pruner import Decision, TrialRecord

OTHER_NAN = float("nan")


def test_unknown_values_are_equal_and_others_are_compared() -> None:
    decision = Decision(False, math.nan, math.nan, "no score: kept")
    same = Decision(False, OTHER_NAN, -OTHER_NAN, "no score: kept", OTHER_NAN)
    assert decision == same
    assert hash(decision) == hash(same)
    assert {decision: 1}[same] == 1
    for other in (
        replace(same, score=0.0),
        replace(same, eliminated=True),
        replace(same, reason="kept"),
        None,
        (False, math.nan, math.nan, "no score: kept", math.nan),
    ):
        assert decision != other


def test_a_record_comes_back_equal_from_another_process() -> None:
    record = TrialRecord(0, "advice", "news", "trained", 60.0, hyperparameters={"lr": 0.1})
    again = pickle.loads(pickle.dumps(replace(record, value=OTHER_NAN)))  # noqa: S301
    assert record == again
    assert record != replace(again, value=0.5)
    with pytest.raises(TypeError, match="unhashable"):
        hash(record)
