"""The measured tables as arrays: one way of transfer, one metric, one test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

HERE = Path(__file__).parent
NO_SOURCE = "(none)"
LOOKED = 8
"""Sources of a target that are re-ranked, of 24; chosen on dev of TREC-IS (README.md)."""
ENOUGH = 0.95
"""Share of the attainable gain at which a search has found what there is."""
Array = NDArray[np.float64]


@dataclass
class Measured:
    """One way of transfer and one test split: arrays over (seed, target, source, lr)."""

    tasks: list[str]
    dev: Array
    test: Array
    dev_baseline: Array
    test_baseline: Array
    seconds: Array
    baseline_seconds: Array
    features: pd.DataFrame
    """One row for each seed, target and source, in this order; a task with itself is NaN."""

    @property
    def dev_gain(self) -> Array:
        """Mean over learning rates of the gain on dev, (seed, target, source)."""
        return (self.dev - self.dev_baseline[:, :, None]).mean(axis=-1)

    @property
    def test_gain(self) -> Array:
        """Mean over learning rates of the gain on test, (seed, target, source)."""
        return (self.test - self.test_baseline[:, :, None]).mean(axis=-1)

    def regret(self, scores: Array, k: int) -> Array:
        """Regret of keeping the k best-scored sources of every target, (targets,)."""
        kept = ranks(scores.mean(axis=0)) < k
        return self.chosen(np.ones_like(kept)) - self.chosen(kept)

    def chosen(self, kept: NDArray[np.bool_]) -> Array:
        """Test score of the trial that is best on dev, of the kept ones and the baselines.

        A trial is trained on every seed's draw and scored by the mean: on one draw of a few dozen
        labels the best of fifty dev scores is mostly luck.
        """
        allowed = kept & ~np.eye(len(self.tasks), dtype=bool)
        dev = np.where(allowed[..., None], self.dev.mean(axis=0), -np.inf)
        dev = np.concatenate([dev, self.dev_baseline.mean(axis=0)[:, None]], axis=1)
        test = np.concatenate(
            [self.test.mean(axis=0), self.test_baseline.mean(axis=0)[:, None]], axis=1
        )
        best = dev.reshape(len(dev), -1).argmax(axis=-1)
        return test.reshape(len(dev), -1)[np.arange(len(dev)), best]

    def gain_on_dev(self) -> float:
        """Mean over targets of what the exhaustive choice seems to gain, on the split it is by."""
        best = np.nanmax(self.dev.mean(axis=0).reshape(len(self.tasks), -1), axis=-1)
        alone = self.dev_baseline.mean(axis=0).max(axis=-1)
        return float(np.maximum(best - alone, 0).mean())

    def gain_across_seeds(self) -> Array:
        """Gain of the source that is best by one seed's test scores, with the other seeds.

        Not a result that anybody could have, but what there is to be had, (targets,). NaN of a
        single seed.
        """
        gains, rows = self.test_gain, np.arange(len(self.tasks))
        if len(gains) < 2:
            return np.full(len(rows), np.nan)
        found = []
        for seed, chosen_by in enumerate(gains):
            best = np.nan_to_num(chosen_by, nan=-np.inf).argmax(axis=1)
            others = np.delete(gains, seed, axis=0).mean(axis=0)[rows, best]
            found.append(np.where(chosen_by[rows, best] > 0, others, 0.0))
        return np.mean(found, axis=0)

    def trials_until(self, scores: Array) -> Array:
        """Trials until a search has 95% of the gain on dev that is to be had, (targets,).

        The baselines first, then source by source, the best-scored first, each at every learning
        rate. NaN for a target without a gain.
        """
        n_targets, n_lrs = len(self.tasks), self.dev.shape[-1]
        place = ranks(scores.mean(axis=0))
        dev, alone = self.dev.mean(axis=0), self.dev_baseline.mean(axis=0).max(axis=-1)
        found = np.full(n_targets, np.nan)
        for t in range(n_targets):
            order = np.argsort(place[t])[: n_targets - 1]
            best = np.maximum.accumulate(dev[t, order].ravel()) - alone[t]
            if best[-1] > 0:
                found[t] = n_lrs + 1 + int((best >= ENOUGH * best[-1]).argmax())
        return found

    def share_saved(self, k: int, overhead: float) -> float:
        """Share of the seconds of all trials that is saved by keeping k sources of each target.

        A kept source counts as the mean of all; the baselines and `overhead` in seconds are paid.
        """
        pairs, alone = np.nansum(self.seconds), self.baseline_seconds.sum()
        kept = pairs * k / (len(self.tasks) - 1)
        return float(1 - (overhead + alone + kept) / (alone + pairs))


def looked_at(n_tasks: int) -> int:
    """How many of a target's sources are re-ranked: of fewer, as large a share."""
    return round((n_tasks - 1) * LOOKED / 24)


def ranks(scores: Array) -> NDArray[np.intp]:
    """Rank sources within each target, 0 the best; the target itself and NaN come last."""
    order = np.where(np.eye(len(scores), dtype=bool) | np.isnan(scores), -np.inf, scores)
    return np.argsort(np.argsort(-order, axis=-1, kind="stable"), axis=-1, kind="stable")


def load(
    transfers: pd.DataFrame, features: pd.DataFrame, way: str, metric: str, split: str
) -> Measured:
    """Arrange the measured tables; only seeds that are whole are taken."""
    alone = transfers["source"] == NO_SOURCE
    rows, baselines = transfers[(transfers["way"] == way) & ~alone], transfers[alone]
    tasks = sorted(baselines["target"].unique())
    sizes = rows.groupby("seed").size()
    lrs = sorted(rows["lr"].unique())
    seeds = sorted(sizes[sizes == len(tasks) * (len(tasks) - 1) * len(lrs)].index)
    seeds = [seed for seed in seeds if seed in set(features["seed"])]

    # What a trial costs a search: its training, and its scoring on dev where that was measured.
    rows, baselines = (
        trials.assign(spent=trials["seconds"] + trials.get("dev_seconds", 0.0))
        for trials in (rows, baselines)
    )

    def arranged(table: pd.DataFrame, column: str, sources: list[str]) -> Array:
        index = pd.MultiIndex.from_product([seeds, tasks, sources, lrs])
        values = table.set_index(["seed", "target", "source", "lr"])[column].reindex(index)
        return values.to_numpy().reshape(len(seeds), len(tasks), len(sources), len(lrs))

    index = pd.MultiIndex.from_product([seeds, tasks, tasks], names=["seed", "target", "source"])
    return Measured(
        tasks,
        arranged(rows, f"dev_{metric}", tasks),
        arranged(rows, f"{split}_{metric}", tasks),
        arranged(baselines, f"dev_{metric}", [NO_SOURCE])[:, :, 0],
        arranged(baselines, f"{split}_{metric}", [NO_SOURCE])[:, :, 0],
        arranged(rows, "spent", tasks),
        arranged(baselines, "spent", [NO_SOURCE])[:, :, 0],
        features.set_index(["seed", "target", "source"]).reindex(index).reset_index(),
    )
