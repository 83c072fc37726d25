"""Hosted CI runs what .ci/run runs, by the same targets of the Makefile, and needs no secret."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github/workflows"
WORKFLOWS = sorted(path.name for path in FOLDER.glob("*.yml"))
RUN = ".ci/run"


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def steps(name: str) -> list[dict[str, Any]]:
    jobs = workflow(name)["jobs"].values()
    return [step for job in jobs for step in job.get("steps", [job])]


def targets(name: str) -> set[str]:
    """Every target of make that .ci/run or a workflow's steps name."""
    if name == RUN:
        commands = (ROOT / RUN).read_text()
    else:
        commands = "\n".join(step.get("run", "") for step in steps(name))
    return set(re.findall(r"\bmake ([\w-]+)", re.sub(r"^ *#.*", "", commands, flags=re.MULTILINE)))


def test_workflows_are_seen() -> None:
    assert WORKFLOWS == ["ci.yml", "release.yml"]
    assert len(targets(RUN)) > 3


@pytest.mark.parametrize("name", [RUN, *WORKFLOWS])
def test_every_target_that_is_named_is_in_the_makefile(name: str) -> None:
    there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets(name)
    assert targets(name) <= there


def test_hosted_ci_runs_what_ci_runs_here_and_both_ends_of_the_hosts() -> None:
    assert targets("ci.yml") == targets(RUN) | {"compat", "newest"}


def test_the_tests_run_on_every_python_that_is_claimed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    claimed = [text.removeprefix(prefix) for text in project["classifiers"] if prefix in text]
    assert workflow("ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == claimed


def test_a_release_waits_for_all_of_ci() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert jobs["distributions"]["needs"] == "ci"
    assert "wheel" in targets("release.yml")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_and_says_which_actions_it_uses(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}
    assert "secrets." not in (FOLDER / name).read_text()
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[\w-]+@v\d+|\./\.github/workflows/[\w-]+\.yml", action)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_an_issue_form_asks_something(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    assert len({field["id"] for field in form["body"]}) == len(form["body"]) >= 2


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert paper["url"] == urls["Paper"]
