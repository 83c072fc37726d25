"""One table for each setting: how well the sources of a target are ranked, and what that saves.

    python examples/text_transfer/compare.py --setting mixed
    python examples/text_transfer/compare.py --setting trec-is --metrics ap
    python examples/text_transfer/compare.py --setting images-copies
    python examples/text_transfer/compare.py --setting trec-is --same-as trec-is-distilled

Everything that learns from measured gains learns from other targets' gains on dev, and is judged on
test. Of every way to rank: Spearman with the gain on test; with one and with three sources kept for
each target, the seconds saved, the regret and the share of the attainable gain that is kept, chosen
on dev and reported on test; and after how many trials of a search that takes the sources in this
order 95% of the gain on dev is found, a median over targets. Intervals are bootstrap over targets,
95%.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from analyse import Costs, at_random, ceiling, interval, per_target, read_costs, written
from rich.console import Console
from rich.table import Table
from scores import all_scores
from table import HERE, NO_SOURCE, Array, Measured, load, looked_at

IMAGES = HERE.parent / "tables"
SETTINGS = {
    "trec-is": HERE / "{}-4.csv",
    "trec-is-distilled": HERE / "distilled-{}.csv",
    "mixed": HERE / "mixed-{}.csv",
    "images-scratch": IMAGES / "images-scratch-{}.csv",
    "images-copies": IMAGES / "images-copies-{}.csv",
    "images-close-copies": IMAGES / "images-close-copies-{}.csv",
}
REPORTED = {name: [6, 7, 8] for name in SETTINGS if name.startswith("images")}
"""Seeds, where on the others something was chosen."""
ROWS = {
    "popularity": "popularity",
    "LogME": "LogME",
    "H-score": "H-score",
    "zero-shot average precision": "zero-shot, on few texts",
    "zero-shot, where heads fit": "zero-shot, where heads fit",
    "linear probe": "linear probe",
    "proxy score of all pairs": "proxy score of all pairs",
    "LogME on dev": "LogME, on dev",
    "H-score on dev": "H-score, on dev",
    "linear probe on dev": "linear probe, on dev",
    "gradient embeddings": "gradient embeddings (TaskEmb)",
    "transformer-ranker, H-score": "transformer-ranker, H-score",
    "transformer-ranker, LogME": "transformer-ranker, LogME",
    "hf-dataset-selector": "hf-dataset-selector",
    "attributions, nothing measured": "attributions alone",
    "attributions of whole models": "attributions alone, whole models",
    "attributions, re-ranked": "attributions, re-ranked",
    "attributions, Gaussian process": "attributions fitted on other targets",
    "attributions, Gaussian process, re-ranked": "fitted and re-ranked",
    "all, Gaussian process": "attributions and proxy scores, fitted",
    "attributions, fitted": "attributions fitted, by a ridge",
    "attributions, fitted, re-ranked": "fitted by a ridge and re-ranked",
    "popularity, re-ranked": "popularity, re-ranked",
}
"""What is compared, by the names of scores.py, and how the table calls it."""
KEPT = (1, 3)
COLUMN_FORMS = {"Spearman": "{:.2f}", "trials to 95%": "{:.0f}"}


def table_of(data: Measured, costs: Costs) -> pd.DataFrame:
    """Compare the ways to rank: a row each, every measure a mean over targets and its interval."""
    made = all_scores(data, "target", looked_at(len(data.tasks)), ROWS)
    nothing = data.regret(np.zeros_like(data.dev_gain), 0)
    measured = {"random": (at_random(data), 0.0)}
    if "proxy score of all pairs" in made and "linear probe" in made:
        del made["proxy score of all pairs"]  # that is LogME, or zero-shot
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
        row["trials to 95%"] = interval(values["trials"], np.nanmedian)
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


def for_a_page(table: pd.DataFrame) -> str:
    """Lay the table out for a page, without the seconds that a score takes by itself."""
    table = table.drop(columns="seconds")
    rows = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1)]
    for row in table.itertuples(index=False):
        rows.append([cell(*of) for of in zip(table.columns, row, strict=True)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(column: str, value: object) -> str:
    """Write a measure as the tables do."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        form = "{:.1%}" if column.startswith("saved") else "{:.0f}"
        return "-" if np.isnan(value) else form.format(value)
    assert isinstance(value, tuple)
    form = "{:.0%}" if column.startswith("kept") else COLUMN_FORMS.get(column, "{:.3f}")
    return written(value, form)


def below(data: Measured) -> str:
    """Say what there is to rank."""
    nothing = interval(data.regret(np.zeros_like(data.dev_gain), 0))
    gains = data.test_gain[np.isfinite(data.test_gain)]
    said = (
        f"{len(data.tasks)} targets, {len(data.dev_gain)} seeds. Regret of no transfer: "
        f"{written(nothing, '{:.4f}')}."
        f" Mean gain {gains.mean():.4f}, positive {(gains > 0).mean():.0%}."
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
    parser.add_argument("--same-as", choices=SETTINGS, help="its tasks and seeds only")
    parser.add_argument("--page", action="store_true", help="print tables as pages have them")
    options = parser.parse_args()
    console = Console(width=220)
    for way, metric in product(options.ways, options.metrics):
        data = measured(options.setting, way, metric, options.split, options.same_as)
        if not len(data.dev):
            console.print(f"{options.setting}: no seed of {way} transfer is whole.")
            continue
        table = table_of(data, costs_of(options.setting, data))
        title = f"{options.setting}: {way} transfer, {metric} on {options.split}"
        if options.page:
            print(title, for_a_page(table), sep="\n\n")
        else:
            console.print(printed(table, title))
        console.print(below(data))


def measured(
    setting: str, way: str, metric: str = "f1", split: str = "test", same_as: str | None = None
) -> Measured:
    """Read what was measured of a setting, on the seeds that nothing was chosen on.

    `same_as` leaves only the tasks and seeds of another setting.
    """
    transfers, features, peers = (read(setting, x) for x in ("transfers", "features", "peers"))
    if len(peers):
        # Run on the models of some seeds only.
        of_pairs = peers.drop(columns="seed").groupby(["source", "target"], as_index=False).mean()
        features = features.merge(of_pairs, on=["source", "target"], how="left")
    if same_as is not None:
        others = read(same_as, "features")
        named = {*others["target"], NO_SOURCE}
        transfers, features = (
            table[table["source"].isin(named) & table["target"].isin(named)]
            for table in (transfers, features)
        )
        features = features[features["seed"].isin(others["seed"])]
    seeds = REPORTED.get(setting, features["seed"].unique())
    return load(transfers, features[features["seed"].isin(seeds)], way, metric, split)


def costs_of(setting: str, data: Measured) -> Costs:
    """Read the seconds that the scores of a setting take."""
    seeds = sorted(data.features["seed"].unique())
    return read_costs(file(setting, "overhead"), seeds, file(setting, "peers-overhead"))


def file(setting: str, name: str) -> Path:
    """Find a table of a setting."""
    return Path(str(SETTINGS[setting]).format(name))


def read(setting: str, name: str) -> pd.DataFrame:
    """Read a table of a setting; empty if it has none."""
    path = file(setting, name)
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


if __name__ == "__main__":
    main()
