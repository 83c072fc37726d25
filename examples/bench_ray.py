"""The same search in Ray Tune: plain, with the scheduler, the filter, the generator, the searcher.

    python examples/bench_ray.py            # the digits, then a grid of 10,000 trials
    python examples/bench_ray.py --digits   # one of the two
    python examples/bench_ray.py --grid

Every way runs in a process and a Ray of its own. Actors are those of Ray's actor table, so that
what an eliminated trial costs cannot hide. The searcher draws from the space, as many trials as
the others run: it may draw a trial twice, and has another best.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table

from transfer_pruner import Decision, EliminationRule, TransferPredictor, embed, regret
from transfer_pruner_ray import (
    TransferScheduler,
    TransferSearcher,
    TransferVariantGenerator,
    filter_param_space,
)

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
LRS = [2e-3, 1e-2]
WAYS = ("plain", "scheduler", "filter", "generator", "searcher")


def tuner_settings(
    way: str, space: dict[str, Any], rule: EliminationRule
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the rule where this way has it: param_space and arguments of TuneConfig."""
    if way == "scheduler":
        return space, {"scheduler": TransferScheduler(rule)}
    if way == "filter":
        return filter_param_space(space, rule), {}
    if way == "generator":
        return space, {"search_alg": TransferVariantGenerator(rule)}
    if way == "searcher":
        drawn = {name: tune.choice(values["grid_search"]) for name, values in space.items()}
        kept = sum(
            not rule.decide(source, target).eliminated
            for source in space["source"]["grid_search"]
            for target in space["target"]["grid_search"]
        )
        n_trials = kept * len(space["lr"]["grid_search"])
        search = TransferSearcher(OptunaSearch(seed=0), rule)
        return drawn, {"search_alg": search, "num_samples": n_trials}
    return space, {}


def train_digits(config: dict[str, Any], models: dict[str, Any]) -> None:
    import torch

    import digits

    torch.set_num_threads(1)
    source = None if config["source"] == config["target"] else models[config["source"]]
    dev, test = digits.transfer_scores(source, config["target"], config["lr"], epochs=20)
    tune.report({"dev": dev, "test": test})


def train_nothing(config: dict[str, Any]) -> None:
    tune.report({"dev": 0.0})


