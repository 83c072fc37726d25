"""A predictor's score of a pair, taken apart; and the measured pairs that it finds most alike."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from transfer_pruner.explain.explanation import Contribution, MeasuredPair
from transfer_pruner.pairs import pair_columns
from transfer_pruner.predictor import TransferPredictor


def contributions_to_score(
    predictor: TransferPredictor, pairs: pd.DataFrame
) -> tuple[float, float, tuple[Contribution, ...]]:
    """Take the score of the first of a target's sources apart: score, base, contributions."""
    base, added = predictor.contributions(pairs)
    score = float(predictor.predict(pairs.iloc[:1])[0])
    if math.isnan(score):
        return score, math.nan, ()
    features = predictor.features(pairs)
    here, others = added.iloc[0], added.iloc[1:].mean()
    # A term of the attribution score may be the logarithm of a feature.
    values = [features[str(name).removeprefix("log ")].iloc[0] for name in added]
    parts = [
        Contribution(str(name), float(value), float(adds), float(other))
        for name, value, adds, other in zip(added, values, here, others, strict=True)
    ]

    def apart(part: Contribution) -> float:
        return abs(part.contribution - (0.0 if math.isnan(part.others) else part.others))

    return (
        score,
        float(base[0]),
        tuple(sorted(parts, key=lambda part: (-apart(part), part.feature))),
    )


def nearest_measured(
    predictor: TransferPredictor, pair: pd.DataFrame, measured: pd.DataFrame, n: int
) -> tuple[MeasuredPair, ...]:
    """Find the measured pairs whose features add most nearly the same to their scores.

    Parameters
    ----------
    predictor : TransferPredictor
    pair : DataFrame of one row
    measured : DataFrame
        Other pairs, one a row, with the column gain, and the predictor's columns of its own.
    n : int
    """
    if measured.empty:
        return ()
    _, here = predictor.contributions(pair)
    _, there = predictor.contributions(measured)
    distances = np.sqrt(((there.to_numpy() - here.to_numpy()) ** 2).sum(axis=1))
    sources, targets = pair_columns(measured, predictor.source_column, predictor.target_column)
    found = pd.DataFrame(
        {
            "source": sources,
            "target": targets,
            "gain": measured["gain"].to_numpy(),
            "distance": distances,
        }
    )
    nearest = found.dropna().sort_values(["distance", "source", "target"]).head(n)
    rows = nearest.itertuples(index=False, name=None)
    return tuple(MeasuredPair(s, t, float(gain), float(far)) for s, t, gain, far in rows)
