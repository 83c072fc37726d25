"""What is compared: every way to score the pairs of the measured tables, learning out of fold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from table import Array, Measured, ranks

from transfer_pruner import TransferPredictor

# Predictors: what they go by. A single column is taken as it is, more are learnt from.
ATTRIBUTIONS = (
    *("cosine", "containment", "example_cosine", "cka", "source_rank", "target_rank", "norm_ratio"),
    *("tokens_cosine", "change_correlation"),
)
LOOK = "look"
"""Proxy score on the target's dev texts by which sources are ranked anew: of labels the average
precision of the source's model, head and all, a trial of no step; of classes,
LogME."""
PROBING = ("logme", "h_score", "zero_shot_ap", "zero_shot_auc", "zero_shot", "linear_probe")
LABELS = ("label_correlation", "label_given_source", "label_given_target", "source_size")
COLUMNS = {
    "source size": "source_size",
    "label correlation": "label_correlation",
    "zero-shot average precision": "zero_shot_ap",
    "zero-shot, where heads fit": "zero_shot",
    "LogME": "logme",
    "H-score": "h_score",
    "linear probe": "linear_probe",
    "proxy score of all pairs": LOOK,
    "attributions of whole models": "whole_score",
    "LogME on dev": "dev_logme",
    "H-score on dev": "dev_h_score",
    "linear probe on dev": "dev_linear_probe",
    "gradient embeddings": "gradients",
    "transformer-ranker, H-score": "transformer_ranker_h_score",
    "transformer-ranker, LogME": "transformer_ranker_logme",
    "hf-dataset-selector": "dataset_selector",
}
"""What is a column of the features or of peers.py's table, where they have it."""


def columns_of(features: pd.DataFrame, kinds: tuple[str, ...]) -> list[str]:
    return [name for name in features if name.partition("[")[0] in kinds]


def held_out(data: Measured, regime: str) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Split rows into those learnt from and those predicted."""
    sources, targets = data.features["source"].to_numpy(), data.features["target"].to_numpy()
    folds = np.array_split(np.random.default_rng(0).permutation(data.tasks), 5)
    if regime == "target":
        for task in data.tasks:
            yield targets != task, targets == task
    elif regime == "source":
        for fold in folds:
            yield ~np.isin(sources, fold), np.isin(sources, fold)
    else:
        for of_sources in folds:
            for of_targets in folds:
                s, t = np.isin(sources, of_sources), np.isin(targets, of_targets)
                yield ~s & ~t, s & t


def fitted(
    data: Measured,
    regime: str,
    columns: list[str],
    regressor: BaseEstimator | None = None,
    method: str = "predict",
) -> Array:
    """Predict every pair by a TransferPredictor that did not learn from it, as `regime` says.

    Features differ from seed to seed where gains do not follow them: of the Gaussian process, which
    tells a pair's own effect from noise, they are means over seeds.
    """
    gains = data.dev_gain.ravel()
    usable = np.isfinite(gains)
    scores = np.full(len(gains), np.nan)
    table = data.features[["source", "target", *columns]]
    similarity = None
    if regressor is None and columns:
        columns = [*{"attribution_score": None, **dict.fromkeys(columns)}]
        table = data.features.groupby(["source", "target"])[columns].transform("mean")
        table = pd.concat([data.features[["source", "target"]], table], axis=1)
        similarity = alike(data)
    for learnt, predicted in held_out(data, regime):
        learnt, predicted = learnt & usable, predicted & usable
        predictor = TransferPredictor(
            feature_columns=columns, similarity=similarity, regressor=regressor
        )
        predictor.fit(table[learnt], gains[learnt], candidates=table)
        scores[predicted] = getattr(predictor, method)(table[predicted])
    return scores.reshape(data.dev_gain.shape)


def alike(data: Measured) -> pd.DataFrame | None:
    """Say how alike two tasks' outputs change, where it was computed; as sources or as targets."""
    if "change_correlation" not in data.features:
        return None
    values = of_column(data, "change_correlation").mean(axis=0)
    both = np.nan_to_num((values + values.T) / 2, nan=1.0)
    return pd.DataFrame(both, data.tasks, data.tasks)


def of_column(data: Measured, name: str) -> Array:
    return data.features[name].to_numpy(dtype=float).reshape(data.dev_gain.shape)


def where_given(data: Measured, name: str) -> Array:
    """Take a column, a pair without a value as the least of its target's, or of all."""
    values = of_column(data, name)
    least = np.where(np.isnan(values), np.inf, values).min(axis=2, keepdims=True)
    least = np.where(np.isinf(least), 0.0, least)
    return np.where(np.isnan(values) & ~np.eye(len(data.tasks), dtype=bool), least, values)


