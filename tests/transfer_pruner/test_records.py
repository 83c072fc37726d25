"""A record says what its trial was, in one way."""

from __future__ import annotations

import numpy as np
import pytest

from transfer_pruner import TrialRecord
from transfer_pruner.records import is_maximizing


def test_source_and_target_are_named_once_where_the_record_is_made() -> None:
    assert TrialRecord(0, "t", "t", "trained", 1.0).source is None
    assert TrialRecord(0, 0, 7, "trained", 1.0).source == "0"
    assert TrialRecord(0, "s", np.int64(7), "trained", 1.0).target == "7"
    assert TrialRecord(0, ("y", "x", "t"), "t", "trained", 1.0).source == ("x", "y")


@pytest.mark.parametrize("told", [-3600.0, float("nan"), float("inf"), -float("inf")])
def test_what_a_clock_or_a_host_cannot_have_measured_is_no_time(told: float) -> None:
    assert TrialRecord(0, "s", "t", "trained", told).seconds == 0


def test_records_know_their_direction() -> None:
    up, down = (TrialRecord(0, "s", "t", "trained", 1.0, maximize=m) for m in (True, False))
    assert is_maximizing([up])
    assert is_maximizing([])
    assert not is_maximizing([down, down])
    assert is_maximizing([down], maximize=True)
    with pytest.raises(ValueError, match="some maximize and some minimize"):
        is_maximizing([up, down])
