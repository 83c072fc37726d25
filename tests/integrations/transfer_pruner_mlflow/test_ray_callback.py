"""A search of Ray Tune's in a tracker: each trial once, beside Ray's own logger, over restores."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from mlflow import MlflowClient
from mlflow.entities import Run
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler

from transfer_pruner import (
    EliminationRule,
    TrialRecord,
    estimate_audit,
    estimate_savings,
    find_answer,
)
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_ray import TransferScheduler, filter_param_space, records_from_results
from transfer_pruner_ray.callback import RayCallback

TASKS = ["a", "b", "c"]
SPACE = {
    "source": tune.grid_search(TASKS),
    "target": tune.grid_search(TASKS),
    "lr": tune.grid_search([0.1, 0.2]),
}
EVERY_TRIAL = 18


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train_pair(fails: tuple[str, str, float] | None = None) -> Callable[[dict[str, Any]], None]:
    """Make the trainable anew, so that workers get it whole: they cannot import this module."""

    def train_pair(config: dict[str, Any]) -> None:
        if (config["source"], config["target"], config["lr"]) == fails:
            raise RuntimeError("no data")
        for step in range(2):
            tune.report({"f1": config["lr"] + step / 10})

    return train_pair


def train_anything() -> Callable[[dict[str, Any]], None]:
    def train_anything(config: dict[str, Any]) -> None:
        tune.report({"f1": config["lr"]})

    return train_anything


def fit(
    folder: Path,
    callbacks: list[Any],
    scheduler: Any = None,
    space: dict[str, Any] | None = None,
    trainable: Any = None,
    **tune_config: Any,
) -> tune.ResultGrid:
    return tune.Tuner(
        trainable or train_pair(),
        param_space=space or SPACE,
        tune_config=tune.TuneConfig(
            metric="f1", mode="max", scheduler=scheduler, reuse_actors=True, **tune_config
        ),
        run_config=tune.RunConfig(
            name="search", storage_path=str(folder), verbose=0, callbacks=callbacks
        ),
    ).fit()


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def decisions_of(uri: str, run_id: str | None) -> pd.DataFrame:
    assert run_id is not None
    path = MlflowClient(uri).download_artifacts(run_id, "savings/decisions.csv")
    return pd.read_csv(path, keep_default_na=False)


def check_the_run_shows(uri: str, run_id: str | None, records: list[TrialRecord]) -> None:
    """The savings in MLflow are those of the experiment's own folder; each trial is there once."""
    assert run_id is not None
    metrics = MlflowClient(uri).get_run(run_id).data.metrics
    expected = estimate_savings(records).metrics()
    if any(record.audit for record in records):
        expected |= estimate_audit(records).metrics()
    shown = {name: x for name, x in metrics.items() if name.startswith(("savings/", "audit/"))}
    assert shown == pytest.approx(expected)
    table = decisions_of(uri, run_id)
    assert table["number"].is_unique
    told = {(row.number, row.source, row.target, row.outcome) for row in table.itertuples()}
    assert told == {(r.number, r.source or "", r.target, r.outcome) for r in records}


@pytest.mark.parametrize("with_asha", [False, True])
def test_the_savings_are_those_of_the_result_grid(
    uri: str, tmp_path: Path, rule: EliminationRule, with_asha: bool
) -> None:
    asha = ASHAScheduler(max_t=2, grace_period=1) if with_asha else None
    scheduler = TransferScheduler(rule, asha, audit_fraction=0.3)
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, maximize=True) as tracker:
        callbacks = [tracker.ray_callback("f1")]
        results = fit(tmp_path, callbacks, scheduler, trainable=train_pair(("a", "b", 0.2)))
    records = records_from_results(results, rule)
    assert {record.outcome for record in records} == {"trained", "eliminated", "failed"}
    assert len(records) == EVERY_TRIAL
    check_the_run_shows(uri, tracker.run_id, records)
    shown = MlflowClient(uri).get_run(str(tracker.run_id)).data
    found = {one.target: one.best for one in find_answer(records).targets if one.best}
    assert found
    for target, best in found.items():
        assert shown.params[f"best/{target}"] == str(best)
        assert shown.metrics[f"best/{target}"] == pytest.approx(best.value)
    values = decisions_of(uri, tracker.run_id).set_index("number")["value"]
    for record in records:
        assert (float(values[record.number] or "nan") == pytest.approx(record.value)) or (
            record.outcome != "trained"
        )


