"""What the tracker costs: a study with it against one without, and decisions against child runs.

python examples/bench_mlflow.py             # an SQLite store in a temporary folder
python examples/bench_mlflow.py --tracking-uri http://127.0.0.1:5000
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from typing import Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import Param
from optuna.distributions import CategoricalDistribution

from transfer_pruner import Decision, EliminationRule, TrialRecord
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate

TASKS = [f"task-{i}" for i in range(14)]
SPACE: dict[str, Any] = {
    "source": CategoricalDistribution(TASKS),
    "target": CategoricalDistribution(TASKS),
}
RULE = EliminationRule(
    {
        (s, t): Decision((i + j) % 4 == 0, 0.1, 0.5, "rank 9 of 13; the rule keeps 9")
        for i, s in enumerate(TASKS)
        for j, t in enumerate(TASKS)
        if s != t
    },
    {},
)


def study_seconds(tracking_uri: str | None, n_trials: int, seconds: float) -> float:
    """Time a gated study whose objective sleeps; closing the tracker does not count."""

    def objective(trial: optuna.Trial) -> float:
        time.sleep(seconds)
        return 1.0

    tracker = SavingsTracker("bench", tracking_uri=tracking_uri) if tracking_uri else None
    with tracker or nullcontext():
        gated = gate(objective, RULE, search_space=SPACE, tracker=tracker)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        began = time.perf_counter()
        study.optimize(gated, n_trials=n_trials)
        return time.perf_counter() - began


def decisions_seconds(tracking_uri: str, n: int) -> tuple[float, float]:
    """Time n decisions: to record them, and until MLflow has them."""
    tracker = SavingsTracker("bench", tracking_uri=tracking_uri, close_seconds=600)
    began = time.perf_counter()
    with tracker:
        entered = time.perf_counter()
        for i in range(n):
            outcome = "eliminated" if i % 4 else "trained"
            source, target = TASKS[i % 14], TASKS[i // 14 % 14]
            tracker.record(TrialRecord(i, source, target, outcome, 0.1, 0.5, 0.1, 0.5, "rank 9"))  # type: ignore[arg-type]
        recorded = time.perf_counter() - entered
    return recorded, time.perf_counter() - began


def child_run_seconds(tracking_uri: str, n: int) -> float:
    """Time what logging n eliminated trials as runs of their own takes, for one of them."""
    client = MlflowClient(tracking_uri)
    experiment = client.create_experiment(f"bench, child runs, {time.time()}")
    began = time.perf_counter()
    for i in range(n):
        run = client.create_run(experiment, tags={"mlflow.parentRunId": "0" * 32})
        params = [Param("source", TASKS[i % 14]), Param("target", TASKS[i // 14 % 14])]
        client.log_batch(run.info.run_id, params=params)
        client.set_terminated(run.info.run_id, "KILLED")
    return (time.perf_counter() - began) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracking-uri")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--trial-seconds", type=float, default=0.2)
    parser.add_argument("--decisions", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.chdir(tempfile.mkdtemp(prefix="bench_mlflow_"))
    uri = arguments.tracking_uri or f"sqlite:///{os.getcwd()}/mlflow.db"
    MlflowClient(uri).search_experiments()

    ratios = []
    for _ in range(arguments.repeats):
        size = (arguments.trials, arguments.trial_seconds)
        without, tracked = study_seconds(None, *size), study_seconds(uri, *size)
        ratios.append(tracked / without)
    print(
        f"a study of {arguments.trials} trials of {arguments.trial_seconds} s, tracked against "
        f"untracked: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})"
    )
    recorded, sent = decisions_seconds(uri, arguments.decisions)
    child = child_run_seconds(uri, 100)
    print(
        f"{arguments.decisions} decisions: {recorded:.2f} s to record, {sent:.1f} s until MLflow "
        f"has them; as child runs {child * arguments.decisions:.0f} s at {child * 1000:.0f} ms "
        f"each: {child * arguments.decisions / sent:.0f} times as long"
    )


if __name__ == "__main__":
    main()
