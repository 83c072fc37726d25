"""What does one search over all targets keep, and what does it save? On measured TREC-IS transfers.

    python examples/bench_search.py
    python examples/bench_search.py --ways sequential joint --splits test shifted

One Optuna study with a `TransferSampler` searches the pairs and learning rates of all 25 targets:
every target's baseline comes first, at the learning rate that the base sampler proposes, and then
the pair of the highest priority over all targets. It sees dev scores
(examples/text_transfer/transfers-4.csv, mean over seeds; nothing is trained). Reported are test
scores of each target's trial that is best on dev, and the seconds of CPU of every trial, of
attributions and of proxy scores, against those of all pairs at all learning rates. Other orders:
pairs at random, and every target's best source by score, then every target's second, each at the
learning rate that has gained most so far. What can be known at most: what the best trials by two
seeds' dev scores keep of the third seed's.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench_order import World, in_order, learning_rule
from transfer_pruner import LearningRule
from transfer_pruner_optuna import StopWhenSettled, TransferSampler

HERE = Path(__file__).parent / "text_transfer"
sys.path.append(str(HERE))  # its files are scripts that import each other, not a package
from analyse import Costs, interval, read_costs  # noqa: E402
from table import LOOKED, Measured  # noqa: E402

Order = Callable[[int], pd.Series]
"""From a seed to the worth of each pair, by target and source."""
Scores = NDArray[np.float64]
"""One score a target."""
KEYS = ["target", "source"]
SIZES = (20, 30, 40, 50, 60, 75)
"""Trials on pairs, after the baselines, at which a search is evaluated."""


@dataclass(frozen=True)
class Found:
    """What a search has at some count of trials on pairs."""

    trials: int
    saved: float
    dev: Scores
    """Best dev score of each target."""
    test: Scores
    """Test score of that choice."""


@dataclass
class Book:
    """What the trials of a search, means over seeds, have found and cost.

    Parameters
    ----------
    data : Measured
    overhead : float
        Seconds that were spent before the first trial.
    """

    data: Measured
    overhead: float
    trials: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        data = self.data
        self.dev, self.test, self.seconds = (
            # A target's baselines stand behind its sources, in a row of their own.
            np.concatenate([pairs.mean(axis=0), alone.mean(axis=0)[:, None]], axis=1)
            for pairs, alone in (
                (data.dev, data.dev_baseline),
                (data.test, data.test_baseline),
                (data.seconds, data.baseline_seconds),
            )
        )
        self._best = np.full(len(data.tasks), -np.inf)
        self._chosen = np.full(len(data.tasks), np.nan)
        self._spent = self.overhead

    def run(self, source: str | None, target: str, lr: int) -> float:
        """Look a trial up, and enter it; without a source it is the baseline."""
        t = self.data.tasks.index(target)
        s = -1 if source in (None, target) else self.data.tasks.index(str(source))
        self.trials += s >= 0
        self._spent += self.seconds[t, s, lr]
        score = float(self.dev[t, s, lr])
        if score > self._best[t]:
            self._best[t], self._chosen[t] = score, self.test[t, s, lr]
        return score

    @property
    def found(self) -> Found:
        """What there is now."""
        saved = float(1 - self._spent / np.nansum(self.seconds))
        return Found(self.trials, saved, self._best.copy(), self._chosen.copy())


Search = Callable[[int], Iterator[tuple[str, Found]]]
"""From a seed to what is found, and when: at some count of trials, or when the search settled."""


def with_optuna(
    world: World, rule: LearningRule, overhead: float, n_trials: int, tolerance: float
) -> Search:
    """Search with a `TransferSampler`; note when no pair is worth a trial below the tolerance."""
    tasks = world.data.tasks

    def search(seed: int) -> Iterator[tuple[str, Found]]:
        book, noted = Book(world.data, overhead), dict[str, Found]()
        stopping = StopWhenSettled(rule, tolerance=tolerance)

        def objective(trial: optuna.Trial) -> float:
            source = trial.suggest_categorical("source", [None, *tasks])
            target = trial.suggest_categorical("target", tasks)
            lr = trial.suggest_categorical("lr", [*range(book.dev.shape[-1])])
            return book.run(source, target, lr)

        def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            if book.trials in SIZES:
                noted.setdefault(str(book.trials), book.found)
            if "settled" not in noted and stopping.settled(study) is not None:
                noted["settled"] = book.found

        sampler = TransferSampler(rule, optuna.samplers.TPESampler(seed=seed), seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective, n_trials=len(tasks) + n_trials, callbacks=[note])
        noted.setdefault("settled", book.found)
        yield from noted.items()

    return search


def in_an_order(world: World, order: Order, overhead: float, n: int) -> Search:
    """Train every target's baseline at the first learning rate, and pairs in an order."""
    tasks = world.data.tasks

    def search(seed: int) -> Iterator[tuple[str, Found]]:
        book, worth = Book(world.data, overhead), order(seed)
        alone = {target: book.run(None, target, 0) for target in tasks}
        rows: list[tuple[str, str, int, float]] = []
        for _ in range(n):
            trials = pd.DataFrame(rows, columns=["source", "target", "lr", "gain"])
            counts = trials.groupby(KEYS).size()
            left = worth[counts.reindex(worth.index).fillna(0) < book.dev.shape[-1]]
            target, source = left.idxmax()
            tried = {row[2] for row in rows if row[:2] == (source, target)}
            gained = trials.groupby("lr")["gain"].mean()
            lrs = [lr for lr in range(book.dev.shape[-1]) if lr not in tried]
            lr = max(lrs, key=lambda lr: gained.get(lr, 0.0))
            gain = book.run(source, target, lr) - alone[target]
            rows.append((source, target, lr, gain))
            if book.trials in SIZES:
                yield str(book.trials), book.found

    return search