def test_handing_the_records_over_once_more_counts_nothing_twice(
    uri: str, tmp_path: Path, rule: EliminationRule
) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        results = fit(tmp_path, [tracker.ray_callback("f1")], TransferScheduler(rule))
        for record in records_from_results(results):
            tracker.record(record)
    check_the_run_shows(uri, tracker.run_id, records_from_results(results))


def test_of_a_filtered_space_the_trackers_rule_tells_which_trials_are_audits(
    uri: str, tmp_path: Path, rule: EliminationRule
) -> None:
    # Drawn from the pair, so always the same ones.
    space = filter_param_space(SPACE, rule, audit_fraction=0.8)
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, maximize=True) as tracker:
        results = fit(tmp_path, [tracker.ray_callback("f1")], space=space)
    records = records_from_results(results, rule)
    assert {record.outcome for record in records} == {"trained"}
    assert 0 < sum(record.audit for record in records) < len(records)
    check_the_run_shows(uri, tracker.run_id, records)


def test_rays_own_logger_loses_nothing_and_its_runs_lie_beneath_the_search(
    uri: str, current_uri: str, tmp_path: Path, rule: EliminationRule
) -> None:
    with SavingsTracker("trec-is", rule=rule) as tracker:
        assert tracker.run_id is not None
        rays_own = MLflowLoggerCallback(
            tracking_uri=uri,
            experiment_name="trec-is",
            tags={"mlflow.parentRunId": tracker.run_id},
        )
        results = fit(tmp_path, [rays_own, tracker.ray_callback("f1")], TransferScheduler(rule))
    records = records_from_results(results, rule)
    trained = [record for record in records if record.outcome == "trained"]
    check_the_run_shows(uri, tracker.run_id, records)
    runs = {run.info.run_id: run for run in runs_of(uri)}
    ours = runs.pop(tracker.run_id)
    assert ours.data.tags["transfer_pruner.rule_fingerprint"] == rule.fingerprint
    # One for each trial that ran, whole, and none for those that were eliminated.
    assert len(runs) == len(trained) < len(records)
    for run in runs.values():
        assert run.info.experiment_id == ours.info.experiment_id
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == tracker.run_id
        assert run.data.metrics["f1"] == pytest.approx(float(run.data.params["lr"]) + 0.1)
    assert mlflow.get_tracking_uri() == uri
    assert mlflow.active_run() is None


def test_a_tracker_that_nobody_has_opened_is_open_while_the_search_runs(
    uri: str, tmp_path: Path, rule: EliminationRule
) -> None:
    tracker = SavingsTracker("trec-is", tracking_uri=uri)
    results = fit(tmp_path, [tracker.ray_callback("f1")], TransferScheduler(rule))
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"
    check_the_run_shows(uri, tracker.run_id, records_from_results(results))


class Stop(tune.Callback):
    """Stops the driver when some trials have ended, once."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if sum(trial.status == "TERMINATED" for trial in trials) > 13 and not self._file.exists():
            self._file.touch()
            raise RuntimeError("the driver dies")


def test_a_search_that_is_restored_while_its_tracker_is_open_goes_on_in_it(
    uri: str, tmp_path: Path, rule: EliminationRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        with pytest.raises(RuntimeError, match="the driver dies"):
            fit(
                tmp_path,
                [tracker.ray_callback("f1"), Stop(tmp_path / "stopped")],
                TransferScheduler(rule),
            )
        results = tune.Tuner.restore(str(tmp_path / "search"), train_pair()).fit()
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"
    assert len(results) == EVERY_TRIAL
    check_the_run_shows(uri, tracker.run_id, records_from_results(results))


KILLED = """
import os, signal, time
import ray
from ray import tune
from transfer_pruner import EliminationRule
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_ray import TransferScheduler, records_from_results

TASKS = ["a", "b", "c"]

def make_trainable():
    def train_pair(config):
        # The search is not over before it is killed.
        while config["source"] == config["target"] == "c" and not os.path.exists({killed!r}):
            time.sleep(0.1)
        tune.report({{"f1": config["lr"]}})
        tune.report({{"f1": config["lr"] + 0.1}})
    return train_pair

