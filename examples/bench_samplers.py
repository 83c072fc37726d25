"""What does elimination do to each of Optuna's samplers? Searches over measured transfers.

    python examples/bench_samplers.py
    python examples/bench_samplers.py --targets Location Weather --seeds 3
    python examples/bench_samplers.py --gp-targets 25 --gp-seeds 10 --figure docs/search.png
    python examples/bench_samplers.py --transfer joint --samplers TPE
    python examples/bench_samplers.py --tasks digits --samplers TPE --seeds 2

One study for each target: the source, or none, and the hyperparameters. The objective looks up the
dev score that was measured, so that a search takes no training.

TREC-IS (text_transfer/transfers-4.csv, mean over seeds): 24 sources or none, two learning rates.
The rule keeps k of 24 sources: eight by attributions, from predictions that never saw a transfer to
the target, and of these those whose source models score best on the target's dev texts as they are
(`EliminationRule.refine`). The digits: 13 sources or none, two learning rates and numbers of
epochs, on splits 6 to 9, which nothing was chosen on (splits.py measures what is missing, two
minutes a split). The rule keeps k of 13 by attributions alone, and the proxy score is the H-score.

Where it says learning there is a `LearningRule` instead: it knows the attributions, or also how
eight sources scored that are best by them, and learns from the search's own trials only.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from surfaces import Surface, digits, trec_is
from transfer_pruner import EliminationRule, LearningRule
from transfer_pruner.plotting.style import KEPT, NEUTRAL, SAVED, bare, new_figure
from transfer_pruner_optuna import gate
from transfer_pruner_optuna.sampler import TransferSampler

HERE = Path(__file__).parent / "text_transfer"
sys.path.append(str(HERE))  # its files are scripts that import each other, not a package
from analyse import interval  # noqa: E402
from table import LOOKED  # noqa: E402

SPLITS = (6, 7, 8, 9)
"""Of the digits: the attribution score was chosen on others."""
MOST_ENTERED = 10
"""A search is given up after so many times the trials that it was to finish."""


SAMPLERS: dict[str, Callable[[Surface, int], BaseSampler]] = {
    "Random": lambda _, seed: optuna.samplers.RandomSampler(seed=seed),
    "QMC": lambda _, seed: optuna.samplers.QMCSampler(
        scramble=True, seed=seed, warn_independent_sampling=False
    ),
    "NSGA-II": lambda _, seed: optuna.samplers.NSGAIISampler(population_size=10, seed=seed),
    "CMA-ES": lambda _, seed: optuna.samplers.CmaEsSampler(
        seed=seed, warn_independent_sampling=False
    ),
    "TPE": lambda _, seed: optuna.samplers.TPESampler(seed=seed),
    "GP": lambda _, seed: optuna.samplers.GPSampler(seed=seed),
    "Grid": lambda surface, seed: optuna.samplers.GridSampler(
        {"source": surface.sources, "setting": range(surface.scores.shape[1])}, seed=seed
    ),
    "BruteForce": lambda _, seed: optuna.samplers.BruteForceSampler(seed=seed),
}


LEARNING = {
    "TransferSampler, learning": 0,
    "TransferSampler, learning, eight re-ranked": LOOKED,
}
"""How many of the best sources by attributions the rule knows a proxy score of."""
LINES = {
    ("TPE", "TransferSampler, learning, eight re-ranked"): (
        "transfer_pruner: attributions, eight sources re-ranked"
    ),
    ("TPE", "TransferSampler, learning"): "transfer_pruner: attributions alone",
    ("GP", "alone"): "GP",
    ("TPE", "alone"): "TPE",
    ("Random", "alone"): "random",
}
"""What the figure shows, and what it is called there."""


def search(
    surface: Surface,
    rule: EliminationRule | LearningRule,
    name: str,
    way: str,
    seed: int,
    n_trials: int,
) -> dict[str, object]:
    """Run one study until so many trials have finished; say what it found and what it took."""
    # Targets list their sources alike: with equal seeds their searches would go alike too.
    seed = zlib.crc32(f"{surface.name} {seed}".encode())
    objective, sampler = surface.objective, SAMPLERS[name](surface, seed)
    if way == "gate":
        objective = gate(objective, rule, search_space=surface.space, target=surface.target)
    elif way != "alone":
        sampler = TransferSampler(rule, sampler, target=surface.target, seed=seed)

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= n_trials:
            study.stop()

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=n_trials * MOST_ENTERED, callbacks=[stop])
    trials = study.get_trials(deepcopy=False)
    values = np.array([trial.value for trial in trials if trial.state == TrialState.COMPLETE])
    sources = {trial.params["source"] for trial in trials if trial.state == TrialState.COMPLETE}
    last = rule.refitted() if isinstance(rule, LearningRule) else rule
    hits = np.flatnonzero(values >= surface.enough - 1e-12)
    best = np.maximum.accumulate(values[:n_trials])
    return {
        "best": np.pad(best, (0, n_trials - len(best)), mode="edge"),
        "until": float(hits[0] + 1) if len(hits) else np.inf,
        "lost": surface.best - values.max(initial=0.0),
        "lost early": surface.best - values[:10].max(initial=0.0),
        "finished": len(values),
        "entered": len(trials),
        "eliminated": len(trials) - len(values),
        "surviving": sum(not last.decide(s, surface.target).eliminated for s in sources),
    }


def searches(surfaces: list[Surface], options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for name in options.samplers:
        few = name == "GP"
        seeds = options.gp_seeds if few else options.seeds
        ways = ["alone", "gate"]
        if name not in ("Grid", "BruteForce"):
            ways += ["TransferSampler", *LEARNING]
        ways = [way for way in ways if way in options.ways]
        if options.figure:
            ways = [way for way in ways if (name, way) in LINES]
        for way in ways:
            begun = time.perf_counter()
            for surface in surfaces[: options.gp_targets if few else None]:
                for seed in range(seeds):
                    learns = way in LEARNING
                    rule = surface.learning(LEARNING[way]) if learns else surface.rule
                    found = search(surface, rule, name, way, seed, options.trials)
                    yield {"sampler": name, "way": way, "target": surface.name, **found}
            print(f"{name}, {way}: {time.perf_counter() - begun:.0f} seconds", flush=True)


def quartiles(values: pd.Series) -> str:
    low, middle, high = np.quantile(values.to_numpy(), [0.25, 0.5, 0.75], method="nearest")
    cells = ["never" if np.isinf(x) else f"{x:.0f}" for x in (low, middle, high)]
    return f"{cells[1]} ({cells[0]}, {cells[2]})"


def mean_over_targets(rows: pd.DataFrame, column: str) -> str:
    low_high = interval(rows.groupby("target")[column].mean().to_numpy())
    return "{:.4f} ({:.4f}, {:.4f})".format(*low_high)


def draw(rows: pd.DataFrame, surfaces: list[Surface], metric: str, file: Path) -> None:
    """Draw the best dev score against finished trials, mean over targets and seeds."""
    figure = new_figure(height=4.5, width=8.0)
    axes = figure.add_subplot()
    styles = [(KEPT, "-"), (SAVED, "-"), (NEUTRAL, "--"), (NEUTRAL, "-."), (NEUTRAL, ":")]
    for ((name, way), label), (colour, style) in zip(LINES.items(), styles, strict=True):
        of = rows[(rows["sampler"] == name) & (rows["way"] == way)]
        if len(of):
            by_target = [np.mean([*best], axis=0) for _, best in of.groupby("target")["best"]]
            best = np.mean(by_target, axis=0)
            trials = 1 + np.arange(len(best))
            axes.plot(trials, best, style, color=colour, label=label, linewidth=2)
    for score, what in (("best", "the best of all settings"), ("alone", "no transfer")):
        height = np.mean([getattr(surface, score) for surface in surfaces])
        axes.axhline(height, color=NEUTRAL, linewidth=0.7)
        at = (0.99, height)
        placed = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.annotate(what, at, color=NEUTRAL, **placed)
    low, high = (np.mean([getattr(x, name) for x in surfaces]) for name in ("alone", "best"))
    axes.set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))
    axes.set_xlabel("finished trials of a study")
    axes.set_ylabel(f"best {metric.upper()} on dev so far, mean over {len(surfaces)} targets")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.12))
    bare(axes)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", choices=["trec-is", "digits"], default="trec-is")
    parser.add_argument("--transfer", choices=["sequential", "joint"], default="sequential")
    parser.add_argument("--targets", nargs="+", metavar="TASK", help="all if left out")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    ways = ["alone", "gate", "TransferSampler", *LEARNING]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--trials", type=int, default=25, help="that a search is to finish")
    parser.add_argument("--k", type=int, help="sources that the rule keeps; 6 of 24, 3 of 13")
    parser.add_argument("--by", default="attributions, fitted, re-ranked", help="a predictor")
    parser.add_argument("--metric", default="f1")
    parser.add_argument("--gp-targets", type=int, default=5, help="a GP is slow: the first so many")
    parser.add_argument("--gp-seeds", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="draw the searches that it shows, no others")
    options = parser.parse_args()
    optuna.logging.set_verbosity(logging.ERROR)
    if options.tasks == "digits" and options.transfer == "joint":
        parser.error("--transfer joint: of the digits only sequential transfer is measured")
    if options.tasks == "digits":
        k = options.k or 3
        surfaces = digits(SPLITS, k)
    else:
        k = options.k or 6
        surfaces = trec_is(options.transfer, options.metric, options.by, k)
    known = {surface.target for surface in surfaces}
    if unknown := set(options.targets or []) - known:
        parser.error(f"--targets: {', '.join(sorted(unknown))} not among {sorted(known)}")
    surfaces = [s for s in surfaces if not options.targets or s.target in options.targets]
    rows = pd.DataFrame(searches(surfaces, options))

    settings = surfaces[0].scores.size
    table = Table(title=f"{options.trials} finished trials of {settings} settings")
    table.add_column("sampler")
    table.add_column("elimination")
    for column in ("until 95%", "reached", "lost after 10", "lost at the end", "finished"):
        table.add_column(column, justify="right")
    for column in ("entered", "eliminated", "surviving pairs"):
        table.add_column(column, justify="right")
    for (name, way), of in rows.groupby(["sampler", "way"], sort=False):
        table.add_row(
            str(name),
            str(way),
            quartiles(of["until"]),
            f"{np.isfinite(of['until']).mean():.0%}",
            mean_over_targets(of, "lost early"),
            mean_over_targets(of, "lost"),
            quartiles(of["finished"]),
            quartiles(of["entered"]),
            quartiles(of["eliminated"]),
            quartiles(of["surviving"]),
        )
    console = Console(width=190)
    console.print(table)
    if options.figure:
        draw(rows, surfaces, options.metric, options.figure)
    attainable = np.array([surface.best - surface.alone for surface in surfaces])
    lost = np.array([surface.best - surface.best_kept() for surface in surfaces])
    reachable = [surface.best_kept() >= surface.enough - 1e-12 for surface in surfaces]
    console.print(
        f"Until 95%, finished, entered, eliminated, surviving pairs: median (quartiles) over "
        f"targets and seeds. Lost: exhaustive best dev score minus the search's, mean over targets "
        f"(95% bootstrap interval); after the first 10 finished trials and at the end.\n"
        f"{len(surfaces)} targets, {options.seeds} seeds; GP: the first "
        f"{min(options.gp_targets, len(surfaces))} targets, {options.gp_seeds} seeds. A search is "
        f"given up after {MOST_ENTERED * options.trials} trials.\n"
        f"On dev the best source gains {attainable.mean():.4f} {options.metric} over the baseline. "
        f"A perfect search among what the rule keeps ({k} sources and the baseline) loses "
        f"{lost.mean():.4f}, and can reach 95% of the gain for {np.mean(reachable):.0%} of targets."
    )


if __name__ == "__main__":
    main()
