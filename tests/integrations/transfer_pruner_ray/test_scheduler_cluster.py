"""On a cluster of three nodes: whatever is killed, nothing is lost and nothing eliminated runs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import cloudpickle, tune
from ray.cluster_utils import Cluster
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

import transfer_pruner
import transfer_pruner_ray
from transfer_pruner import LearningRule, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner_ray.marks import ELIMINATED
from transfer_pruner_ray.scheduler import TransferScheduler

pytestmark = pytest.mark.slow

TASKS = ["a", "b", "c", "d", "e"]
RUN_PICKLED = "import sys; from ray import cloudpickle; cloudpickle.load(open(sys.argv[1], 'rb'))()"


def train_pair(out: Path, seconds: float) -> Callable[[dict[str, Any]], None]:
    """Make the trainable, which workers get whole: they cannot import this module."""

    def train_pair(config: dict[str, Any]) -> None:
        pair = config["pair"]
        with open(out / tune.get_context().get_trial_id(), "a") as file:
            file.write(json.dumps(pair) + "\n")
        own = pair["source"] == pair["target"]
        gain = 0.0 if own else 0.1 * ("abcde".index(pair["source"]) - 2)
        for _ in range(3):
            time.sleep(seconds / 3)
            node = ray.get_runtime_context().get_node_id()
            tune.report({"score": 0.5 + gain, "node": node})

    return train_pair


def search_of(folder: Path, rule: EliminationRule | LearningRule, seconds: float) -> tune.Tuner:
    """Make a search over the baselines first, then every pair."""
    out = folder / "out"
    out.mkdir()
    pairs = [{"source": task, "target": task} for task in TASKS]
    pairs += ordered_pairs(TASKS).sample(frac=1, random_state=0).to_dict("records")
    scheduler = TransferScheduler(rule, source_param="pair/source", target_param="pair/target")
    return tune.Tuner(
        train_pair(out, seconds),
        param_space={"pair": tune.grid_search(pairs)},
        tune_config=tune.TuneConfig(
            metric="score", mode="max", scheduler=scheduler, num_samples=2, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(folder), verbose=0),
    )


def starts(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Read what the trainable wrote: by trial, once for each time that it started."""
    return {
        file.name: [json.loads(line) for line in file.read_text().splitlines()]
        for file in (folder / "out").iterdir()
    }


def state(folder: Path) -> list[Trial]:
    return tune.ExperimentAnalysis(str(folder / "search")).trials


def eliminated(trials: list[Trial]) -> set[str]:
    return {t.trial_id for t in trials if ELIMINATED in t.last_result}


def only_a_helps() -> EliminationRule:
    pairs = ordered_pairs(TASKS).itertuples(index=False, name=None)
    return EliminationRule({(s, t): Decision(s != "a", 0.1, math.nan, "") for s, t in pairs}, {})


def learning_rule() -> LearningRule:
    return LearningRule(
        TransferPredictor(), refit_every=8, min_probability=0.2, pairs=ordered_pairs(TASKS)
    )


def stop_between_writes(driver: subprocess.Popen[bytes], folder: Path) -> None:
    """Stop a driver when Tune's state is whole: a kill amid its writing is beyond our help."""
    for _ in range(200):
        driver.send_signal(signal.SIGSTOP)
        try:
            state(folder)
        except json.JSONDecodeError:
            driver.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        else:
            return
    raise AssertionError("Tune's state is never whole")


