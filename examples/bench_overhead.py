"""What elimination costs a study: whole-study time with each adapter against the study without.

``python examples/bench_overhead.py [--quick]``. Repeats are interleaved: each runs every adapter
once, in another order, with one seed, and gives one ratio to its own study without. The trials of a
rule that keeps everything are the same with and without it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from transfer_pruner import Decision, EliminationRule
from transfer_pruner_optuna import TransferPruner, gate

try:
    from transfer_pruner_optuna.sampler import TransferSampler
except ImportError:
    TransferSampler = None  # type: ignore[assignment, misc]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    settings = QUICK if parser.parse_args().quick else SETTINGS
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    adapters = [a for a in ADAPTERS if a != "TransferSampler" or TransferSampler is not None]
    started, load = time.perf_counter(), os.getloadavg()[0]
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
    console = Console(width=max(150, Console().width))
    console.print(table)
    console.print(
        f"{platform.platform()}, Python {platform.python_version()}, Optuna {optuna.__version__}, "
        f"{os.cpu_count()} cores, load average {load:.1f} at the start and "
        f"{os.getloadavg()[0]:.1f} at the end, {time.perf_counter() - started:.0f} s."
    )


if __name__ == "__main__":
    main()
