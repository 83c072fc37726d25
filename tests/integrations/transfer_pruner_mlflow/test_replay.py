"""What an outage or a kill kept from MLflow is sent once, however often it is replayed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient

from transfer_pruner import TrialRecord
from transfer_pruner_mlflow import SavingsTracker, sync
from transfer_pruner_mlflow.ledger import Ledger
from transfer_pruner_mlflow.run import SavingsRun
from transfer_pruner_mlflow.spool import Event, Spool

Search = Callable[..., optuna.Study]
Decisions = Callable[[MlflowClient, str], pd.DataFrame]
AgreesWith = Callable[[pd.DataFrame, optuna.Study], None]
Told = Callable[[], list[str]]

KILLED = """
import os, signal, time
import optuna
from transfer_pruner import Decision, EliminationRule
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate
from optuna.distributions import CategoricalDistribution

TASKS = ["a", "b", "c"]
SPACE = {{"source": CategoricalDistribution(TASKS), "target": CategoricalDistribution(TASKS)}}
pairs = [(s, t) for s in TASKS for t in TASKS if s != t]
rule = EliminationRule({{(s, t): Decision(s != "a", 0.1, 0.5, "told so") for s, t in pairs}}, {{}})
study = optuna.create_study(study_name="killed", storage="sqlite:///study.db")

def objective(trial):
    trial.suggest_categorical("source", TASKS)
    trial.suggest_categorical("target", TASKS)
    return 1.0

def stop(study, trial):
    if trial.number == 14:
        while {wait} and not sent():
            time.sleep(0.1)
    if trial.number == 29:
        os.kill(os.getpid(), signal.SIGKILL)

def sent():
    from mlflow import MlflowClient
    if tracker.run_id is None:
        return False
    return MlflowClient({uri!r}).get_run(tracker.run_id).data.metrics

with SavingsTracker("trec-is", tracking_uri={uri!r}) as tracker:
    study.optimize(gate(objective, rule, search_space=SPACE, tracker=tracker), callbacks=[stop])
