"""What does one search over all targets keep, and what does it save? On measured TREC-IS transfers.

    python examples/bench_search.py
    python examples/bench_search.py --ways sequential joint --splits test shifted

All 25 targets' baselines are trained, and then one pair after the other: of a `LearningRule` the
one of the highest priority over all targets, at the learning rate that is best so far of those that
the pair lacks. The search sees dev scores (examples/text_transfer/transfers-4.csv, mean over seeds;
nothing is trained). Reported are test scores of each target's trial that is best on dev, and the
seconds of CPU of every trial, of attributions and of proxy scores, against those of all pairs at
all learning rates. Other orders: pairs at random, and every target's best source by score, then
every target's second.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from bench_order import World, in_order, learning_rule

HERE = Path(__file__).parent / "text_transfer"
sys.path.append(str(HERE))  # its files are scripts that import each other, not a package
from analyse import Costs, interval, read_costs  # noqa: E402
from table import LOOKED  # noqa: E402

Order = Callable[[pd.DataFrame], pd.Series]
"""From the trials so far to the worth of each pair, by target and source."""
Scores = np.ndarray[tuple[int], np.dtype[np.float64]]
"""One score a target."""
KEYS = ["target", "source"]
SIZES = (0, 20, 30, 40, 50, 75, 100, 150)
"""Trials on pairs, after the baselines, at which a search is evaluated."""


@dataclass(frozen=True)
class Found:
    """What a search has at some count of trials."""

    trials: int
    saved: float
    dev: Scores
    """Best dev score of each target."""
    test: Scores
    """Test score of that choice."""
    settled: bool = False


def learning(world: World, looked: int, tolerance: float) -> Order:
    """Take the pair of the highest priority; none is worth a trial below the tolerance."""
    rule = learning_rule(world, world.candidates(), looked)

    def following(trials: pd.DataFrame) -> pd.Series:
        table = rule.refitted(trials.dropna(subset="source")).table()
        worth = table.set_index(KEYS)["priority"]
        worth.attrs["settled"] = len(trials) > 2 * len(world.data.tasks) and (
            worth.max() <= tolerance
        )
        return worth

    return following


def by_rank(world: World, looked: int) -> Order:
    """Take every target's best source first, then every target's second."""
    worth = -in_order(world, world.candidates(), looked).groupby("target").rank(ascending=False)
    return lambda _: worth


def at_random(world: World, seed: int) -> Order:
    """Take pairs at random."""
    index = pd.MultiIndex.from_frame(world.candidates()[KEYS])
    worth = pd.Series(np.random.default_rng(seed).random(len(index)), index)
    return lambda _: worth


def search(world: World, order: Order, overhead: float, n_trials: int) -> Iterator[Found]:
    """Run one search over all targets; say what it has found at some counts of trials."""
    data = world.data
    dev, test, seconds = (x.mean(axis=0) for x in (data.dev, data.test, data.seconds))
    alone, alone_test = (x.mean(axis=0) for x in (data.dev_baseline, data.test_baseline))
    whole = np.nansum(seconds) + data.baseline_seconds.mean(axis=0).sum()
    spent = overhead + data.baseline_seconds.mean(axis=0).sum()
    best = alone.max(axis=1)
    chosen = alone_test[np.arange(len(alone)), alone.argmax(axis=1)]
    number = {task: t for t, task in enumerate(data.tasks)}
    rows = [
        (None, task, lr, alone[t, lr], alone[t, lr])
        for t, task in enumerate(data.tasks)
        for lr in range(alone.shape[1])
    ]
    columns = ["source", "target", "lr", "score", "baseline"]
    settled = False
    for n in range(n_trials + 1):
        trials = pd.DataFrame(rows, columns=columns).assign(
            gain=lambda table: table["score"] - table["baseline"]
        )
        counts = trials.dropna().groupby(KEYS).size()
        worth = order(trials)
        left = worth[counts.reindex(worth.index).fillna(0) < alone.shape[1]]
        ends = bool(worth.attrs.get("settled")) and not settled
        settled = settled or ends
        if n in SIZES or ends:
            yield Found(n, 1 - spent / whole, best.copy(), chosen.copy(), ends)
        target, source = left.idxmax()
        t, s = number[target], number[source]
        tried = {row[2] for row in rows if row[:2] == (source, target)}
        gained = trials.dropna().groupby("lr")["gain"].mean()
        lr = max({*range(alone.shape[1])} - tried, key=lambda lr: alone[t, lr] + gained.get(lr, 0))
        rows.append((source, target, lr, dev[t, s, lr], alone[t, lr]))
        spent += seconds[t, s, lr]
        if dev[t, s, lr] > best[t]:
            best[t], chosen[t] = dev[t, s, lr], test[t, s, lr]


def searches(world: World, costs: Costs, tolerance: float) -> dict[str, tuple[Order, float, int]]:
    """Name every order, with the seconds that it takes to make and its proxy scores a target."""
    seeds, sources = len(world.data.dev), len(world.data.tasks) - 1
    embedded = costs.seconds["attributions"] / seeds
    again, everywhere = (
        embedded + costs.seconds[looks] / seeds for looks in ("looked_at_again", "look")
    )
    return {
        "learning, nothing measured before": (learning(world, 0, tolerance), embedded, 0),
        "learning, eight re-ranked": (learning(world, LOOKED, tolerance), again, LOOKED),
        "learning, all re-ranked": (learning(world, sources, tolerance), everywhere, sources),
        "in the order of attributions": (by_rank(world, 0), embedded, 0),
        "in that order, eight re-ranked": (by_rank(world, LOOKED), again, LOOKED),
    }


class Results:
    """The table of one way of transfer and one test split.

    Parameters
    ----------
    world : World
    title : str
    """

    def __init__(self, world: World, title: str) -> None:
        data = world.data
        everything = np.ones((len(data.tasks),) * 2, dtype=bool)
        self._best, self.alone = data.chosen(everything), data.chosen(~everything)
        dev = data.dev.mean(axis=0).reshape(len(data.tasks), -1)
        self._dev_alone = data.dev_baseline.mean(axis=0).max(axis=1)
        self._dev_best = np.maximum(np.nanmax(dev, axis=1), self._dev_alone)
        self.table = Table(title=title)
        columns = ("trials on pairs", "saved", "kept on dev", "kept on test", "regret on test")
        self.table.add_column("search")
        for column in (*columns, "proxy scores"):
            self.table.add_column(column, justify="right")

    @property
    def nothing(self) -> Scores:
        """What is lost by no transfer at all, on test."""
        return self._best - self.alone

    def add(self, name: str, found: list[Found], looks: int) -> None:
        """Add a row: one search, or the mean of several."""
        test, dev = (np.mean([getattr(x, of) for x in found], axis=0) for of in ("test", "dev"))
        kept_on_dev = 1 - (self._dev_best - dev).mean() / (self._dev_best - self._dev_alone).mean()
        self.table.add_row(
            name,
            f"{found[0].trials}{', settled' if found[0].settled else ''}",
            f"{np.mean([x.saved for x in found]):.1%}",
            f"{kept_on_dev:.0%}",
            f"{1 - (self._best - test).mean() / self.nothing.mean():.0%}",
            "{:.4f} ({:.4f}, {:.4f})".format(*interval(self._best - test)),
            str(looks),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=["sequential"])
    parser.add_argument("--splits", nargs="+", default=["test"], choices=["test", "shifted"])
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--trials", type=int, default=max(SIZES), help="on pairs, at most")
    parser.add_argument("--tolerance", type=float, default=0.005, help="of the settled search")
    parser.add_argument("--random", type=int, default=10, help="searches at random")
    options = parser.parse_args()
    console = Console(width=150)
    for way, split in itertools.product(options.ways, options.splits):
        world = World.read(way, options.metric, split)
        costs = read_costs(HERE / "overhead-4.csv", [0, 1, 2])
        n_targets = len(world.data.tasks)
        results = Results(
            world, f"{way} transfer, {options.metric} on {split}, all targets at once"
        )
        for name, made in searches(world, costs, options.tolerance).items():
            order, overhead, looked = made
            for found in search(world, order, overhead, options.trials):
                results.add(name, [found], looked * n_targets)
        drawn = [
            [*search(world, at_random(world, seed), 0.0, options.trials)]
            for seed in range(options.random)
        ]
        for of_size in zip(*drawn, strict=True):
            results.add("at random", [*of_size], 0)
        console.print(results.table)
        console.print(
            "Regret of no transfer: {:.4f} ({:.4f}, {:.4f}). ".format(*interval(results.nothing))
            + f"{len(world.data.dev)} seeds; settled: no pair's next trial is expected to improve "
            f"its target by more than {options.tolerance:g}. At random: mean of {options.random}."
        )


if __name__ == "__main__":
    main()
