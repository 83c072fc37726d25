"""Whatever a configuration holds and whatever a trial is called, its experiment can be read."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from transfer_pruner import Decision, EliminationRule, estimate_audit
from transfer_pruner_ray import records_from_results, transfers_from_results
from transfer_pruner_ray.experiment import TuneTrial, read_trials
from transfer_pruner_ray.marks import ELIMINATED

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray import tune  # noqa: E402

from transfer_pruner_ray import TransferScheduler  # noqa: E402

if TYPE_CHECKING:
    from ray.tune import ResultGrid

RULE = EliminationRule(
    {
        ("1", "news"): Decision(False, 0.2, 0.6, "helps"),
        ("2", "news"): Decision(True, 0.1, 0.4, "does not"),
    },
    {},
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def results(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> ResultGrid:
    """Run a search as people do it, with numpy's types, an Enum, and names of their own."""

    class Task(Enum):
        NEWS = "news"

    def train_pair(config: dict[str, Any]) -> None:
        # Nothing but the learning rate changes the score, of whatever type.
        low = config["lr"] < 0.15
        tune.report({"f1": np.float32(0.5) if low else np.int64(2)})

    tuner = tune.Tuner(
        train_pair,
        param_space={
            "source": tune.grid_search([None, np.int64(1), np.int64(2)]),
            "target": Task.NEWS,
            "lr": tune.grid_search([np.float32(0.1), np.float32(0.2)]),
            "class_weights": np.array([1.0, 2.0]),
            "network": dict,
            "loss": lambda x: x,
        },
        tune_config=tune.TuneConfig(
            metric="f1",
            mode="max",
            reuse_actors=True,
            scheduler=TransferScheduler(RULE),
            trial_name_creator=lambda trial: "one of mine",
            trial_dirname_creator=lambda trial: f"mine {int(trial.trial_id[-2:])}",
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path_factory.mktemp("odd")), name="odd", verbose=0
        ),
    )
    return tuner.fit()


def folder_of_a_kept_trial(experiment: str | Path) -> Path:
    for file in Path(experiment).glob("mine */params.json"):
        params = json.loads(file.read_text())
        if params["source"] == 1 and params["lr"] < 0.15:
            return file.parent
    raise AssertionError("no such trial")


def test_gains_are_those_of_equal_hyperparameters(results: ResultGrid) -> None:
    assert not results.errors
    for where in (results, results.experiment_path):
        table = transfers_from_results(where, metric="f1", mode="max")
        assert table[["source", "target"]].to_numpy().tolist() == [["1", "news"]] * 2
        assert sorted(table["score"]) == [0.5, 2.0]
        assert table["gain"].tolist() == [0.0, 0.0]
        assert table["lr"].tolist() == pytest.approx([0.1, 0.2])
        assert list(table["class_weights"]) == [[1.0, 2.0]] * 2
        assert table.attrs["left_out"] == {"eliminated": 2, "baseline": 2}


def test_eliminated_trials_are_read_with_what_they_would_have_trained(results: ResultGrid) -> None:
    records = records_from_results(results.experiment_path, metric="f1", mode="max")
    out = [record for record in records if record.outcome == "eliminated"]
    assert [(r.source, r.target, r.reason) for r in out] == [("2", "news", "does not")] * 2
    assert [r.hyperparameters["lr"] for r in out] == pytest.approx([0.1, 0.2])
    assert estimate_audit(records).headline() == "no audit trial among 2 eliminated ones."


def test_a_trial_of_the_search_that_runs_here_is_read_alike(results: ResultGrid) -> None:
    live = {t.trial_id: TuneTrial.of(t) for t in results._experiment_analysis.trials}
    for read in read_trials(results, "f1"):
        trial = live[read.id]
        assert trial.ended
        assert trial.pair == read.pair
        assert trial.result.get("f1") == read.result.get("f1")
        assert trial.result.get(ELIMINATED) == read.result.get(ELIMINATED)
        assert trial.config["lr"] == pytest.approx(read.config["lr"])


@pytest.mark.parametrize("lost", ["params.json", "result.json", "*"])
def test_a_trial_that_lost_its_files_costs_no_other(
    results: ResultGrid, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(results.experiment_path, folder)
    for file in folder_of_a_kept_trial(folder).glob(lost):
        file.unlink()
    records = records_from_results(folder, metric="f1", mode="max")
    whole = records_from_results(results)
    assert [r.value for r in records if r.outcome == "eliminated"] == pytest.approx(
        [math.nan] * 2, nan_ok=True
    )
    assert [(r.source, r.target) for r in records] == [(r.source, r.target) for r in whole]
    told = {r.number: r.value for r in records}
    changed = [r.number for r in whole if r.outcome == "trained" and told[r.number] != r.value]
    assert len(changed) == (lost != "params.json")


def test_reading_takes_time_in_proportion_to_the_trials(
    results: ResultGrid, tmp_path: Path
) -> None:
    (state,) = Path(results.experiment_path).glob("experiment_state-*.json")
    content = json.loads(state.read_text())
    whole = folder_of_a_kept_trial(results.experiment_path)
    settings, metadata = next(t for t in content["trial_data"] if f'"{whole.name}"' in t[0])
    trial = json.loads(settings)

    def seconds(count: int) -> float:
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"own {number}").mkdir()
            for file in ("params.json", "result.json"):
                shutil.copy(whole / file, folder / f"own {number}" / file)
        named = [
            json.dumps(trial | {"trial_id": f"{n:05d}", "relative_logdir": f"own {n}"})
            for n in range(count)
        ]
        (folder / state.name).write_text(
            json.dumps({"trial_data": [[one, metadata] for one in named]})
        )
        begun = time.process_time()
        assert len(records_from_results(folder, metric="f1", mode="max")) == count
        return time.process_time() - begun

    seconds(10)
    assert seconds(400) < 12 * seconds(100), "4 times, but for the noise; squared it is 16 times"
