"""What the documentation says is so: its code runs, its commands and links are there, it builds.

Every page below docs/ is covered by being there. Python blocks run in order, in one folder; one
that is no whole has ``<!-- fragment -->`` on the line above, which no reader sees.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import optuna
import pytest
from PIL import Image

from transfer_pruner import Decision, EliminationRule
from transfer_pruner._moved import MOVED
from transfer_pruner.cli import main

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))
TEXTS = [*PAGES, "README.md", "CONTRIBUTING.md", "examples/text_transfer/README.md"]
MEASURED = [
    *("docs/results.md", "docs/design-notes.md", "examples/text_transfer/README.md"),
    *("docs/optuna.md", "docs/ray.md", "docs/mlflow.md"),
]
QUOTING = [
    "README.md",
    *(f"docs/{x}.md" for x in ("index", "which-adapter", "how-it-works", "trust", "peers", "faq")),
]
# The packages that say what is public. The command line's page tells of its one name.
PACKAGES = sorted(
    ".".join(path.parent.relative_to(base).parts)
    for base in (ROOT, ROOT / "integrations")
    for path in base.glob("transfer_pruner*/**/__init__.py")
    if "__all__" in path.read_text() and path.parent.name != "cli"
)
TASKS = ["news", "advice", "weather", "rescue"]
PRINTED = {
    "docs/index.md": ["pairs eliminated before training", "ransfer is best for"],
    "docs/optuna.md": ["pairs eliminated before training", "audit trials beat every kept trial"],
    "docs/ray.md": ["8 of 12 pairs eliminated before training"],
}


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(
        rf"^([^\n]*)\n```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE
    )
    return [block for above, block in found if "<!-- fragment -->" not in above]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)


def inline_code(page: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


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


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the reader has already: tasks, an objective and a function that Ray Tune trains."""

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        return TASKS.index(source) / 4 + TASKS.index(target) * trial.suggest_float("lr", 0, 0.1)

    def train_pair(config: dict[str, Any]) -> None:
        from ray import tune

        tune.report({"f1": TASKS.index(config["source"]) / 4 + config["lr"]})

    have = {"tasks": TASKS, "objective": objective, "train_pair": train_pair}
    if not any(re.search(r"^from ray\b", x, re.M) for x in blocks(request.param, "python")):
        yield {"page": request.param, **have}
        return
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield {"page": request.param, **have}
    finally:
        ray.shutdown()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "names", [page for page in PAGES if blocks(page, "python")], indirect=True, ids=str
)
def test_the_python_of_a_page_runs_as_it_is_written(
    names: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = names.pop("page")
    for block in blocks(page, "python"):
        exec(block, names)
    printed = capsys.readouterr().out
    for line in PRINTED.get(page, []):
        assert line in printed
    if page == "docs/gallery.md":
        shown = set(re.findall(r"\]\(gallery/(\S+)\)", read(page)))
        assert {path.name for path in folder.glob("*.png")} == shown
        for name in shown:
            assert Image.open(folder / name).size == Image.open(DOCS / "gallery" / name).size
    if page == "docs/optuna.md":
        drawn = {path.name for path in folder.glob("*.html")}
        kinds = ("best", "tried", "savings", "gains", "pairs")
        assert drawn == {f"{name}.html" for name in kinds}


def check_command(line: str) -> None:
    """Fail unless a line of a shell names programs, options, files and targets that there are."""
    line = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
    words = shlex.split(re.split(r" [|>] ", line)[0])
    while re.fullmatch(r"\w+=\S*", words[0]):
        words.pop(0)
    program, *arguments = words
    if program == "transfer-pruner":
        check_ours(arguments)
    elif Path(program).name == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), line
    elif Path(program).name == "python":
        assert (ROOT / arguments[0]).is_file(), line
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", read("Makefile"), re.MULTILINE), line
    elif program == "pip":
        extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
        asked = re.findall(r"[\w-]+", line.partition("[")[2])
        assert asked, line
        assert set(asked) <= extras.keys(), line
    else:
        here = Path(sys.executable).parent / program
        assert here.exists() or shutil.which(program), line


