"""What elimination costs a study: whole-study time with each adapter against the study without.

``python examples/bench_overhead.py [--quick]``. Repeats are interleaved: each runs every adapter
once, in another order, with one seed, and gives one ratio to its own study without. The trials of a
rule that keeps everything are the same with and without it.

``python examples/bench_overhead.py --learning [--finished 100 1000 5000] [--seconds 1]``: what a
`LearningRule` costs a study that so many trials have finished of, from one refit to the next and
all that is between; and, by itself, the first trial of a process, which reads them all.

``python examples/bench_overhead.py --tasks 100 300 1000``: seconds and memory of a `LearningRule`
over all ordered pairs of so many tasks, with 10, 100 and 500 measured transfers.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from transfer_pruner import Decision, EliminationRule, LearningRule, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import TransferPruner, TransferSampler, gate

TASKS = [f"task-{i:02d}" for i in range(20)]
AIM = 1.02


def rule_eliminating(share: float) -> EliminationRule:
    """Eliminate this share of every target's sources."""
    last_kept = round((1 - share) * (len(TASKS) - 1))
    decisions = {}
    for t, target in enumerate(TASKS):
        # The sources that are kept differ from target to target, as a predictor's would.
        ranked = [TASKS[(t + step) % len(TASKS)] for step in range(1, len(TASKS))]
        for rank, source in enumerate(ranked, start=1):
            reason = f"rank {rank} of {len(ranked)} for {target}"
            decisions[source, target] = Decision(rank > last_kept, -0.01 * rank, 0.5, reason)
    return EliminationRule(decisions, {"rule": "by hand", "share": share})


def objective_of(seconds: float, *, asks_pruner: bool = False) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", TASKS)
        trial.suggest_categorical("target", TASKS)
        lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        trial.suggest_int("layers", 1, 4)
        if asks_pruner and trial.should_prune():
            raise optuna.TrialPruned
        if seconds:
            time.sleep(seconds)
        return lr

    return objective


@dataclass(frozen=True)
class Setting:
    """One row group of the table."""

    title: str
    seconds: float
    share_eliminated: float
    trials: dict[str, int]
    repeats: int


SETTINGS = (
    Setting("1 s, all kept", 1.0, 0.0, {"memory": 6, "sqlite": 6}, 3),
    Setting("empty, all kept", 0.0, 0.0, {"memory": 300, "sqlite": 20}, 5),
    Setting("0.25 s, 80% eliminated", 0.25, 0.8, {"memory": 16, "sqlite": 16}, 3),
)
QUICK = (
    Setting("0.1 s, all kept", 0.1, 0.0, {"memory": 4, "sqlite": 4}, 1),
    Setting("empty, all kept", 0.0, 0.0, {"memory": 50, "sqlite": 8}, 2),
    Setting("0.1 s, 80% eliminated", 0.1, 0.8, {"memory": 10, "sqlite": 10}, 1),
)
ADAPTERS = ("none", "gate", "TransferPruner", "TransferSampler")


@dataclass(frozen=True)
class Run:
    """One whole study."""

    seconds: float
    cpu_seconds: float
    trials: int
    trained: int


def run(setting: Setting, where: str, adapter: str, seed: int) -> Run:
    rule = rule_eliminating(setting.share_eliminated)
    sampler: BaseSampler = RandomSampler(seed=seed)
    if adapter == "TransferSampler":
        sampler = TransferSampler(rule, base_sampler=sampler)
    pruner = TransferPruner(rule) if adapter == "TransferPruner" else optuna.pruners.NopPruner()
    objective = objective_of(setting.seconds, asks_pruner=adapter == "TransferPruner")
    if adapter == "gate":
        objective = gate(objective, rule)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db" if where == "sqlite" else None
        study = optuna.create_study(storage=storage, sampler=sampler, pruner=pruner)
        started, cpu_started = time.perf_counter(), time.process_time()
        study.optimize(objective, n_trials=setting.trials[where])
        cpu_seconds = time.process_time() - cpu_started
        seconds = time.perf_counter() - started
        trials = study.get_trials(deepcopy=False)
        trained = sum(trial.state == TrialState.COMPLETE for trial in trials)
    return Run(seconds, cpu_seconds, len(trials), trained)


def spread(values: list[float], form: str) -> str:
    median = f"{statistics.median(values):{form}}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):{form}} to {max(values):{form}})"


