"""From plain records to a table of measured transfers: what a predictor learns from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from transfer_pruner.records import TrialRecord
from transfer_pruner.tasks import plain_source

COLUMNS = ("source", "target", "gain", "score", "baseline", "seconds")


def transfers_from_records(
    records: Iterable[TrialRecord], *, maximize: bool = True
) -> pd.DataFrame:
    r"""Make a table of measured transfers, training data for `TransferPredictor`.

    .. math:: g(s, t) = v(s, t) - b(t)

    where b is the mean value of the target's baseline trials (no source, or the target itself) with
    the same hyperparameters, else of all its baseline trials. Where less is better, values are
    negated, so that a positive gain is always an improvement.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool
        Whether a higher value is better.

    Returns
    -------
    DataFrame
        One row for each trial that trained with one source and has a value: source, target, gain,
        score, baseline, seconds and the hyperparameters. ``table.attrs["left_out"]`` counts the
        other trials, by why.

    Raises
    ------
    ValueError
        If no trial with a source has a target with a baseline trial.
    """
    left_out: Counter[str] = Counter()
    rows = []
    for record in records:
        why = _why_left_out(record)
        if why:
            left_out[why] += 1
            continue
        rows.append(
            {
                "source": plain_source(record.source, record.target),
                "target": record.target,
                "score": record.value if maximize else -record.value,
                "seconds": record.seconds,
                **{k: v for k, v in record.hyperparameters.items() if k not in COLUMNS},
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS) if not rows else None)
    baseline_rows = table["source"].isna()
    settings = [name for name in table.columns if name not in COLUMNS]
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
    # Cells are compared as text: a hyperparameter may be a list, which no index holds.
    alike = baselines.groupby(_keys(baselines, settings))["score"].mean()
    matched = pd.Series(
        [alike.get(key, np.nan) for key in _keys(transfers, settings)],
        index=transfers.index,
        dtype=float,
    )
    transfers["baseline"] = matched.fillna(transfers["target"].map(overall))
    transfers["gain"] = transfers["score"] - transfers["baseline"]
    result = transfers.loc[known, [*COLUMNS, *settings]].reset_index(drop=True)
    left_out["baseline"] = len(baselines)
    if not known.all():
        left_out["target without a baseline trial"] = int((~known).sum())
    result.attrs["left_out"] = {why: count for why, count in left_out.items() if count}
    return result


def _why_left_out(record: TrialRecord) -> str | None:
    if record.outcome != "trained":
        return record.outcome
    if not math.isfinite(record.value):
        return "no value"
    source = plain_source(record.source, record.target)
    return "several sources" if isinstance(source, tuple) else None


def _keys(table: pd.DataFrame, settings: list[str]) -> list[str]:
    rows = table[["target", *settings]].itertuples(index=False, name=None)
    return [repr(row) for row in rows]


def _counted(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    return " (left out: " + ", ".join(f"{n} {why}" for why, n in left_out.items()) + ")"
