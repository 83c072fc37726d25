"""Audit trials measure what elimination misses, with intervals that cover."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_pruner import AuditEstimate, TrialRecord, estimate_audit
from transfer_pruner.audit import share_interval


def kept(value: float, target: str = "t") -> TrialRecord:
    return TrialRecord(0, "k", target, "trained", 3.0, value)


def audited(value: float, target: str = "t") -> TrialRecord:
    return TrialRecord(0, "e", target, "trained", 2.0, value, audit=True)


def test_a_false_elimination_beats_every_kept_trial_of_its_target() -> None:
    estimate = estimate_audit(
        [
            kept(0.5),
            kept(0.6),
            audited(0.55),
            audited(0.7),
            kept(0.9, "u"),
            audited(0.8, "u"),
            audited(0.9, "not comparable"),
            TrialRecord(9, "e", "t", "eliminated", 0.0),
        ]
    )
    assert estimate.trials_eliminated == 5
    assert (estimate.false_eliminations, estimate.trials_audited) == (1, 3)
    assert estimate.missed_gain == pytest.approx(0.1 / 3)
    assert estimate.audit_seconds == 8.0
    assert "1 of 3 audit trials beat every kept trial" in estimate.headline()
    assert estimate.metrics()["audit/false_elimination_rate"] == pytest.approx(1 / 3)


def test_where_less_is_better_a_lower_value_is_the_missed_one() -> None:
    estimate = estimate_audit([kept(0.5), audited(0.4), audited(0.6)], maximize=False)
    assert estimate.false_eliminations == 1
    assert estimate.missed_gain == pytest.approx(0.05)


def test_the_records_say_which_way_is_better() -> None:
    losses = [replace(record, maximize=False) for record in (kept(0.5), audited(0.4), audited(0.6))]
    assert estimate_audit(losses) == estimate_audit(losses, maximize=False)
    assert estimate_audit(losses).false_eliminations == 1
    with pytest.raises(ValueError, match="some maximize and some minimize"):
        estimate_audit([*losses, kept(0.5)])


def test_without_audit_trials_nothing_is_claimed() -> None:
    estimate = estimate_audit([kept(0.5), TrialRecord(1, "e", "t", "eliminated", 0.0)])
    assert math.isnan(estimate.false_elimination_rate)
    assert estimate.false_elimination_rate_interval == (0.0, 1.0)
    assert estimate.headline() == "no audit trial among 1 eliminated ones."
    assert "audit/missed_gain" not in estimate.metrics()


def test_scores_of_unknown_range_have_no_interval_of_the_missed_gain() -> None:
    records = [kept(5.0), audited(7.0)]
    assert all(map(math.isnan, estimate_audit(records).missed_gain_interval))
    assert estimate_audit(records, max_gain=10).missed_gain_interval[1] <= 10
    with pytest.raises(ValueError, match=r"max_gain is 1 but an audit trial gained 2\.0"):
        estimate_audit(records, max_gain=1)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1 but got 1"):
        estimate_audit(records, confidence=1)


def test_the_share_s_interval_is_the_published_one() -> None:
    # Clopper and Pearson: 0 of 10 at 95% ends at 1 - 0.025 ** (1 / 10); 10 of 10 mirrors it.
    assert share_interval(0, 10, 0.95) == pytest.approx((0, 1 - 0.025**0.1))
    assert share_interval(10, 10, 0.95) == pytest.approx((0.025**0.1, 1))


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_both_intervals_cover_what_they_estimate(rate: float) -> None:
    """Search after search, 30 audit trials are drawn from eliminated ones with known values."""
    rng = np.random.default_rng(7)
    covered_rate, covered_gain, repeats = 0, 0, 300
    gains = 0.4
    for _ in range(repeats):
        missed = rng.random(30) < rate
        values = 0.5 + np.where(missed, rng.uniform(0, gains, 30), -0.1)
        estimate = estimate_audit([kept(0.5), *(audited(value) for value in values)])
        low, high = estimate.false_elimination_rate_interval
        covered_rate += low <= rate <= high
        low, high = estimate.missed_gain_interval
        covered_gain += low <= rate * gains / 2 <= high
    # At 90% or above, but for three standard errors of that many repeats.
    assert min(covered_rate, covered_gain) / repeats > 0.9 - 3 * math.sqrt(0.09 / repeats)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_missed_gain_lies_in_its_interval(values: list[float]) -> None:
    estimate: AuditEstimate = estimate_audit([kept(0.0), *map(audited, values)])
    low, high = estimate.missed_gain_interval
    assert 0 <= low <= estimate.missed_gain + 1e-12
    assert estimate.missed_gain - 1e-12 <= high <= 1 + 1e-12
