"""Labelled dev texts out of files: a table with a column for each target, or a file for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_pruner.exceptions import not_found
from transfer_pruner.text_files import read_texts

if TYPE_CHECKING:
    import pandas as pd

_COMPRESSED = (".gz", ".bz2", ".xz")


def read_dev_sets(
    path: Path,
    *,
    sources: Collection[str] = (),
    targets: Sequence[str] = (),
    text_column: str = "text",
    label_column: str = "label",
) -> dict[str, pd.DataFrame]:
    """Read the dev sets of targets, as `score_pairs` takes them.

    Parameters
    ----------
    path : Path
        A table of texts with a column of labels for each target, in which an empty cell is no
        label; or a folder of tables, each named as its target and with one column of labels.
        Formats are those of `transfer_pruner.probe_texts`.
    sources : collection of str
        The tasks that have a model.
    targets : sequence of str
        Which targets; if left out all files of a folder, and the columns of a table that are
        called as a source.
    text_column, label_column : str
        The latter in a folder, and in what is returned.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file cannot be read, a column is not there, or there is no target.
    """
    if path.is_dir():
        files = {_task(file): file for file in sorted(path.iterdir()) if _is_table(file)}
        for target in targets:
            if target not in files:
                raise ValueError(not_found("target", target, str(path), files))
        chosen = {task: file for task, file in files.items() if not targets or task in targets}
        if not chosen:
            raise ValueError(f"{str(path)!r} holds no file: write one table for each target.")
        read = {task: read_texts(file, text_column) for task, file in chosen.items()}
        for task, table in read.items():
            for column in (text_column, label_column):
                _check(table, column, chosen[task])
        return {task: table[[text_column, label_column]] for task, table in read.items()}
    table = read_texts(path, text_column)
    _check(table, text_column, path)
    for target in targets:
        _check(table, target, path)
    columns = [str(column) for column in table.columns if column != text_column]
    named = list(targets) or [column for column in columns if column in sources]
    if not named:
        raise ValueError(
            f"{str(path)!r} has no column that is called as a model; it has: "
            f"{', '.join(columns) or 'none'}, and the models are {', '.join(sorted(sources))}. "
            "Name the columns with --target, or give a folder with a file for each target."
        )
    return {
        target: table[[text_column, target]].set_axis([text_column, label_column], axis=1)
        for target in named
    }


def _check(table: pd.DataFrame, column: str, path: Path) -> None:
    names = [str(name) for name in table.columns]
    if names.count(column) == 1:
        return
    if column in names:
        raise ValueError(f"{str(path)!r} has several columns {column!r}: give each its own name.")
    raise ValueError(
        f"{not_found('column', column, repr(str(path)), names)} Name another with --text-column, "
        "--label-column or --target."
    )


def _is_table(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".")


def _task(file: Path) -> str:
    return (file.with_suffix("") if file.suffix.lower() in _COMPRESSED else file).stem
