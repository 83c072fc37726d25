"""A search's savings as one MLflow run, in real stores; errors of MLflow never reach training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from transfer_pruner import Decision, EliminationRule, TransferPrunerWarning, TrialRecord
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def records() -> list[TrialRecord]:
    trained = [
        TrialRecord(i, f"s{i % 3}", "t", "trained", 2.0, 0.5 + i / 100, 0.7, 0.6, "rank 1")
        for i in range(6)
    ]
    eliminated = [
        TrialRecord(6 + i, "bad", f"t{i}", "eliminated", 0.01, score=0.1, reason="rank 9 of 9")
        for i in range(4)
    ]
    return [TrialRecord(99, None, "t", "trained", 2.0, 0.4), *trained, *eliminated]


def only_run(uri: str, experiment: str = "trec-is") -> Run:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


def test_one_run_holds_the_headline_the_metrics_and_the_pairs(uri: str) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri, attribution_seconds=1.5) as tracker:
        for record in records():
            tracker.record(record)
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["savings/seconds_spent"] == pytest.approx(14 + 1.5 + 0.04)
    assert run.data.metrics["savings/estimated_seconds_saved"] == pytest.approx(8 - 1.54)
    assert run.data.metrics["savings/pairs_eliminated"] == 4
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**4 of 7 pairs eliminated before training: 15.5 s spent (measured)")
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/savings/pairs.json")
    assert table["columns"][:3] == ["source", "target", "decision"]
    path = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/savings/pairs.csv")
    pairs = pd.read_csv(path, keep_default_na=False).set_index(["source", "target"])
    assert pairs.loc[("bad", "t2"), "decision"] == "eliminated"
    assert pairs.loc[("bad", "t2"), "reason"] == "rank 9 of 9"
    assert pairs.loc[("s1", "t"), "trials"] == 2
    assert pairs.loc[("", "t"), "decision"] == "trained"
    assert float(pairs.loc[("s2", "t"), "best_value"]) == pytest.approx(0.55)


def test_metrics_come_while_the_search_runs(uri: str) -> None:
    client = MlflowClient(uri)
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records()[1])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            history = client.get_metric_history(str(tracker.run_id), "savings/seconds_spent")
            if history:
                break
            time.sleep(0.2)
        assert history[0].value == 2.0
        for record in records()[2:]:
            tracker.record(record)
    history = client.get_metric_history(str(tracker.run_id), "savings/pairs_eliminated")
    assert [metric.step for metric in history] == sorted(metric.step for metric in history)
    assert history[-1].step == 10


def test_a_gated_study_is_tracked_without_touching_mlflows_own_state(uri: str) -> None:
    tasks = ["a", "b", "c"]
    rule = EliminationRule(
        {(s, t): Decision(s != "a", 0.1, 0.5, "told so") for s in tasks for t in tasks if s != t},
        {},
    )

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", tasks)
        trial.suggest_categorical("target", tasks)
        return 1.0

    before = mlflow.get_tracking_uri()
    study = optuna.create_study()
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        study.optimize(gate(objective, rule, tracker=tracker), n_trials=40, n_jobs=2)
        assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before
    metrics = only_run(uri).data.metrics
    assert metrics["savings/trials_trained"] + metrics["savings/trials_eliminated"] == len(
        study.trials
    )


def test_the_users_run_is_written_into_and_not_ended(uri: str) -> None:
    client = MlflowClient(uri)
    experiment = client.create_experiment("mine")
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "f1", 0.9)
    with SavingsTracker(run_id=run.info.run_id, tracking_uri=uri) as tracker:
        for record in records():
            tracker.record(record)
    after = only_run(uri, "mine")
    assert after.info.status == "RUNNING"
    assert after.data.metrics["f1"] == 0.9
    assert "savings/seconds_spent" in after.data.metrics


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_search_that_stops_leaves_a_run_that_says_so(
    uri: str, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records()[1])
        raise error
    run = only_run(uri)
    assert run.info.status == status
    assert run.data.metrics["savings/trials_trained"] == 1


def test_threads_can_record_at_once_and_replayed_trials_count_once(uri: str) -> None:
    def record_all(tracker: SavingsTracker, start: int) -> None:
        for number in range(start, start + 500):
            for _ in range(2):
                tracker.record(TrialRecord(number, "s", "t", "trained", 1.0))

    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        threads = [threading.Thread(target=record_all, args=(tracker, 500 * i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert only_run(uri).data.metrics["savings/trials_trained"] == 2000


def test_an_empty_search_still_has_a_headline(uri: str) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri):
        pass
    assert "0 of 0 pairs" in only_run(uri).data.tags["mlflow.note.content"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{tmp_path}/server.db"),
            *("--artifacts-destination", str(tmp_path / "artifacts")),
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", process
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def test_a_server_that_dies_in_the_middle_costs_a_warning(
    server: tuple[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long MLflow itself retries before it gives up is the user's to set.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    uri, process = server
    with (
        pytest.warns(TransferPrunerWarning, match="MLflow could not be written to"),
        SavingsTracker("trec-is", tracking_uri=uri) as tracker,
    ):
        tracker.record(records()[1])
        time.sleep(3)
        assert MlflowClient(uri).get_metric_history(str(tracker.run_id), "savings/seconds_spent")
        kill(process)
        for record in records()[2:]:
            tracker.record(record)
    assert tracker.savings().trials_trained == 6


def test_without_mlflow_it_says_what_to_install(tmp_path: Path) -> None:
    # A folder named mlflow, such as this repository's, must not pass for the library.
    (tmp_path / "mlflow").mkdir()
    code = (
        "import sys; sys.modules['mlflow'] = type(sys)('mlflow')\n"
        "from transfer_pruner_mlflow import SavingsTracker\n"
        "try: SavingsTracker()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'transfer-pruner[mlflow]'" in done.stdout
