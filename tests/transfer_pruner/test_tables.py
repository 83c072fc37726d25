"""The tables of a search are what one counts by hand, and a gain is an improvement either way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TrialRecord, estimate_savings, transfers_from_records
from transfer_pruner.audit import share_interval
from transfer_pruner.tables import (
    calibration_curve_data,
    measured_gains,
    pairs_table,
    predicted_and_measured_data,
    rank_correlations,
    savings_over_time_data,
    trials_table,
)

OUTCOMES = ("trained", "eliminated", "failed")
SECONDS = ["estimated_seconds_saved", "estimated_seconds_saved_low", "estimated_seconds_saved_high"]


def baseline(number: int, value: float = 0.5, target: str = "t") -> TrialRecord:
    return TrialRecord(number, None, target, "trained", 10.0, value)


def transfer(
    number: int,
    source: str | tuple[str, ...],
    value: float,
    probability: float = math.nan,
    score: float = math.nan,
    audit: bool = False,
    target: str = "t",
) -> TrialRecord:
    said = {"score": score, "probability": probability, "audit": audit}
    return TrialRecord(number, source, target, "trained", 10.0, value, **said)


def eliminated(number: int, source: str = "e", target: str = "t") -> TrialRecord:
    return TrialRecord(number, source, target, "eliminated", 0.0)


def turned(records: list[TrialRecord]) -> list[TrialRecord]:
    """Tell of the same search as one that minimizes."""
    return [replace(record, value=-record.value, maximize=False) for record in records]


VALUES = st.one_of(st.just(math.nan), st.integers(0, 8).map(lambda n: n / 8))
RECORDS = st.lists(
    st.builds(
        TrialRecord,
        number=st.integers(0, 50),
        source=st.sampled_from([None, "a", "b", "t", ("a", "b")]),
        target=st.sampled_from(["t", "u", "a + b"]),
        outcome=st.sampled_from(OUTCOMES),
        seconds=st.integers(0, 1000).map(float),
        value=VALUES,
        score=VALUES,
        probability=VALUES,
        reason=st.sampled_from(["", "told so"]),
        hyperparameters=st.fixed_dictionaries({"lr": st.sampled_from([0.1, 0.01])}),
        audit=st.booleans(),
    ),
    max_size=60,
)


# Trials and pairs.


def test_trials_are_told_as_their_records_tell_of_them() -> None:
    table = trials_table([transfer(3, ("a", "b"), 0.75), baseline(1)])
    assert table["number"].tolist() == [3, 1]
    assert table["source"].tolist() == ["a + b", ""]
    assert table["joint"].tolist() == [True, False]
    assert {"outcome", "value", "hyperparameters", "maximize"} <= set(table)
    assert list(trials_table([])) == list(table)


def test_the_pairs_table_says_what_became_of_each_pair() -> None:
    records = [
        TrialRecord(0, None, "t", "trained", 5.0, 0.5),
        TrialRecord(1, "a", "t", "trained", 3.0, 0.7, score=0.1, reason="first"),
        TrialRecord(2, "a", "t", "trained", 4.0, 0.9, score=0.2, probability=0.8, reason="then"),
        TrialRecord(3, "b", "t", "eliminated", 0.5, score=-0.3, reason="hopeless"),
        TrialRecord(4, "c", "t", "eliminated", 0.5, score=0.3),
        TrialRecord(5, "c", "t", "trained", 2.0, 0.4, score=0.3, audit=True),
        TrialRecord(6, "d", "t", "failed", 1.0),
        TrialRecord(7, ("a", "b"), "t", "trained", 6.0, 0.6),
        TrialRecord(8, "e", "t", "eliminated", 0.5, score=0.0, priority=0.5),
        TrialRecord(9, "e", "t", "trained", 3.0, 0.5, score=0.05, priority=0.75),
    ]
    table = pairs_table(records)
    assert table.set_index("source")["priority"].dropna().to_dict() == {"e": 0.75}, "the last"
    assert table["source"].tolist() == ["", "c", "a", "e", "b", "a + b", "d"]
    rows = table.set_index("source")
    assert rows["decision"].to_dict() == {
        "": "single-task baseline",
        "c": "eliminated, audited",
        "a": "kept",
        "e": "kept in some trials, eliminated in others",
        "b": "eliminated",
        "a + b": "kept",
        "d": "kept",
    }
    assert rows.loc["a", ["score", "probability", "reason"]].tolist() == [0.2, 0.8, "then"]
    assert rows.loc["a", ["highest_value", "lowest_value"]].tolist() == [0.9, 0.7]
    assert rows["seconds"].tolist() == [5, 2.5, 7, 3.5, 0.5, 6, 1]
    counts = ["trials", "trials_trained", "trials_eliminated", "trials_audited", "trials_failed"]
    assert rows.loc["c", counts].tolist() == [2, 1, 1, 1, 0]
    assert rows.loc["d", counts].tolist() == [1, 0, 0, 0, 1]
    gains = rows["mean_gain"]
    assert gains[["a", "c", "a + b", "e"]].tolist() == pytest.approx([0.3, -0.1, 0.1, 0.0])
    assert gains[["", "b", "d"]].isna().all()
    assert list(pairs_table([])) == list(table)


@given(RECORDS)
@settings(max_examples=40, deadline=None)
def test_no_trial_is_lost_or_counted_twice(records: list[TrialRecord]) -> None:
    table = pairs_table(records)
    assert table["trials"].sum() == len(records)
    for outcome in OUTCOMES:
        assert table[f"trials_{outcome}"].sum() == sum(r.outcome == outcome for r in records)
    assert table["seconds"].sum() == sum(record.seconds for record in records)
    assert not table.duplicated(["source", "target", "joint"]).any()
    gains = measured_gains(records)
    of_pair = gains.groupby(["source", "target", "joint"])["gain"].mean()
    told = table.set_index(["source", "target", "joint"])["mean_gain"].dropna()
    pd.testing.assert_series_equal(
        told.sort_index(), of_pair.sort_index(), check_names=False, check_index_type=False
    )


# Gains.


@given(RECORDS)
@settings(max_examples=40, deadline=None)
def test_gains_are_those_that_a_predictor_learns_from(records: list[TrialRecord]) -> None:
    gains = measured_gains(records)
    try:
        learnt = transfers_from_records(records)
    except ValueError:
        assert gains[~gains["joint"]].empty
        return
    single = gains[~gains["joint"]]
    assert single["source"].tolist() == learnt["source"].tolist()
    assert single["gain"].tolist() == learnt["gain"].tolist()


@given(RECORDS)
@settings(max_examples=40, deadline=None)
def test_a_search_that_minimizes_has_the_tables_of_the_same_one_that_maximizes(
    records: list[TrialRecord],
) -> None:
    for table in (
        measured_gains,
        calibration_curve_data,
        predicted_and_measured_data,
    ):
        pd.testing.assert_frame_equal(table(records), table(turned(records)))
    up, down = pairs_table(records), pairs_table(turned(records))
    values = ["highest_value", "lowest_value"]
    pd.testing.assert_frame_equal(up.drop(columns=values), down.drop(columns=values))
    # What is said outright counts, whatever the records say.
    pd.testing.assert_frame_equal(
        measured_gains(turned(records), maximize=True),
        measured_gains([replace(r, value=-r.value) for r in records]),
    )


def test_where_less_is_better_a_lower_value_is_a_gain() -> None:
    records = [baseline(0), transfer(1, "a", 0.2, probability=0.8, score=0.1)]
    minimized = [replace(record, maximize=False) for record in records]
    assert pairs_table(records)["mean_gain"].tolist()[1:] == pytest.approx([-0.3])
    assert pairs_table(minimized)["mean_gain"].tolist()[1:] == pytest.approx([0.3])
    assert calibration_curve_data(records, maximize=False)["positive"].tolist() == [1]
    assert calibration_curve_data(minimized)["positive"].tolist() == [1]
    assert calibration_curve_data(records)["positive"].tolist() == [0]
    assert predicted_and_measured_data(minimized)["gain"].tolist() == pytest.approx([0.3])
    for table in (measured_gains, pairs_table, calibration_curve_data):
        with pytest.raises(ValueError, match="some maximize and some minimize"):
            table([*records, *minimized])


def test_a_joint_trial_has_a_gain_of_its_own() -> None:
    records = [baseline(0, 0.5), transfer(1, ("a", "b"), 0.75), transfer(2, "t", 0.1)]
    table = measured_gains(records)
    # The target as its own source is a baseline trial.
    assert table["source"].tolist() == ["a + b"]
    assert table["joint"].tolist() == [True]
    assert table["gain"].tolist() == pytest.approx([0.75 - (0.5 + 0.1) / 2])
    # Sources that read as the target does are no baseline.
    odd = [baseline(0, 0.5, "a + b"), transfer(1, ("a", "b"), 0.75, target="a + b")]
    assert measured_gains(odd)["gain"].tolist() == pytest.approx([0.25])


def test_no_gain_is_a_table_that_says_why() -> None:
    table = measured_gains([transfer(0, "a", 0.5)])
    assert table.empty
    assert "Run baseline trials" in table.attrs["why_empty"]
    assert list(table) == list(measured_gains([baseline(0), transfer(1, "a", 0.5)]))


# Savings.


def test_seconds_over_time_are_those_of_the_trials_up_to_there() -> None:
    records = [eliminated(3), transfer(2, "s", 0.6), baseline(1), eliminated(4)]
    data = savings_over_time_data(records, attribution_seconds=4.0)
    assert data["number"].tolist() == [1, 2, 3, 4]
    assert data["seconds_spent"].tolist() == [14, 24, 24, 24]
    assert data["estimated_seconds_saved"].tolist() == [-4, -4, 6, 16]
    assert data["trials_eliminated"].tolist() == [0, 0, 1, 2]
    whole = estimate_savings(records, attribution_seconds=4.0)
    assert tuple(data[SECONDS].iloc[-1, 1:]) == whole.estimated_seconds_saved_interval
    # In another order, such as that in which they finished.
    data = savings_over_time_data(records, order=lambda record: -record.number)
    assert data["number"].tolist() == [4, 3, 2, 1]
    assert data["trials_eliminated"].tolist() == [1, 2, 2, 2]
    assert data["estimated_seconds_saved"].isna().tolist() == [True, True, False, False]


@settings(max_examples=15, deadline=None)
@given(RECORDS, st.integers(1, 9))
def test_the_last_checkpoint_is_the_estimate_of_the_whole_search(
    records: list[TrialRecord], checkpoints: int
) -> None:
    costs = {"single_task_seconds": 3.0, "attribution_seconds": 2.0}
    table = savings_over_time_data(records, checkpoints=checkpoints, **costs)
    assert len(table) == min(len(records), checkpoints)
    assert table["seconds_spent"].is_monotonic_increasing
    if records:
        whole = estimate_savings(sorted(records, key=lambda r: r.number), **costs)
        last = table.iloc[-1]
        assert last["trials"] == len(records)
        np.testing.assert_equal(
            last[SECONDS].tolist(),
            [whole.estimated_seconds_saved, *whole.estimated_seconds_saved_interval],
        )


# Predictions.


def test_calibration_counts_each_pair_once_with_what_was_said_before_it_ran() -> None:
    records = [
        baseline(0),
        transfer(1, "a", 0.7, probability=0.81),
        transfer(2, "b", 0.4, probability=0.85),
        transfer(3, "c", 0.6, probability=0.15),
        # Measured twice: on average no gain, and foretold by the first only.
        transfer(5, "d", 0.55, probability=0.99),
        transfer(4, "d", 0.4, probability=0.82),
        transfer(6, ("a", "b"), 0.9, probability=0.1),
        transfer(7, "f", 0.9),
        transfer(8, "g", 0.9, probability=0.5, target="without a baseline"),
        eliminated(9),
    ]
    data = calibration_curve_data(records, confidence=0.8)
    assert data["bin_low"].tolist() == [0.1, 0.8]
    assert data["pairs"].tolist() == [1, 3]
    assert data["positive"].tolist() == [1, 1]
    assert data["predicted"].tolist() == pytest.approx([0.15, (0.81 + 0.85 + 0.82) / 3])
    assert tuple(data[["low", "high"]].iloc[1]) == share_interval(1, 3, 0.8)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_calibration_loses_no_pair_and_bounds_each_share(
    said: list[tuple[float, bool]], bins: int
) -> None:
    records = [baseline(0)] + [
        transfer(at + 1, f"s{at}", 0.6 if came_true else 0.4, probability=probability)
        for at, (probability, came_true) in enumerate(said)
    ]
    data = calibration_curve_data(records, bins=bins)
    assert data["pairs"].sum() == len(said)
    assert data["positive"].sum() == sum(came_true for _, came_true in said)
    assert (data["bin_low"] <= data["predicted"] + 1e-9).all()
    assert (data["predicted"] <= data["bin_high"] + 1e-9).all()
    assert (data["low"] <= data["observed"]).all()
    assert (data["observed"] <= data["high"]).all()


def test_predicted_gains_stand_beside_measured_ones_and_audit_trials_are_marked() -> None:
    records = [
        baseline(0, 0.5),
        transfer(1, "a", 0.7, probability=0.9, score=0.3),
        transfer(2, "a", 0.6, probability=0.9, score=0.3),
        transfer(3, "b", 0.4, probability=0.2, score=-0.1, audit=True),
        transfer(4, "c", 0.9, score=5.0),  # scored by attributions, before the rule had learnt
    ]
    data = predicted_and_measured_data(records)
    assert data["source"].tolist() == ["a", "b"]
    assert data["predicted"].tolist() == [0.3, -0.1]
    assert data["gain"].tolist() == pytest.approx([0.15, -0.1])
    assert data["trials"].tolist() == [2, 1]
    assert data["audit"].tolist() == [False, True]


def test_the_correlation_within_targets_ignores_what_scores_of_two_targets_say() -> None:
    # Perfect order within each target; across targets the scores mislead.
    pairs = pd.DataFrame(
        {
            "target": ["t"] * 3 + ["u"] * 3 + ["v"] + ["w"] * 3,
            "score": [1.0, 2.0, 3.0, 11.0, 12.0, 13.0, 2.5, 4.0, 4.0, 4.0],
            "gain": [0.4, 0.5, 0.6, 0.1, 0.2, 0.3, 0.35, 0.1, 0.2, 0.3],
        }
    )
    over_all, within = rank_correlations(pairs, "score")
    assert over_all == pytest.approx(pairs["score"].corr(pairs["gain"], method="spearman"))
    assert within.to_dict() == pytest.approx({"t": 1.0, "u": 1.0})
    assert math.isnan(rank_correlations(pairs[:1], "score")[0])
