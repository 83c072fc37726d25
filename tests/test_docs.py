"""Every Python block of the pages in docs/ runs as it is written, in order, in one folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from transfer_pruner import Decision, EliminationRule

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
DOCS = Path(__file__).parents[1] / "docs"
TASKS = ["news", "advice", "weather", "rescue"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a rule in it, as the reader has one."""
    monkeypatch.chdir(tmp_path)
    decisions = {
        (source, target): Decision((i + j) % 2 == 1, i - j / 10, 0.5, f"{source} is number {i}")
        for i, source in enumerate(TASKS)
        for j, target in enumerate(TASKS)
        if source != target
    }
    EliminationRule(decisions, {}).save("rule")
    return tmp_path


def run(page: str, names: dict[str, Any]) -> None:
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(block, names)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_page_on_optuna_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        return TASKS.index(source) / 4 + TASKS.index(target) * trial.suggest_float("lr", 0, 0.1)

    run("optuna.md", {"objective": objective})
    printed = capsys.readouterr().out
    assert "pairs eliminated before training" in printed
    assert "audit trials beat every kept trial" in printed
    assert {path.name for path in folder.glob("*.html")} == {
        *("savings.html", "gains.html", "pairs.html"),
    }


def test_the_page_on_ray_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray")
    from ray import tune

    def train_pair(config: dict[str, Any]) -> None:
        tune.report({"f1": TASKS.index(config["source"]) / 4 + config["lr"]})

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run("ray.md", {"tasks": TASKS, "train_pair": train_pair})
    finally:
        ray.shutdown()
    printed = capsys.readouterr().out
    assert "8 of 12 pairs eliminated before training" in printed


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
