"""Gains of measured trials against their target's single-task baseline."""

from __future__ import annotations

import math

import pytest

from transfer_pruner import TrialRecord, transfers_from_records


def trained(
    source: str | tuple[str, ...] | None, value: float, target: str = "t", **settings: object
) -> TrialRecord:
    return TrialRecord(0, source, target, "trained", 2.0, value, hyperparameters=settings)


def test_the_baseline_with_the_same_hyperparameters_is_compared_with() -> None:
    table = transfers_from_records(
        [
            trained(None, 0.5, lr=0.1, layers=[1, 2]),
            trained(None, 0.7, lr=0.01, layers=[1, 2]),
            trained("a", 0.8, lr=0.1, layers=[1, 2]),
            trained("a", 0.8, lr=0.01, layers=[1, 2]),
            trained("a", 0.8, lr=0.3, layers=[1, 2]),
        ]
    )
    assert table["gain"].tolist() == pytest.approx([0.3, 0.1, 0.2])
    assert table["baseline"].tolist() == pytest.approx([0.5, 0.7, 0.6])


def test_the_target_itself_as_source_is_its_baseline() -> None:
    table = transfers_from_records([trained("t", 0.5), trained(("a", "t"), 0.6)])
    assert table[["source", "gain"]].to_numpy().tolist() == [["a", pytest.approx(0.1)]]


def test_where_less_is_better_a_positive_gain_is_still_an_improvement() -> None:
    table = transfers_from_records([trained(None, 0.5), trained("a", 0.3)], maximize=False)
    assert table["gain"].tolist() == pytest.approx([0.2])
    assert table["score"].tolist() == [-0.3]


def test_what_cannot_be_learnt_from_is_left_out_and_counted() -> None:
    table = transfers_from_records(
        [
            trained(None, 0.5),
            trained("a", 0.6),
            trained(("a", "b"), 0.9),
            trained("b", math.nan),
            trained("a", 0.6, target="u"),
            TrialRecord(5, "b", "t", "eliminated", 0.0),
            TrialRecord(6, "b", "t", "failed", 1.0),
        ]
    )
    assert table[["source", "target"]].to_numpy().tolist() == [["a", "t"]]
    assert table.attrs["left_out"] == {
        "several sources": 1,
        "no value": 1,
        "eliminated": 1,
        "failed": 1,
        "baseline": 1,
        "target without a baseline trial": 1,
    }


def test_a_hyperparameter_called_like_a_column_does_not_take_its_place() -> None:
    records = [trained(None, 0.5, gain=3.0, lr=1), trained("a", 0.6, gain=3.0, lr=1)]
    table = transfers_from_records(records)
    assert list(table.columns) == ["source", "target", "gain", "score", "baseline", "seconds", "lr"]
    assert table["gain"].tolist() == pytest.approx([0.1])


def test_without_a_baseline_the_error_says_what_to_run() -> None:
    failed = TrialRecord(6, "b", "t", "failed", 1.0)
    with pytest.raises(
        ValueError, match=r"of 1 trials with a source and 0 without none .*1 failed.*Run baseline"
    ):
        transfers_from_records([trained("a", 0.6), failed])
    with pytest.raises(ValueError, match="of 0 trials with a source"):
        transfers_from_records([])