def kept_on_disk():
    try:
        return len(records_from_results("search"))
    except (OSError, ValueError):
        return 0

class Kill(tune.Callback):
    def on_step_end(self, iteration, trials, **info):
        if not os.path.exists({killed!r}) and kept_on_disk() > 13:
            open({killed!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

def search():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rule = EliminationRule.load("rule")
    grid = {{name: tune.grid_search(TASKS) for name in ("source", "target")}}
    with SavingsTracker("trec-is", tracking_uri={uri!r}, rule=rule, maximize=True) as tracker:
        tune.Tuner(
            make_trainable(),
            param_space=grid | {{"lr": tune.grid_search([0.1, 0.2])}},
            tune_config=tune.TuneConfig(
                metric="f1", mode="max", scheduler=TransferScheduler(rule), reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=os.getcwd(), verbose=0,
                callbacks=[tracker.ray_callback("f1"), Kill()],
            ),
        ).fit()
"""


def test_a_search_whose_driver_was_killed_is_restored_into_its_run(
    uri: str, tmp_path: Path, rule: EliminationRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule.save("rule")
    # A module, since what Tune pickles of a script can be loaded in that script only.
    (tmp_path / "killed_search.py").write_text(
        KILLED.format(uri=uri, killed=str(tmp_path / "killed"))
    )
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.syspath_prepend(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import killed_search; killed_search.search()"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (before,) = runs_of(uri)
    assert before.info.status == "RUNNING"
    results = tune.Tuner.restore(str(tmp_path / "search"), train_pair()).fit()
    (after,) = runs_of(uri)
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    records = records_from_results(results, rule)
    assert len(records) == EVERY_TRIAL
    check_the_run_shows(uri, after.info.run_id, records)


def test_what_tune_pickles_names_the_run_and_holds_no_password(
    uri: str, rule: EliminationRule, told: Callable[[], list[str]]
) -> None:
    pytest.importorskip("codecarbon", reason="no codecarbon: pip install 'transfer-pruner[energy]'")
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, energy="DEU") as tracker:
        callback = tracker.ray_callback("f1")
        # In this process it is the same tracker.
        assert pickle.loads(pickle.dumps(callback))._tracker is tracker  # noqa: S301
        callback._key = "of another process"
        elsewhere: RayCallback = pickle.loads(pickle.dumps(callback))  # noqa: S301
    elsewhere.set_state(callback.get_state())
    elsewhere.setup()
    assert elsewhere._tracker is not None
    assert elsewhere._tracker.run_id == tracker.run_id
    elsewhere.on_experiment_end([])
    assert len(runs_of(uri)) == 1
    secret = SavingsTracker("trec-is", tracking_uri="http://me:secret@127.0.0.1:9")
    assert b"secret" not in pickle.dumps(secret.ray_callback("f1"))
    assert told() == []


class Broken:
    """A trial that cannot be read."""

    trial_id = "x"
    status = "TERMINATED"

    @property
    def config(self) -> dict[str, Any]:
        raise RuntimeError("gone")


def test_a_trial_that_cannot_be_read_or_has_no_pair_does_not_stop_the_search(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the logger itself: the migrations of MLflow 3.6 take pytest's handler off the root's.
    ours, messages = logging.getLogger("transfer_pruner_ray.callback"), []
    monkeypatch.setattr(ours, "handle", lambda record: messages.append(record.getMessage()))
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        callback = tracker.ray_callback("f1")
        callback.setup()
        callback.on_step_end(1, [Broken()])  # type: ignore[list-item]
        space = {"from": "a", "target": "b", "lr": 0.1}
        results = fit(tmp_path, [callback], space=space, trainable=train_anything())
    assert not results.errors
    told = [message for message in messages if "is left out of MLflow" in message]
    assert [message.partition(": ")[2] for message in told] == ["RuntimeError: gone"]
    (run,) = runs_of(uri)
    assert run.data.metrics == {}


def test_without_ray_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from transfer_pruner_mlflow import SavingsTracker\n"
        "try: SavingsTracker(tracking_uri='sqlite:///x.db').ray_callback()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'transfer-pruner[ray]'" in done.stdout
