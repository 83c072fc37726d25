"""Importing loads nothing heavy, and imports run one way."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import transfer_pruner

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "captum", "ray", "mlflow", "transformers", "matplotlib", "sklearn", "pandas"}
HOSTS = {"optuna", "ray", "mlflow"}
TORCH = {"attribution", "text"}  # the rooms that may import it
RELEASED_NAMES = (ROOT / "tests/public_names.txt").read_text().split()


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_core_and_the_optuna_adapter_load_without_torch_or_other_hosts() -> None:
    assert not loaded_by("import transfer_pruner") & (HEAVY | HOSTS)
    loaded = loaded_by("import transfer_pruner, transfer_pruner_optuna")
    assert not loaded & {"torch", "captum", "ray", "mlflow", "transformers"}


def test_the_mlflow_adapter_loads_without_mlflow_and_other_hosts() -> None:
    assert not loaded_by("import transfer_pruner_mlflow") & {"torch", "captum", *HOSTS}


def test_the_ray_adapter_loads_without_torch_and_other_hosts() -> None:
    loaded = loaded_by("import transfer_pruner_ray")
    assert not loaded & {"torch", "captum", "transformers", "optuna", "mlflow"}


def test_the_command_line_starts_without_heavy_imports() -> None:
    assert not loaded_by("import transfer_pruner.cli") & (HEAVY | HOSTS)


@pytest.mark.parametrize("name", transfer_pruner.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(transfer_pruner, name).__doc__
    assert name in dir(transfer_pruner)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        transfer_pruner.nonsense  # noqa: B018


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", RELEASED_NAMES)
def test_every_released_name_is_where_it_was(where: str) -> None:
    module, name = where.split(":")
    exec(f"from {module} import {name}", {})  # as users do: a submodule is a name too


def test_a_module_that_moved_says_where_to() -> None:
    sys.modules.pop("transfer_pruner.learning", None)
    with pytest.warns(DeprecationWarning, match=r"is transfer_pruner\.rule\.learning since 0\.2"):
        old = importlib.import_module("transfer_pruner.learning")
    assert old.LearningRule is transfer_pruner.LearningRule
    with pytest.raises(ModuleNotFoundError, match=r"transfer_pruner\.nowhere"):
        importlib.import_module("transfer_pruner.nowhere")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_core_imports_no_host_and_torch_in_one_place() -> None:
    core = ROOT / "transfer_pruner"
    # The command line opens studies and runs for its users, inside its functions.
    paths = [path for path in core.rglob("*.py") if path.parent.name != "cli"]
    assert len({path.parent for path in paths}) > 5, "the rooms are seen"
    for path in paths:
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert not {root for root in roots if root.partition("_pruner_")[1]}, path
        assert not roots & HOSTS, path
        if path.parent.name not in TORCH:
            assert not roots & {"torch", "captum", "transformers"}, path


def imports_between_modules() -> dict[str, set[str]]:
    """What each of our modules imports of the others, lazily or for types too."""
    modules = {
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
        for base in (ROOT, ROOT / "integrations")
        for path in base.glob("transfer_pruner*/**/*.py")
    }
    # Packages' own names are found on first use, and old ones where they went.
    lazy = {"transfer_pruner", "transfer_pruner_ray", "transfer_pruner._moved"}
    importing = modules.keys() - lazy
    found: dict[str, set[str]] = {}
    for module in importing:
        found[module] = set()
        for node in ast.walk(ast.parse(modules[module].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                named = names & modules.keys()
                found[module] |= named if named == names else named | {node.module}
        found[module] &= modules.keys() - {module}
    return found


def test_no_import_leads_back_to_where_it_came_from() -> None:
    imports = imports_between_modules()
    assert len(imports) > 80
    order = graphlib.TopologicalSorter(imports)
    order.prepare()  # raises CycleError, which names the circle


def test_rooms_import_one_way() -> None:
    ground = ("tasks", "exceptions", "files", "equality", "_version", "autologging")
    levels = [
        *(("embedding", "records"), ("pairs",), ("predictor",), ("rule", "savings", "audit")),
        *(("tables",), ("plotting",), ("report",), ("cli",)),
    ]
    level = {room: n for n, rooms in enumerate([ground, *levels]) for room in rooms}
    for module, imported in imports_between_modules().items():
        room = module.split(".")[1:2]
        for other in imported:
            their = other.split(".")[1:2]
            both = [level.get(*name) if name else None for name in (room, their)]
            if module.split(".")[0] == other.split(".")[0] and None not in both and room != their:
                assert both[0] >= both[1], f"{module} imports {other}, which is above it"  # type: ignore[operator]


def test_the_map_names_every_module() -> None:
    written = (ROOT / "CONTRIBUTING.md").read_text()
    for base in (ROOT, ROOT / "integrations"):
        for path in base.glob("transfer_pruner*/**/*.py"):
            if path.name != "__init__.py":
                assert f"`{path.name}`" in written, path


def test_nothing_is_loaded_that_could_run_code() -> None:
    for path in [*ROOT.glob("transfer_pruner/**/*.py"), *ROOT.glob("integrations/*/*.py")]:
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert not roots & {"pickle", "joblib", "cloudpickle", "shelve", "marshal"}, path
        assert "torch.load(" not in path.read_text(), path


def test_the_folder_named_mlflow_holds_no_python() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))
