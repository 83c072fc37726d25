"""The best trials start first, whatever schedules what has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from transfer_pruner import (
    LearningRule,
    TransferPredictor,
    TransferPrunerWarning,
    TrialRecord,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_ray import TransferScheduler, _private
from transfer_pruner_ray.deciding import TuneDecider
from transfer_pruner_ray.starting import StartOrder

TASKS = ["a", "b", "c", "d"]
WORTH = {"a": 0.9, "b": 0.5, "c": 0.7, "d": 0.1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def ordered_rule() -> EliminationRule:
    """d is eliminated, and a is best, then c, then b."""
    pairs = ordered_pairs(TASKS).itertuples(index=False, name=None)
    return EliminationRule({(s, t): Decision(s == "d", WORTH[s], 0.5, "") for s, t in pairs}, {})


def learning_rule() -> LearningRule:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(WORTH)
    return LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)


class Starts(tune.Callback):
    """Note the pairs in the order in which they start."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def on_trial_start(self, *, trial: Any, **info: Any) -> None:
        self.pairs.append((trial.config["source"], trial.config["target"]))


def stepwise() -> type[tune.Trainable]:
    class Stepwise(tune.Trainable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            same = self.config["source"] == self.config["target"]
            gain = {"a": 0.1, "b": 0.05, "c": -0.1, "d": -0.1}[self.config["source"]]
            return {"score": 0.0 if same else gain, "done": self.iteration >= 2}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    return Stepwise


def started(
    scheduler: TrialScheduler, folder: Path, *, reuse_actors: bool = True, **space: Any
) -> list[tuple[str, str]]:
    """Run a search one trial after the other, and tell in which order."""
    starts = Starts()
    space = {"source": tune.grid_search(TASKS[::-1]), "target": "b"} | space
    results = tune.Tuner(
        tune.with_resources(stepwise(), {"cpu": 2}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", scheduler=scheduler, reuse_actors=reuse_actors
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=[starts]),
    ).fit()
    assert not results.errors
    return starts.pairs


BEST_FIRST = [("b", "b"), ("a", "b"), ("c", "b")]


@pytest.mark.parametrize("reuse_actors", [False, True])
def test_the_best_trial_starts_first(cluster: None, tmp_path: Path, reuse_actors: bool) -> None:
    rule = ordered_rule()
    order = started(TransferScheduler(rule), tmp_path, reuse_actors=reuse_actors)
    assert order == BEST_FIRST


@pytest.mark.parametrize(
    "base",
    [
        lambda: ASHAScheduler(max_t=2, grace_period=1),
        lambda: MedianStoppingRule(),
        lambda: HyperBandScheduler(max_t=2),
        lambda: PopulationBasedTraining(
            perturbation_interval=10, hyperparam_mutations={"lr": tune.uniform(0, 1)}
        ),
    ],
    ids=["ASHA", "median", "HyperBand", "PBT"],
)
def test_around_a_base_scheduler_too(cluster: None, tmp_path: Path, base: Any) -> None:
    order = started(TransferScheduler(ordered_rule(), base()), tmp_path, lr=0.5)
    assert list(dict.fromkeys(order)) == BEST_FIRST


@pytest.mark.parametrize("reuse_actors", [False, True])
def test_a_rule_that_learns_says_what_starts_next(
    cluster: None, tmp_path: Path, reuse_actors: bool
) -> None:
    order = started(
        TransferScheduler(learning_rule()),
        tmp_path,
        reuse_actors=reuse_actors,
        target=tune.grid_search(["b", "d"]),
    )
    assert order[:2] == [("b", "b"), ("d", "d")]
    # By attributions c is the second best; it turns out to be bad for one target.
    assert set(order[2:4]) <= {("a", "b"), ("a", "d"), ("c", "b"), ("c", "d")}
    assert order[2][0] == "a"
    assert len(order) == 8


def test_a_rule_without_an_order_changes_none(cluster: None, tmp_path: Path) -> None:
    pairs = ordered_pairs(TASKS).itertuples(index=False, name=None)
    equal = EliminationRule({pair: Decision(False, 0.5, 0.5, "") for pair in pairs}, {})
    order = started(TransferScheduler(equal), tmp_path, reuse_actors=False)
    assert [source for source, _ in order] == TASKS[::-1]


def test_where_tune_cannot_be_told_trials_start_as_they_came(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise AttributeError("no such list in this version")

    monkeypatch.setattr(_private, "order_unstarted", broken)
    with pytest.warns(TransferPrunerWarning, match="trials start in the order in which they came"):
        order = started(TransferScheduler(ordered_rule()), tmp_path)
    assert set(order) == set(BEST_FIRST)


def waiting(*pairs: tuple[str, str], lr: float = 0.1) -> list[Any]:
    return [
        SimpleNamespace(config={"source": s, "target": t, "lr": lr}, trial_id=f"{s}{t}{i}")
        for i, (s, t) in enumerate(pairs)
    ]


def in_order(order: StartOrder, rule: EliminationRule, trials: list[Any], *running: Any) -> str:
    places = order.places(rule, trials, waiting(*running))
    return " ".join(sorted(places, key=places.__getitem__))


def test_running_pairs_and_second_settings_of_a_pair_come_after_others() -> None:
    rule = learning_rule().refitted()
    decider = TuneDecider(PairParams(), 0.0, rule.fingerprint)
    order = StartOrder(decider, learns=True)
    trials = waiting(("c", "b"), ("a", "b"), ("a", "b"), ("b", "b"), ("b", "b"))
    # One baseline first; the other one last, since one is all that gains need.
    assert in_order(order, rule, trials) == "bb3 ab1 cb0 ab2 bb4"
    assert in_order(order, rule, trials, ("a", "b"), ("b", "b")) == "cb0 ab1 ab2 bb3 bb4"
    order.add(TrialRecord(0, None, "b", "trained", 1.0, 0.5))
    assert in_order(order, rule, trials) == "ab1 cb0 ab2 bb3 bb4"