def equal_weights(data: Measured, columns: list[str]) -> Array:
    """Add up columns, each standardised over the sources of a target: nothing is learnt."""
    total = np.zeros(data.dev_gain.shape)
    for column in columns:
        values = of_column(data, column)
        centred = values - np.nanmean(values, axis=-1, keepdims=True)
        total += centred / np.nanstd(values, axis=-1, keepdims=True)
    return total


def popularity(data: Measured, regime: str) -> Array:
    """Mean gain of a source on other targets, nothing else; undefined for unknown sources."""
    if regime != "target":
        return np.full(data.dev_gain.shape, np.nan)
    gains = data.dev_gain - np.nanmean(data.dev_gain, axis=2, keepdims=True)
    total, count = np.nansum(gains, axis=(0, 1)), np.isfinite(gains).sum(axis=(0, 1))
    own = np.nansum(gains, axis=0)
    rest = (total - own) / (count - np.isfinite(gains).sum(axis=0))
    return np.broadcast_to(rest, gains.shape)


def refined(data: Measured, first: Array, kept: int) -> Array:
    """Re-rank the best of a target's sources only, at most `kept`, by the proxy score.

    As `EliminationRule.refine`: whatever has a proxy score comes before what has none, and keeps
    its place among equals.
    """
    place = ranks(first.mean(axis=0))
    look = where_given(data, LOOK).mean(axis=0) - 1e-9 * place
    return np.broadcast_to(np.where(place < kept, look, -1.0 - place), first.shape)


LOOKED_AT_AGAIN = {
    "popularity": "popularity",
    "attributions": "attributions, nothing measured",
    "attributions, fitted": "attributions, fitted",
    "attributions, Gaussian process": "attributions, Gaussian process",
    "all, fitted": "all, fitted",
}

Scores = Callable[[Measured, str], Array]


def predictors(features: pd.DataFrame) -> dict[str, Scores]:
    """Name what is compared."""
    attributions = columns_of(features, ATTRIBUTIONS)
    probing = columns_of(features, PROBING)
    everything = [*attributions, *probing, *columns_of(features, LABELS)]
    trees = HistGradientBoostingRegressor(max_iter=100, learning_rate=0.05, random_state=0)
    ridge = make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        RidgeCV(alphas=np.logspace(-1, 4, 11)),
    )
    scored: dict[str, Scores] = {"popularity": popularity}
    for name, column in COLUMNS.items():
        if column in features:
            scored[name] = partial(_as_it_is, column)
    scored |= {
        "attributions, nothing measured": lambda data, _: of_column(data, "attribution_score"),
        "attributions and probing, equal weights": lambda data, _: equal_weights(
            data, ["attribution_score", "logme", "zero_shot_auc"]
        ),
        "attributions, fitted": lambda data, regime: fitted(data, regime, attributions, ridge),
        "attributions, Gaussian process": lambda data, regime: fitted(data, regime, attributions),
        "attributions, boosted trees": lambda data, regime: fitted(
            data, regime, attributions, trees
        ),
        "attributions and probing, fitted": lambda data, regime: fitted(
            data, regime, [*attributions, *probing], ridge
        ),
        "all, fitted": lambda data, regime: fitted(data, regime, everything, ridge),
        "all, Gaussian process": lambda data, regime: fitted(data, regime, everything),
        "all, boosted trees": lambda data, regime: fitted(data, regime, everything, trees),
        "all and the proxy score, fitted": lambda data, regime: fitted(
            data, regime, [*everything, LOOK], ridge
        ),
    }
    if "zero_shot_auc" not in features:
        del scored["attributions and probing, equal weights"]
    if LOOK not in features:
        del scored["all and the proxy score, fitted"]
    return scored


def _as_it_is(column: str, data: Measured, _: str) -> Array:
    return where_given(data, column)


def all_scores(
    data: Measured, regime: str, looked: int, names: Collection[str] | None = None
) -> dict[str, Array]:
    """Score every pair by every predictor, or those named, that can be had in this regime."""
    usable = np.isfinite(data.dev_gain)
    made = {
        name: of(data, regime)
        for name, of in predictors(data.features).items()
        if names is None or name in names
    }
    made = {name: scores for name, scores in made.items() if np.isfinite(scores[usable]).any()}
    if LOOK in data.features:
        for name, first in LOOKED_AT_AGAIN.items():
            if first not in made:
                continue
            made[f"{name}, re-ranked"] = refined(data, made[first], looked)
    return made
