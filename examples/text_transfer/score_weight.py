"""How much of the attribution score should be change correlation? Every setting that was measured.

    python examples/text_transfer/score_weight.py

The score is the mean over layers of CKA + (1 - w) log effective rank + w change correlation; w is
min(max(2 kappa, 0), 1), kappa how far the neurons of the models correspond. Of every setting: w as
it is, a mean over layers, and the Spearman correlation of the score with the gain for this w, for
the factor 1 in place of 2, and for fixed ones. Of images the splits that nothing was chosen on are
reported apart.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from analyse import interval, per_target, written
from compare import REPORTED, SETTINGS, read
from rich.console import Console
from rich.table import Table
from table import Array, Measured, load

FIXED = (0.0, 0.25, 0.5, 0.75, 1.0)


def parts(features: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Take CKA, log effective rank (a column a layer) and change correlation of every pair."""
    layers = [name[4:-1] for name in features if name.startswith("cka[")]
    cka = features[[f"cka[{layer}]" for layer in layers]].to_numpy()
    rank = np.log(features[[f"source_rank[{layer}]" for layer in layers]].to_numpy())
    return cka, rank, features["change_correlation"].to_numpy()


def weights(features: pd.DataFrame) -> Array:
    """Tell w of every layer, which the score in the table was made with: it is linear in them."""
    cka, rank, change = parts(features)
    n_layers = rank.shape[1]
    of_weight = (change[:, None] - rank) / n_layers
    rest = features["attribution_score"].to_numpy() - (cka + rank).mean(axis=1)
    there = np.isfinite(rest) & np.isfinite(of_weight).all(axis=1)
    found: Array = np.linalg.lstsq(of_weight[there], rest[there], rcond=None)[0]
    return np.clip(found, 0.0, 1.0)


def score(features: pd.DataFrame, weight: Array | float) -> Array:
    """Compute the score with these weights, one a layer or one for all."""
    cka, rank, change = parts(features)
    value: Array = (cka + (1 - weight) * rank + weight * change[:, None]).mean(axis=1)
    return value


def row_of(data: Measured, found: dict[int, Array]) -> list[str]:
    """Correlate every score with the gain on test: a cell a way to choose the weight."""
    ways: dict[str, dict[int, Array | float]] = {
        "as it is": dict(found),
        "half of it": {seed: weight / 2 for seed, weight in found.items()},
        **{f"{fixed:g}": dict.fromkeys(found, fixed) for fixed in FIXED},
    }
    cells = []
    for weight in ways.values():
        by_seed = [score(rows, weight[seed]) for seed, rows in data.features.groupby("seed")]
        values = np.concatenate(by_seed).reshape(data.dev_gain.shape)
        cells.append(written(interval(per_target(data, values)["Spearman"])))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--metric", default="f1")
    options = parser.parse_args()
    shown = Table(
        "setting", "transfer", "seeds", "w", "as it is", "half of it", *map("{:g}".format, FIXED)
    )
    for setting in options.settings:
        features, transfers = read(setting, "features"), read(setting, "transfers")
        reported = REPORTED.get(setting, list(features["seed"].unique()))
        looked_at = [seed for seed in features["seed"].unique() if seed not in reported]
        for seeds in filter(len, (looked_at, reported)):
            some = features[features["seed"].isin(seeds)]
            found = {int(seed): weights(rows) for seed, rows in some.groupby("seed")}
            for way in transfers["way"].unique():
                data = load(transfers, some, way, options.metric, "test")
                if not len(data.dev_gain):
                    continue
                mean = np.mean([weight.mean() for weight in found.values()])
                told = ", ".join(map(str, seeds))
                shown.add_row(setting, way, told, f"{mean:.2f}", *row_of(data, found))
    Console(width=220).print(shown)


if __name__ == "__main__":
    main()
