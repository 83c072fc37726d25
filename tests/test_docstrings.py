"""Every public name shows its most common use, and what its docstring shows is so.

An example stands by itself: a reader can type it. It runs in an empty folder.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_docs import PACKAGES, in_the_reference

EXEMPT = {
    "transfer_pruner.answer.ALONE": "a constant, which has no docstring of its own",
    "transfer_pruner.answer.SHOWN": "a constant",
    "transfer_pruner.answer.SHOWN_NUMBERS": "a constant",
    "transfer_pruner.plotting.Vertical": "a type of two texts",
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_names() -> dict[str, object]:
    """What packages export and what the reference shows, each thing once, by its first name."""
    named = {
        f"{package}.{name}": getattr(importlib.import_module(package), name)
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
    }
    for shown, thing in in_the_reference().items():
        named |= own_names(thing) if isinstance(thing, ModuleType) else {shown: thing}
    first = {id(thing): name for name, thing in reversed(named.items())}
    return {name: thing for name, thing in named.items() if first[id(thing)] == name}


def own_names(module: ModuleType) -> dict[str, object]:
    """The functions and classes that a module shows."""
    return {
        f"{module.__name__}.{name}": thing
        for name, thing in vars(module).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
        and not name.startswith("_")
    }


PUBLIC = {name: thing for name, thing in public_names().items() if name not in EXEMPT}
# What a method shows has to be so, too; not every method needs to show something.
SHOWN = PUBLIC | {
    f"{name}.{method}": inspect.unwrap(getattr(thing, method))
    for name, thing in PUBLIC.items()
    if inspect.isclass(thing)
    for method, own in vars(thing).items()
    if not method.startswith("_") and ">>> " in (getattr(own, "__doc__", None) or "")
}


def examples_of(name: str, thing: object) -> doctest.DocTest:
    (found,) = doctest.DocTestFinder(recurse=False).find(
        thing, name, globs={"__name__": "__main__"}
    )
    return found


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.shutdown()  # what tests of other modules have left
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def local_mlflow(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """MLflow's own default database, its tables made already."""
    import mlflow

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    # What tests of other modules have left.
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    while mlflow.active_run() is not None:
        mlflow.end_run()
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an example runs, with what it needs of a host."""
    name = request.node.callspec.params["name"]
    if name.startswith("transfer_pruner_ray."):
        # At the usual home, where its token lies.
        request.getfixturevalue("local_ray")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray's results go there
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    if name.startswith("transfer_pruner_mlflow."):
        request.getfixturevalue("local_mlflow")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_exempt_are_public() -> None:
    assert EXEMPT.keys() <= public_names().keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_examples_section(name: str) -> None:
    documentation = inspect.getdoc(PUBLIC[name]) or ""
    assert "\nExamples\n--------\n" in documentation
    assert examples_of(name, PUBLIC[name]).examples


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", SHOWN)
def test_what_a_docstring_shows_is_so(name: str, folder: Path) -> None:
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(examples_of(name, SHOWN[name]), out=told.append)
    assert not runner.failures, "".join(told)


def test_an_example_that_is_not_so_is_noticed() -> None:
    def wrong() -> None:
        """Say what is not so.

        >>> 1 + 1
        3
        """

    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(examples_of("wrong", wrong), out=lambda _: None)
    assert runner.failures == 1