def check_ours(arguments: list[str]) -> None:
    command: click.Command = main
    if arguments and not arguments[0].startswith("-"):
        command = main.commands[arguments.pop(0)]
    # Options and their number of values; not whether the files are there.
    command.make_parser(click.Context(command)).parse_args(arguments)


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "console")])
def test_the_commands_of_a_page_exist_with_the_options_that_it_gives_them(page: str) -> None:
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            check_command(line)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_within_the_text_exist_too(page: str) -> None:
    for code in inline_code(page):
        if re.match(r"transfer-pruner [a-z-]|make [a-z]|(\S*/)?python (-m|\S+\.py)", code):
            check_command(code)


def test_a_command_that_is_not_there_is_noticed() -> None:
    for line in (
        "transfer-pruner rank --rule rule/ --best 3",
        "python examples/no_such_example.py",
        "make no-such-target",
        "pip install '.[no-such-extra]'",
        "no-such-program --help",
    ):
        with pytest.raises((AssertionError, click.UsageError)):
            check_command(line)


def figures(page: str) -> set[str]:
    """Percentages and decimal fractions of a page's prose and tables."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|Python 3\.\d+", "", prose(page)).replace("**", "")
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?%|(?<![\w.])\d*\.\d+", text))


def test_the_gallery_shows_every_figure() -> None:
    plotting = importlib.import_module("transfer_pruner.plotting")
    drawn = [name for name in plotting.__all__ if f"{name}_data" in plotting.__all__]
    assert len(drawn) > 8
    code = "".join(blocks("docs/gallery.md", "python"))
    assert not [name for name in drawn if not re.search(rf"\b{name}\(", code)]


def test_the_migration_notes_name_every_module_that_moved() -> None:
    told = dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", read("docs/migrating.md"), re.M))
    assert (
        MOVED.items()
        <= {
            old.removeprefix("transfer_pruner."): new.removeprefix("transfer_pruner.")
            for old, new in told.items()
        }.items()
    )


@pytest.mark.parametrize("page", QUOTING)
def test_every_figure_that_is_quoted_stands_where_it_was_measured(page: str) -> None:
    known = set().union(*map(figures, MEASURED))
    assert figures(page) <= known


def test_links_between_pages_lead_somewhere() -> None:
    for page in TEXTS:
        for link in re.findall(r"\]\(([^)#]+)", prose(page)):
            if "://" not in link:
                assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link, anchor or reference fails. No host answers."""
    pytest.importorskip("mkdocs", reason="no mkdocs, which builds the documentation")
    out = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "all_proxy": nowhere,
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_MKDOCS_2_WARNING": "1",
    }
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_the_site_has_every_page(site: Path) -> None:
    for page in PAGES:
        assert (site / Path(page).relative_to("docs").with_suffix(".html")).is_file(), page


def test_no_page_of_the_site_asks_another_host_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        asked = re.findall(
            r'<(?:script|img|iframe|source)\b[^>]*\ssrc="([^"]+)"|<link\b[^>]*\shref="([^"]+)"',
            page.read_text(),
        )
        assert asked
        for script, link in asked:
            assert "//" not in script + link, f"{page.name}: {script or link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def in_the_reference() -> dict[str, object]:
    """What the pages below docs/api show, by the name that they give; a strict build finds each."""
    text = "".join(read(page) for page in PAGES if page.startswith("docs/api/"))
    names = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert len(names) == len(set(names)), "none twice"
    return {name: found(name) for name in names}


def found(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def is_shown(module: str, name: str, shown: dict[str, object]) -> bool:
    """Whether a name of a module is shown: by itself, from elsewhere, or with all its module."""
    thing = getattr(importlib.import_module(module), name)
    elsewhere = any(where.endswith(f".{name}") and other is thing for where, other in shown.items())
    return f"{module}.{name}" in shown or elsewhere or getattr(thing, "__module__", "") in shown


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    shown = in_the_reference()
    names = importlib.import_module(package).__all__
    assert not [name for name in names if not is_shown(package, name, shown)]


def test_what_pages_and_examples_import_is_in_the_reference() -> None:
    shown = in_the_reference()
    code = [(page, block) for page in TEXTS for block in blocks(page, "python")]
    code += [(path.name, path.read_text()) for path in (ROOT / "examples").glob("[0-9]*.py")]
    imported = {
        (str(node.module), alias.name, where)
        for where, text in code
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("transfer_pruner")
        for alias in node.names
    }
    assert len(imported) > 20
    assert not {names for names in imported if not is_shown(*names[:2], shown)}


def test_formulas_of_the_reference_are_drawn_by_the_browser_alone(site: Path) -> None:
    reference = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert reference.count("<math") > 20
    assert ":math:" not in reference
    assert ".. math::" not in reference
