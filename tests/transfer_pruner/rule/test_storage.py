"""A rule on disk is whole, is data, and decides as the one that was saved."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import Decision, EliminationRule

RULE = EliminationRule(
    {
        ("b", "a"): Decision(False, 0.5, 0.75, "rank 1 of 2 for a; the rule keeps 1"),
        ("c", "a"): Decision(True, -0.25, math.nan, "rank 2 of 2 for a; the rule keeps 1"),
        ("a", "ü b"): Decision(False, math.nan, math.nan, "no score: kept"),
        ("b", "ü b"): Decision(True, -math.inf, 0.0, "told so"),
    },
    {"rule": "by hand", "k": 1, "note": "ü"},
)


def test_a_saved_rule_is_one_json_file_and_comes_back_equal(tmp_path: Path) -> None:
    RULE.save(tmp_path / "rule")
    assert [path.name for path in (tmp_path / "rule").iterdir()] == ["rule.json"]
    content = json.loads((tmp_path / "rule/rule.json").read_text())
    assert content["settings"] == RULE.settings
    assert content["tasks"] == ["a", "b", "c", "ü b"]
    assert content["fingerprint"] == RULE.fingerprint
    loaded = EliminationRule.load(tmp_path / "rule")
    assert dict(loaded.decisions) == dict(RULE.decisions)
    assert (loaded.settings, loaded.fingerprint) == (RULE.settings, RULE.fingerprint)
    empty = EliminationRule({}, {})
    empty.save(tmp_path)
    assert EliminationRule.load(tmp_path).fingerprint == empty.fingerprint


# As 0.1 wrote it: a row for each pair, sorted, with its sentence.
OF_0_1 = """{"format": 1, "settings": {"rule": "top_k", "k": 1}, "decisions": [
["a", "\\u00fc b", false, null, null, "no score: kept"],
["b", "a", false, 0.1, 0.75, "rank 1 of 2 for a; the rule keeps 1"],
["b", "\\u00fc b", true, -3, 0.25, "rank 1 of 1 for \\u00fc b; the rule keeps 0"],
["c", "a", true, -0.30000000000000004, null, "rank 2 of 2 for a; the rule keeps 1"],
["c", "\\u00fc b", true, 1e-300, null, "as told, rank 2 of 2 for nobody"]]}"""


def test_a_file_of_0_1_decides_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text(OF_0_1)
    rule = EliminationRule.load(tmp_path)
    assert rule.settings == {"rule": "top_k", "k": 1}
    expected = {
        ("a", "ü b"): Decision(False, math.nan, math.nan, "no score: kept"),
        ("b", "a"): Decision(False, 0.1, 0.75, "rank 1 of 2 for a; the rule keeps 1", 1.0),
        ("b", "ü b"): Decision(True, -3.0, 0.25, "rank 1 of 1 for ü b; the rule keeps 0", 0.5),
        ("c", "a"): Decision(
            True, -0.30000000000000004, math.nan, "rank 2 of 2 for a; the rule keeps 1", 0.5
        ),
        ("c", "ü b"): Decision(True, 1e-300, math.nan, "as told, rank 2 of 2 for nobody", 1.0),
    }
    assert dict(rule.decisions) == expected
    rule.save(tmp_path)
    again = EliminationRule.load(tmp_path)
    assert dict(again.decisions) == expected
    assert again.fingerprint == rule.fingerprint


def test_what_is_no_rule_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    with pytest.raises(FileNotFoundError, match=r"rule\.json' does not exist: write a rule there"):
        EliminationRule.load(tmp_path)
    RULE.save(tmp_path)
    whole = path.read_text()
    path.write_text(whole.replace('"format": 2', '"format": 99'))
    with pytest.raises(ValueError, match="format is 99, this version reads 1 and 2"):
        EliminationRule.load(tmp_path)
    for other in ("", "{", "[]", "null", '{"format": 1}', OF_0_1[:-40], '{"settings": []}'):
        path.write_text(other)
        with pytest.raises(ValueError, match=r"rule\.json' is not a whole elimination rule"):
            EliminationRule.load(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"rule\.json' is not a whole elimination rule"):
        EliminationRule.load(tmp_path)


@settings(deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused_or_does_no_harm(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        RULE.save(folder)
        path = Path(folder) / "rule.json"
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = bytes([data.draw(st.integers(0, 255))]) if data.draw(st.booleans()) else b""
        path.write_bytes(whole[:place] + damaged + whole[place + 1 :])
        try:
            found = EliminationRule.load(folder).fingerprint
        except ValueError as error:
            found = str(error)
        assert found == RULE.fingerprint or str(path) in found


KILLED = """
import os, sys
from transfer_pruner import EliminationRule
rule = EliminationRule.load(sys.argv[1]).with_settings({"k": 2})
os.replace = lambda *_: os.kill(os.getpid(), 9)
rule.save(sys.argv[1])
"""


def test_a_process_that_dies_while_it_saves_leaves_the_rule_of_before(tmp_path: Path) -> None:
    RULE.save(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2, "the rule, and what was half written beside it"
    assert EliminationRule.load(tmp_path).fingerprint == RULE.fingerprint
    RULE.with_settings({"k": 2}).save(tmp_path)
    assert EliminationRule.load(tmp_path).settings == {"k": 2}


def test_a_failed_write_leaves_the_rule_of_before_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RULE.save(tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        RULE.with_settings({"k": 2}).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rule.json"]
    assert EliminationRule.load(tmp_path).fingerprint == RULE.fingerprint


def test_priorities_are_saved_where_there_are_any(tmp_path: Path) -> None:
    without = {("a", "b"): Decision(False, 0.5, math.nan, "kept")}
    ordered = {("a", "b"): Decision(False, 0.5, math.nan, "kept", 0.25)}
    for decisions, priority in ((without, 1.0), (ordered, 0.25)):
        rule = EliminationRule(decisions, {})
        rule.save(tmp_path)
        loaded = EliminationRule.load(tmp_path)
        assert loaded.fingerprint == rule.fingerprint
        np.testing.assert_equal(loaded.decide("a", "b").priority, priority)
        np.testing.assert_equal(loaded.table()["priority"].item(), priority)
    assert EliminationRule(without, {}).fingerprint != EliminationRule(ordered, {}).fingerprint
