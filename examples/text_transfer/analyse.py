"""Does the predictor find good pairs? The benchmark's measured tables, analysed; no texts needed.

    python examples/text_transfer/analyse.py
    python examples/text_transfer/analyse.py --metrics ap --splits shifted --regimes source both
    python examples/text_transfer/analyse.py --positives 16

Everything that learns from measured gains is scored on targets, on sources, or on both, that it
has not learnt from; it learns from dev scores and is judged by test scores. Intervals are bootstrap
over targets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from confidence import print_reliability, print_risk
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from scores import COLUMNS, LOOKED_AT_AGAIN, all_scores
from sklearn.metrics import roc_auc_score
from table import HERE, NO_SOURCE, Array, Measured, load, looked_at

from transfer_pruner.plotting import savings_regret_curve, savings_regret_curve_data

OVERHEAD = 94.0
"""Seconds of CPU to embed 25 source and 25 target models, where no table says (features.py)."""


def per_target(data: Measured, scores: Array) -> dict[str, Array]:
    """Compute every measure for each target, (targets,); rates over seeds are means."""
    n = len(data.tasks)
    gains, mean_scores = data.test_gain.mean(axis=0), scores.mean(axis=0)
    measures: dict[str, list[float]] = {"Spearman": [], "AUC": [], "direction": []}
    for t in range(n):
        others = np.arange(n) != t
        s, g = mean_scores[t, others], gains[t, others]
        constant = np.isnan(s).any() or np.ptp(s) == 0 or np.ptp(g) == 0
        measures["Spearman"].append(np.nan if constant else spearmanr(s, g).statistic)
        mixed = not constant and 0 < (g > 0).mean() < 1
        measures["AUC"].append(roc_auc_score(g > 0, s) if mixed else np.nan)
        back = gains[others, t]
        said, true = s - mean_scores[others, t], g - back
        measures["direction"].append(np.mean((said > 0) == (true > 0)) if not constant else np.nan)
    table = {name: np.array(values) for name, values in measures.items()}
    for k in (1, 3, 5):
        table[f"regret@{k}"] = data.regret(scores, k)
    table["trials"] = data.trials_until(scores)
    return table


def at_random(data: Measured, repeats: int = 200) -> dict[str, Array]:
    """Compute the regrets of a random choice, the mean over repeats for each target."""
    rng = np.random.default_rng(0)
    drawn = [rng.random(data.dev_gain.shape) for _ in range(repeats)]
    chance = np.full(len(data.tasks), 0.5)
    regrets = {
        f"regret@{k}": np.mean([data.regret(scores, k) for scores in drawn], axis=0)
        for k in (1, 3, 5)
    }
    regrets["trials"] = np.mean([data.trials_until(scores) for scores in drawn], axis=0)
    return {"Spearman": chance - 0.5, "AUC": chance, "direction": chance, **regrets}


def interval(values: Array, statistic: Callable[..., Array] = np.nanmean) -> tuple[float, ...]:
    """Mean over targets and its 95% bootstrap interval; NaN where no target has a value."""
    if not np.isfinite(values).any():
        return np.nan, np.nan, np.nan
    rows = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    drawn = values[rows]
    some = np.isfinite(drawn).any(axis=1)
    low, high = np.percentile(statistic(drawn[some], axis=1), [2.5, 97.5])
    return float(statistic(values, axis=0)), float(low), float(high)


def written(found: tuple[float, ...], form: str = "{:.2f}") -> str:
    """Write a mean and its interval; a dash where there is nothing to take the mean of."""
    return "-" if np.isnan(found[0]) else f"{form} ({form}, {form})".format(*found)


def ceiling(data: Measured) -> float:
    """Split-half Spearman of gains between seeds, stepped up to all of them (Spearman-Brown)."""
    gains, n = data.test_gain, len(data.dev_gain)
    if n < 2:
        return np.nan
    found = []
    for seed in range(n):
        rest = np.delete(gains, seed, axis=0).mean(axis=0)
        for t in range(len(data.tasks)):
            others = np.arange(len(data.tasks)) != t
            found.append(spearmanr(gains[seed, t, others], rest[t, others]).statistic)
    # One seed against n - 1: r = rel / sqrt(rel_1 rel_{n-1}) solved for one seed's reliability.
    r = float(np.mean(found))
    grid = np.linspace(0.001, 0.999, 999)
    several = (n - 1) * grid / (1 + (n - 2) * grid)
    one = grid[np.abs(np.sqrt(grid * several) - r).argmin()]
    return float(np.sqrt(n * one / (1 + (n - 1) * one)))


def share_kept(regret: float, nothing: Array) -> str:
    """Share of the attainable gain, if there is one: never transferring must lose something."""
    mean, low, _ = interval(nothing)
    return f"{1 - regret / mean:.0%}" if low > 0 else "none to keep"


def report(data: Measured, made: dict[str, Array], console: Console, title: str) -> None:
    """Print one table: every predictor, every measure."""
    table = Table(title=title)
    measures = ["Spearman", "AUC", "direction", "regret@1", "regret@3", "regret@5"]
    for column in ("predictor", *measures, "share kept, 3 sources", "5 sources"):
        table.add_column(column, justify="left" if column == "predictor" else "right")
    nothing = data.regret(np.zeros_like(data.dev_gain), 0)
    measured = {"random": at_random(data)}
    measured |= {name: per_target(data, scores) for name, scores in made.items()}
    for name, values in measured.items():
        cells = []
        for measure in measures:
            form = "{:.3f}" if "regret" in measure else "{:.2f}"
            cells.append(written(interval(values[measure]), form))
        for k in (3, 5):
            cells.append(share_kept(values[f"regret@{k}"].mean(), nothing))
        table.add_row(name, *cells)
    console.print(table)
    print_differences(measured, console)
    console.print(
        f"Regret of no transfer: {written(interval(nothing), '{:.4f}')}. "
        f"On dev the exhaustive choice gains {data.gain_on_dev():.4f}. "
        f"{len(data.dev_gain)} seeds; Spearman of a "
        f"perfect predictor, given the noise between seeds: {ceiling(data):.2f}. Mean gain: "
        f"{np.nanmean(data.test_gain):.4f}, positive: "
        f"{(data.test_gain[np.isfinite(data.test_gain)] > 0).mean():.0%}. "
        "Gain of the best source by one seed's test scores, with the others: "
        f"{written(interval(data.gain_across_seeds()), '{:.4f}')}. "
        "Spearman of the gains that were measured on dev, all pairs trained: "
        f"{written(interval(per_target(data, data.dev_gain)['Spearman']))}; "
        f"of the sources' popularity there: {popularity_holds(data):.2f}."
    )


def popularity_holds(data: Measured) -> float:
    """Spearman over sources: mean gain on dev against mean gain on the test split."""
    on_dev, on_test = (np.nanmean(gain, axis=(0, 1)) for gain in (data.dev_gain, data.test_gain))
    return float(spearmanr(on_dev, on_test).statistic)


ALONE, ALL_PROXY = "attributions, nothing measured", "proxy score of all pairs"
OURS = (ALONE, "attributions, fitted", "attributions and probing, fitted", "all, fitted")
POPULAR_AGAIN, *AGAIN = (f"{name}, re-ranked" for name in LOOKED_AT_AGAIN)
BASELINES = (
    *("popularity", "LogME", "H-score", "zero-shot average precision", "label correlation"),
    *("zero-shot, where heads fit", "linear probe"),
)


def print_differences(measured: dict[str, dict[str, Array]], console: Console) -> None:
    """Print by how much ours exceeds each baseline's Spearman and falls short of its regret."""
    baselines = [name for name in BASELINES if name in measured]
    printed = Table("Spearman minus that of", *baselines)
    for ours in (name for name in OURS if name in measured):
        differences = [
            interval(measured[ours]["Spearman"] - measured[name]["Spearman"]) for name in baselines
        ]
        printed.add_row(ours, *map(written, differences))
    console.print(printed)
    others = (POPULAR_AGAIN, ALL_PROXY, "random")
    against = [*baselines, *(name for name in others if name in measured)]
    printed = Table("regret@1 less than that of", *against)
    for ours in (name for name in (*OURS, *AGAIN) if name in measured):
        differences = [
            interval(measured[name]["regret@1"] - measured[ours]["regret@1"]) for name in against
        ]
        printed.add_row(ours, *(written(found, "{:.3f}") for found in differences))
    console.print(printed)


