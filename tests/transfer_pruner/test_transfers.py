"""Gains of measured trials against their target's single-task baseline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TransferPrunerWarning, TrialRecord, transfers_from_records
from transfer_pruner.transfers import read_transfers, write_transfers


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


def test_a_hyperparameter_called_like_a_column_is_kept_under_another_name() -> None:
    records = [
        trained(None, 0.5, gain=3.0, lr=1),
        trained(None, 0.3, gain=9.0, lr=1),
        trained("a", 0.6, gain=3.0, lr=1),
    ]
    table = transfers_from_records(records)
    assert list(table.columns) == [
        *("source", "target", "gain", "score", "baseline", "seconds"),
        *("hyperparameter_gain", "lr"),
    ]
    # It counts among the settings that a baseline trial has to share.
    assert table["gain"].tolist() == pytest.approx([0.1])
    assert table["hyperparameter_gain"].tolist() == [3.0]


def test_no_two_hyperparameters_end_in_one_column() -> None:
    settings = {"score": 1, "hyperparameter_score": 2, "hyperparameter_hyperparameter_score": 3}
    table = transfers_from_records([trained(None, 0.5, **settings), trained("a", 0.6, **settings)])
    named = [name for name in table.columns if name.endswith("_score")]
    assert sorted(table[named].iloc[0]) == [1, 2, 3]


class Scheduler:
    """As somebody passes one as a hyperparameter: only its address tells it from another."""


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (0.1, np.float64(0.1), 0.2),
        (1, 1.0, 2),
        ((64, 64), [64, 64], (64, 32)),
        (np.arange(3), [0, 1, 2], np.arange(4)),
        ({"a": 1, "b": (2,)}, {"b": [2], "a": 1.0}, {"a": 1}),
        (Scheduler(), Scheduler(), None),
    ],
    ids=["numpy", "integer", "tuple", "array", "mapping", "object"],
)
def test_settings_are_the_same_whatever_a_host_made_of_them(
    one: object, same: object, other: object
) -> None:
    table = transfers_from_records(
        [trained(None, 0.5, x=one), trained(None, 0.1, x=other), trained("a", 0.6, x=same)]
    )
    assert table["baseline"].tolist() == [0.5]


def test_the_records_say_which_way_is_better() -> None:
    pair = [trained(None, 0.5), trained("a", 0.3)]
    losses = [replace(record, maximize=False) for record in pair]
    assert transfers_from_records(losses)["gain"].tolist() == pytest.approx([0.2])
    assert transfers_from_records(iter(pair))["gain"].tolist() == pytest.approx([-0.2])
    with pytest.raises(ValueError, match="some maximize and some minimize"):
        transfers_from_records([*pair, *losses])


def test_without_a_baseline_the_error_says_what_to_run() -> None:
    failed = TrialRecord(6, "b", "t", "failed", 1.0)
    with pytest.raises(
        ValueError, match=r"of 1 trials with a source and 0 without none .*1 failed.*Run baseline"
    ):
        transfers_from_records([trained("a", 0.6), failed])
    with pytest.raises(ValueError, match="of 0 trials with a source"):
        transfers_from_records([])


STRANGE = (
    "NA",
    "None",
    "nan",
    "null",
    "n/a",
    "3",
    "3.0",
    "007",
    "True",
    " news",
    "a,b",
    '"',
    "é\n",
)
task_names = st.sampled_from(STRANGE) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1
)


@given(names=st.lists(task_names, min_size=2, max_size=4, unique=True))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_task_is_called_the_same_when_it_is_read_again(
    names: list[str], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("transfers") / f"transfers{suffix}"
    records = [trained(None, 0.5, name) for name in names]
    records += [trained(source, 0.6, target) for source in names for target in names]
    table = transfers_from_records(records)
    write_transfers(table, file)
    read = read_transfers(file, tasks=names)
    assert read["source"].tolist() == table["source"].tolist()
    assert read["target"].tolist() == table["target"].tolist()
    assert read["gain"].tolist() == pytest.approx(table["gain"].tolist())


def test_numbers_of_tasks_are_names_in_every_file(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"source": [3, None, 0, 5], "target": [37, 37, 37, 5], "gain": [0.1, 0.0, 0.3, 0.0]}
    )
    for dtype in (float, "Int64", object):
        table.astype({"source": dtype}).to_parquet(tmp_path / "numbers.parquet")
        read = read_transfers(tmp_path / "numbers.parquet")
        # The baselines, without a source and of a task with itself, are nothing to learn from.
        assert read.to_numpy().tolist() == [["3", "37", 0.1], ["0", "37", 0.3]]


def test_hyperparameters_of_several_types_are_written(tmp_path: Path) -> None:
    records = [
        trained(None, 0.5, heads="all"),
        trained("a", 0.6, heads=3),
        trained("b", 0.6, heads=(1, 2)),
    ]
    write_transfers(transfers_from_records(records), tmp_path / "new" / "mixed.parquet")
    assert pd.read_parquet(tmp_path / "new" / "mixed.parquet")["heads"].tolist() == ["3", "(1, 2)"]


def test_a_file_that_is_no_table_of_transfers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "transfers.csv"
    for content, message in (
        ("source,target\na,b\n", r"lacks the column 'gain'; it has: source, target\. Name another"),
        ("source,target,gain\na,b,high\n", "column 'gain' must hold numbers but has 'high'"),
        ("source,target,gain\na,b,1\na,,1\n", "column 'target' must name a task .* but row 2"),
        ("source,target,gain\na,b,1,x\na,c,1,y\n", "more cells than its header"),
        ("source,target,gain\na,b,1\na,c,1,2\n", "is no CSV file with a header"),
        ("", "is no CSV file with a header"),
        ("source;target;gain\na;b;0,1\n", "it has semicolons between its cells"),
        ("source;target;gain\na;b;0.1\n", "it has semicolons between its cells"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_transfers(file)
    with pytest.raises(ValueError, match=r"written as \.csv or \.parquet but .* ends in \.xlsx"):
        write_transfers(pd.DataFrame(), tmp_path / "h.xlsx")
    assert not (tmp_path / "h.xlsx").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("comma", [",", ", "])
def test_a_table_is_read_as_people_and_programs_write_it(
    encoding: str, end: str, comma: str, tmp_path: Path
) -> None:
    rows = [["source", "target", "gain"], ["news", "advice", "0.5"], ["", "advice", "0"]]
    lines = end.join(comma.join(row) for row in rows) + end
    (tmp_path / "transfers.csv").write_bytes(lines.encode(encoding))
    read = read_transfers(tmp_path / "transfers.csv")
    assert read.to_numpy().tolist() == [["news", "advice", 0.5]]


def test_a_gain_that_is_not_there_is_no_error_and_an_unknown_task_is_told(tmp_path: Path) -> None:
    file = tmp_path / "transfers.csv"
    file.write_text("source,target,gain\nnews,advice,\nnews ,advice,NaN\nnews,NA,0.5\n")
    with pytest.warns(
        TransferPrunerWarning, match=r"1 tasks of .*task 'news ' is not in .*'news'\?"
    ):
        read = read_transfers(file, tasks=["news", "advice", "NA"])
    assert read["gain"].isna().tolist() == [True, True, False]
