"""Every Python block and command of README.md runs as it is written, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from transfer_pruner import load_embeddings
from transfer_pruner.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
TASKS = ["news", "advice", "weather", "rescue", "donations"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return 0.1 * TASKS.index(source) + 0.1 * TASKS.index(target) + lr


def test_what_the_readme_says_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    save_model: Callable[..., Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, task in enumerate(("news", "advice")):
        save_model(task, seed)
    torch.manual_seed(0)
    models = {
        task: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))
        for task in TASKS
    }
    study = optuna.create_study(
        study_name="pairs",
        storage="sqlite:///study.db",
        direction="maximize",
        sampler=optuna.samplers.GridSampler(
            {"source": TASKS, "target": TASKS, "lr": [1e-3]}, seed=0
        ),
    )
    study.optimize(objective)
    names = {
        "objective": objective,
        "models": models,
        "dev_sets": {task: (torch.rand(40, 6), [0, 1] * 20) for task in TASKS},
        "probe": torch.rand(12, 6),
        "probe_texts": ["flood in the city", "help"],
    }
    names |= {"tasks": TASKS, "train_pair": lambda config: {"f1": config["lr"]}}
    drop_in, leaving_out, embedding, many, measured, in_ray = blocks("python")
    # The reader meets the drop-in first; its embeddings come from the block after it.
    for block in (embedding, drop_in, leaving_out, many, measured, in_ray):
        exec(block, names)
    assert list(load_embeddings("text-embeddings")) == ["advice", "news"]
    assert "pairs eliminated before training" in capsys.readouterr().out
    commands = [line for block in blocks("console") for line in block.splitlines()]
    ours = [shlex.split(line) for line in commands if line.startswith("transfer-pruner")]
    assert len(ours) == 3
    for _, *arguments in ours:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output


def test_every_make_target_and_file_that_the_readme_names_is_there() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"(?:\]\(|`\S*python )([\w/.]+\.\w+)", README):
        assert (Path(__file__).parents[1] / path).exists(), path