PROBED = (
    *("LogME", "H-score", "zero-shot average precision"),
    *("attributions and probing, equal weights", "attributions and probing, fitted"),
)
ONE_SCORE = {**COLUMNS, "attributions of whole models": "whole"}
"""What a score's own seconds are called, where each was measured."""


@dataclass(frozen=True)
class Costs:
    """Seconds that elimination takes, for all tasks and seeds.

    Attributes
    ----------
    seconds : dict of str to float
        ``attributions``: to embed all tasks as sources and as targets, and to compare all pairs.
        ``probing``: to score every source's features and head on every target's few texts, in all
        ways; or a proxy score's own where each was measured. ``look``: to score every source's
        model on every target's dev texts. ``looked_at_again``: on those of a third of the pairs.
    """

    seconds: dict[str, float]

    def of(self, name: str) -> float:
        """Seconds that a predictor of this name takes to rank all pairs."""
        spent = self.seconds["attributions"] if name.startswith(("attributions", "all")) else 0.0
        if ONE_SCORE.get(name) in self.seconds:
            return self.seconds[ONE_SCORE[name]]
        if name.startswith("all") or name in PROBED:
            spent += self.probing
        if name.endswith("re-ranked"):
            return spent + self.seconds["looked_at_again"]
        return spent + self.seconds["look"] if "proxy score" in name else spent

    @property
    def probing(self) -> float:
        """Seconds of all proxy scores; where each was measured, the models are run once."""
        if "probing" in self.seconds:
            return self.seconds["probing"]
        of_scores = [self.seconds[x] for x in ("h_score", "logme", "linear_probe")]
        return sum(of_scores) - 2 * self.seconds["running"]


