"""README.md is short, its Python runs as it is written, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
import torch
from torch import nn

README = (Path(__file__).parents[1] / "README.md").read_text()
TASKS = ["news", "advice", "weather", "rescue", "donations"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return 0.1 * TASKS.index(source) + 0.1 * TASKS.index(target) + lr


def test_what_the_readme_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names = {
        "objective": objective,
        "models": {
            task: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Linear(4, 2))
            for task in TASKS
        },
        "dev_sets": {task: (torch.rand(40, 6), [0, 1] * 20) for task in TASKS},
        "probe": torch.rand(12, 6),
    }
    (ten_lines,) = blocks("python")
    assert len([line for line in ten_lines.splitlines() if line]) <= 10
    exec(ten_lines, names)
    assert "best for" in capsys.readouterr().out


def test_it_is_read_in_a_few_minutes() -> None:
    assert len(README.split()) < 900


def test_every_make_target_and_file_that_the_readme_names_is_there() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"(?:\]\(|`\S*python )([\w/.]+\.\w+)", README):
        assert (Path(__file__).parents[1] / path).exists(), path
