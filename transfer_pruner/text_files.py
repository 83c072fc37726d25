"""Tables of texts in files, as users write them.

What it must satisfy: a row is what stands on its line, whatever commas and quotes its text holds,
or else an error that names the line.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_PARQUET, _JSON = (".parquet", ".pq"), (".jsonl", ".ndjson", ".json")


def read_texts(path: Path, column: str) -> pd.DataFrame:
    """Read a table by its file's suffix; a file of texts alone has them in `column`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If it is Parquet and pyarrow is not installed.
    ValueError
        If it cannot be read.
    """
    import pandas as pd

    where = repr(str(path))
    if path.is_dir():
        raise ValueError(f"data is the folder {where}: give a file in it.")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _OPEN]
    suffix = suffixes[-1] if suffixes else ""
    kind = "CSV file with a header"
    try:
        if suffix in _PARQUET:
            kind = "Parquet file"
            return pd.read_parquet(path)
        if suffix in _JSON:
            kind = "file of JSON lines"
            return _read_json(path, column)
        if suffix in (".xlsx", ".xls", ".ods"):
            raise ValueError("it is a spreadsheet: save it as CSV")
        if suffix == ".txt":
            kind = "text file"
            with _opened(path, newline=None) as file:
                lines = [line.removesuffix("\n") for line in file]
            return pd.DataFrame({column: pd.Series(lines, dtype=object)})
        if suffix == ".tsv":
            kind = "TSV file with a header"
        return _frame(*_read_tabs(path) if suffix == ".tsv" else _read_rows(path, ","))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {where}.") from None
    except ImportError as error:
        raise ImportError(f"{where} is Parquet, which needs pyarrow: pip install pyarrow.") from (
            error
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error}): save it as UTF-8.") from error
    except (OSError, EOFError, lzma.LZMAError, csv.Error, ValueError) as error:
        raise ValueError(f"{where} is no {kind} ({error}).") from error


@contextmanager
def _opened(path: Path, newline: str | None = "") -> Iterator[TextIO]:
    opener = _OPEN.get(path.suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8-sig", newline=newline) as file:
        yield file


def _frame(header: list[str], rows: list[list[str]]) -> pd.DataFrame:
    import pandas as pd

    # A text may be "None" or "NA"; only an empty cell is missing.
    cells = [[cell or None for cell in row] for row in rows]
    return pd.DataFrame(cells, columns=pd.Index(header, dtype=object), dtype=object)


def _read_rows(
    path: Path, separator: str, quoting: int = csv.QUOTE_MINIMAL
) -> tuple[list[str], list[list[str]]]:
    """Read a header and rows that are as long as it, but for empty cells behind their end."""
    with _opened(path) as file, _fields_of_any_length():
        reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)  # type: ignore[arg-type]
        try:
            header = next((row for row in reader if row), None)
            if header is None:
                raise ValueError("it is empty")
            while len(header) > 1 and not header[-1].strip():
                header.pop()
            rows = []
            for row in reader:
                cells, behind = row[: len(header)], row[len(header) :]
                if not row:
                    continue
                if len(cells) < len(header) or any(cell.strip() for cell in behind):
                    raise ValueError(
                        f"line {reader.line_num} has {len(row)} cells and the header "
                        f"{len(header)}: quote texts that hold {separator!r}"
                    )
                rows.append(cells)
        except csv.Error as error:
            raise ValueError(
                f"line {reader.line_num}: {error}; quote texts that hold quotes, and double those"
            ) from error
    return header, rows


def _read_tabs(path: Path) -> tuple[list[str], list[list[str]]]:
    """Read a table with tabs, which most programs write without quotes and some with."""
    try:
        quoted = _read_rows(path, "\t")
    except ValueError:
        return _read_rows(path, "\t", csv.QUOTE_NONE)
    if not any("\n" in cell for row in quoted[1] for cell in row):
        return quoted
    # Either a text of several lines in quotes, or quotes that merge lines.
    try:
        plain = _read_rows(path, "\t", csv.QUOTE_NONE)
    except ValueError:
        return quoted
    return plain if len(plain[0]) > 1 else quoted


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_json(path: Path, column: str) -> pd.DataFrame:
    """Read JSON lines, a list of objects or strings, or the object that pandas writes."""
    import pandas as pd

    with _opened(path, newline=None) as file:
        content = file.read()
    try:
        whole = json.loads(content)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        numbered = [(f"item {number}", row) for number, row in enumerate(whole, start=1)]
    elif isinstance(whole, dict) and isinstance(whole.get(column), (dict, list)):
        if not all(type(cells) is type(whole[column]) for cells in whole.values()):
            raise ValueError("its columns are not all of one kind")
        return pd.DataFrame(whole, dtype=object)
    else:
        numbered = list(_json_lines(content))
    rows = []
    for place, row in numbered:
        if not isinstance(row, (dict, str)):
            raise ValueError(f"{place} is neither an object nor a string")
        rows.append(row if isinstance(row, dict) else {column: row})
    return pd.DataFrame(rows, dtype=object)


def _json_lines(content: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