def read_costs(file: Path, seeds: list[int], peers: Path | None = None) -> Costs:
    """Take what features.py measured, or what it said when it did not write that down.

    Peers were run on some of the seeds, and would take as long on each of the others.
    """
    if not file.exists():
        return Costs({"attributions": OVERHEAD * len(seeds)} | dict.fromkeys(NOT_TOLD, 0.0))
    seconds = dict(pd.read_csv(file, index_col="seed").loc[seeds].sum())
    if peers is not None and peers.exists():
        seconds |= dict(pd.read_csv(peers, index_col="seed").mean() * len(seeds))
    return Costs(seconds)


NOT_TOLD = ("probing", "look", "looked_at_again")


def curve(data: Measured, made: dict[str, Array], costs: Costs) -> pd.DataFrame:
    """Compute the regret for every share of the seconds saved."""
    n = len(data.tasks)
    rows = []
    for name in (name for name in ON_CURVE if name in made):
        for k in range(looked_at(n) + 1 if name.endswith("re-ranked") else n):
            saved = data.share_saved(k, costs.of(name))
            rows.append((name, k, saved, data.regret(made[name], k).mean()))
    rng = np.random.default_rng(0)
    for k in range(n):
        drawn = [data.regret(rng.random(data.dev_gain.shape), k).mean() for _ in range(100)]
        rows.append(("random", k, data.share_saved(k, 0.0), float(np.mean(drawn))))
    return pd.DataFrame(rows, columns=["predictor", "sources kept", "saved", "regret"])


ON_CURVE = (
    *("popularity", POPULAR_AGAIN, "label correlation", "zero-shot average precision"),
    *("proxy score of all pairs", "attributions, nothing measured"),
    *("attributions, re-ranked", "attributions, fitted"),
    *("attributions, fitted, re-ranked", "attributions and probing, fitted", "all, fitted"),
    *("all, fitted, re-ranked", "all and the proxy score, fitted"),
)


def draw(
    transfers: pd.DataFrame, data: Measured, made: dict[str, Array], costs: Costs, metric: str
) -> Figure:
    """Draw the savings-regret curve of a few predictors; trials are means over seeds."""
    seeds = len(data.dev_gain)
    whole = transfers[transfers["seed"].isin(data.features["seed"].unique())]
    columns = {f"dev_{metric}": "dev", f"test_{metric}": "test", "spent": "seconds"}
    whole = whole.assign(spent=whole["seconds"] + whole.get("dev_seconds", 0.0))
    trials = whole.groupby(["source", "target", "lr"], as_index=False)[list(columns)].mean()
    trials = trials.rename(columns=columns)
    trials["seconds"] *= seeds
    trials["source"] = trials["source"].replace(NO_SOURCE, None)
    first = data.features["seed"] == data.features["seed"].iloc[0]
    pairs = data.features.loc[first, ["source", "target"]]
    apart = pairs["source"] != pairs["target"]
    parts = []
    drawn = (
        *("popularity", "attributions, nothing measured", "attributions, fitted"),
        *("attributions, fitted, re-ranked", "all, fitted, re-ranked"),
    )
    for name in drawn:
        if name in made:
            scores = pairs.assign(score=made[name].mean(axis=0).ravel())[apart]
            seconds = costs.of(name)
            part = savings_regret_curve_data(trials, {name: scores}, attribution_seconds=seconds)
            if name in AGAIN:
                part = part[~(part["sources_kept"] > looked_at(len(data.tasks)))]
            parts.append(part[part["way"] == name] if parts else part)
    return savings_regret_curve(pd.concat(parts, ignore_index=True))


