"""The OptunaHub packages load from a registry's layout, bring nothing of their own, and work."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

import transfer_pruner_optuna
from transfer_pruner import Decision, EliminationRule
from transfer_pruner_optuna.sampler import TransferSampler

pytest.importorskip("optunahub")
import optunahub

optuna.logging.set_verbosity(optuna.logging.WARNING)

ROOT = Path(__file__).parents[3]
REGISTRY = ROOT / "integrations" / "optunahub-registry" / "package"
CLASSES: dict[str, type] = {
    "pruners/transfer_pruner": transfer_pruner_optuna.TransferPruner,
    "samplers/transfer_pruner": TransferSampler,
}
packages = pytest.mark.parametrize("package", CLASSES)


@pytest.fixture
def rule() -> EliminationRule:
    """Of the sources a and b, every target has one that is eliminated."""
    return EliminationRule(
        {
            (source, target): Decision((source, target) in {("a", "u"), ("b", "t")}, 0.0, 0.5, "")
            for source in "ab"
            for target in "tu"
        },
        {},
    )


def load(package: str) -> ModuleType:
    return optunahub.load_local_module(package, registry_root=str(REGISTRY))


def readme(package: str) -> tuple[dict[str, Any], str]:
    """Take a README's front matter and text apart."""
    _, front, text = (REGISTRY / package / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )


def test_the_pruner_from_the_registry_prunes_eliminated_pairs(rule: EliminationRule) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        pair = trial.suggest_categorical("source", "ab"), trial.suggest_categorical("target", "tu")
        if trial.should_prune():
            raise optuna.TrialPruned
        trained.append(pair)
        return 0.5

    sampler = optuna.samplers.GridSampler({"source": "ab", "target": "tu"})
    pruner = load("pruners/transfer_pruner").TransferPruner(rule)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=4)
    assert set(trained) == {("a", "t"), ("b", "u")}
    assert len(study.get_trials(states=(TrialState.PRUNED,))) == 2


def test_the_sampler_from_the_registry_redirects_to_surviving_pairs(rule: EliminationRule) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", "ab")
        trial.suggest_categorical("target", "tu")
        return 0.5

    sampler = load("samplers/transfer_pruner").TransferSampler(rule, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=20)
    pairs = {(trial.params["source"], trial.params["target"]) for trial in study.trials[1:]}
    assert pairs == {("a", "t"), ("b", "u")}


@packages
def test_a_package_is_ours_and_nothing_else(package: str) -> None:
    module = load(package)
    ours = CLASSES[package]
    assert module.__all__ == [ours.__name__]
    assert getattr(module, ours.__name__) is ours
    files = {path.name for path in (REGISTRY / package).iterdir() if path.is_file()}
    assert files == {"LICENSE", "README.md", "__init__.py", "example.py", "requirements.txt"}


@packages
def test_the_front_matter_is_what_the_registry_checks(package: str) -> None:
    front, text = readme(package)
    assert set(front) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    for key in ("author", "title", "description", "license"):
        assert isinstance(front[key], str)
        assert front[key]
    for key in ("tags", "optuna_versions"):
        assert front[key]
        assert all(isinstance(value, str) for value in front[key])
    # The registry wants its category as a tag, and no other licence.
    assert package.partition("/")[0].removesuffix("s") in front["tags"]
    assert front["license"] == "MIT License"
    assert (REGISTRY / package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Abstract", "Class or Function Names", "Installation", "Example", "Others"]


@packages
def test_the_readme_tells_the_signature_and_its_example_is_python(package: str) -> None:
    text = readme(package)[1]
    ours = CLASSES[package]
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(ours).parameters.values()
    ]
    signature = str(inspect.Signature(parameters)).replace("'", '"')
    assert f"- `{ours.__name__}{signature}`" in text
    [example] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(example, "README.md", "exec")
    assert f'load_module("{package}")' in example


@packages
def test_the_example_runs(package: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REGISTRY / package / "example.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    numbers = [int(n) for n in re.findall(r"\b\d+\b", done.stdout.splitlines()[0])]
    if package.startswith("pruners"):
        pruned, trials = numbers
        assert 0 < pruned < trials
    else:
        _, pairs, eliminated = numbers
        assert pairs > eliminated == 0
    assert re.search(r"best: .*'source': 'a\d', 'target': 'a\d'", done.stdout)


@packages
def test_loading_a_local_package_asks_no_network(package: str) -> None:
    done = run(f"""
        import sys
        asked = []
        sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else 0)
        import optunahub
        optunahub.load_local_module({package!r}, registry_root={str(REGISTRY)!r})
        print([event for event in asked if event in ("socket.connect", "socket.getaddrinfo")])
        import socket
        try:
            socket.getaddrinfo("localhost", 1)
        finally:
            assert "socket.getaddrinfo" in asked  # the hook does hear
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@packages
def test_without_transfer_pruner_loading_says_what_to_install(package: str) -> None:
    done = run(f"""
        import sys
        sys.modules["transfer_pruner_optuna"] = None  # as if it were not installed
        import optunahub
        optunahub.load_local_module({package!r}, registry_root={str(REGISTRY)!r})
    """)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {CLASSES[package].__name__} needs transfer_pruner")
    assert "pip install 'transfer-pruner[optuna]'" in last


def test_the_registry_layout_stays_out_of_the_wheel() -> None:
    setuptools = pytest.importorskip("setuptools")
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    find = settings["tool"]["setuptools"]["packages"]["find"]
    found = [
        name
        for where in find["where"]
        for name in setuptools.find_namespace_packages(str(ROOT / where), include=find["include"])
    ]
    assert "transfer_pruner_optuna" in found
    assert not [name for name in found if "hub" in name or "package" in name]
