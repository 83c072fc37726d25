"""What a search had found when, and which pairs it had tried."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TrialRecord, find_answer
from transfer_pruner.progress import best_over_time_data, pairs_tried_data


def trained(
    number: int, source: str | None, value: float, target: str = "t", seconds: float = 2.0
) -> TrialRecord:
    return TrialRecord(number, source, target, "trained", seconds, value)


RECORDS = [
    trained(0, "a", 0.4),
    trained(1, None, 0.5),
    TrialRecord(2, "b", "t", "eliminated", 0.5),
    trained(3, "a", 0.6, "u"),
    TrialRecord(4, "c", "t", "failed", 3.0),
    trained(5, "c", 0.7),
    trained(6, "a", math.nan),  # stopped early
    trained(7, "a", 0.65),
]


def test_a_line_steps_where_its_target_got_better_and_goes_on_to_the_end() -> None:
    data = best_over_time_data(RECORDS)
    line = data[data["target"] == "t"]
    assert line["value"].tolist() == [0.4, 0.5, 0.7, 0.7]
    assert line["trials"].tolist() == [1, 2, 4, 6], "failed and eliminated ones did not train"
    assert line["seconds_spent"].tolist() == [2, 4, 11.5, 15.5], "but took their time"
    assert line["source"].tolist() == ["a", "", "c", ""]
    assert line["number"].tolist()[:-1] == [0, 1, 5]
    assert line["share_of_gain"].tolist() == [0, 0, 1, 1], "below the baseline nothing is gained"
    assert data.loc[data["target"] == "u", "share_of_gain"].isna().all(), "no baseline, no gain"


def test_the_mean_is_of_the_same_targets_all_along() -> None:
    mean = best_over_time_data(RECORDS)
    mean = mean[mean["mean"]]
    assert mean["value"].tolist()[:2] != [0.4, 0.5]
    assert mean["value"].isna().tolist() == [True, True, False, False, False]
    assert mean["value"].dropna().tolist() == pytest.approx([0.55, 0.65, 0.65])
    assert mean["share_of_gain"].tolist() == [0, 0, 0, 1, 1]


def test_where_less_is_better_the_same_search_has_the_same_shares() -> None:
    turned = [replace(r, value=1 - r.value, maximize=False) for r in RECORDS]
    up, down = best_over_time_data(RECORDS), best_over_time_data(turned)
    pd.testing.assert_frame_equal(up.drop(columns="value"), down.drop(columns="value"))
    assert down["value"].tolist() == pytest.approx((1 - up["value"]).tolist(), nan_ok=True)


def test_the_order_may_be_another_than_that_of_the_numbers() -> None:
    data = best_over_time_data(RECORDS, order=lambda record: -record.number)
    assert data.loc[data["target"] == "t", "value"].tolist() == [0.65, 0.7, 0.7]
    tried = pairs_tried_data(RECORDS, order=lambda record: -record.number)
    assert tried["source"].tolist()[:2] == ["a", "c"]


def test_a_pair_was_first_tried_when_its_first_trial_ran() -> None:
    tried = pairs_tried_data([*RECORDS, TrialRecord(8, ("a", "b"), "t", "trained", 1.0, 0.1)])
    rows = tried.set_index(["source", "target"])
    assert rows["first_tried"].dropna().to_dict() == {
        ("a", "t"): 1,
        ("", "t"): 2,
        ("a", "u"): 3,
        ("c", "t"): 4,
        ("a + b", "t"): 8,
    }
    assert rows.loc[("c", "t"), "number"] == 4, "it failed, but was tried"
    assert math.isnan(rows.loc[("b", "t"), "first_tried"])
    assert rows.loc[("a", "t"), ["highest_value", "lowest_value"]].tolist() == [0.65, 0.4]
    assert rows.loc[("a", "t"), "trials_trained"] == 3
    assert rows.index.tolist()[-1] == ("b", "t")
    assert rows.loc[("a + b", "t"), "joint"]


def test_of_no_trials_there_are_tables_without_rows() -> None:
    for make, full in (
        (best_over_time_data, best_over_time_data(RECORDS)),
        (pairs_tried_data, pairs_tried_data(RECORDS)),
    ):
        empty = make([])
        assert empty.empty
        assert empty.dtypes.to_dict() == full.dtypes.to_dict()


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            TrialRecord,
            number=st.integers(0, 99),
            source=st.sampled_from([None, "a", "b"]),
            target=st.sampled_from(["t", "u"]),
            outcome=st.sampled_from(["trained", "failed", "eliminated"]),
            seconds=st.floats(0, 9),
            value=st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf]),
        ),
        max_size=20,
    )
)
def test_lines_never_fall_and_end_at_the_best_trial(records: list[TrialRecord]) -> None:
    data = best_over_time_data(records)
    for target, line in data[~data["mean"]].groupby("target"):
        assert line["value"].is_monotonic_increasing
        assert line["trials"].is_monotonic_increasing
        best = max(
            r.value
            for r in records
            if r.target == target and r.outcome == "trained" and math.isfinite(r.value)
        )
        assert line["value"].iloc[-1] == best
        shares = line["share_of_gain"].dropna()
        assert shares.between(0, 1).all()
        assert shares.empty or shares.iloc[-1] == 1
    answered = {one.target for one in find_answer(records).targets if one.best}
    assert set(data.loc[~data["mean"], "target"]) == answered
