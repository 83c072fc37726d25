"""A rule on disk: one JSON file, data only, there whole or not at all.

What it must satisfy: what was saved decides the same when it is loaded, those of 0.1 too, and a
file that is damaged anywhere is refused by its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transfer_pruner.files import write_atomically
from transfer_pruner.rule.decision import Decisions

FILE = "rule.json"
FORMAT = 2


def settings_text(settings: Mapping[str, Any]) -> str:
    """Write settings as JSON.

    Raises
    ------
    ValueError
        If they hold something else.
    """
    try:
        return json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"settings must be a mapping of str to JSON values but got {settings!r} ({error})."
        ) from error


def fingerprint(decisions: Decisions, settings: str) -> str:
    """SHA-256 of decisions and settings, whatever the decisions were made of."""
    decisions = decisions.spelled_out()
    digest = hashlib.sha256(json.dumps([settings, decisions.tasks, decisions.whys]).encode())
    for name, column in decisions.columns.items():
        digest.update(f"{name} {column.dtype.str}".encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def save(directory: Path, decisions: Decisions, settings: str, told: Mapping[str, Any]) -> None:
    """Write a rule into a directory, which is made if it is missing.

    `told` is the rule's fingerprint, and the seconds that its proxy scores took.
    """
    columns = {
        name: {"dtype": dtype, "bytes": b64encode(content).decode()}
        for name, (dtype, content) in decisions.packed["columns"].items()
    }
    content = {"format": FORMAT, "settings": json.loads(settings), **told}
    content |= decisions.packed | {"columns": columns}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / FILE, json.dumps(content, allow_nan=False).encode())


def load(directory: Path) -> tuple[Decisions, dict[str, Any], float]:
    """Read what `save` wrote, or 0.1: decisions, settings, and what the proxy scores took.

    Raises
    ------
    FileNotFoundError
        If the directory holds no rule.
    ValueError
        If the file is damaged or of another format.
    """
    path = directory / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist: write a rule there with EliminationRule.save()."
        )
    try:
        content = json.loads(path.read_bytes())
        settings = dict(content["settings"])
        if content["format"] == 1:
            return _of_rows(content["decisions"]), settings, 0.0
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads 1 and 2")
        columns = {
            name: (column["dtype"], b64decode(column["bytes"], validate=True))
            for name, column in content["columns"].items()
        }
        decisions = Decisions.from_packed(content | {"columns": columns})
        found = fingerprint(decisions, settings_text(settings))
        if found != content["fingerprint"]:
            raise ValueError(f"its fingerprint is {found}, not {content['fingerprint']}")
        return decisions, settings, float(content.get("scoring_seconds", 0.0))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not a whole elimination rule ({error}).") from error


def _of_rows(rows: list[list[Any]]) -> Decisions:
    """Take the decisions of 0.1: a row for each pair, with its sentence."""

    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    return Decisions.of_rows(
        (source, target, bool(gone), number(score), number(chance), str(reason))
        for source, target, gone, score, chance, reason in rows
    )