def print_agreement(one: Measured, other: Measured, console: Console) -> None:
    """Print whether two ways of transfer rank the sources of a target alike."""
    gains = [data.test_gain.mean(axis=0) for data in (one, other)]
    apart = ~np.eye(len(one.tasks), dtype=bool)
    found = [
        spearmanr(a[others], b[others]).statistic
        for a, b, others in zip(*gains, apart, strict=True)
    ]
    console.print(f"Spearman of the two ways' gains: {written(interval(np.array(found)))}.")


def print_points(table: pd.DataFrame, nothing: Array, console: Console) -> None:
    """Print regret at 83.5% saved, the time saved at a regret of 0.034, and one source kept."""
    columns = ("sources kept", "saved", "regret", "share kept")
    printed = Table("predictor", *columns, "saved at 0.034", *(f"one: {x}" for x in columns[1:]))
    for name, rows in table.groupby("predictor", sort=False):
        enough = rows[rows["saved"] >= 0.835]
        point = enough.loc[enough["sources kept"].idxmax()] if len(enough) else rows.iloc[0]
        cheap = rows.loc[rows["regret"] <= 0.034, "saved"].max()
        one = rows[rows["sources kept"] == 1].iloc[0]
        printed.add_row(
            str(name),
            f"{point['sources kept']:.0f}",
            f"{point['saved']:.1%}",
            f"{point['regret']:.4f}",
            share_kept(point["regret"], nothing),
            f"{cheap:.1%}",
            f"{one['saved']:.1%}",
            f"{one['regret']:.4f}",
            share_kept(one["regret"], nothing),
        )
    console.print(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--positives", type=int, choices=(4, 16), default=4, help="labelled ones of a target"
    )
    parser.add_argument("--transfers", type=Path, help="another table that measure.py made")
    parser.add_argument("--features", type=Path, help="the one that features.py made with it")
    parser.add_argument("--ways", nargs="+", default=["sequential"])
    parser.add_argument("--metrics", nargs="+", default=["f1"])
    parser.add_argument("--splits", nargs="+", default=["test"])
    parser.add_argument("--regimes", nargs="+", default=["target"])
    parser.add_argument("--overhead", type=Path, help="what its seconds were: features.py's too")
    parser.add_argument("--figure", type=Path, help="file for the savings-regret curve on test")
    options = parser.parse_args()
    ending = "" if options.positives == 16 else f"-{options.positives}"
    transfers = pd.read_csv(options.transfers or HERE / f"transfers{ending}.csv")
    features = pd.read_csv(options.features or HERE / f"features{ending}.csv")
    if options.figure and len(options.ways) * len(options.metrics) > 1:
        parser.error("--figure is of one way and one metric: give one of --ways and --metrics.")
    console = Console(width=200)
    for way, metric, split in product(options.ways, options.metrics, options.splits):
        data = load(transfers, features, way, metric, split)
        file = options.overhead or HERE / f"overhead{ending}.csv"
        costs = read_costs(file, sorted(data.features["seed"].unique()))
        for regime in options.regimes:
            out = "source and target" if regime == "both" else regime
            made = all_scores(data, regime, looked_at(len(data.tasks)))
            report(data, made, console, f"{way} transfer, {metric} on {split}, {out} left out")
            if regime != "target":
                continue
            points = curve(data, made, costs)
            print_points(points, data.regret(np.zeros_like(data.dev_gain), 0), console)
            print_reliability(data, console)
            print_risk(data, made["all, fitted"], console)
            if options.figure and split == "test":
                rows = transfers[(transfers["way"] == way) | (transfers["source"] == NO_SOURCE)]
                draw(rows, data, made, costs, metric).savefig(options.figure, dpi=110)
    if len(options.ways) == 2:
        for metric, split in product(options.metrics, options.splits):
            one, other = (load(transfers, features, way, metric, split) for way in options.ways)
            print_agreement(one, other, console)


if __name__ == "__main__":
    main()
