"""The commands as a user types them, in a process of their own where it matters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import optuna
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from transfer_pruner import (
    EliminationRule,
    TaskEmbedding,
    TransferPredictor,
    TransferPrunerWarning,
    find_answer,
    load_embeddings,
    save_embeddings,
)
from transfer_pruner.cli import main
from transfer_pruner.cli.program import Answer, answers
from transfer_pruner_optuna import records_from_study

TASKS = ["news", "advice", "weather"]
INSTALLED = Path(sys.executable).parent / "transfer-pruner"
SaveModel = Callable[..., Path]
Ask = Callable[..., Any]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fine(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def error(*arguments: object, code: int = 1) -> str:
    """What is said on failure: one line."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with --json and read its stdout, which holds nothing else."""

    def run_with_json(*arguments: object, code: int = 0) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert (stopped.value.code or 0) == code, err
        return json.loads(out, parse_constant=pytest.fail)

    return run_with_json


@pytest.fixture
def storage(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    search(study)
    return url


def search(study: optuna.Study) -> None:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        return 0.5 + 0.1 * (source == "news") - 0.1 * (source == "weather") * (source != target)

    study.sampler = optuna.samplers.GridSampler({"source": TASKS, "target": TASKS}, seed=0)
    study.optimize(objective)


@pytest.fixture
def folder(tmp_path: Path, embeddings: dict[str, TaskEmbedding]) -> Path:
    save_embeddings(embeddings.values(), tmp_path / "embeddings")
    return tmp_path / "embeddings"


@pytest.fixture
def rule(folder: Path, tmp_path: Path) -> Path:
    fine("fit", "--embeddings", folder, "--top-k", 2, "--out", tmp_path / "rule")
    return tmp_path / "rule"


@pytest.fixture
def table(transfers: pd.DataFrame, tmp_path: Path) -> Path:
    transfers.to_csv(tmp_path / "transfers.csv", index=False)
    return tmp_path / "transfers.csv"


def test_from_a_study_to_a_rule_to_a_ranking(
    storage: str, tmp_path: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    out = tmp_path / "transfers.csv"
    harvested = fine("harvest", "--storage", storage, "--study", "mine", "--out", out)
    assert "6 measured transfers of 6 pairs" in harvested
    assert {"source", "target", "gain"} <= set(pd.read_csv(out).columns)
    save_embeddings([embeddings[task] for task in TASKS], tmp_path / "embeddings")
    fitted = fine(
        *("fit", "--embeddings", tmp_path / "embeddings", "--transfers", out),
        *("--top-k", 1, "--out", tmp_path / "rule"),
    )
    assert "3 of 6 pairs eliminated" in fitted
    rule = EliminationRule.load(tmp_path / "rule")
    assert len(rule.kept("advice")) == 1
    ranked = fine("rank", "--rule", tmp_path / "rule", "--target", "advice")
    assert re.search(r"kept.*eliminated", ranked, re.DOTALL)
    # What all rows have in common is said once.
    assert ranked.count("the rule keeps 1.") == 1


def test_a_rule_from_attributions_alone(folder: Path, tmp_path: Path) -> None:
    fitted = fine("fit", "--embeddings", folder, "--fraction", 0.8, "--out", tmp_path / "rule")
    assert "24 of 30 pairs eliminated" in fitted


def test_a_rule_that_bounds_a_risk(table: Path, tmp_path: Path) -> None:
    options = ("--risk", 0.2, "--tolerance", 0.01, "--out", tmp_path / "rule")
    fine("fit", "--transfers", table, *options)
    settings = EliminationRule.load(tmp_path / "rule").settings
    assert (settings["risk"], settings["tolerance"], settings["n_targets"]) == (0.2, 0.01, 6)
    # The predictor learnt from the table that it is calibrated on.
    assert settings["leave_target_out"]


def test_a_rule_within_a_budget(folder: Path, tmp_path: Path, answer: Ask) -> None:
    options = ("--budget", 100, "--seconds-per-pair", 10, "--out", tmp_path / "rule")
    assert answer("fit", "--embeddings", folder, *options)["eliminated"] == 20


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_and_formats_are_the_users(
    suffix: str, transfers: pd.DataFrame, tmp_path: Path, answer: Ask
) -> None:
    # Tasks of numbers, and a column of ours that means something else.
    numbers = {name: i for i, name in enumerate(sorted(set(transfers["source"])))}
    theirs = pd.DataFrame(
        {
            "from": transfers["source"].map(numbers),
            "to": transfers["target"].map(numbers),
            "delta": transfers["gain"],
            "source": "twitter",
        }
    )
    file = tmp_path / f"theirs.{suffix}"
    write = theirs.to_csv if suffix == "csv" else theirs.to_parquet
    write(file, index=False)
    columns = ("--source-column", "from", "--target-column", "to", "--gain-column", "delta")
    fine("fit", "--transfers", file, *columns, "--top-k", 1, "--out", tmp_path / "rule")
    expected = EliminationRule.top_k(
        TransferPredictor().fit(transfers, transfers["gain"]), k=1
    ).kept("news")
    ranked = answer("rank", "--rule", tmp_path / "rule", "--target", numbers["news"], "--top", 1)
    assert [row["source"] for row in ranked["ranking"]] == [str(numbers[s]) for s in expected]


def test_a_journal_is_harvested_into_parquet(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    opened = optuna.storages.JournalStorage(backend)
    search(optuna.create_study(study_name="mine", storage=opened, direction="maximize"))
    out = tmp_path / "new" / "transfers.parquet"
    fine("harvest", "--storage", journal, "--study", "mine", "--out", out)
    assert len(pd.read_parquet(out)) == 6


def test_tasks_of_any_name_come_back_from_a_study(tmp_path: Path, answer: Ask) -> None:
    """What pandas takes for nothing or for numbers is a task's name, in both formats."""
    names = ["NA", "None", "nan", "3", "n/a"]
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    space = {"source": [*names, None], "target": names}
    study.sampler = optuna.samplers.GridSampler(space, seed=0)

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", space["source"])
        return trial.suggest_categorical("target", names).count("n") + names.index(source or "3")

    study.optimize(objective)
    for suffix in ("csv", "parquet"):
        out, rule = tmp_path / f"transfers.{suffix}", tmp_path / suffix
        fine("harvest", "--storage", url, "--study", "mine", "--out", out)
        fine("fit", "--transfers", out, "--top-k", 2, "--out", rule)
        ranked = answer("rank", "--rule", rule, "--all")["ranking"]
        pairs = {(row["source"], row["target"]) for row in ranked}
        assert pairs == {(s, t) for s in names for t in names if s != t}


def test_integer_tasks_stay_what_they_are(tmp_path: Path, answer: Ask) -> None:
    """A search over OpenML's task ids, where None is the baseline and 0 is a task."""
    tasks = [0, 3, 37]
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    study.sampler = optuna.samplers.GridSampler({"source": [*tasks, None], "target": tasks}, seed=0)
    study.optimize(
        lambda trial: (
            0.1 * (trial.suggest_categorical("source", [*tasks, None]) or 0)
            + trial.suggest_categorical("target", tasks)
        )
    )
    for suffix in ("csv", "parquet"):
        out, rule = tmp_path / f"transfers.{suffix}", tmp_path / suffix
        fine("harvest", "--storage", url, "--study", "mine", "--out", out)
        fine("fit", "--transfers", out, "--top-k", 1, "--out", rule)
        assert EliminationRule.load(rule).decide(0, 37).eliminated
        best = answer("rank", "--rule", rule, "--target", 0, "--top", 1)["ranking"]
        assert [row["source"] for row in best] == ["37"]


def test_a_table_is_written_in_the_format_that_its_suffix_names(
    storage: str, tmp_path: Path
) -> None:
    out = tmp_path / "h.xlsx"
    study = ("harvest", "--storage", storage, "--study", "mine", "--out")
    assert "is written as .csv or .parquet but" in error(*study, out)
    assert not out.exists()
    # Before a long search is read.
    assert ".xlsx" in error("harvest", "--storage", "x", "--study", "y", "--out", out)


def test_a_folder_of_a_model_is_no_folder_of_embeddings(
    save_model: SaveModel, tmp_path: Path
) -> None:
    model = save_model("news")
    said = error("fit", "--embeddings", model, "--top-k", 1, "--out", tmp_path / "rule")
    assert "is no task embedding but a file of something else, such as a model" in said
    assert "delete" not in said


def test_a_ranking_is_cut_and_spans_all_targets(rule: Path, answer: Ask) -> None:
    rows = answer("rank", "--rule", rule, "--all", "--top", 2)["ranking"]
    assert len(rows) == 6 * 2
    assert {row["rank"] for row in rows} == {1, 2}
    assert not any(row["eliminated"] for row in rows)
    whole = answer("rank", "--rule", rule, "--target", "news")["ranking"]
    assert [row["rank"] for row in whole] == [1, 2, 3, 4, 5]
    assert whole[0]["probability"] is None
    shown = fine("rank", "--rule", rule, "--all")
    assert shown.count(" kept ") == 12
    assert "P(gain > 0)" not in shown


def test_a_task_may_be_called_anything(
    tmp_path: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    named = dict(zip(["[red]", "[/]", ":smile:"], embeddings.values(), strict=False))
    EliminationRule.top_k(TransferPredictor(named), k=1).save(tmp_path)
    shown = fine("rank", "--rule", tmp_path, "--target", "[red]")
    assert "[/]" in shown
    assert ":smile:" in shown


def test_a_pair_is_explained(
    rule: Path, folder: Path, table: Path, tmp_path: Path, answer: Ask
) -> None:
    figure = tmp_path / "figures" / "pair.svg"
    command = ("explain", "news", "advice", "--rule", rule, "--embeddings", folder)
    shown = fine(*command, "--transfers", table, "--figure", figure)
    assert shown.startswith(("news -> advice: eliminated\n", "news -> advice: kept\n"))
    assert f"figure written to {figure}." in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 100
    assert figure.read_text().startswith("<?xml")
    told = answer(*command)
    decision = EliminationRule.load(rule).decide("news", "advice")
    assert told["decision"]["score"] == decision.score
    assert told["measured_gain"] is None
    assert "Did you mean 'news'?" in error("explain", "newss", "advice", "--rule", rule)
    assert "single-task baseline" in error("explain", "news", "news", "--rule", rule)
    other = tmp_path / "pair.xyz"
    assert "xyz" in error(*command, "--figure", other)
    assert not other.exists()


def texts(path: Path, n: int = 12) -> Path:
    words = ("flood", "city", "help", "water", "food", "school", "road", "shelter")
    rows = [f"{words[i % 8]} {words[i * i % 7]} {words[i // 8]}" for i in range(n)]
    data = pd.DataFrame({"tweet": rows, "label": [i % 2 for i in range(n)], "text": "the same"})
    data.to_csv(path, index=False)
    return path


def test_a_folder_of_models_is_embedded_once(
    save_model: SaveModel, tmp_path: Path, answer: Ask
) -> None:
    models = save_model("news").parent
    save_model("advice", seed=1)
    (models / "notes").mkdir()
    out = tmp_path / "out"
    command = ("embed", "--models", models, "--data", texts(tmp_path / "texts.csv"), "--out", out)
    options = ("--text-column", "tweet", "--steps", 3, "--max-texts", 8, "--batch-size", 4)
    shown = fine(*command, *options)
    assert "2 of 2 tasks embedded" in shown
    embeddings = load_embeddings(out)
    assert set(embeddings) == {"news", "advice"}
    assert {(e.provenance["n_probe"], e.provenance["n_steps"]) for e in embeddings.values()} == {
        (8, 3)
    }
    save_model("weather", seed=2)
    again = answer(*command, *options)
    done = {row["task"]: row["embedded"] for row in again["embeddings"]}
    assert done == {"advice": "before", "news": "before", "weather": "now"}
    assert again["seconds"] == pytest.approx(sum(row["seconds"] for row in again["embeddings"]))


def test_the_probe_is_the_same_whatever_the_rows_order(
    save_model: SaveModel, tmp_path: Path, answer: Ask
) -> None:
    file = texts(tmp_path / "texts.csv")
    shuffled = tmp_path / "shuffled.parquet"
    rows = pd.read_csv(file).sample(frac=1, random_state=0)
    pd.concat([rows, rows.iloc[:3]]).to_parquet(shuffled)
    model = save_model("news")
    common = ("--text-column", "tweet", "--max-texts", 5, "--steps", 2)

    def probe(name: str, data: Path, *more: object) -> object:
        out = tmp_path / name
        answer(
            "embed", "--model", model, "--name", "x", "--data", data, "--out", out, *common, *more
        )
        return load_embeddings(out)["x"].provenance["probe"]

    first = probe("a", file)
    assert probe("b", shuffled) == first
    assert probe("c", file, "--seed", 1, "--only", "label=1") != first


def test_models_that_fail_do_not_stop_the_others(
    save_model: SaveModel, tmp_path: Path, answer: Ask
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    command = (
        *("embed", "--model", f"news={save_model('a')}", "--model", f"odd={empty}"),
        *("--data", texts(tmp_path / "texts.csv"), "--text-column", "tweet", "--steps", 2),
        *("--out", tmp_path / "out"),
    )
    told = answer(*command, code=1)
    assert [row["task"] for row in told["embeddings"]] == ["news"]
    assert list(told["failed"]) == ["odd"]
    result = run(*command)
    assert "Error: odd could not be embedded: models['odd'] is" in result.output
    assert "1 of 2 tasks embedded" in result.output


def test_a_failed_task_is_told_from_one_that_its_error_names(
    save_model: SaveModel, tmp_path: Path, answer: Ask
) -> None:
    command = (
        *("embed", "--model", f"news={save_model('a')}", "--model", "odd=/no/such/'news'"),
        *("--data", texts(tmp_path / "texts.csv"), "--text-column", "tweet", "--steps", 2),
        *("--out", tmp_path / "out"),
    )
    told = answer(*command, code=1)
    assert (list(told["failed"]), [row["task"] for row in told["embeddings"]]) == (
        ["odd"],
        ["news"],
    )


def test_folders_of_a_trainer_are_found_and_targets_are_labels(
    save_model: SaveModel, tmp_path: Path, answer: Ask
) -> None:
    saved = save_model("a")
    for step in (500, 1000):
        shutil.copytree(saved, tmp_path / "runs" / "news" / f"checkpoint-{step}")
    command = (
        *("embed", "--data", texts(tmp_path / "texts.csv"), "--text-column", "tweet"),
        *("--steps", 2, "--out", tmp_path / "out", "--target-class", "news=LABEL_0"),
    )
    told = answer(*command, "--models", tmp_path / "runs")
    assert [row["task"] for row in told["embeddings"]] == ["news"]
    assert load_embeddings(tmp_path / "out")["news"].provenance["target"] == 0
    # One model's folder is not a folder of tasks that are called as its checkpoints.
    run_folder = tmp_path / "runs" / "news"
    message = error(*command, "--models", run_folder, code=2)
    assert f"is the folder of one model: give it as --model NAME={run_folder}" in message
    told = answer(*command, "--model", f"news={run_folder}")
    assert told["embeddings"][0]["embedded"] == "before"
    other = error(*command, "--model", f"news={run_folder}", "--target-class", "nwes=1", code=2)
    assert "nwes=1 is of no model here; there are: news" in other


@pytest.mark.filterwarnings("error")
def test_a_model_of_another_hidden_size_is_told(
    save_model: SaveModel, tmp_path: Path, make_embedding: Callable[..., TaskEmbedding]
) -> None:
    command = (
        *("embed", "--model", save_model("a"), "--name", "news", "--out", tmp_path / "out"),
        *("--data", texts(tmp_path / "texts.csv"), "--text-column", "tweet", "--steps", 2),
    )
    fine(*command)
    news = load_embeddings(tmp_path / "out")["news"]
    wide = TaskEmbedding(
        "wide",
        {layer: [*vector, 0.0] for layer, vector in news.vectors.items()},
        provenance=news.provenance,
    )
    save_embeddings([wide], tmp_path / "out")
    (warning,) = [line for line in fine(*command).splitlines() if "warning" in line]
    assert "wide: other hidden sizes than news; nothing if that is meant: CKA" in warning


def test_every_error_is_one_line_that_says_what_to_do(
    storage: str, tmp_path: Path, folder: Path, rule: Path
) -> None:
    out = tmp_path / "out"
    study = ("harvest", "--storage", storage, "--study")
    assert error(*study, "x", "--out", out) == (
        f"Error: --study 'x' is not in {storage}; it has: mine."
    )
    assert error(*study, "mime", "--out", out).endswith("Did you mean 'mine'?")
    nowhere = f"sqlite:///{tmp_path}/nowhere.db"
    assert "there is no file" in error(
        "harvest", "--storage", nowhere, "--study", "x", "--out", out
    )
    assert not (tmp_path / "nowhere.db").exists()
    assert "--storage nonsense://ann:***@x does not open" in error(
        "harvest", "--storage", "nonsense://ann:secret@x", "--study", "x", "--out", out
    )
    bad = tmp_path / "bad.csv"
    bad.write_text("source,target,score\na,b,high\n")
    fit = ("fit", "--transfers", bad, "--top-k", 1, "--out", out)
    assert "lacks the column 'gain'; it has: source, target, score. Name another with" in error(
        *fit
    )
    assert "column 'score' must hold numbers but has 'high'" in error(
        *fit, "--gain-column", "score"
    )
    empty = tmp_path / "empty.csv"
    empty.touch()
    assert f"{empty} is no CSV file with a header" in error(
        "fit", "--transfers", empty, "--top-k", 1, "--out", out
    )
    assert "does not exist" in error(
        "fit", "--embeddings", tmp_path / "nowhere", "--top-k", 1, "--out", out
    )
    fit = ("fit", "--embeddings", folder, "--out", out)
    assert "k cannot be negative but got -1" in error(*fit, "--top-k", -1)
    assert "min_gain needs a predictor that learnt" in error(*fit, "--min-gain", 0)
    few = tmp_path / "few.csv"
    few.write_text("source,target,gain\na,b,0.1\na,c,0.1\nb,a,0.1\nb,c,0.1\nc,a,0.1\nc,b,0.1\n")
    assert "risk 0.1 needs at least 9 calibration targets but pairs has 3" in error(
        "fit", "--transfers", few, "--risk", 0.1, "--out", out
    )
    assert "does not exist" in error("rank", "--rule", out, "--target", "news")
    gossip = error("rank", "--rule", rule, "--target", "gossip")
    assert gossip.startswith("Error: --target 'gossip' is not in the rule; it has: advice, ")
    assert error("rank", "--rule", rule, "--target", "new").endswith("Did you mean 'news'?")
    probe = texts(tmp_path / "texts.csv")
    embed = ("embed", "--model", "x/y", "--name", "news", "--data", probe, "--out", out)
    assert "(--only) label=3 leaves no text; label has: 0, 1." in error(*embed, "--only", "label=3")
    assert "lacks the column 'tweets'; it has: tweet, label, text. Name another" in error(
        *embed, "--text-column", "tweets"
    )
    models = ("embed", "--models", folder, "--data", probe, "--out", out)
    assert "holds no folder with a config.json" in error(*models)
    for command in (
        (*models[:2], "nowhere", *models[3:]),
        ("score", "--models", "nowhere", *models[3:]),
    ):
        assert error(*command) == "Error: --models nowhere: there is no such folder."
    nobody = ("report", "--storage", storage, "--study", "mine", "--out", out)
    assert "no finished trial has the parameters teacher and target" in error(
        *nobody, "--source-param", "teacher"
    )
    assert not out.exists()


def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, folder: Path, rule: Path) -> None:
    out = tmp_path / "out"
    probe = texts(tmp_path / "texts.csv")
    fit, embed = ("fit", "--out", out), ("embed", "--data", probe, "--out", out)
    alone, explain = (*fit, "--embeddings", folder), ("explain", "a", "b", "--rule", rule)
    for message, *command in (
        ("give exactly one of --top-k", *alone),
        ("give exactly one of --top-k", *alone, "--risk", 0.1, "--top-k", 1),
        ("give --embeddings, --transfers or both", *fit, "--top-k", 1),
        ("--risk is calibrated on measured transfers", *alone, "--risk", 0.1),
        ("--tolerance goes with --risk", *fit, "--top-k", 1, "--tolerance", 0.1),
        ("--budget and --seconds-per-pair go together", *fit, "--budget", 1),
        ("give --target, or --all", "rank", "--rule", rule),
        ("give --target, or --all", "rank", "--rule", rule, "--all", "--target", "news"),
        ("--figure draws layers: give --embeddings", *explain, "--figure", out),
        ("give --model or --models", *embed),
        ("write NAME=models/news", *embed, "--model", "models/news"),
        ("two models are called 'a'", *embed, "--model", "a=x", "--model", "a=y"),
        ("leave out --name", *embed, "--model", "a=x", "--name", "b"),
        ("--only label must be COLUMN=VALUE", *embed, "--model", "a=x", "--only", "label"),
        ("give --storage and --study, or --ray", "harvest", "--out", out),
        ("--storage needs --study", "report", "--storage", "sqlite://", "--out", out),
        ("--ray needs --metric", "harvest", "--ray", "x", "--out", out),
        ("Missing option '--out'", "fit"),
        ("No such command 'harvets'", "harvets"),
    ):
        line = error(*command, code=2)
        assert message in line
        assert re.search(r"See 'main( \w+)? --help'\.$", line), line


def test_a_warning_is_one_line_beside_the_answer(
    tmp_path: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    some = [*embeddings.values()][:2]
    lonely = TaskEmbedding("lonely", {"elsewhere": [1.0, 2.0]})
    save_embeddings([*some, lonely], tmp_path / "e")
    done = subprocess.run(
        [
            *(INSTALLED, "fit", "--embeddings", tmp_path / "e", "--top-k", "0"),
            *("--out", tmp_path / "rule", "--json"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == "warning: 4 of 6 pairs have no score and are kept.\n"
    assert json.loads(done.stdout)["eliminated"] == 2


def test_what_a_library_prints_does_not_get_into_the_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    @answers
    def chatty() -> Answer:
        print("loading ...")
        return Answer({"gain": float("nan"), "out": Path("x")}, ["for people"], exit_code=1)

    with pytest.raises(SystemExit) as stopped:
        chatty(["--json"])
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err) == ('{"gain": null, "out": "x"}\n', "loading ...\n")
    assert CliRunner().invoke(chatty, []).output == "loading ...\nfor people\n"


def test_a_reader_that_had_enough_is_no_error(rule: Path) -> None:
    command = [INSTALLED, "rank", "--rule", rule, "--all", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_doctor_finds_what_is_broken(
    storage: str, folder: Path, rule: Path, tmp_path: Path, answer: Ask
) -> None:
    healthy = fine("doctor", "--storage", storage, "--embeddings", folder, "--rule", rule)
    assert "holds mine" in healthy
    assert "6 tasks of 2 layers" in healthy
    assert healthy.endswith("Nothing is broken.\n")
    uri = f"sqlite:///{tmp_path}/nowhere.db"
    told = answer("doctor", "--tracking-uri", uri, "--rule", tmp_path / "nowhere", code=1)
    assert told["broken"] == 2
    broken = [check for check in told["checks"] if check["status"] == "broken"]
    assert [check["name"].split()[0] for check in broken] == ["tracking", "rule"]
    assert all(check["advice"] for check in broken)


def test_a_report_of_a_study(
    storage: str, folder: Path, rule: Path, tmp_path: Path, answer: Ask
) -> None:
    out = tmp_path / "reports" / "mine.html"
    command = ("report", "--storage", storage, "--study", "mine", "--out", out)
    shown = fine(*command, "--title", "All of mine")
    assert f"Written to {out}." in shown
    assert "All of mine" in out.read_text()
    told = answer(*command, "--rule", rule, "--single-task-seconds", 7, "--dev-size", 40)
    found = find_answer(records_from_study(optuna.load_study(study_name="mine", storage=storage)))
    assert found.headline() in " ".join(shown.split())
    study = optuna.load_study(study_name="mine", storage=storage)
    study.set_user_attr("transfer_pruner.settled", {"reason": "nothing more is expected"})
    assert "Why it stopped: nothing more is expected" in fine(*command)
    assert told["savings"]["exhaustive_trials"] is None, "its budget ended it"
    assert answer(*command)["savings"]["exhaustive_trials"] == 9
    assert shown.index("behind") < shown.index("eliminated before training")
    for target in found.targets:
        assert target.best is not None
        assert told["answer"][target.target]["source"] == target.best.source
        assert "40 dev examples" in told["answer"][target.target]["certainty"]
    assert (told["trials"], told["savings"]["single_task_seconds"]) == (9, 7.0)
    assert told["savings"]["scoring_seconds"] == 0


def test_a_report_counts_what_proxy_scores_took(
    storage: str, folder: Path, rule: Path, tmp_path: Path, answer: Ask
) -> None:
    scores = tmp_path / "scores.csv"
    pairs = EliminationRule.load(rule).table()[["source", "target"]]
    pairs.assign(score=0.5, method="logme", seconds=0.1).to_csv(scores, index=False)
    refined = tmp_path / "refined"
    fine("fit", "--embeddings", folder, "--top-k", 2, "--scores", scores, "--out", refined)
    command = ("report", "--storage", storage, "--study", "mine", "--out", tmp_path / "it.html")
    for told in (answer(*command, "--scores", scores), answer(*command, "--rule", refined)):
        savings = told["savings"]
        assert savings["scoring_seconds"] == pytest.approx(0.1 * len(pairs))
        assert savings["seconds_spent"] > savings["scoring_seconds"]


def test_a_search_that_minimizes_is_read_the_right_way_round(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="minimize")
    search(study)
    found = ("--storage", url, "--study", "mine", "--out")
    fine("harvest", *found, tmp_path / "transfers.csv")
    gains = pd.read_csv(tmp_path / "transfers.csv").groupby("source")["gain"].mean()
    fine("report", *found, tmp_path / "report.html")
    told = pd.read_csv(tmp_path / "report-data" / "pairs.csv").groupby("source")["mean_gain"].mean()
    # A source that lowers the value helps.
    assert gains["weather"] > 0 > gains["news"]
    assert told.to_dict() == pytest.approx(gains.to_dict())


def test_what_an_outage_kept_from_mlflow_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Ask
) -> None:
    pytest.importorskip("mlflow")
    from transfer_pruner import TrialRecord
    from transfer_pruner_mlflow import SavingsTracker

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = "http://127.0.0.1:9"
    with (
        pytest.warns(TransferPrunerWarning),
        SavingsTracker("pairs", tracking_uri=nobody) as tracker,
    ):
        tracker.record(TrialRecord(0, "news", "advice", "trained", 1.5, value=0.5))
    spool = tracker.spool
    assert "MLflow did not take it; sync again once it answers" in error("sync", spool)
    told = answer("sync", spool, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert (told["runs"], told["decisions"]) == (1, 1)
    assert told["points_sent"] > 0
    assert "runs: 0\n" in fine("sync")
    assert "holds no event of a search" in error("sync", texts(tmp_path / "no.jsonl"))
    assert "does not exist" in error("sync", tmp_path / "nowhere", code=2)


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    # An environment without optuna: its name leads nowhere.
    code = (
        "import sys; sys.modules['optuna'] = None; from transfer_pruner.cli import main; "
        "main(['harvest', '--storage', 'x.log', '--study', 'y', '--out', 'z.csv'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: --storage needs optuna: pip install 'transfer-pruner[optuna]'"
    )
    assert len(done.stderr.splitlines()) == 1


def test_help_shows_an_example_for_every_command() -> None:
    shown = fine("--help")
    for name, command in main.commands.items():
        assert f"  {name} " in shown
        help_of = fine(name, "--help")
        (first, *_) = re.findall(rf"^  +transfer-pruner {name} (.*)$", help_of, re.MULTILINE)
        options = {option for param in command.params for option in param.opts}
        assert set(re.findall(r"--[\w-]+", first)) <= options
        assert "--json" in options
    assert fine("--version").endswith(f"{__import__('transfer_pruner').__version__}\n")
    assert "_TRANSFER_PRUNER_COMPLETE=bash_source" in shown


def test_help_loads_nothing_heavy() -> None:
    names = [[], *([name] for name in main.commands)]
    code = f"""
import sys
from transfer_pruner.cli import main
from transfer_pruner.cli.program import Answer, answers
for name in {names!r}:
    main([*name, "--help"], standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    heavy = {"numpy", "pandas", "torch", "rich", "sklearn", "scipy", "transformers", "matplotlib"}
    assert not loaded & (heavy | {"optuna", "ray", "mlflow", "safetensors", "tqdm"})


@pytest.mark.skipif(not INSTALLED.exists(), reason="the console script is not installed")
def test_the_installed_script_answers_and_completes() -> None:
    done = subprocess.run([INSTALLED, "fit"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("Error: Missing option '--out'. See 'transfer-pruner fit --help'.\n")
    environment = {"_TRANSFER_PRUNER_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    completed = subprocess.run(
        [INSTALLED],
        env={**environment, "COMP_WORDS": "transfer-pruner ex"},
        capture_output=True,
        text=True,
    )
    assert completed.stdout == "plain,explain\n"
