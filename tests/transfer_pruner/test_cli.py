"""The commands as a user types them, in a process of their own where it matters."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from transfer_pruner import EliminationRule, TaskEmbedding, save_embeddings
from transfer_pruner.cli import main

TASKS = ["news", "advice", "weather"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def storage(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        return 0.5 + 0.1 * (source == "news") - 0.1 * (source == "weather") * (source != target)

    grid = {"source": TASKS, "target": TASKS}
    study.sampler = optuna.samplers.GridSampler(grid, seed=0)
    study.optimize(objective)
    return url


def test_from_a_study_to_a_rule_to_a_ranking(
    storage: str, tmp_path: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    out = tmp_path / "transfers.csv"
    harvested = run("harvest", "--storage", storage, "--study", "mine", "--out", out)
    assert harvested.exit_code == 0, harvested.output
    assert "6 measured transfers of 6 pairs" in harvested.output
    assert {"source", "target", "gain"} <= set(pd.read_csv(out).columns)
    save_embeddings([embeddings[task] for task in TASKS], tmp_path / "embeddings")
    fitted = run(
        *("fit", "--embeddings", tmp_path / "embeddings", "--transfers", out),
        *("--top-k", 1, "--out", tmp_path / "rule"),
    )
    assert fitted.exit_code == 0, fitted.output
    assert "3 of 6 pairs eliminated" in fitted.output
    rule = EliminationRule.load(tmp_path / "rule")
    assert len(rule.kept("advice")) == 1
    ranked = run("rank", "--rule", tmp_path / "rule", "--target", "advice")
    assert ranked.exit_code == 0, ranked.output
    assert re.search(r"kept.*eliminated", ranked.output, re.DOTALL)


def test_a_rule_from_attributions_alone(
    tmp_path: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    save_embeddings(embeddings.values(), tmp_path / "embeddings")
    fitted = run(
        *("fit", "--embeddings", tmp_path / "embeddings"),
        *("--fraction", 0.8, "--out", tmp_path / "rule"),
    )
    assert fitted.exit_code == 0, fitted.output
    assert "24 of 30 pairs eliminated" in fitted.output


def test_a_rule_that_bounds_a_risk(transfers: pd.DataFrame, tmp_path: Path) -> None:
    csv = tmp_path / "transfers.csv"
    transfers.to_csv(csv, index=False)
    fitted = run(
        *("fit", "--transfers", csv, "--risk", 0.2, "--tolerance", 0.01),
        *("--out", tmp_path / "rule"),
    )
    assert fitted.exit_code == 0, fitted.output
    settings = EliminationRule.load(tmp_path / "rule").settings
    assert (settings["risk"], settings["tolerance"], settings["n_targets"]) == (0.2, 0.01, 6)
    # The predictor learnt from the table that it is calibrated on.
    assert settings["leave_target_out"]


def error(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code != 0
    return result.output.strip().splitlines()[-1]


def test_every_error_is_one_line_that_says_what_to_do(
    storage: str, tmp_path: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    out = tmp_path / "rule"
    assert error("harvest", "--storage", storage, "--study", "x", "--out", out) == (
        f"Error: --study 'x' is not in {storage}; it has: mine."
    )
    bad = tmp_path / "bad.csv"
    bad.write_text("source,target,score\na,b,0.1\n")
    assert "lacks the column 'gain'; it has: source, target, score" in error(
        "fit", "--transfers", bad, "--top-k", 1, "--out", out
    )
    assert "exactly one of --top-k" in error("fit", "--transfers", bad, "--out", out)
    assert "give --embeddings, --transfers" in error("fit", "--top-k", 1, "--out", out)
    assert "does not exist" in error(
        "fit", "--embeddings", tmp_path / "nowhere", "--top-k", 1, "--out", out
    )
    save_embeddings(embeddings.values(), tmp_path / "e")
    assert "k cannot be negative but got -1" in error(
        "fit", "--embeddings", tmp_path / "e", "--top-k", -1, "--out", out
    )
    assert "min_gain needs a predictor that learnt" in error(
        "fit", "--embeddings", tmp_path / "e", "--min-gain", 0, "--out", out
    )
    for options, message in (
        (("--risk", 0.1, "--top-k", 1), "exactly one of --top-k, --fraction, --min-gain and"),
        (("--risk", 0.1), "--risk is calibrated on measured transfers: give --transfers too"),
        (("--top-k", 1, "--tolerance", 0.1), "--tolerance goes with --risk: give --risk too"),
    ):
        assert message in error("fit", "--embeddings", tmp_path / "e", *options, "--out", out)
    few = tmp_path / "few.csv"
    few.write_text("source,target,gain\na,b,0.1\na,c,0.1\nb,a,0.1\nb,c,0.1\nc,a,0.1\nc,b,0.1\n")
    assert "risk 0.1 needs at least 9 calibration targets but pairs has 3" in error(
        "fit", "--transfers", few, "--risk", 0.1, "--out", out
    )
    assert "does not exist" in error("rank", "--rule", out, "--target", "news")
    run("fit", "--embeddings", tmp_path / "e", "--top-k", 1, "--out", out)
    assert "--target 'gossip' is not in the rule; it has: advice" in error(
        "rank", "--rule", out, "--target", "gossip"
    )


def test_help_shows_an_example_for_every_command() -> None:
    for command in main.commands:
        assert f"transfer-pruner {command} --" in run(command, "--help").output
    assert run("--version").exit_code == 0
