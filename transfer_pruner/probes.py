"""Probe texts out of whatever a user keeps texts in.

What it must satisfy: the same texts give the same probe, whatever their order and their container;
and nothing but texts gets in.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer_pruner.text_files import read_texts

if TYPE_CHECKING:
    import pandas as pd


def probe_texts(
    data: Any,
    *,
    column: str = "text",
    only: Mapping[str, Any] | None = None,
    n: int | None = 64,
    seed: int = 0,
) -> list[str]:
    """Draw different texts from a file or a table, the same whatever the order of its rows.

    Texts are drawn by their hashes: most of those that are drawn from a file are drawn from a
    longer one too.

    Parameters
    ----------
    data : path, table or sequence of str
        A file, by its suffix: Parquet (``.parquet``, ``.pq``); JSON (``.jsonl``, ``.ndjson``,
        ``.json``), of lines or a list, of objects or strings, or as ``DataFrame.to_json`` writes
        it; one text a line (``.txt``); tab-separated (``.tsv``), with quotes or without; else CSV.
        Text files are UTF-8, and may be compressed (``.gz``, ``.bz2``, ``.xz``). A table: a pandas
        data frame or a ``datasets.Dataset``. Or the texts themselves.
    column : str
        Column of the texts; a plain text file and a sequence have only one, whatever it is called.
    only : mapping of str to value, optional
        Column -> the value that the rows to draw from have, compared as text: ``{"label": 1}``,
        which 1.0 and true are too.
    n : int, optional
        How many texts; all if None. Fewer if there are not as many different ones.
    seed : int

    Returns
    -------
    list of str
        Neither empty texts nor missing ones, none of them twice.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the file is Parquet and pyarrow is not installed.
    ValueError
        If the file cannot be read, its lines are not of one length, a column is not there, or no
        text is left.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import probe_texts
    >>> table = pd.DataFrame({"text": ["flood help", "storm", "storm"], "label": [1, 1, 0]})
    >>> probe_texts(table, only={"label": 1}, n=2)
    ['flood help', 'storm']
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, or None for all texts, but got {n}.")
    only = only or {}
    where = repr(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else "data"
    table = _table(data, where, column)
    _check_column(table, where, column, "column= (--text-column)")
    for name, value in only.items():
        _check_column(table, where, name, "only= (--only)")
        had = table[name].dropna().map(_class)
        table = table.loc[had.index[had == _class(value)]]
        if table.empty:
            some = ", ".join(sorted(set(had))[:12]) or "nothing"
            raise ValueError(f"only= (--only) {name}={value} leaves no text; {name} has: {some}.")
    given = table[column].dropna()
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"the column {column!r} of {where} must hold texts but has {text!r}.")
    texts = set(given)
    texts = {text for text in texts if text.strip()}
    if not texts:
        raise ValueError(f"{where} holds no text in the column {column!r}.")
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest())[
        :n
    ]


def _table(data: Any, where: str, column: str) -> pd.DataFrame:
    import pandas as pd

    if isinstance(data, (str, os.PathLike)):
        return read_texts(Path(data), column)
    if isinstance(data, pd.DataFrame):
        return data.reset_index(drop=True)
    names = getattr(data, "column_names", None)
    if isinstance(names, Mapping):
        raise ValueError(f"data has the splits {', '.join(names)}: give one of them, as data[...].")
    if names is not None and hasattr(data, "select_columns") and hasattr(data, "__len__"):
        return pd.DataFrame({name: list(data[name]) for name in names}, columns=list(names))
    if isinstance(data, Sequence):
        return pd.DataFrame({column: pd.Series(list(data), dtype=object)})
    raise ValueError(
        "data must be a file, a pandas data frame, a datasets.Dataset that is not streamed, or a "
        f"sequence of texts but got {type(data).__name__}."
    )


def _check_column(table: pd.DataFrame, where: str, column: str, parameter: str) -> None:
    names = [str(name) for name in table.columns]
    if column in table.columns:
        if names.count(column) > 1:
            raise ValueError(f"{where} has several columns {column!r}: give each its own name.")
        return
    has = ", ".join(names) or "none"
    separators = [mark for mark in (";", "\t", "|", ",") if any(mark in name for name in names)]
    if separators:
        advice = f"Its columns seem to be separated by {separators[0]!r}: write it with commas"
        raise ValueError(
            f"{where} lacks the column {column!r}; it has: {has}. {advice}, or with tabs as .tsv."
        )
    raise ValueError(
        f"{where} lacks the column {column!r}; it has: {has}. Name another with {parameter}."
    )


def _class(value: Any) -> str:
    """Write a class as a user does: 1 for 1.0, "1.0", True and "true"."""
    text = str(value).strip()
    if text.casefold() in ("true", "false"):
        return str(int(text.casefold() == "true"))
    return re.sub(r"^(-?(?:0|[1-9]\d*))\.0*$", r"\1", text)
