"""Measured transfers, which a predictor learns from: out of trials, to a file and back."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from transfer_pruner.exceptions import TransferPrunerWarning, not_found
from transfer_pruner.files import write_atomically
from transfer_pruner.pairs import pair_columns
from transfer_pruner.records import TrialRecord, is_maximizing
from transfer_pruner.tasks import plain_source

COLUMNS = ("source", "target", "gain", "score", "baseline", "seconds")
_SUFFIXES: Mapping[str, Literal["CSV", "Parquet"]] = {
    "": "CSV",
    ".csv": "CSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
}

_NO_NUMBER = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"}


def transfers_from_records(
    records: Iterable[TrialRecord], *, maximize: bool | None = None
) -> pd.DataFrame:
    r"""Make a table of measured transfers, training data for `TransferPredictor`.

    .. math:: g(s, t) = v(s, t) - b(t)

    where b is the mean value of the target's baseline trials (no source, or the target itself) with
    the same hyperparameters, else of all its baseline trials. Where less is better, values are
    negated, so that a positive gain is always an improvement. Hyperparameters are the same if they
    are written alike; an object that only its address tells from others counts by its type.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; what the records say if left out.

    Returns
    -------
    DataFrame
        One row for each trial that trained with one source and has a value: source, target, gain,
        score, baseline, seconds and the hyperparameters. One that is called like a column of ours
        is ``hyperparameter_score``, say. ``table.attrs["left_out"]`` counts the other trials, by
        why.

    Raises
    ------
    ValueError
        If no trial with a source has a target with a baseline trial, or the records disagree on
        whether a higher value is better.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, transfers_from_records
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> transfers_from_records(records)[["source", "target", "gain", "baseline"]].round(2)
       source target  gain  baseline
    0  advice   news  0.05      0.61
    """
    records = list(records)
    sign = 1.0 if is_maximizing(records, maximize) else -1.0
    left_out: Counter[str] = Counter()
    rows, settings_of = [], []
    for record in records:
        why = _why_left_out(record)
        if why:
            left_out[why] += 1
            continue
        rows.append(
            {
                "source": plain_source(record.source, record.target),
                "target": record.target,
                "score": sign * record.value,
                "seconds": record.seconds,
            }
        )
        settings_of.append(dict(record.hyperparameters))
    table = pd.DataFrame(rows, columns=["source", "target", "score", "seconds"])
    settings = pd.DataFrame(settings_of, index=table.index)
    settings = settings.rename(columns=_free_names(settings.columns))
    baseline_rows = table["source"].isna()
    baselines, transfers = table[baseline_rows], table[~baseline_rows].copy()
    overall = baselines.groupby("target")["score"].mean()
    known = transfers["target"].isin(overall.index)
    if not known.any():
        raise ValueError(
            f"a gain needs a trial with a source and one without, of the same target, and of "
            f"{len(transfers)} trials with a source and {len(baselines)} without none go together"
            f"{_counted(left_out)}. Run baseline trials (source None, or the target itself as "
            "source) for the targets."
        )
    cells = pd.concat([table["target"], settings], axis=1).itertuples(index=False, name=None)
    keys = pd.Series([" ".join(map(_written, row)) for row in cells], table.index, dtype=object)
    alike = baselines["score"].groupby(keys[baseline_rows]).mean()
    matched = keys[~baseline_rows].map(alike).astype(float)
    transfers["baseline"] = matched.fillna(transfers["target"].map(overall))
    transfers["gain"] = transfers["score"] - transfers["baseline"]
    result = transfers.loc[known, list(COLUMNS)].join(settings).reset_index(drop=True)
    left_out["baseline"] = len(baselines)
    if not known.all():
        left_out["target without a baseline trial"] = int((~known).sum())
    result.attrs["left_out"] = {why: count for why, count in left_out.items() if count}
    return result


def read_transfers(
    path: str | os.PathLike[str],
    *,
    source_column: str = "source",
    target_column: str = "target",
    gain_column: str = "gain",
    tasks: Collection[str] | None = None,
    also: Iterable[str] = (),
) -> pd.DataFrame:
    """Read measured transfers from a CSV or Parquet file, whatever its columns are called.

    Tasks are names: ``NA`` and ``007`` are read as they stand, and the number 3 of a Parquet file,
    or its 3.0, is the task ``3``. Pandas' own readers make numbers and missing values of them.

    Parameters
    ----------
    path : path
    source_column, target_column, gain_column : str
    tasks : collection of str, optional
        Those that have an embedding: others are warned about, since a misspelt name is a new task.
    also : iterable of str
        Columns of further numbers, which are read where the file has them; NaN for what is none.

    Returns
    -------
    DataFrame
        Columns source, target and gain, and those; NaN where a gain is empty. Rows without a
        source, or of a task with itself, are single-task baselines and are left out.

    Raises
    ------
    ValueError
        If it is no such file, a column is not there, a gain is no number or a target is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.transfers import read_transfers
    >>> table = pd.DataFrame({"aux": ["advice"], "main": ["news"], "gain": [0.05]})
    >>> table.to_csv("transfers.csv", index=False)
    >>> read_transfers("transfers.csv", source_column="aux", target_column="main")
       source target  gain
    0  advice   news  0.05
    """
    path = Path(path)
    table = _read(path)
    for parameter, column in (
        ("source_column", source_column),
        ("target_column", target_column),
        ("gain_column", gain_column),
    ):
        if column not in table.columns:
            has = ", ".join(map(str, table.columns))
            other = f" Name another with {parameter} (--{parameter.replace('_', '-')})."
            raise ValueError(
                f"{path} lacks the column {column!r}; it has: {has}."
                + (other if f"{column}_column" == parameter else "")
            )
    gains = pd.to_numeric(table[gain_column], errors="coerce").astype(float)
    bad = gains.isna() & ~table[gain_column].astype(str).str.strip().str.lower().isin(_NO_NUMBER)
    if bad.any():
        wrong = table.loc[bad, gain_column].iloc[0]
        raise ValueError(f"{path}: column {gain_column!r} must hold numbers but has {wrong!r}.")
    sources, targets = pair_columns(table, source_column, target_column)
    if None in targets:
        raise ValueError(
            f"{path}: column {target_column!r} must name a task in every row but row "
            f"{targets.tolist().index(None) + 1} has none."
        )
    found = pd.DataFrame({"source": sources, "target": targets}, dtype=object)
    found["gain"] = gains.to_numpy()
    for column in also:
        if column in table.columns:
            found[column] = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    transfers = found[found["source"].notna() & (found["source"] != found["target"])]
    measured = {*transfers["source"], *transfers["target"]}
    if tasks is not None and (unknown := sorted(measured - {*tasks})):
        warnings.warn(
            f"{len(unknown)} tasks of {path} have no embedding, and only their gains are learnt "
            f"from. {not_found('task', unknown[0], 'the embeddings', tasks)}",
            TransferPrunerWarning,
            stacklevel=2,
        )
    return transfers.reset_index(drop=True)


def write_transfers(transfers: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a transfers table to a CSV or Parquet file by its suffix, whole or not at all.

    Raises
    ------
    ValueError
        If the suffix is of another format.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.transfers import read_transfers, write_transfers
    >>> table = pd.DataFrame({"source": ["advice"], "target": ["news"], "gain": [0.05]})
    >>> write_transfers(table, "transfers.csv")
    >>> read_transfers("transfers.csv")["gain"].tolist()
    [0.05]
    """
    path = Path(path)
    if transfers_format(path) == "CSV":
        content = transfers.to_csv(index=False).encode()
    else:
        written = BytesIO()
        # A column of Parquet has one type; hyperparameters may be of several.
        transfers.apply(_of_one_type).to_parquet(written, index=False)
        content = written.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def transfers_format(path: str | os.PathLike[str]) -> Literal["CSV", "Parquet"]:
    """Tell by the suffix how a transfers table is written; CSV without one.

    Raises
    ------
    ValueError
        If the suffix is of another format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"a transfers table is written as .csv or .parquet but {os.fspath(path)!r} ends in "
            f"{suffix}: choose one of the two."
        )
    return _SUFFIXES[suffix]


def _read(path: Path) -> pd.DataFrame:
    """Read a table: all of a CSV file as text, since pandas would take a task NA for nothing."""
    if _SUFFIXES.get(path.suffix.lower()) == "Parquet":
        return pd.read_parquet(path)
    try:
        with warnings.catch_warnings():
            # A row that is longer than the header: pandas drops its end, or shifts all columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            text: dict[str, Any] = {"dtype": str, "na_filter": False, "index_col": False}
            header = [str(name) for name in pd.read_csv(path, nrows=0, **text).columns]
            if len(header) == 1 and ";" in header[0]:
                raise ValueError(
                    "it has semicolons between its cells: write commas, and numbers with points"
                )
            # Who writes "source, target" writes "news, advice" too.
            spaced = any(name != name.lstrip() for name in header)
            table: pd.DataFrame = pd.read_csv(path, skipinitialspace=spaced, **text)
            return table.set_axis([str(name).strip() for name in table.columns], axis=1)
    except pd.errors.ParserWarning as error:
        raise ValueError(
            f"{path} has rows with more cells than its header: quote what holds a comma, and leave "
            "out commas at the end."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no CSV file with a header ({error}).") from error


def _of_one_type(column: pd.Series) -> pd.Series:
    if column.dtype != object or column.map(type).nunique() == 1:
        return column
    return column.map(lambda value: value if value is None else str(value))


def settings_key(settings: Mapping[str, Any]) -> str:
    """Write hyperparameters so that the same ones are the same text, in any order of names."""
    return _written(settings)


def _why_left_out(record: TrialRecord) -> str | None:
    if record.outcome != "trained":
        return record.outcome
    if not math.isfinite(record.value):
        return "no value"
    source = plain_source(record.source, record.target)
    return "several sources" if isinstance(source, tuple) else None


def _free_names(hyperparameters: Iterable[str]) -> dict[str, str]:
    """Name hyperparameters so that none takes the place of a column of ours."""
    names = dict.fromkeys(hyperparameters)
    free = {}
    for name in names:
        new = name
        while new in COLUMNS or (new != name and new in names):
            new = f"hyperparameter_{new}"
        free[name] = new
    return free


def _written(value: Any) -> str:
    """Write a hyperparameter so that equal ones are equal text, whatever a host made of them."""
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(float(value))
    if value is None or isinstance(value, int):
        return repr(value)
    if isinstance(value, str):
        return repr(str(value))
    if hasattr(value, "tolist"):
        return _written(value.tolist())
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{k!r}: {_written(v)}' for k, v in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _counted(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    return " (left out: " + ", ".join(f"{n} {why}" for why, n in left_out.items()) + ")"
