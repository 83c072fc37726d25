"""What MLflow refuses costs itself only, one name, point or file, and is told with a remedy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from transfer_pruner import EliminationRule, LearningRule, TransferPredictor, TrialRecord
from transfer_pruner_mlflow import SavingsTracker, sync
from transfer_pruner_mlflow._private import accepted_name, refused_name
from transfer_pruner_mlflow.ledger import Point
from transfer_pruner_mlflow.run import SavingsRun
from transfer_pruner_mlflow.spool import Spool

Decisions = Callable[[MlflowClient, str], pd.DataFrame]
Told = Callable[[], list[str]]

REFUSED = ["MAP@10", "val,f1", "f1 (macro)", "", "a//b", "/a", "..", "a -> b", "x" * 251, "\ud800"]


def test_a_name_that_mlflow_refuses_is_refused_at_once_and_costs_nothing(
    uri: str, records: list[TrialRecord], decisions: Decisions
) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
        for name in REFUSED:
            with pytest.raises(ValueError, match="which MLflow refuses"):
                tracker.log_metrics({"f1": 0.1, name: 0.5})
        tracker.log_metrics({"f1 macro/dev-2.ä": 0.7})
    client = MlflowClient(uri)
    metrics = client.get_run(str(tracker.run_id)).data.metrics
    assert metrics["f1 macro/dev-2.ä"] == 0.7
    assert "f1" not in metrics
    assert len(decisions(client, str(tracker.run_id))) == 1


def test_one_value_that_is_no_number_leaves_the_others(uri: str, told: Told) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.log_metrics({"f1": "high", "huge": 10**400, "inf": float("inf"), "loss": 0.5})  # type: ignore[dict-item]
    assert len(told()) == 2
    assert MlflowClient(uri).get_run(str(tracker.run_id)).data.metrics == {"loss": 0.5}


def test_a_spool_with_such_a_name_is_sent_without_it(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri="http://127.0.0.1:9") as tracker:
        for record in records:
            tracker.record(record)
    spool = Spool(tracker.spool, print)
    spool.append("metrics", {"f1": 0.7} | dict.fromkeys(REFUSED, 0.5))
    spool.close()
    before = len(told())
    (run_id,) = sync(tracker.spool, tracking_uri=uri).run_ids
    assert len(told()) - before == len(REFUSED)
    client = MlflowClient(uri)
    assert client.get_run(run_id).data.metrics["f1"] == 0.7
    assert len(decisions(client, run_id)) == len(records)


def test_of_a_batch_that_is_refused_only_the_bad_point_is_dropped(uri: str) -> None:
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("mine")).info.run_id
    settings = {"run_id": run_id, "tags": {}, "params": {}}
    run = SavingsRun(client, settings, "x")
    # Its name is fine; what else a server may refuse, only the server knows.
    points = [Point("f1", float(i), 1 if i != 37 else -1, i) for i in range(100)]
    run.send(points)
    assert [m.step for m in client.get_metric_history(run_id, "f1")] == [
        i for i in range(100) if i != 37
    ]
    assert run.sent == 99
    assert list(run.refused) == ["f1"]


def test_settings_of_a_rule_that_mlflow_refuses_stand_in_the_tag_alone(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    odd = {"k": 3, "k@2": 1, "of (all)": "x", "": 1, "text": "\ud800", "many": "ä" * 4000}
    rule = EliminationRule({}, odd | {f"n{i}": i for i in range(200)})
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, run_name="\ud800") as tracker:
        tracker.record(records[0])
    assert told() == []
    run = MlflowClient(uri).get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.params["transfer_pruner.k"] == "3"
    assert "k@2" in run.data.tags["transfer_pruner.rule"]
    assert len(run.data.tags["mlflow.note.content"]) < 8000
    assert len(decisions(MlflowClient(uri), str(tracker.run_id))) == 1


@given(st.text(min_size=1), st.text(min_size=1))
def test_of_any_task_there_is_a_name_that_mlflow_takes(one: str, other: str) -> None:
    names = [accepted_name("best/", task) for task in (one, other)]
    assert [refused_name(name) for name in names] == [None, None]
    assert (names[0] == names[1]) == (one == other)


def test_a_run_says_which_kind_of_search_it_is(uri: str, rule: EliminationRule) -> None:
    kept = TrialRecord(0, "a", "b", "trained", 1.0, 0.5)
    gone = TrialRecord(1, "b", "a", "eliminated", 0.0)
    pairs = pd.DataFrame({"source": ["a", "b"], "target": ["b", "a"]})
    learning = LearningRule(TransferPredictor(), pairs=pairs)
    for given_rule, records, name, kind in (
        (None, [kept], "savings", "no elimination"),
        (None, [kept, gone], "savings", "elimination"),
        (rule, [kept], "elimination", "elimination"),
        (learning, [kept], "learning", "learning"),
    ):
        with SavingsTracker("kinds", tracking_uri=uri, rule=given_rule, report=False) as tracker:
            for record in records:
                tracker.record(record)
        run = MlflowClient(uri).get_run(str(tracker.run_id))
        assert (run.info.run_name, run.data.tags["transfer_pruner.search"]) == (name, kind)


def test_every_target_of_a_large_search_has_its_best_told(uri: str) -> None:
    targets = [f"t{i}" for i in range(230)]
    with SavingsTracker("many", tracking_uri=uri, maximize=True, report=False) as tracker:
        for number, target in enumerate(targets):
            tracker.record(TrialRecord(number, "s", target, "trained", 1.0, value=0.5))
    run = MlflowClient(uri).get_run(str(tracker.run_id))
    assert {f"best/{target}" for target in targets} <= run.data.params.keys()


def test_a_run_that_is_deleted_in_the_middle_is_told_with_what_brings_it_back(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    client = MlflowClient(uri)
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
        run_id = wait_for_run(tracker)
        client.delete_run(run_id)
        for record in records[1:]:
            tracker.record(record)
    refused, left = told()
    assert f"mlflow runs restore --run-id {run_id}" in refused
    assert "when MLflow answers" not in refused
    assert f"transfer-pruner sync {tracker.spool}" in left
    with pytest.raises(Exception, match="is deleted: restore it"):
        sync(tracker.spool)
    client.restore_run(run_id)
    assert sync(tracker.spool).run_ids == (run_id,)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(decisions(client, run_id)) == len(records)


def test_a_deleted_experiment_is_told_with_what_brings_it_back(
    uri: str, records: list[TrialRecord], decisions: Decisions, told: Told
) -> None:
    client = MlflowClient(uri)
    experiment_id = client.create_experiment("trec-is")
    client.delete_experiment(experiment_id)
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
    command = f"mlflow experiments restore --experiment-id {experiment_id}"
    assert command in told()[0]
    done = sync()
    assert done.runs == 0
    assert command in done.not_sent[0]
    client.restore_experiment(experiment_id)
    (run_id,) = sync().run_ids
    assert len(decisions(client, run_id)) == 1


@pytest.mark.parametrize("where", ["s3://bucket/key", "no-such-scheme://x", "a file"])
def test_where_artifacts_cannot_be_stored_the_run_is_whole_all_the_same(
    where: str, uri: str, records: list[TrialRecord], tmp_path: Path, told: Told
) -> None:
    if where == "s3://bucket/key":
        try:
            import boto3  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("boto3 is installed, and would ask the network")
    client = MlflowClient(uri)
    place = tmp_path / "artifacts"
    place.write_text("in place of the folder")
    client.create_experiment(
        "trec-is", artifact_location=str(place) if where == "a file" else where
    )
    own = tmp_path / "own.html"
    own.write_text("mine")
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        for record in records:
            tracker.record(record)
        tracker.log_report(own, "own.html")
    run = client.get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert "4 of 11 trials" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["savings/pairs_eliminated"] == 4
    (message,) = told()
    assert "could not be stored, such as savings/pairs.csv" in message
    assert f"transfer-pruner sync {tracker.spool}" in message
    again = sync()
    assert again.run_ids == (tracker.run_id,)
    assert any("own.html" in what for what in again.not_sent)
    if where == "a file":
        place.unlink()
        assert sync().not_sent == ()
        path = client.download_artifacts(str(tracker.run_id), "own.html")
        assert Path(path).read_text() == "mine"
        assert sync().runs == 0


def test_one_file_that_cannot_be_stored_leaves_the_others(
    uri: str, records: list[TrialRecord], tmp_path: Path, told: Told
) -> None:
    own = tmp_path / "own.html"
    own.write_text("mine")
    client = MlflowClient(uri)
    location = tmp_path / "artifacts"
    client.create_experiment("trec-is", artifact_location=str(location))
    with SavingsTracker("trec-is", tracking_uri=uri, report=False) as tracker:
        tracker.record(records[0])
        tracker.log_report(own, "a//first.html")
        tracker.log_report(own, "b/second.html")
        tracker.log_report(own, "c/third.html")
        # In place of a folder.
        run_id = wait_for_run(tracker)
        (location / run_id / "artifacts").mkdir(parents=True)
        (location / run_id / "artifacts" / "b").touch()
    (message,) = told()
    assert "but for 1 files that could not be stored, such as b/second.html" in message
    for folder, name in (("a", "first"), ("c", "third")):
        stored = client.list_artifacts(run_id, folder)
        assert [file.path for file in stored] == [f"{folder}/{name}.html"]


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with one status, as a proxy in front of MLflow does."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps(self.server.answer).encode()  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.answer = "no"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "MLFLOW_TRACKING_USERNAME"), (403, "who may write there"), (404, "an MLflow server?")],
)
def test_what_only_the_user_can_mend_is_told_apart_from_an_outage(
    refusing: ThreadingHTTPServer,
    status: int,
    remedy: str,
    records: list[TrialRecord],
    told: Told,
) -> None:
    refusing.status = status  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{refusing.server_address[1]}"
    with SavingsTracker("trec-is", tracking_uri=address, report=False) as tracker:
        tracker.record(records[0])
    assert "MLflow refuses this search" in told()[0]
    assert remedy in told()[0]
    assert remedy in sync().not_sent[0]


def wait_for_run(tracker: SavingsTracker) -> str:
    assert tracker._writer is not None
    assert tracker._writer.connected.wait(60)
    return str(tracker.run_id)