def run(way: str, kind: str, reuse_actors: bool, folder: str) -> None:
    """Do one search; write its figures into the folder."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    space: dict[str, Any]
    if kind == "digits":
        import digits

        models = {task: digits.source_model(task) for task in TASKS}
        embeddings = {
            task: embed(model, digits.PROBE, name=task, target=1) for task, model in models.items()
        }
        rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)
        trainable = tune.with_parameters(train_digits, models=models)
        names = TASKS, TASKS, LRS
    else:
        tasks = [f"s{i}" for i in range(50)], [f"t{i}" for i in range(20)]
        # 50 x 20 pairs x 10 settings; every twentieth pair is kept.
        rule = EliminationRule(
            {
                (source, target): Decision((i + j) % 20 != 0, 0.0, 0.5, "")
                for i, source in enumerate(tasks[0])
                for j, target in enumerate(tasks[1])
            },
            {},
        )
        trainable, names = train_nothing, (*tasks, list(range(10)))
    space = {
        name: tune.grid_search(list(values))
        for name, values in zip(("source", "target", "lr"), names, strict=True)
    }
    if kind == "grid" and way == "plain":
        # What is left, as somebody would write it who knows it already.
        kept = [(source, target) for target in tasks[1] for source in rule.kept(target)]
        space = {
            "pair": tune.grid_search([{"source": s, "target": t} for s, t in kept]),
            "lr": space["lr"],
        }
    begun, cpu = time.perf_counter(), time.process_time()
    space, settings = tuner_settings(way, space, rule)
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="dev", mode="max", reuse_actors=reuse_actors, **settings
        ),
        run_config=tune.RunConfig(name=way, storage_path=folder, verbose=0),
    )
    grid = tuner.fit()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    # ResourceChanging and others start actors too: none of ours.
    actors = sum(
        "ImplicitFunc" in actor["ActorClassName"] for actor in ray._private.state.actors().values()
    )
    ran = [result for result in grid if "dev" in (result.metrics or {})]
    trials = [
        (r.config["source"], r.config["target"], r.metrics["dev"], r.metrics["test"])
        for r in ran
        if kind == "digits" and r.config and r.metrics
    ]
    found = {
        "trials": len(grid),
        "ran": len(ran),
        "actors": actors,
        "seconds": seconds,
        "driver_cpu": cpu,
        "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "scores": trials,
    }
    Path(folder, "found.json").write_text(json.dumps(found))
    ray.shutdown()


def in_a_process(way: str, kind: str, reuse_actors: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        one = [way, kind, "reuse" if reuse_actors else "fresh", folder]
        command = [sys.executable, __file__, "--one", *one]
        subprocess.run(command, check=True, capture_output=True)
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return found


def of_digits(console: Console) -> None:
    table = Table(title="Digits: 6 x 6 pairs x 2 learning rates, 2 sources of 5 kept")
    for column in ("way", "reuse_actors", "trials", "ran", "actors", "s", "best dev F1", "regret"):
        table.add_column(column, justify="left" if column == "way" else "right")
    everything: pd.DataFrame | None = None
    for reuse_actors in (False, True):
        for way in WAYS:
            found = in_a_process(way, "digits", reuse_actors)
            columns = ["source", "target", "dev", "test"]
            scores = pd.DataFrame(found["scores"], columns=columns)
            if everything is None:
                everything = scores
            lost = lost_by(everything, scores)
            table.add_row(
                *(way, "yes" if reuse_actors else "no", str(found["trials"]), str(found["ran"])),
                *(str(found["actors"]), f"{found['seconds']:.0f}"),
                *(f"{scores.groupby('target')['dev'].max().mean():.4f}", f"{lost:.4f}"),
            )
            console.print(f"{way}, reuse_actors={reuse_actors}: {found['seconds']:.0f} s")
    console.print(table)
    assert everything is not None
    nothing = regret(everything, [])
    console.print(f"Regret of no transfer at all: {nothing.regret:.4f} (test F1).")


def lost_by(everything: pd.DataFrame, scores: pd.DataFrame) -> float:
    """Mean over targets of what the exhaustive search's choice scores more on test."""

    def chosen(trials: pd.DataFrame) -> pd.Series:
        return trials.loc[trials.groupby("target")["dev"].idxmax()].set_index("target")["test"]

    return float((chosen(everything) - chosen(scores)).mean())


def of_grid(console: Console, repeats: int) -> None:
    table = Table(
        title=f"10,000 trials of which 500 are kept, against a plain grid of the 500; {repeats} "
        "repeats, median ratio (lowest to highest)"
    )
    for column in ("way", "trials", "ran", "actors", "seconds", "driver CPU", "driver memory"):
        table.add_column(column, justify="left" if column == "way" else "right")
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for way in ("plain", "filter", "generator", "scheduler"):
            found.setdefault(way, []).append(in_a_process(way, "grid", reuse_actors=True))
            console.print(f"{way}: {found[way][-1]['seconds']:.0f} s")
    for way, runs in found.items():
        cells = []
        for measure in ("seconds", "driver_cpu", "driver_mib"):
            ratios = [
                one[measure] / plain[measure]
                for one, plain in zip(runs, found["plain"], strict=True)
            ]
            middle = statistics.median(ratios)
            cells.append(f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        first = runs[0]
        counts = [str(first[count]) for count in ("trials", "ran", "actors")]
        table.add_row(way, *counts, *cells)
    console.print(table)
    plain = found["plain"][0]
    console.print(
        f"Plain: {plain['seconds']:.0f} s, {plain['driver_cpu']:.0f} s of the driver's CPU, "
        f"{plain['driver_mib']:.0f} MiB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, kind, reuse, folder = options.one
        run(way, kind, reuse == "reuse", folder)
        return
    console = Console(width=140)
    console.print(f"{platform.platform()}, {os.cpu_count()} cores, Ray {ray.__version__}")
    if options.digits or not options.grid:
        of_digits(console)
    if options.grid or not options.digits:
        of_grid(console, options.repeats)


if __name__ == "__main__":
    main()