def compare(setting: Setting, where: str, adapters: list[str]) -> list[list[str]]:
    runs: dict[str, list[Run]] = {adapter: [] for adapter in adapters}
    for repeat in range(setting.repeats):
        turn = repeat % len(adapters)
        for adapter in adapters[turn:] + adapters[:turn]:
            runs[adapter].append(run(setting, where, adapter, seed=repeat))
    rows = []
    for adapter in adapters:
        pairs = list(zip(runs[adapter], runs["none"], strict=True))
        trained = (
            f"{sum(r.trained for r in runs[adapter])} of {sum(r.trials for r in runs[adapter])}"
        )
        if adapter == "none":
            ms = [1000 * without.seconds / without.trials for _, without in pairs]
            cpu_ms = [1000 * without.cpu_seconds / without.trials for _, without in pairs]
            cells = ["1", "", spread(ms, ".1f"), spread(cpu_ms, ".1f")]
        else:
            ratios = [ours.seconds / without.seconds for ours, without in pairs]
            ms = [
                1000 * (ours.seconds - without.seconds) / without.trials for ours, without in pairs
            ]
            cpu_ms = [
                1000 * (ours.cpu_seconds - without.cpu_seconds) / without.trials
                for ours, without in pairs
            ]
            aim = ""
            if setting.seconds == 1.0 and not setting.share_eliminated:
                aim = "met" if statistics.median(ratios) <= AIM else "missed"
            cells = [spread(ratios, ".3f"), aim, spread(ms, "+.1f"), spread(cpu_ms, "+.1f")]
        rows.append([setting.title, where, adapter, *cells, trained])
    return rows


LEARNING = ("none", "gate + LearningRule", "TransferSampler + LearningRule")
SPACE = {
    "source": CategoricalDistribution(TASKS),
    "target": CategoricalDistribution(TASKS),
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "layers": IntDistribution(1, 4),
}


def learning_rule(tasks: list[str]) -> tuple[LearningRule, pd.DataFrame]:
    """Make a rule that knows a score of every pair and how alike tasks are; and its pairs."""
    rng = np.random.default_rng(0)
    alike = pd.DataFrame(np.corrcoef(rng.normal(size=(len(tasks), 64))), tasks, tasks)
    pairs = ordered_pairs(tasks).assign(
        attribution_score=rng.normal(size=len(tasks) ** 2)[: -len(tasks)]
    )
    predictor = TransferPredictor(feature_columns=["attribution_score"], similarity=alike)
    return LearningRule(predictor, pairs=pairs), pairs


def finished_trials(count: int) -> list[FrozenTrial]:
    """Make trials that have finished: every target's baseline, then pairs at random."""
    rng = np.random.default_rng(0)
    quality = dict(zip(TASKS, rng.normal(0, 0.05, len(TASKS)), strict=True))
    trials = []
    for number in range(count):
        target = TASKS[number % len(TASKS)]
        source = target if number < len(TASKS) else TASKS[int(rng.integers(len(TASKS)))]
        gain = quality[source] if source != target else 0.0
        params = {"source": source, "target": target, "lr": 10 ** rng.uniform(-5, -1), "layers": 2}
        value = 0.5 + gain + rng.normal(0, 0.02)
        trials.append(create_trial(params=params, distributions=SPACE, value=value))
    return trials


def study_of(count: int, url: str | None) -> optuna.Study:
    """Make a study of finished trials; nothing waits for the disk meanwhile."""
    storage = None if url is None else RDBStorage(url)
    if storage is not None:
        event.listen(
            storage.engine, "connect", lambda db, _: db.execute("PRAGMA synchronous = OFF")
        )
        storage.engine.dispose()
    study = optuna.create_study(storage=storage, study_name="bench", direction="maximize")
    study.add_trials(finished_trials(count))
    return study


@dataclass(frozen=True)
class Grown:
    """What trials took in a study that many others have finished of."""

    first: float
    each: float
    each_cpu: float


def grown(
    count: int, made: Path | None, adapter: str, n_trials: int, seconds_each: float = 0.0
) -> Grown:
    """Run one trial, which reads the study, and then others."""
    rule, _ = learning_rule(TASKS)
    sampler: BaseSampler = RandomSampler(seed=0)
    if adapter == "TransferSampler + LearningRule":
        sampler = TransferSampler(rule, base_sampler=sampler)
    rng = np.random.default_rng(1)

    def objective(trial: optuna.Trial) -> float:
        objective_of(seconds_each)(trial)
        return float(rng.normal(0.5, 0.05))

    judged = gate(objective, rule) if adapter.startswith("gate") else objective
    with tempfile.TemporaryDirectory() as folder:
        if made is None:
            study = study_of(count, None)
        else:
            url = f"sqlite:///{shutil.copy(made, folder)}"
            study = optuna.load_study(storage=url, study_name="bench")
        study.sampler = sampler
        started = time.perf_counter()
        study.optimize(judged, n_trials=1)
        first = time.perf_counter() - started
        started, cpu_started = time.perf_counter(), time.process_time()
        study.optimize(judged, n_trials=n_trials)
        cpu, seconds = time.process_time() - cpu_started, time.perf_counter() - started
    return Grown(first, seconds / n_trials, cpu / n_trials)


