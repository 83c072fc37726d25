"""A search of Tune's that ends by itself, and says why."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("optuna")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0"

import optuna
import ray
from optuna.samplers import RandomSampler
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.tune.experiment import Experiment
from ray.tune.search.optuna import OptunaSearch

from transfer_pruner import EliminationRule, LearningRule, TransferPredictor, estimate_savings
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_ray import (
    StopWhenSettled,
    TransferSearcher,
    TransferVariantGenerator,
    ending_from_results,
    records_from_results,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)

TASKS = ["a", "b", "c"]
SPACE = {
    "source": tune.choice(TASKS),
    "target": tune.choice(TASKS),
    "lr": tune.choice([0.1, 0.2, 0.3]),
}


def learning_rule() -> LearningRule:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map({"a": 0.1, "b": -0.1, "c": 0.0})
    return LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)


def searcher(rule: LearningRule) -> TransferSearcher:
    return TransferSearcher(OptunaSearch(sampler=RandomSampler(0)), rule)


def train_pair() -> Callable[[dict[str, Any]], None]:
    """Make the trainable anew, so that workers get it whole: they cannot import this module."""

    def train_pair(config: dict[str, Any]) -> None:
        gains = {"a": 0.1, "b": -0.1, "c": 0.0}
        gain = 0.0 if config["source"] == config["target"] else gains[config["source"]]
        tune.report({"score": gain + 0.001 * config["lr"]})

    return train_pair


def drive(search: TransferSearcher, stop: StopWhenSettled, n: int = 60, space: Any = None) -> int:
    """Do what Tune does with a searcher and a stopper; return how many trials there were."""
    search.set_search_properties("score", "max", space or SPACE)
    for i in range(n):
        config = search.suggest(str(i))
        gains = {"a": 0.1, "b": -0.1, "c": 0.0}
        gain = 0.0 if config["source"] == config["target"] else gains[config["source"]]
        result = {"score": gain + 0.001 * config["lr"], "done": True, "time_total_s": 1.0}
        assert not stop(str(i), result)
        assert not stop.stop_all()
        search.on_trial_complete(str(i), result)
        if stop.stop_all():
            return i + 1
    return n


def told(stop: StopWhenSettled, folder: Path, trials: int) -> dict[str, Any]:
    """What is written at the end of the step."""
    storage = SimpleNamespace(experiment_fs_path=str(folder), storage_filesystem=LocalFileSystem())
    last: Any = SimpleNamespace(storage=storage, trial_id=str(trials - 1))
    stop.on_step_end(1, [last])
    written: dict[str, Any] = json.loads((folder / "transfer_pruner.json").read_text())
    return written


def test_a_search_ends_when_nothing_is_expected_to_be_better(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "transfer_pruner_ray")
    rule = learning_rule()
    search, stop = searcher(rule), StopWhenSettled(rule, tolerance=0.005)
    trials = drive(search, stop)
    assert 4 < trials < 27
    why = told(stop, tmp_path, trials)
    assert why["trials"] == trials
    assert why["exhaustive_trials"] == 27
    assert 0 <= why["priority"] <= why["tolerance"] == 0.005
    assert "expected to improve its target by more than 0.005" in why["reason"]
    assert why["reason"] in caplog.text


def test_a_share_of_what_was_gained_in_the_time_of_a_trial_ends_it_too(tmp_path: Path) -> None:
    rule = learning_rule()
    search, stop = searcher(rule), StopWhenSettled(rule, tolerance=0, share=0.5)
    trials = drive(search, stop)
    assert 4 < trials < 27
    why = told(stop, tmp_path, trials)
    # a gains about 0.1 for b and for c.
    assert why["tolerance"] == pytest.approx(0.5 * 0.2 / trials, rel=0.05)
    assert "0.5 of the gain per second so far" in why["reason"]


def test_it_says_the_same_of_a_search_that_was_restored(tmp_path: Path) -> None:
    rule = learning_rule()
    search, stop = searcher(rule), StopWhenSettled(rule, tolerance=0.005)
    trials = drive(search, stop)
    before = told(stop, tmp_path, trials)
    again = searcher(learning_rule())
    again.set_state(search.get_state())
    stop = pickle.loads(pickle.dumps(StopWhenSettled(rule, tolerance=0.005)))  # noqa: S301
    assert not stop.stop_all()
    del search
    gc.collect()
    stop(str(trials - 1), {})
    assert stop.stop_all()
    assert told(stop, tmp_path, trials) == before


@pytest.mark.parametrize(("samples", "whole"), [(1, 27), (2, None)])
def test_a_grid_that_a_generator_makes_ends_too(samples: int, whole: int | None) -> None:
    rule = learning_rule()
    stop = StopWhenSettled(rule, tolerance=0.005)
    generator = TransferVariantGenerator(rule, max_concurrent=1)
    grid = {name: tune.grid_search(domain.categories) for name, domain in SPACE.items()}
    generator.set_search_properties("score", "max", grid, num_samples=samples)
    generator.add_configurations(
        [Experiment("grid", run=train_pair(), config=grid, num_samples=samples)]
    )
    trials = 0
    while not generator.is_finished() and not stop.stop_all():
        trial = generator.next_trial()
        assert trial is not None
        trials += 1
        config = trial.config
        gain = {"a": 0.1, "b": -0.1, "c": 0.0}[config["source"]]
        gain = 0.0 if config["source"] == config["target"] else gain
        result = {"score": gain + 0.001 * config["lr"], "time_total_s": 1.0}
        stop(trial.trial_id, result)
        generator.on_trial_complete(trial.trial_id, result)
    assert 8 <= trials < 27
    search = stop._find(trial.trial_id)
    assert search is not None
    assert search.stopped is not None
    assert search.stopped["exhaustive_trials"] == whole
    # As Tune ends a search: what waits is not tried any more.
    generator.set_finished()
    assert generator.is_finished()


def test_a_search_with_another_rule_goes_on_and_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = LearningRule(TransferPredictor(), pairs=ordered_pairs(TASKS))
    assert drive(searcher(learning_rule()), StopWhenSettled(other, tolerance=100), 25) == 25
    assert caplog.text.count("never stops this search") == 1


def test_without_baselines_a_search_is_never_settled() -> None:
    rule = learning_rule()
    # Of b no baseline can be had, and of a one.
    space = SPACE | {"source": tune.choice(["a", "c"]), "target": tune.choice(["a", "b"])}
    assert drive(searcher(rule), StopWhenSettled(rule, tolerance=100), 20, space) == 20


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rule": EliminationRule({}, {})}, "rule must be a LearningRule"),
        ({"tolerance": -1}, "tolerance must be 0 or more but got -1"),
        ({"share": float("nan")}, "share must be 0 or more but got nan"),
        ({"source_param": ["x", "y"]}, "source_param must name one parameter"),
    ],
)
def test_bad_input_stops_early(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        StopWhenSettled(**{"rule": learning_rule(), **arguments})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Interrupt(tune.Callback):
    """Press Ctrl-C after the third trial, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_trial_complete(self, iteration: int, trials: list[Any], *args: Any, **info: Any) -> None:
        if len(trials) > 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_ends_even_if_it_was_interrupted_and_its_folder_says_why(
    cluster: None, tmp_path: Path
) -> None:
    rule = learning_rule()
    stop = StopWhenSettled(rule, tolerance=0.005)
    trainable = train_pair()
    interrupted = tune.Tuner(
        trainable,
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=200,
            max_concurrent_trials=2,
            search_alg=searcher(rule),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path),
            verbose=0,
            stop=stop,
            callbacks=[stop, Interrupt(tmp_path / "interrupted")],
        ),
    ).fit()
    assert ending_from_results(interrupted) == {"exhaustive_trials": None, "stopped": None}
    results = tune.Tuner.restore(str(tmp_path / "run"), trainable).fit()
    assert not results.errors
    for read in (results, tmp_path / "run"):
        ending = ending_from_results(read)
        assert ending["exhaustive_trials"] == 27
        assert "expected to improve its target by more than 0.005" in str(ending["stopped"])
        records = records_from_results(read, metric="score", mode="max")
        assert 4 < len(records) < 27
        savings = estimate_savings(records, **ending)
        assert savings.trials_never_started == 27 - len(records)
        assert savings.stopped == ending["stopped"]
    with pytest.raises(FileNotFoundError):
        ending_from_results(tmp_path / "nowhere")
