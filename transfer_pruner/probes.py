"""Probe texts out of whatever a user keeps texts in.

What it must satisfy: the same texts give the same probe, whatever their order and their container;
and nothing but texts gets in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        A file, by its suffix: Parquet (``.parquet``, ``.pq``), JSON lines (``.jsonl``, ``.ndjson``,
        ``.json``; objects or strings), one text a line (``.txt``), tab-separated (``.tsv``), else
        CSV. Text files are UTF-8. A table: a pandas data frame or a ``datasets.Dataset``. Or the
        texts themselves.
    column : str
        Column of the texts; a plain text file and a sequence have only one, whatever it is called.
    only : mapping of str to value, optional
        Column -> the value that the rows to draw from have, compared as text: ``{"label": 1}``.
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
        If the file cannot be read, a column is not there, or no text is left.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, or None for all texts, but got {n}.")
    only = only or {}
    where = repr(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else "data"
    table = _table(data, where, column)
    _check_column(table, where, column, "column= (--text-column)")
    for name, value in only.items():
        _check_column(table, where, name, "only= (--only)")
        had = table[name].dropna().map(_plain)
        table = table.loc[had.index[had == _plain(value)]]
        if table.empty:
            some = ", ".join(sorted(set(had))[:12]) or "nothing"
            raise ValueError(f"only= (--only) {name}={value} leaves no text; {name} has: {some}.")
    texts = set(table[column].dropna())
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"the column {column!r} of {where} must hold texts but has {text!r}.")
    texts = {text for text in texts if text.strip()}
    if not texts:
        raise ValueError(f"{where} holds no text in the column {column!r}.")
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest())[
        :n
    ]


def _table(data: Any, where: str, column: str) -> pd.DataFrame:
    import pandas as pd

    if isinstance(data, (str, os.PathLike)):
        return _read(Path(data), where, column)
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


def _read(path: Path, where: str, column: str) -> pd.DataFrame:
    import pandas as pd

    if path.is_dir():
        raise ValueError(f"data is the folder {where}: give a file in it.")
    try:
        if path.suffix in (".parquet", ".pq"):
            return pd.read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson", ".json"):
            return _read_json_lines(path, column)
        if path.suffix == ".txt":
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return pd.DataFrame({column: pd.Series(lines, dtype=object)})
        separator = "\t" if path.suffix == ".tsv" else ","
        # A text may be "None" or "NA"; only an empty cell is missing.
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {where}.") from None
    except ImportError as error:
        raise ImportError(f"{where} is Parquet, which needs pyarrow: pip install pyarrow.") from (
            error
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error}): save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        kind = {".parquet": "Parquet file", ".pq": "Parquet file", ".tsv": "TSV file with a header"}
        kind |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "file of JSON lines")
        known = kind.get(path.suffix, "CSV file with a header")
        raise ValueError(f"{where} is no {known} ({error}).") from error


def _read_json_lines(path: Path, column: str) -> pd.DataFrame:
    import pandas as pd

    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(row, (dict, str)):
                raise ValueError(f"line {number} is neither an object nor a string")
            rows.append(row if isinstance(row, dict) else {column: row})
    return pd.DataFrame(rows, dtype=object)


def _check_column(table: pd.DataFrame, where: str, column: str, parameter: str) -> None:
    if column not in table.columns:
        has = ", ".join(map(str, table.columns)) or "none"
        raise ValueError(
            f"{where} lacks the column {column!r}; it has: {has}. Name another with {parameter}."
        )


def _plain(value: Any) -> str:
    """Write a class as a user does: 1 although a gap in the column made it 1.0."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)