@pytest.mark.parametrize("make_rule", [only_a_helps, learning_rule])
def test_a_killed_driver_loses_nothing(
    cluster: Cluster, tmp_path: Path, make_rule: Callable[[], EliminationRule | LearningRule]
) -> None:
    rule = make_rule()
    learns = isinstance(rule, LearningRule)
    address = cluster.address
    make_search = search_of

    def drive() -> None:
        ray.init(address=address, log_to_driver=False)
        make_search(tmp_path, rule, seconds=0.3).fit()

    by_value = sys.modules[search_of.__module__]
    cloudpickle.register_pickle_by_value(by_value)
    try:
        (tmp_path / "drive.pkl").write_bytes(cloudpickle.dumps(drive))
    finally:
        cloudpickle.unregister_pickle_by_value(by_value)
    roots = [
        Path(package.__file__).parents[1] for package in (transfer_pruner, transfer_pruner_ray)
    ]
    path = os.pathsep.join(map(str, roots))
    driver = subprocess.Popen(
        [sys.executable, "-c", RUN_PICKLED, str(tmp_path / "drive.pkl")],
        env=os.environ | {"PYTHONPATH": path, "TUNE_GLOBAL_CHECKPOINT_S": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # The rule needs 8 scores, and the driver a moment, before it eliminates anything.
        while len(starts(tmp_path) if (tmp_path / "out").exists() else []) < (30 if learns else 8):
            assert driver.poll() is None
            time.sleep(0.05)
        stop_between_writes(driver, tmp_path)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before, seen = state(tmp_path), starts(tmp_path)
    assert eliminated(before)
    assert len(seen) < 50
    tuner = tune.Tuner.restore(
        str(tmp_path / "search"), trainable=train_pair(tmp_path / "out", seconds=0.05)
    )
    results, after, ran = tuner.fit(), state(tmp_path), starts(tmp_path)
    assert len(results) == len(after) == 50
    assert not results.errors
    assert eliminated(before) <= eliminated(after)
    # The state on disk may be a moment older than what had started when the driver died.
    unknown = {t.trial_id for t in before if t.run_metadata.start_time is None} if learns else set()
    assert (eliminated(after) & set(ran)) <= unknown
    assert {t.trial_id for t in after} == eliminated(after) | set(ran)
    ended = {t.trial_id for t in before if t.status == Trial.TERMINATED} - eliminated(before)
    assert all(len(ran[trial]) == 1 for trial in ended)
    assert ended
    if isinstance(rule, EliminationRule):
        for trial in after:
            pair = trial.config["pair"]
            out = rule.decide(pair["source"], pair["target"]).eliminated
            assert out == (ELIMINATED in trial.last_result)
        assert eliminated(before) == eliminated(after)


class KillsItsNode(tune.Callback):
    """The first trial that reports from the second node loses it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.victim: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"cluster": None, "victim": None}

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        node = list(self.cluster.worker_nodes)[-1] if self.victim is None else None
        if node is not None and result["node"] == node.node_id:
            self.victim = trial.trial_id
            self.cluster.remove_node(node, allow_graceful=False)


def test_a_killed_node_costs_no_trial_and_revives_no_eliminated_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    rule = only_a_helps()
    killer = KillsItsNode(cluster)
    (tmp_path / "out").mkdir()
    pairs = [{"source": s, "target": t} for s in ("a", "b") for t in ("b", "c", "d")]
    scheduler = TransferScheduler(
        rule,
        ASHAScheduler(max_t=100, grace_period=50),
        source_param="pair/source",
        target_param="pair/target",
    )
    results = tune.Tuner(
        train_pair(tmp_path / "out", seconds=3),
        param_space={"pair": tune.grid_search(pairs)},
        tune_config=tune.TuneConfig(metric="score", mode="max", scheduler=scheduler),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[killer],
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    ).fit()
    assert killer.victim is not None
    ran = starts(tmp_path)
    assert len(ran[killer.victim]) > 1
    assert not results.errors
    # a -> b, c, d and the baseline of b.
    assert len(ran) == 4
    out = {r.metrics["trial_id"] for r in results if ELIMINATED in r.metrics}
    assert out == {r.metrics["trial_id"] for r in results} - set(ran)
    assert all("score" in r.metrics for r in results if ELIMINATED not in r.metrics)
    assert scheduler.debug_string().startswith("TransferScheduler: 2 eliminated, 0 audited, 4 kept")
