"""Does learning ever rank worse than the attribution score alone? With few and many targets.

    python examples/text_transfer/learning.py
    python examples/text_transfer/learning.py --ways joint --transfers transfers-4.csv
    python examples/text_transfer/learning.py --blind

A `TransferPredictor` learns from all transfers to some targets, drawn at random, and ranks the
sources of the others. Printed is the Spearman with the gain on test, mean over the targets that it
did not learn from, minus that of the score alone on the same targets; 95% bootstrap interval over
targets. With --blind nothing is known but the transfers, and in place of the score stands the mean
gain of the source on the measured targets, its popularity.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from analyse import interval, written
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from scores import ATTRIBUTIONS, alike, columns_of
from suggest import averaged
from table import HERE, load

from transfer_pruner import TransferPredictor

COUNTS = (5, 13, 24)
"""Targets with measured transfers."""


def splits(tasks: list[str], count: int, repeats: int) -> Iterator[list[str]]:
    """Draw the targets that are learnt from; each but one in turn where there is one left."""
    count = min(count, len(tasks) - 1)
    if count == len(tasks) - 1:
        yield from ([task for task in tasks if task != left] for left in tasks)
        return
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        yield sorted(rng.permutation(tasks)[:count])


def spearman(scores: np.ndarray, pairs: pd.DataFrame) -> pd.Series:
    """Spearman with the gain on test, of every target."""
    by_target = pairs.assign(score=scores).groupby("target")
    found = {t: spearmanr(rows["score"], rows["test"]).statistic for t, rows in by_target}
    return pd.Series(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transfers", nargs="+", default=["transfers-4.csv", "transfers.csv"])
    parser.add_argument("--ways", nargs="+", default=["sequential"])
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blind", action="store_true", help="no attributions at all")
    options = parser.parse_args()
    table = Table(title="Spearman with the gain on test")
    alone_is = "popularity" if options.blind else "score alone"
    for column in ("transfers", "way", "targets learnt from", alone_is, "learnt"):
        table.add_column(column)
    table.add_column("difference")
    for name in options.transfers:
        transfers = pd.read_csv(HERE / name)
        features = pd.read_csv(HERE / Path(name).name.replace("transfers", "features"))
        columns = ["attribution_score", *columns_of(features, ATTRIBUTIONS)]
        for way in options.ways:
            data = load(transfers, features, way, options.metric, "test")
            pairs, similarity = averaged(data, columns), alike(data)
            for count in COUNTS:
                alone, learnt = [], []
                for measured in splits(data.tasks, count, options.repeats):
                    known = pairs["target"].isin(measured)
                    predictor = TransferPredictor(feature_columns=columns, similarity=similarity)
                    if options.blind:
                        predictor = TransferPredictor()
                    predictor.fit(pairs[known], pairs.loc[known, "dev"], candidates=pairs)
                    rest = pairs[~known]
                    learnt.append(spearman(predictor.predict(rest), rest))
                    popular = pairs[known].groupby("source")["dev"].mean()
                    said = rest["attribution_score"]
                    if options.blind:
                        said = rest["source"].map(popular).fillna(popular.mean())
                    alone.append(spearman(said.to_numpy(), rest))
                first, second = (
                    pd.concat(found).groupby(level=0).mean().to_numpy() for found in (alone, learnt)
                )
                cells = (
                    written(interval(values), "{:.3f}")
                    for values in (first, second, second - first)
                )
                table.add_row(name, way, str(min(count, len(data.tasks) - 1)), *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