def compare_learning(counts: list[int], repeats: int, seconds_each: float) -> Table:
    """Time studies with and without a rule that learns; repeats are interleaved."""
    table = Table(
        *("finished", "storage", "adapter", "first trial, s", "ms a trial", "of them CPU"),
        *("ratio",),
        title=f"A trial of {seconds_each:g} s of a study that has grown, median (range) of "
        "interleaved repeats",
    )
    for count in counts:
        n_trials = max(20, count // 50)
        for where in ("memory", "sqlite"):
            runs: dict[str, list[Grown]] = {adapter: [] for adapter in LEARNING}
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / "study.db" if where == "sqlite" else None
                if made is not None:
                    study_of(count, f"sqlite:///{made}")
                for repeat in range(repeats):
                    turn = repeat % len(LEARNING)
                    for adapter in LEARNING[turn:] + LEARNING[:turn]:
                        runs[adapter].append(grown(count, made, adapter, n_trials, seconds_each))
            for adapter, found in runs.items():
                pairs = zip(found, runs["none"], strict=True)
                ratios = [run.each / without.each for run, without in pairs]
                table.add_row(
                    str(count),
                    where,
                    adapter,
                    spread([run.first for run in found], ".2f"),
                    spread([1000 * run.each for run in found], ".1f"),
                    spread([1000 * run.each_cpu for run in found], ".1f"),
                    "1" if adapter == "none" else spread(ratios, ".3f"),
                )
        table.add_section()
    return table


def weigh(n_tasks: int) -> list[str]:
    """Make a rule of very many pairs and have it learn, in this process; one row of the table."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def seconds(action: Callable[[], object]) -> str:
        started = time.process_time()
        action()
        return f"{time.process_time() - started:.2f}"

    LearningRule(TransferPredictor(), pairs=ordered_pairs(TASKS[:3])).refitted(
        pd.DataFrame({"source": [TASKS[0]], "target": [TASKS[1]], "gain": [0.1]})
    )
    before = peak()
    started = time.process_time()
    rule, pairs = learning_rule([f"task-{i:04}" for i in range(n_tasks)])
    made = f"{time.process_time() - started:.2f}"
    measured = pairs.sample(500, random_state=0)
    gains = np.random.default_rng(2).normal(0, 0.02, len(measured))
    measured = measured.assign(gain=gains + 0.02 * measured["attribution_score"])
    refits = [seconds(lambda n=n: rule.refitted(measured[:n])) for n in (10, 100, 500)]  # type: ignore[misc]
    pickled = len(pickle.dumps(rule)) / 1e6
    return [
        str(n_tasks),
        f"{len(pairs):,}",
        made,
        *refits,
        f"{pickled:.1f}",
        f"{peak() - before:.0f}",
    ]


def weigh_all(counts: list[int]) -> Table:
    """Weigh rules one after the other, each in a process of its own."""
    table = Table(
        *("tasks", "pairs", "made", "refit, 10 measured", "100", "500", "pickled, MB"),
        *("peak memory, MiB more",),
        title="A LearningRule of very many pairs, seconds of CPU",
    )
    for count in counts:
        command = [sys.executable, __file__, "--one", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        table.add_row(*done.stdout.strip().split(";"))
    return table


def compare_all(settings: tuple[Setting, ...], adapters: list[str]) -> Table:
    """Time whole studies with each adapter and without."""
    # What is imported on first use is not a study's to pay for.
    for adapter in adapters:
        for where in ("memory", "sqlite"):
            run(Setting("warm-up", 0.0, 0.5, {where: 3}, 1), where, adapter, seed=0)
    table = Table(
        *("trial", "storage", "adapter", "study's time, ratio", f"aim: {AIM}"),
        *("ms a trial", "of them CPU", "trained"),
        title="Whole studies, median (range) of interleaved repeats",
    )
    for setting in settings:
        for where in setting.trials:
            for row in compare(setting, where, adapters):
                table.add_row(*row)
            table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    parser.add_argument("--learning", action="store_true", help="a rule that learns, instead")
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--repeats", type=int, default=3, help="of --learning")
    parser.add_argument("--seconds", type=float, default=0.0, help="of a trial of --learning")
    parser.add_argument("--tasks", type=int, nargs="+", help="rules over so many tasks, instead")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*weigh(options.one), sep=";")
        return
    settings = QUICK if options.quick else SETTINGS
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    adapters = [*ADAPTERS]
    started, load = time.perf_counter(), os.getloadavg()[0]
    console = Console(width=max(150, Console().width))
    if options.tasks:
        console.print(weigh_all(options.tasks))
    elif options.learning:
        grown(30, None, LEARNING[-1], 3)
        console.print(compare_learning(options.finished, options.repeats, options.seconds))
    else:
        console.print(compare_all(settings, adapters))
    console.print(
        f"{platform.platform()}, Python {platform.python_version()}, Optuna {optuna.__version__}, "
        f"{os.cpu_count()} cores, load average {load:.1f} at the start and "
        f"{os.getloadavg()[0]:.1f} at the end, {time.perf_counter() - started:.0f} s."
    )


if __name__ == "__main__":
    main()
