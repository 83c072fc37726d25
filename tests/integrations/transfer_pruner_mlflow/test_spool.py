"""What is on disk before it is sent: round trips, cut lines, full disks, one writer."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TrialRecord
from transfer_pruner_mlflow.spool import (
    Event,
    Spool,
    SpoolInUseError,
    decode_record,
    encode_record,
    password_of,
)

NAMES = st.text(min_size=1, max_size=8)
NUMBERS = st.floats(allow_nan=False)
RECORDS = st.builds(
    TrialRecord,
    number=st.integers(0, 10**6),
    source=st.none() | NAMES | st.lists(NAMES, min_size=2, max_size=3).map(tuple),
    target=NAMES,
    outcome=st.sampled_from(["trained", "eliminated", "failed"]),
    seconds=st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    value=NUMBERS,
    score=NUMBERS,
    probability=NUMBERS,
    reason=st.text(max_size=20),
    hyperparameters=st.dictionaries(
        st.text(max_size=5), st.none() | st.booleans() | st.integers() | NUMBERS | NAMES
    ),
    audit=st.booleans(),
    scoring_seconds=NUMBERS,
    priority=NUMBERS,
)


def fail(error: OSError) -> None:
    raise error


@settings(deadline=None, max_examples=50)
@given(records=st.lists(RECORDS, min_size=1, max_size=5))
def test_records_come_back_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, records: list[TrialRecord]
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool") / "x.jsonl", fail)
    appended = [spool.append("trial", encode_record(record)) for record in records]
    spool.close()
    events = list(spool.events())
    assert events == appended
    assert [decode_record(event.data) for event in events] == records
    assert [event.id for event in events] == [f"{spool.id}/{i}" for i in range(len(records))]
    assert [e.timestamp for e in events] == sorted(e.timestamp for e in events)


def test_what_json_does_not_know_becomes_a_number_or_a_text(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "x.jsonl", fail)
    settings = {"lr": np.float32(0.5), "path": Path("a"), "layers": (1, 2), 3: "three"}
    record = TrialRecord(1, "s", "t", "trained", 1.0, math.nan, hyperparameters=settings)
    read = decode_record(spool.append("trial", encode_record(record)).data)
    spool.close()
    assert read.hyperparameters == {"lr": 0.5, "path": "a", "layers": [1, 2], "3": "three"}
    assert math.isnan(read.value)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_was_cut_off_costs_itself_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    spool = Spool(path, fail)
    for i in range(3):
        spool.append("metrics", {"f1": i})
    spool.close()
    path.write_bytes(path.read_bytes()[:-cut])
    later = Spool(path, fail)
    later.append("metrics", {"f1": 3})
    later.close()
    assert later.id == spool.id
    values = [event.data["f1"] for event in later.events()]
    assert values == ([0, 1, 2, 3] if cut == 1 else [0, 1, 3])
    assert len({event.id for event in later.events()}) == len(values)


def test_events_are_taken_once_and_can_be_read_again(tmp_path: Path) -> None:
    def values(events: Iterable[Event]) -> list[int]:
        return [event.data["f1"] for event in events]

    path = tmp_path / "x.jsonl"
    spool = Spool(path, fail)
    for i in range(2):
        spool.append("metrics", {"f1": i})
    assert values(spool.take()) == [0, 1]
    spool.append("metrics", {"f1": 2})
    assert values(spool.taken()) == [0, 1]
    assert values(spool.take()) == [2]
    assert values(spool.take()) == []
    spool.close()
    later = Spool(path, fail)
    later.append("metrics", {"f1": 3})
    later.rename("y")
    assert later.resumed
    assert not spool.resumed
    assert values(later.events()) == values(later.take()) == values(later.taken()) == [0, 1, 2, 3]
    later.close()
    assert values(later.events()) == [0, 1, 2, 3]


def test_a_file_that_is_gone_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "x.jsonl", fail)
    spool.append("metrics", {"f1": 1})
    spool.path.unlink()
    with pytest.raises(FileNotFoundError):
        list(spool.take())
    spool.close()


def test_a_full_disk_is_told_once_and_events_go_on(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/dev/full")
    errors: list[OSError] = []
    spool = Spool(tmp_path / "x.jsonl", errors.append)
    events = [spool.append("metrics", {"f1": i}) for i in range(3)]
    spool.sync()
    spool.close()
    assert len(errors) == 1
    assert not spool.works
    assert [event.data["f1"] for event in events] == [0, 1, 2]


def test_one_process_writes_a_spool_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    spool = Spool(path, fail)
    with pytest.raises(SpoolInUseError, match="is being written by a search that runs"):
        Spool(path, fail)
    code = f"""
from pathlib import Path
from transfer_pruner_mlflow.spool import Spool
Spool(Path({str(path)!r}), print)
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "SpoolInUseError" in other.stderr
    spool.close()
    Spool(path, fail).close()


def test_the_default_folder_keeps_itself_out_of_repositories(tmp_path: Path) -> None:
    Spool(tmp_path / ".transfer_pruner" / "spool" / "x.jsonl", fail).close()
    assert (tmp_path / ".transfer_pruner" / ".gitignore").read_text() == "*\n"
    assert (tmp_path / ".transfer_pruner" / "spool" / "x.jsonl").stat().st_mode & 0o077 == 0


def test_an_address_with_a_password_is_known_as_one() -> None:
    assert password_of("postgresql://me:secret@host/mlflow") == "secret"
    assert password_of("http://127.0.0.1:5000") is None
    assert password_of("sqlite:////tmp/mlflow.db") is None
