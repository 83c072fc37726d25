"""One table for each setting: how well the sources of a target are ranked, and what that saves.

    python examples/text_transfer/compare.py --setting mixed
    python examples/text_transfer/compare.py --setting trec-is --metrics ap

Everything that learns from measured gains learns from other targets' gains on dev, and is judged on
test. Of every way to rank: Spearman with the gain on test; with one and with three sources kept for
each target, the seconds saved, the regret and the share of the attainable gain that is kept, chosen
on dev and reported on test. Intervals are bootstrap over targets, 95%.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from analyse import at_random, ceiling, interval, per_target, read_costs
from rich.console import Console
from rich.table import Table
from scores import all_scores
from table import HERE, Array, Measured, load, looked_at

SETTINGS = {"trec-is": "{}-4.csv", "mixed": "mixed-{}.csv"}
ROWS = {
    "popularity": "popularity",
    "LogME": "LogME",
    "H-score": "H-score",
    "zero-shot average precision": "zero-shot, on few texts",
    "zero-shot, where heads fit": "zero-shot, where heads fit",
    "linear probe": "linear probe",
    "proxy score of all pairs": "proxy score of all pairs",
    "attributions, nothing measured": "attributions alone",
    "attributions of whole models": "attributions alone, whole models",
    "attributions, re-ranked": "attributions, re-ranked",
    "attributions, Gaussian process": "attributions fitted on other targets",
    "attributions, Gaussian process, re-ranked": "fitted and re-ranked",
    "attributions, fitted": "attributions fitted, by a ridge",
    "attributions, fitted, re-ranked": "fitted by a ridge and re-ranked",
    "popularity, re-ranked": "popularity, re-ranked",
}
"""What is compared, by the names of scores.py, and how the table calls it."""
KEPT = (1, 3)


def table_of(data: Measured, costs_file: Path) -> pd.DataFrame:
    """Compare the ways to rank: a row each, every measure a mean over targets and its interval."""
    costs = read_costs(costs_file, sorted(data.features["seed"].unique()))
    made = all_scores(data, "target", looked_at(len(data.tasks)), ROWS)
    nothing = data.regret(np.zeros_like(data.dev_gain), 0)
    measured = {"random": (at_random(data), 0.0)}
    if "linear probe" in made:
        del made["proxy score of all pairs"]  # that was the linear probe
    for name in ROWS:
        if name in made:
            measured[ROWS[name]] = per_target(data, made[name]), costs.of(name)
    rows = []
    for label, (values, seconds) in measured.items():
        row: dict[str, object] = {"ranked by": label, "Spearman": interval(values["Spearman"])}
        for k in KEPT:
            regret = values[f"regret@{k}"]
            row[f"saved, {k}"] = data.share_saved(k, seconds)
            row[f"regret, {k}"] = interval(regret)
            row[f"kept, {k}"] = share_interval(regret, nothing)
        row["seconds"] = seconds
        rows.append(row)
    return pd.DataFrame(rows)


def share_interval(regret: Array, nothing: Array) -> tuple[float, float, float]:
    """Share of the attainable gain that is kept; a draw of targets without any is left out."""
    drawn = np.random.default_rng(0).integers(0, len(regret), (2000, len(regret)))
    attainable = nothing[drawn].mean(axis=1)
    some = attainable > 0
    shares = 1 - regret[drawn].mean(axis=1)[some] / attainable[some]
    low, high = np.percentile(shares, [2.5, 97.5]) if some.any() else (np.nan, np.nan)
    mean = 1 - regret.mean() / nothing.mean() if nothing.mean() > 0 else np.nan
    return float(mean), float(low), float(high)


def printed(table: pd.DataFrame, title: str) -> Table:
    """Lay the table out for a terminal."""
    shown = Table("ranked by", title=title)
    for column in table.columns[1:]:
        shown.add_column(column, justify="right")
    for row in table.itertuples(index=False):
        cells = []
        for column, value in zip(table.columns, row, strict=True):
            cells.append(cell(column, value))
        shown.add_row(*cells)
    return shown


def cell(column: str, value: object) -> str:
    """Write a measure as the tables do."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.1%}" if column.startswith("saved") else f"{value:.0f}"
    assert isinstance(value, tuple)
    form = "{:.0%}" if column.startswith("kept") else "{:.2f}" if column == "Spearman" else "{:.3f}"
    return f"{form} ({form}, {form})".format(*value)


def below(data: Measured) -> str:
    """Say what there is to rank."""
    nothing = interval(data.regret(np.zeros_like(data.dev_gain), 0))
    gains = data.test_gain[np.isfinite(data.test_gain)]
    said = (
        f"{len(data.tasks)} targets, {len(data.dev_gain)} seeds. Regret of no transfer: "
        "{:.4f} ({:.4f}, {:.4f}).".format(*nothing)
        + f" Mean gain {gains.mean():.4f}, positive {(gains > 0).mean():.0%}."
        f" Exhaustive search: {np.nansum(data.seconds) + data.baseline_seconds.sum():.0f} s of CPU."
    )
    if len(data.dev_gain) > 1:
        said += f" Spearman of a perfect predictor, given the noise: {ceiling(data):.2f}."
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="mixed")
    parser.add_argument("--ways", nargs="+", default=["sequential", "joint"])
    parser.add_argument("--metrics", nargs="+", default=["f1"])
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    file = {
        name: HERE / SETTINGS[options.setting].format(name)
        for name in ("transfers", "features", "overhead")
    }
    transfers, features = pd.read_csv(file["transfers"]), pd.read_csv(file["features"])
    console = Console(width=200)
    for way, metric in product(options.ways, options.metrics):
        data = load(transfers, features, way, metric, options.split)
        if not len(data.dev):
            console.print(f"{options.setting}: no seed of {way} transfer is whole.")
            continue
        title = f"{options.setting}: {way} transfer, {metric} on {options.split}"
        console.print(printed(table_of(data, file["overhead"]), title))
        console.print(below(data))


if __name__ == "__main__":
    main()