def by_rank(world: World, looked: int) -> Order:
    """Take every target's best source first, then every target's second."""
    worth = -in_order(world, world.candidates(), looked).groupby("target").rank(ascending=False)
    return lambda _: worth


def at_random(world: World) -> Order:
    """Take pairs at random."""
    index = pd.MultiIndex.from_frame(world.candidates()[KEYS])
    return lambda seed: pd.Series(np.random.default_rng(seed).random(len(index)), index)


def searches(
    world: World, costs: Costs, options: argparse.Namespace
) -> dict[str, tuple[Search, int, int]]:
    """Name every search, with how many of it there are and its proxy scores a target."""
    seeds, sources = len(world.data.dev), len(world.data.tasks) - 1
    embedded = costs.seconds["attributions"] / seeds
    spent = {
        0: embedded,
        LOOKED: embedded + costs.seconds["looked_at_again"] / seeds,
        sources: embedded + costs.seconds["look"] / seeds,
    }
    found: dict[str, tuple[Search, int, int]] = {}
    for looked, name in ((0, ", attributions alone"), (LOOKED, ", eight"), (sources, ", all")):
        name += " re-ranked" if looked else ""
        rule = learning_rule(world, world.candidates(), looked)
        searched = with_optuna(world, rule, spent[looked], options.trials, options.tolerance)
        found[f"LearningRule{name}"] = searched, options.seeds, looked
    for looked, name in ((0, "order of attributions"), (LOOKED, "that order, eight re-ranked")):
        searched = in_an_order(world, by_rank(world, looked), spent[looked], options.trials)
        found[name] = searched, 1, looked
    drawn = in_an_order(world, at_random(world), 0.0, options.trials)
    return found | {"at random": (drawn, options.seeds, 0)}


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
        self._best, self._alone = data.chosen(everything), data.chosen(~everything)
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
        lost: Scores = self._best - self._alone
        return lost

    def add(self, name: str, when: str, found: list[Found], looks: int) -> None:
        """Add a row: one search, or several; an interval is over targets, of their means."""
        test = np.mean([x.test for x in found], axis=0)
        attainable = (self._dev_best - self._dev_alone).mean()
        on_dev = [1 - (self._dev_best - x.dev).mean() / attainable for x in found]
        on_test = [1 - (self._best - x.test).mean() / self.nothing.mean() for x in found]
        trials = f"{np.mean([x.trials for x in found]):.0f}, settled"
        self.table.add_row(
            name,
            trials if when == "settled" else when,
            f"{np.mean([x.saved for x in found]):.1%}",
            *(f"{np.mean(x):.0%} ({min(x):.0%} to {max(x):.0%})" for x in (on_dev, on_test)),
            "{:.4f} ({:.4f}, {:.4f})".format(*interval(self._best - test)),
            str(looks),
        )


def known_from_other_seeds(data: Measured, count: int) -> list[float]:
    """Share of a seed's gain on dev that the trials keep which are best by the other seeds'."""
    shares = []
    for seed in range(len(data.dev)):
        others = [other for other in range(len(data.dev)) if other != seed]
        flat = data.dev.reshape(*data.dev.shape[:2], -1)
        alone, own = data.dev_baseline[seed].max(axis=1), np.nan_to_num(flat[seed])
        best = np.argsort(-np.nan_to_num(flat[others].mean(axis=0)), axis=1)[:, :count]
        kept = np.maximum(np.take_along_axis(own, best, axis=1).max(axis=1), alone)
        most = np.maximum(own.max(axis=1), alone)
        shares.append(1 - (most - kept).mean() / (most - alone).mean())
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=["sequential"])
    parser.add_argument("--splits", nargs="+", default=["test"], choices=["test", "shifted"])
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--trials", type=int, default=max(SIZES), help="on pairs, at most")
    parser.add_argument("--tolerance", type=float, default=0.005, help="of the settled search")
    parser.add_argument("--seeds", type=int, default=10, help="of each search that draws")
    options = parser.parse_args()
    optuna.logging.set_verbosity(logging.ERROR)
    console = Console(width=150)
    for way, split in itertools.product(options.ways, options.splits):
        world = World.read(way, options.metric, split)
        costs = read_costs(HERE / "overhead-4.csv", [0, 1, 2])
        title = f"{way} transfer, {options.metric} on {split}, all targets at once"
        results = Results(world, title)
        for name, (search, seeds, looked) in searches(world, costs, options).items():
            found: dict[str, list[Found]] = {}
            for when, what in itertools.chain.from_iterable(map(search, range(seeds))):
                found.setdefault(when, []).append(what)
            for when, several in found.items():
                results.add(name, when, several, looked * len(world.data.tasks))
        console.print(results.table)
        known = (
            f"{count} a target keep {np.mean(x):.0%} ({min(x):.0%} to {max(x):.0%})"
            for count in (1, 2, 3)
            for x in [known_from_other_seeds(world.data, count)]
        )
        console.print(
            "Regret of no transfer: {:.4f} ({:.4f}, {:.4f}). ".format(*interval(results.nothing))
            + f"Scores are means of {len(world.data.dev)} seeds. Means of {options.seeds} searches "
            f"(their range), of the fixed orders one; regret with its 95% interval over targets. "
            f"Settled: no pair's next trial is expected to improve its target by more than "
            f"{options.tolerance:g}.\nOf one seed's gain on dev the trials that are best by the "
            f"other seeds: {'; '.join(known)}."
        )


if __name__ == "__main__":
    main()