"""


def runs_of(uri: str) -> list[mlflow.entities.Run]:
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def events_of(path: Path) -> list[Event]:
    spool = Spool(path, print)
    spool.close()
    return list(spool.events())


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(True, id="with half of it sent"),
        pytest.param(False, id="at any moment", marks=pytest.mark.slow),
    ],
)
def test_a_search_that_was_killed_is_replayed_whole(
    wait: bool, uri: str, decisions: Decisions, agrees_with: AgreesWith
) -> None:
    code = textwrap.dedent(KILLED).format(uri=uri, wait=wait)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    study = optuna.load_study(study_name="killed", storage="sqlite:///study.db")
    first = sync()
    assert (first.runs, first.decisions) == (1, 30)
    assert first.points_already_there > 0 or not wait
    (run,) = runs_of(uri)
    assert first.run_ids == (run.info.run_id,)
    assert run.info.status == "KILLED"
    agrees_with(decisions(MlflowClient(uri), run.info.run_id), study)
    # The folder has nothing left to do; the file itself can be replayed as often as one likes.
    assert sync().runs == 0
    (spool,) = Path(".transfer_pruner/spool").glob("*.jsonl")
    again = sync(spool)
    assert again.points_sent == 0
    assert again.points_already_there == first.points_sent + first.points_already_there
    assert len(runs_of(uri)) == 1
    agrees_with(decisions(MlflowClient(uri), run.info.run_id), study)


def test_a_kill_between_sending_and_marking_duplicates_nothing(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri="http://127.0.0.1:9") as tracker:
        for record in records:
            tracker.record(record)
    events = events_of(tracker.spool)
    ledger = Ledger()
    points = [point for event in events for point in ledger.add(event)]
    client = MlflowClient(uri)
    # The run is created and half of the points are sent; that it was, is marked nowhere.
    run = SavingsRun(client, ledger.settings, events[0].id.partition("/")[0])
    run.send(points[: len(points) // 2])
    found = sync(tracker.spool, tracking_uri=uri)
    assert found.run_ids == (run.run_id,)
    assert found.points_already_there == len(points) // 2
    assert found.points_sent == len(points) - len(points) // 2
    assert len(decisions(client, run.run_id)) == len(records)
    assert len(runs_of(uri)) == 1


def test_the_store_itself_keeps_a_point_once(uri: str, records: list[TrialRecord]) -> None:
    # What makes a batch that was sent, and whose answer was lost, harmless even unasked.
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        for record in records:
            tracker.record(record)
    client = MlflowClient(uri)
    events = events_of(tracker.spool)
    ledger = Ledger()
    points = [point for event in events for point in ledger.add(event)]
    before = client.get_metric_history(str(tracker.run_id), "savings/seconds_spent")
    settings = ledger.settings | {"run_id": tracker.run_id}
    SavingsRun(client, settings, "x").send(points)
    after = client.get_metric_history(str(tracker.run_id), "savings/seconds_spent")
    assert after == before


def test_the_command_that_the_warning_names_replays(
    uri: str, search: Search, decisions: Decisions, agrees_with: AgreesWith, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri="http://127.0.0.1:9") as tracker:
        study = search(tracker, 20)
    assert told()[-1].endswith(f"transfer-pruner sync {tracker.spool}")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        main = "from transfer_pruner.cli import main; main()"
        line = [sys.executable, "-c", main, "sync", *arguments]
        return subprocess.run(line, capture_output=True, text=True)

    done = command(str(tracker.spool), "--tracking-uri", uri)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("runs: 1\ndecisions: 20\n")
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"
    agrees_with(decisions(MlflowClient(uri), run.info.run_id), study)
    missing = command("nowhere.jsonl")
    assert missing.returncode == 2
    assert "'nowhere.jsonl' does not exist" in missing.stderr
    with pytest.raises(ValueError, match=r"spool is 'nowhere\.jsonl', which is neither a file nor"):
        sync("nowhere.jsonl")


def test_somebody_elses_run_keeps_its_status_in_a_replay(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told, empty_store: Path
) -> None:
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("mine")).info.run_id
    with SavingsTracker(run_id=run_id, tracking_uri="http://127.0.0.1:9") as tracker:
        for record in records:
            tracker.record(record)
    assert tracker.spool.name == f"{run_id}.jsonl"
    assert sync(tracker.spool, tracking_uri=uri).run_ids == (run_id,)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert len(decisions(client, run_id)) == len(records)
    # A store that does not have the run gets no other in its place.
    with pytest.raises(mlflow.MlflowException, match="not found"):
        sync(tracker.spool, tracking_uri=f"sqlite:///{empty_store}")


def test_a_spool_in_use_or_without_an_address_is_refused(
    uri: str, records: list[TrialRecord], tmp_path: Path, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
        with pytest.raises(ValueError, match="is being written by a search that runs"):
            sync(tracker.spool)
    with SavingsTracker("trec-is", tracking_uri="http://me:secret@127.0.0.1:9") as secret:
        secret.record(records[0])
    assert "secret" not in secret.spool.read_text()
    assert len(told()) == 2
    assert "secret" not in "".join(told())
    with pytest.raises(ValueError, match="pass tracking_uri="):
        sync(secret.spool)
    empty = tmp_path / "empty.jsonl"
    Spool(empty, print).close()
    with pytest.raises(ValueError, match="holds no event"):
        sync(empty)


def test_one_spool_that_cannot_be_sent_stops_no_other(
    uri: str,
    records: list[TrialRecord],
    decisions: Decisions,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def search(address: str, **arguments: Any) -> SavingsTracker:
        with SavingsTracker(tracking_uri=address, report=False, **arguments) as tracker:
            tracker.record(records[0])
        return tracker

    down = [search("http://127.0.0.1:9") for _ in range(2)]
    gone = search("http://127.0.0.1:9", run_id="0" * 32).spool
    gone.write_text(gone.read_text().replace("http://127.0.0.1:9", uri))
    good = search("http://127.0.0.1:9")
    good.spool.write_text(good.spool.read_text().replace("http://127.0.0.1:9", uri))
    folder = good.spool.parent
    # What a full disk leaves, and what a power cut may.
    (folder / "0.jsonl").touch()
    (folder / "1.jsonl").write_bytes(b'{"id": "x/0", "kin')
    (folder / "2.jsonl").write_bytes(bytes(4096))
    with SavingsTracker("trec-is", tracking_uri=uri) as running:
        before = len(told())
        done = sync()
    assert (done.runs, done.decisions) == (1, 1)
    assert len(decisions(MlflowClient(uri), done.run_ids[0])) == 1
    assert len(done.not_sent) == len(told()) - before == 3
    by_file = {Path(what.partition(": ")[0]).absolute(): what for what in done.not_sent}
    assert by_file.keys() == {gone, *(tracker.spool for tracker in down)}
    assert "was not found" in by_file[gone]
    # Nobody waits twice for a server that does not answer.
    assert ["not tried" in by_file[tracker.spool] for tracker in sorted(down, key=spool_of)] == [
        False,
        True,
    ]
    assert running.run_id not in done.run_ids
    assert sync(folder, tracking_uri=uri).runs == 2


def spool_of(tracker: SavingsTracker) -> Path:
    return tracker.spool


def test_a_run_that_is_gone_may_be_replayed_into_another(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    with SavingsTracker(run_id="0" * 32, tracking_uri=uri) as tracker:
        tracker.record(records[0])
    refused, left = told()
    assert "MLflow refuses this search: the run 0000" in refused
    assert "run_id=" in refused
    assert f"transfer-pruner sync {tracker.spool}" in left
    client = MlflowClient(uri)
    other = client.create_run(client.create_experiment("mine")).info.run_id
    assert sync(tracker.spool, run_id=other).run_ids == (other,)
    assert len(decisions(client, other)) == 1
    assert client.get_run(other).info.status == "RUNNING"
    with pytest.raises(ValueError, match=r"run_id is '.*', so spool must be one file"):
        sync(tracker.spool.parent, run_id=other)


def test_a_spool_whose_first_line_is_lost_becomes_a_run_of_its_own(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri="http://127.0.0.1:9") as tracker:
        for record in records:
            tracker.record(record)
    lines = tracker.spool.read_bytes().splitlines(keepends=True)
    # Cut in the middle of its first line, and of one more.
    tracker.spool.write_bytes(
        b"".join([lines[0][50:], lines[1], lines[2][:40] + b"\n", *lines[3:]])
    )
    with pytest.raises(ValueError, match="pass tracking_uri="):
        sync(tracker.spool)
    (run_id,) = sync(tracker.spool, tracking_uri=uri).run_ids
    assert len(decisions(MlflowClient(uri), run_id)) == len(records) - 1
