"""What is an order of pairs worth? Searches over measured TREC-IS transfers, best pair first.

    python examples/bench_order.py
    python examples/bench_order.py --ways sequential joint
    python examples/bench_order.py --ways sequential joint --misled
    python examples/bench_order.py --setting mixed
    python examples/bench_order.py --setting images-copies --proxy h_score

A search for each target: its two baselines first, then one pair after the other, each at the
learning rate that is best so far of those that the pair lacks. The score of a trial is the dev
score that was measured (text_transfer/compare.py names the tables, mean over seeds), so that
nothing is trained and every search is deterministic. Of a `LearningRule` the next pair is the one
of the highest priority; of the others sources are taken in a fixed order. A third of the sources
is re-ranked by a proxy score. Test scores are those of the trial that is best on dev.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from transfer_pruner import LearningRule, TransferPredictor

HERE = Path(__file__).parent / "text_transfer"
sys.path.append(str(HERE))  # its files are scripts that import each other, not a package
from analyse import interval  # noqa: E402
from compare import REPORTED, SETTINGS  # noqa: E402
from scores import ATTRIBUTIONS, LOOK, columns_of  # noqa: E402
from table import Measured, load, looked_at  # noqa: E402

ENOUGH = 0.95
"""Share of the attainable gain at which a search has found what there is."""
Next = Callable[[pd.DataFrame], pd.Series]
"""From the trials so far to the worth of each source, an index."""


@dataclass(frozen=True)
class World:
    """All that was measured in one way of transfer, means over seeds; `look` is the proxy score."""

    data: Measured
    pairs: pd.DataFrame
    similarity: pd.DataFrame
    columns: list[str]

    @property
    def looked(self) -> int:
        """How many sources of a target are re-ranked: eight of 24."""
        return looked_at(len(self.data.tasks))

    @property
    def misled(self) -> World:
        """The same world with the sign of the attribution score turned round."""
        pairs = self.pairs.assign(attribution_score=-self.pairs["attribution_score"])
        return replace(self, pairs=pairs)

    @classmethod
    def read(
        cls,
        way: str,
        metric: str,
        split: str = "test",
        *,
        setting: str = "trec-is",
        proxy: str = LOOK,
    ) -> World:
        """Read the tables of a setting; by default those of targets with four positives."""
        transfers, features = (
            pd.read_csv(str(SETTINGS[setting]).format(name)) for name in ("transfers", "features")
        )
        if seeds := REPORTED.get(setting):
            transfers, features = (x[x["seed"].isin(seeds)] for x in (transfers, features))
        features = features.assign(look=features[proxy])
        data = load(transfers, features, way, metric, split)
        columns = ["attribution_score", *columns_of(features, ATTRIBUTIONS)]
        by_pair = data.features.groupby(["source", "target"], sort=False)
        pairs = by_pair[[*columns, "look"]].mean().reset_index()
        alike = pairs.pivot(index="source", columns="target", values="change_correlation")
        alike = alike.loc[data.tasks, data.tasks].fillna(1.0)
        pairs = pairs[pairs["source"] != pairs["target"]].reset_index(drop=True)
        return cls(data, pairs, (alike + alike.T) / 2, columns)

    def candidates(self, target: str | None = None) -> pd.DataFrame:
        """Take the pairs of a target, or all."""
        pairs = self.pairs if target is None else self.pairs[self.pairs["target"] == target]
        return pairs.reset_index(drop=True)

    def looks(self, pairs: pd.DataFrame, looked: int) -> pd.DataFrame:
        """Take the proxy scores of so many sources of every target, the best by attributions."""
        best = pairs.sort_values("attribution_score").groupby("target").tail(looked)
        return best[["source", "target", "look"]].set_axis(["source", "target", "score"], axis=1)

    def transfers(self, target: str) -> pd.DataFrame:
        """Take what was measured of all other targets."""
        gains = self.data.dev_gain.mean(axis=0)
        rows = [
            (source, other, gains[t, s])
            for t, other in enumerate(self.data.tasks)
            for s, source in enumerate(self.data.tasks)
            if s != t and other != target
        ]
        return pd.DataFrame(rows, columns=["source", "target", "gain"])


def fixed(world: World, target: str, looked: int) -> Next:
    """Take sources in the order of their score; those with a proxy score first, in its order."""
    worth = in_order(world, world.candidates(target), looked)
    return lambda _: worth.loc[target]


def in_order(world: World, pairs: pd.DataFrame, looked: int) -> pd.Series:
    """Say what pairs are worth by their score, and before those by the proxy score, if any."""
    worth = pairs.set_index(["target", "source"])["attribution_score"].rank(pct=True)
    if looked:
        looks = world.looks(pairs, looked).set_index(["target", "source"])["score"]
        worth[looks.index] = 1 + looks.rank(pct=True)
    return worth


def learning_rule(world: World, pairs: pd.DataFrame, looked: int = 0) -> LearningRule:
    """Make the rule that knows attributions and proxy scores, if any, and learns the rest."""
    predictor = TransferPredictor(feature_columns=world.columns, similarity=world.similarity)
    rule = LearningRule(predictor, pairs=pairs)
    return rule.refine(world.looks(pairs, looked)) if looked else rule


def learning(world: World, target: str, looked: int = 0, others: bool = False) -> Next:
    """Take the source of the highest priority."""
    before = pd.DataFrame(columns=["source", "target", "gain"])
    pairs = world.candidates(target)
    if others:
        before, pairs = world.transfers(target), world.candidates()
    rule = learning_rule(world, pairs)
    if looked:
        # Of the other targets, what was measured says more than a proxy score.
        rule = rule.refine(world.looks(world.candidates(target), looked))

    def following(trials: pd.DataFrame) -> pd.Series:
        measured = trials.dropna(subset="source")
        table = rule.refitted(pd.concat([before, measured]) if len(before) else measured).table()
        return table[table["target"] == target].set_index("source")["priority"]

    return following


SEARCHES: dict[str, Callable[[World, str], Next]] = {
    "attributions alone, a fixed order": lambda world, target: fixed(world, target, 0),
    "attributions, a third re-ranked, a fixed order": lambda world, target: fixed(
        world, target, world.looked
    ),
    "LearningRule, nothing measured before": learning,
    "LearningRule, a third re-ranked": lambda world, target: learning(world, target, world.looked),
    "LearningRule, other targets measured before": lambda world, target: learning(
        world, target, others=True
    ),
    "both": lambda world, target: learning(world, target, world.looked, others=True),
}


def search(world: World, target: str, following: Next, n_trials: int) -> dict[str, float]:
    """Run a search until so many trials have finished, and say what it found and when."""
    data, t = world.data, world.data.tasks.index(target)
    dev, alone = data.dev[:, t].mean(axis=0), data.dev_baseline[:, t].mean(axis=0)
    test, test_alone = data.test[:, t].mean(axis=0), data.test_baseline[:, t].mean(axis=0)
    best = max(np.nanmax(dev), alone.max())
    rows = [(None, target, lr, score, score) for lr, score in enumerate(alone)]
    found_on_test = [*test_alone]
    columns = ["source", "target", "lr", "score", "baseline"]
    while len(rows) < n_trials:
        trials = pd.DataFrame(rows, columns=columns)
        trials["gain"] = trials["score"] - trials["baseline"]
        worth = following(trials)
        counts = trials["source"].value_counts()
        left = worth[counts.reindex(worth.index).fillna(0) < len(alone)]
        source = str(left.idxmax())
        gained = trials.dropna(subset="source").groupby("lr")["gain"].mean()
        tried = set(trials.loc[trials["source"] == source, "lr"])
        lrs = [lr for lr in range(len(alone)) if lr not in tried]
        lr = max(lrs, key=lambda lr: alone[lr] + gained.get(lr, 0.0))
        s = data.tasks.index(source)
        rows.append((source, target, lr, dev[s, lr], alone[lr]))
        found_on_test.append(test[s, lr])
    scores = np.array([row[3] for row in rows])
    hits = np.flatnonzero(scores >= alone.max() + ENOUGH * (best - alone.max()) - 1e-12)
    return {
        "until": float(hits[0] + 1) if len(hits) else np.inf,
        "lost 10": best - scores[:10].max(),
        "lost 24": best - scores[:24].max(),
        "test 10": found_on_test[int(scores[:10].argmax())],
        "test 24": found_on_test[int(scores[:24].argmax())],
    }


def searches(world: World, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for number, name in enumerate(options.searches):
        make = SEARCHES[name]
        for target in options.targets or world.data.tasks:
            found = search(world, target, make(world, target), options.trials)
            yield {"number": number, "search": name, "target": target, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="trec-is")
    parser.add_argument("--proxy", default=LOOK, help="a column of the features")
    parser.add_argument("--ways", nargs="+", default=["sequential"])
    parser.add_argument("--targets", nargs="+", metavar="TASK", help="all if left out")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=[*SEARCHES])
    parser.add_argument("--trials", type=int, default=25, help="at most all that there are")
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--misled", action="store_true", help="turn the score's sign round")
    options = parser.parse_args()
    console = Console(width=150)
    for way in options.ways:
        world = World.read(way, options.metric, setting=options.setting, proxy=options.proxy)
        rows = pd.DataFrame(searches(world.misled if options.misled else world, options))
        table = Table(title=f"{way} transfer, {options.metric}, one search for each target")
        table.add_column("search")
        within = f"within {options.trials}"
        for column in ("trials until 95%", within, "dev lost after 10", "24"):
            table.add_column(column, justify="right")
        for column in ("test after 10", "24"):
            table.add_column(column, justify="right")
        for (_, name), of in rows.groupby(["number", "search"]):
            means = [
                "{:.4f} ({:.4f}, {:.4f})".format(*interval(of[column].to_numpy()))
                for column in ("lost 10", "lost 24")
            ]
            tests = [f"{of[column].mean():.4f}" for column in ("test 10", "test 24")]
            until = np.quantile(of["until"], 0.5, method="nearest")
            within = f"{np.isfinite(of['until']).mean():.0%}"
            table.add_row(str(name), f"{until:.0f}", within, *means, *tests)
        console.print(table)


if __name__ == "__main__":
    main()
