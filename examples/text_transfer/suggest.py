"""How few pairs teach the ranking? suggest_pairs against pairs at random, on the measured table.

    python examples/text_transfer/suggest.py

Twenty targets' pairs are measured in rounds (looked up: the mean of the seeds' gains on dev). After
each, the predictor that learnt from them ranks the sources of the five other targets, and is judged
by their gains on test. Judged too are the sources that were found: of every measured target, the
one that is best on dev of the measured pairs, by its gain on test. Both ways start from the same
pairs at random, two for each target.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from analyse import interval, written
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from scores import ATTRIBUTIONS, columns_of
from table import HERE, Measured, load

from transfer_pruner import TransferPredictor, suggest_pairs

SIZES = (40, 60, 80, 120, 160, 240, 320, 480)
FOLDS = 5
WAYS = {"at random": None, "suggest_pairs": 3.0, "suggest_pairs, exploration=1000": 1000.0}
"""Name -> exploration: the default, and what is little measured alone."""


def averaged(data: Measured, columns: list[str]) -> pd.DataFrame:
    """One row a pair: features and gains, means over seeds."""
    rows = data.features.assign(dev=data.dev_gain.ravel(), test=data.test_gain.ravel())
    rows = rows[rows["source"] != rows["target"]]
    means = rows.groupby(["source", "target"])[[*columns, "dev", "test"]].mean()
    return means.reset_index()


def spearman(predictor: TransferPredictor, pairs: pd.DataFrame) -> float:
    """Mean over targets of the Spearman between predicted and measured gains."""
    scored = pairs.assign(score=predictor.predict(pairs))
    found = [
        spearmanr(rows["score"], rows["test"]).statistic for _, rows in scored.groupby("target")
    ]
    return float(np.mean(found))


def learn(
    pairs: pd.DataFrame,
    others: pd.DataFrame,
    columns: list[str],
    exploration: float | None,
    seed: int,
) -> list[tuple[float, float]]:
    """Measure in rounds; after each, the Spearman on other targets and the gain that was found."""
    rng = np.random.default_rng(seed)
    measured = pairs.sample(frac=1, random_state=rng).groupby("target").head(2)
    predictor, found = TransferPredictor(feature_columns=columns), []
    for size in SIZES:
        more = size - len(measured)
        left = pairs.drop(measured.index)
        if more and exploration is not None:
            chosen = suggest_pairs(predictor, more, pairs=left, exploration=exploration)
            chosen = left.reset_index().merge(chosen[["source", "target"]]).set_index("index")
            measured = pd.concat([measured, chosen])
        elif more:
            measured = pd.concat([measured, left.sample(more, random_state=rng)])
        predictor.fit(measured, measured["dev"])
        best = measured.loc[measured.groupby("target")["dev"].idxmax(), "test"]
        found.append((spearman(predictor, others), float(best.mean())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transfers", type=Path, default=HERE / "transfers.csv")
    parser.add_argument("--features", type=Path, default=HERE / "features.csv")
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--repeats", type=int, default=20, help="of the pairs to start from")
    options = parser.parse_args()
    transfers, features = pd.read_csv(options.transfers), pd.read_csv(options.features)
    data = load(transfers, features, "sequential", options.metric, "test")
    columns = columns_of(features, ATTRIBUTIONS)
    pairs = averaged(data, columns)
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in WAYS}
    for seed in range(options.repeats):
        targets = np.random.default_rng(seed).permutation(data.tasks)
        for fold in np.array_split(targets, FOLDS):
            held_out = pairs["target"].isin(fold)
            for name, made in found.items():
                made.append(learn(pairs[~held_out], pairs[held_out], columns, WAYS[name], seed))
    shape = options.repeats, FOLDS, len(SIZES), 2
    ways = {name: np.reshape(made, shape).mean(axis=1) for name, made in found.items()}
    random, ours = ways["at random"], ways["suggest_pairs"]
    ways["suggest_pairs - at random"] = ours - random
    for column, measure in enumerate(("Spearman on other targets", "gain of the best measured")):
        printed = Table(f"{measure}, pairs:", *map(str, SIZES))
        for name, values in ways.items():
            of_sizes = values[..., column].T
            cells = (written(interval(each), "{:.3f}") for each in of_sizes)
            printed.add_row(name, *cells)
        Console(width=180).print(printed)


if __name__ == "__main__":
    main()
