"""The commands that read a search, on a Ray Tune experiment whose lower metric is better."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.cli import main

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray import tune  # noqa: E402

LOSS = {("a", "t"): 0.3, ("b", "t"): 0.7, ("t", "t"): 0.5}


def train_pair(config: dict[str, str]) -> None:
    tune.report({"loss": LOSS[config["source"], config["target"]]})


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plain search: no adapter of ours took part in it."""
    folder = tmp_path_factory.mktemp("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    tune.Tuner(
        train_pair,
        param_space={"source": tune.grid_search(["a", "b", "t"]), "target": "t"},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(name="pairs", storage_path=str(folder), verbose=0),
    ).fit()
    yield folder / "pairs"
    ray.shutdown()


def said(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_lower_loss_is_a_positive_gain(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "transfers.csv"
    search = ("--ray", experiment, "--metric", "loss")
    said("harvest", *search, "--mode", "min", "--out", out)
    gains = pd.read_csv(out).set_index("source")["gain"]
    assert gains.to_dict() == pytest.approx({"a": 0.2, "b": -0.2})
    # Which way is better stands in no file: nothing is guessed.
    assert "--ray needs --mode" in said("harvest", *search, "--out", out, code=2)


def test_what_ran_without_our_adapters_was_no_audit(experiment: Path, tmp_path: Path) -> None:
    # The rule would have eliminated the pair that is best, and decided nothing here.
    decisions = {("a", "t"): Decision(True, 0.1, 0.2, "bad"), ("b", "t"): Decision(False, 1, 1, "")}
    EliminationRule(decisions, {}).save(tmp_path / "rule")
    out = tmp_path / "report.html"
    search = ("--ray", experiment, "--metric", "loss", "--mode", "min")
    for rule in ((), ("--rule", tmp_path / "rule")):
        assert "0 of 3 trials" in said("report", *search, *rule, "--out", out)
        assert "audit trials beat" not in out.read_text()
    pairs = pd.read_csv(tmp_path / "report-data" / "pairs.csv").set_index("source")
    assert pairs["mean_gain"].dropna().to_dict() == pytest.approx({"a": 0.2, "b": -0.2})


@pytest.mark.filterwarnings("default::transfer_pruner.TransferPrunerWarning")
def test_parameters_of_other_names_are_told(experiment: Path, tmp_path: Path) -> None:
    search = ("--ray", experiment, "--metric", "loss", "--mode", "min", "--source-param", "teacher")
    for command in ("harvest", "report"):
        told = said(command, *search, "--out", tmp_path / "out", code=1)
        assert "there are: source, target" in told
        assert not (tmp_path / "out").exists()


def test_the_report_says_why_a_search_was_stopped(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    stopped = tmp_path / "stopped"
    shutil.copytree(experiment, stopped)
    told = {"reason": "of no pair more is expected", "exhaustive_trials": 9}
    (stopped / "transfer_pruner.json").write_text(json.dumps(told))
    search = ("--metric", "loss", "--mode", "min", "--out", out)
    assert "never started" not in said("report", "--ray", experiment, *search)
    assert "6 of the exhaustive search's 9 never started" in said(
        "report", "--ray", stopped, *search
    )
    assert told["reason"] in out.read_text()
