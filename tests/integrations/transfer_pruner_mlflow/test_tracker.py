"""A search's savings as one MLflow run, in real stores; whatever MLflow does, training goes on."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from transfer_pruner import (
    Decision,
    EliminationRule,
    TransferPrunerWarning,
    TrialRecord,
    find_answer,
    ranking_trust,
)
from transfer_pruner_mlflow import SavingsTracker, sync
from transfer_pruner_mlflow._private import accepted_name
from transfer_pruner_mlflow.spool import Spool
from transfer_pruner_optuna import TrackingCallback, gate, transfers_from_study

Search = Callable[..., optuna.Study]
Decisions = Callable[[MlflowClient, str], pd.DataFrame]
AgreesWith = Callable[[pd.DataFrame, optuna.Study], None]
Told = Callable[[], list[str]]


def only_run(uri: str, experiment: str = "trec-is") -> Run:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


def mlflow_state() -> tuple[str, dict[str, str]]:
    ours = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")}
    return mlflow.get_tracking_uri(), ours


def test_one_run_holds_the_headline_the_metrics_and_the_pairs(
    uri: str, records: list[TrialRecord]
) -> None:
    with SavingsTracker(
        "trec-is", tracking_uri=uri, maximize=True, attribution_seconds=1.5
    ) as tracker:
        for record in records:
            tracker.record(record)
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == tracker.run_id
    assert run.info.experiment_id == tracker.experiment_id
    assert run.data.metrics["savings/seconds_spent"] == pytest.approx(14 + 1.5 + 0.04)
    assert run.data.metrics["savings/estimated_seconds_saved"] == pytest.approx(8 - 1.54)
    assert run.data.metrics["savings/pairs_eliminated"] == 4
    note = run.data.tags["mlflow.note.content"]
    found = find_answer(records).headline()
    assert note.startswith(
        f"**{found}**\n\n**4 of 11 trials and 4 of 7 pairs eliminated before training: "
        "15.5 s spent (measured)"
    )
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/savings/pairs.json")
    assert table["columns"][:3] == ["source", "target", "decision"]
    path = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/savings/pairs.csv")
    pairs = pd.read_csv(path, keep_default_na=False).set_index(["source", "target"])
    assert pairs.loc[("bad", "t2"), "decision"] == "eliminated"
    assert pairs.loc[("bad", "t2"), "reason"] == "rank 9 of 9"
    assert pairs.loc[("bad", "t2"), "mean_gain"] == ""
    assert pairs.loc[("s1", "t"), "trials_trained"] == 2
    assert float(pairs.loc[("s1", "t"), "mean_gain"]) == pytest.approx(0.525 - 0.4)
    assert pairs.loc[("", "t"), "decision"] == "single-task baseline"
    assert float(pairs.loc[("s2", "t"), "highest_value"]) == pytest.approx(0.55)


def test_a_run_says_what_was_best_for_every_target(uri: str) -> None:
    odd = "Calls (urgent) > 5 | @home"
    records = [
        TrialRecord(0, None, "t", "trained", 2.0, 0.4, hyperparameters={"lr": 0.1}),
        TrialRecord(1, "a", "t", "trained", 2.0, 0.6, hyperparameters={"lr": 0.1}, priority=0.5),
        TrialRecord(2, "a", odd, "trained", 2.0, 0.3),
        TrialRecord(3, None, odd, "trained", 2.0, 0.5),
        TrialRecord(4, "a", "never finished", "failed", 2.0),
    ]
    with SavingsTracker("trec-is", tracking_uri=uri, maximize=True) as tracker:
        for record in records:
            tracker.record(record)
    run = only_run(uri)
    params, metrics = run.data.params, run.data.metrics
    named = accepted_name("best/", odd)
    assert named.startswith("best/Calls _urgent_ _ 5 _ _home ")
    assert {key for key in params if key.startswith("best/")} == {"best/t", named}
    assert params["best/t"] == "a with lr=0.1"
    assert params[named] == "training alone"
    assert (metrics["best/t"], metrics[named]) == (0.6, 0.5)
    assert metrics["answer/targets_with_transfer"] == 1
    assert metrics["answer/mean_gain"] == pytest.approx(0.1)
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "best/t")
    assert [(m.step, m.value) for m in history] == [(1, 0.4), *((at, 0.6) for at in range(2, 6))]
    note = run.data.tags["mlflow.note.content"]
    assert f"|{odd}|".replace("5 |", r"5 \|") in note
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/savings/answer.json")
    assert table["columns"][:4] == ["target", "source", "hyperparameters", "value"]
    path = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/savings/answer.csv")
    answer = pd.read_csv(path, keep_default_na=False)
    assert answer["target"].tolist() == sorted([odd, "t", "never finished"])
    path = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/savings/decisions.csv")
    assert pd.read_csv(path)["priority"].dropna().tolist() == [0.5]
    path = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/savings/pairs.csv")
    assert pd.read_csv(path)["priority"].dropna().tolist() == [0.5]


def test_a_better_answer_of_a_search_that_goes_on_is_a_tag_beside_the_parameter(uri: str) -> None:
    def go_on(value: float, number: int, run_id: str | None) -> SavingsTracker:
        with SavingsTracker(
            "trec-is", tracking_uri=uri, run_id=run_id, maximize=True, report=False
        ) as tracker:
            tracker.record(TrialRecord(number, f"s{number}", "t", "trained", 1.0, value))
        return tracker

    first = go_on(0.5, 0, None)
    tag = "transfer_pruner.best/t"
    assert tag not in only_run(uri).data.tags
    go_on(0.7, 1, first.run_id)
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert run.data.params["best/t"] == "s0", "MLflow changes no parameter"
    assert run.data.tags[tag] == "s1"
    assert run.data.metrics["best/t"] == 0.7
    assert "s1 scores 0.7" in run.data.tags["mlflow.note.content"].splitlines()[0]
    go_on(0.6, 1, first.run_id)  # corrected
    assert only_run(uri).data.tags[tag] == "s1"
    go_on(0.4, 1, first.run_id)
    assert only_run(uri).data.tags[tag] == "s0", "and no older one stays"


def test_in_somebody_elses_run_the_answer_is_a_tag(uri: str) -> None:
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("mine"))
    with SavingsTracker(run_id=run.info.run_id, tracking_uri=uri, maximize=True) as tracker:
        tracker.record(TrialRecord(0, "a", "t", "trained", 1.0, 0.5))
    data = client.get_run(run.info.run_id).data
    assert data.params == {}
    assert data.tags["transfer_pruner.best/t"] == "a"
    assert data.tags["transfer_pruner.search"] == "no elimination"


def test_many_targets_are_all_told_and_the_description_has_as_many_as_there_is_room_for(
    uri: str, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri, maximize=True, report=False) as tracker:
        for at in range(250):
            tracker.record(TrialRecord(at, "a", f"target {at:03}", "trained", 1.0, at / 250))
    assert told() == []
    data = only_run(uri).data
    assert len([key for key in data.params if key.startswith("best/")]) == 250
    assert len([key for key in data.metrics if key.startswith("best/")]) == 250
    note = data.tags["mlflow.note.content"]
    assert "more targets: `savings/answer.csv`." in note
    assert "savings/decisions.csv" in note
    assert len(note) < 8000


def test_why_a_study_stopped_and_what_it_never_started_stand_in_its_run(
    uri: str, rule: EliminationRule
) -> None:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", ["a", "b", "c"])
        return 0.5 + 0.1 * (source == trial.suggest_categorical("target", ["a", "b"]))

    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"source": "a", "target": "a"})
    with SavingsTracker("trec-is", tracking_uri=uri, study=study) as tracker:
        study.optimize(objective, n_trials=1, callbacks=[TrackingCallback(tracker)])
        study.set_user_attr("transfer_pruner.settled", {"reason": "nothing more is expected"})
    data = only_run(uri).data
    assert "Why it stopped: nothing more is expected" in data.tags["mlflow.note.content"]
    assert data.metrics["savings/exhaustive_trials"] == 6
    assert data.metrics["savings/trials_never_started"] == 5
    assert tracker.savings().stopped == "nothing more is expected"
    with SavingsTracker("other", tracking_uri=uri, maximize=True, report=False) as other:
        other.record(TrialRecord(0, "a", "t", "trained", 1.0, 0.5))
        other.log_ending(exhaustive_trials=10, stopped="enough")
    metrics = only_run(uri, "other").data.metrics
    assert metrics["savings/trials_never_started"] == 9
    assert metrics["savings/estimated_never_started_seconds"] == pytest.approx(9)


def test_mlflow_reads_the_pairs_as_its_own_table(
    current_uri: str, records: list[TrialRecord]
) -> None:
    with SavingsTracker("trec-is") as tracker:
        for record in records:
            tracker.record(record)
    # MLflow 3.6 looks for it where the tracking URI points to, whatever the client's own is.
    client = MlflowClient(current_uri)
    table = client.load_table(str(tracker.experiment_id), "savings/pairs.json")
    assert len(table) == 8
    assert set(table["decision"]) == {"single-task baseline", "kept", "eliminated"}


def test_metrics_come_while_the_search_runs(uri: str, records: list[TrialRecord]) -> None:
    client = MlflowClient(uri)
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[1])
        history = []
        deadline = time.monotonic() + 60
        while not history and time.monotonic() < deadline:
            time.sleep(0.2)
            if tracker.run_id is not None:
                history = client.get_metric_history(tracker.run_id, "savings/seconds_spent")
        assert history[0].value == 2.0
        for record in records[2:]:
            tracker.record(record)
    history = client.get_metric_history(str(tracker.run_id), "savings/pairs_eliminated")
    assert [metric.step for metric in history] == list(range(1, 11))


def test_a_gated_study_is_tracked_without_touching_mlflows_own_state(
    uri: str, search: Search, decisions: Decisions, agrees_with: AgreesWith
) -> None:
    before = mlflow_state()
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        study = search(tracker, 40, n_jobs=2)
        assert mlflow.active_run() is None
    assert mlflow_state() == before
    agrees_with(decisions(MlflowClient(uri), str(tracker.run_id)), study)


def test_the_rule_and_the_audit_stand_with_the_savings(
    uri: str, rule: EliminationRule, search: Search
) -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, study=study) as tracker:
        search(tracker, 40, study)
    run = only_run(uri)
    assert run.data.tags["transfer_pruner.rule_fingerprint"] == rule.fingerprint
    params = {key: x for key, x in run.data.params.items() if not key.startswith("best/")}
    assert params == {"transfer_pruner.rule": "top_k", "transfer_pruner.k": "1"}
    audited = run.data.metrics["savings/trials_audited"]
    assert audited > 0
    assert 0 < run.data.metrics["audit/trials_audited"] <= audited
    assert "false_elimination_rate" in str(run.data.metrics)
    assert "audit trials beat every kept trial" in run.data.tags["mlflow.note.content"]


def test_figures_reports_and_further_metrics_are_in_the_run(
    uri: str, tmp_path: Path, records: list[TrialRecord]
) -> None:
    report = tmp_path / "elsewhere.html"
    report.write_text("<p>saved</p>")
    figure = Figure()
    figure.subplots().plot([1, 2])
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
        tracker.log_metrics({"savings/measured_regret": 0.1, "nothing": float("nan")})
        tracker.log_figure(figure, "savings/pairs.png")
        tracker.log_report(report)
        report.unlink()
    client, run = MlflowClient(uri), only_run(uri)
    assert run.data.metrics["savings/measured_regret"] == 0.1
    headline = run.data.tags["mlflow.note.content"].splitlines()[0]
    assert headline.endswith("Regret 0.1000 (measured).**")
    assert "nothing" not in run.data.metrics
    png = client.download_artifacts(run.info.run_id, "savings/pairs.png")
    assert Path(png).read_bytes().startswith(b"\x89PNG")
    html = client.download_artifacts(run.info.run_id, "savings/report.html")
    assert Path(html).read_text() == "<p>saved</p>"


def artifacts_of(uri: str, run_id: str | None, folder: str = "savings") -> set[str]:
    return {file.path for file in MlflowClient(uri).list_artifacts(str(run_id), folder)}


def test_the_report_is_in_the_run_with_the_data_of_each_figure(
    uri: str, rule: EliminationRule, search: Search, told: Told
) -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, study=study) as tracker:
        search(tracker, 40, study)
    assert told() == []
    client = MlflowClient(uri)
    html = Path(client.download_artifacts(str(tracker.run_id), "savings/report.html")).read_text()
    assert tracker.savings().headline() in html
    assert rule.fingerprint in html
    assert "audit trials beat every kept trial" in html
    # It fetches nothing, wherever it is opened.
    assert not re.findall(r"<(?:script|link|img|iframe)\b|url\((?!#)|@import", html)
    linked = set(re.findall(r'href="(report-data/[^"]+)"', html))
    assert linked
    data = artifacts_of(uri, tracker.run_id, "savings/report-data")
    assert data == {f"savings/{name}" for name in linked}
    path = client.download_artifacts(str(tracker.run_id), "savings/report-data/pairs.csv")
    assert pd.read_csv(path)["trials_eliminated"].sum() == tracker.savings().trials_eliminated


def test_where_no_direction_is_known_the_report_says_nothing_of_gains_and_audits(
    uri: str, records: list[TrialRecord]
) -> None:
    records = [*records, TrialRecord(50, "bad", "t", "trained", 2.0, 0.1, audit=True)]
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        for record in records:
            tracker.record(record)
    client = MlflowClient(uri)
    html = Path(client.download_artifacts(str(tracker.run_id), "savings/report.html")).read_text()
    assert "beat every kept trial" not in html
    path = client.download_artifacts(str(tracker.run_id), "savings/report-data/pairs.csv")
    assert pd.read_csv(path)["mean_gain"].isna().all()


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_study_says_by_its_trials_which_way_is_better_and_how_far_the_ranking_holds(
    uri: str, direction: str
) -> None:
    sources, sign = ["a", "b", "c", "d", "e"], 1 if direction == "maximize" else -1
    table = pd.DataFrame({"source": sources, "target": "t", "score": [5.0, 4.0, 3.0, 2.0, 1.0]})
    rule = EliminationRule(
        {(s, "t"): Decision(False, score, 0.5, "") for s, _, score in table.to_numpy()}, {}
    )

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [None, *sources])
        trial.suggest_categorical("target", ["t"])
        return 1.0 if source is None else 1.0 - sign * 0.1 * sources.index(source)

    sampler = optuna.samplers.GridSampler({"source": [None, *sources], "target": ["t"]}, seed=0)
    study = optuna.create_study(direction=direction, sampler=sampler)
    with SavingsTracker("trec-is", tracking_uri=uri, rule=rule, dev_sizes=90) as tracker:
        study.optimize(gate(objective, rule, tracker=tracker))
    run = only_run(uri)
    note = run.data.tags["mlflow.note.content"]
    # Better than alone there is none, either way.
    assert note.startswith("**t: training alone")
    assert "90 dev examples" in note
    transfers = transfers_from_study(study)
    trust = ranking_trust(table, transfers)
    assert run.data.metrics["trust/correlation"] == pytest.approx(trust.correlation)
    assert trust.correlation > 0.99
    assert run.data.metrics["trust/n_pairs"] == 5
    assert run.data.tags["transfer_pruner.trust"] == str(trust)
    assert f"Ranking: {trust}" in note
    path = MlflowClient(uri).download_artifacts(str(tracker.run_id), "savings/report.html")
    assert "How far the ranking holds here" in Path(path).read_text()


def test_a_report_of_the_users_own_is_kept_and_none_is_made_unasked(
    uri: str, tmp_path: Path, records: list[TrialRecord]
) -> None:
    own = tmp_path / "own.html"
    own.write_text("mine")
    with SavingsTracker("trec-is", tracking_uri=uri, report=False) as tracker:
        tracker.record(records[0])
    assert "savings/report.html" not in artifacts_of(uri, tracker.run_id)
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
        tracker.log_report(own)
    path = MlflowClient(uri).download_artifacts(str(tracker.run_id), "savings/report.html")
    assert Path(path).read_text() == "mine"
    assert "savings/report-data" not in artifacts_of(uri, tracker.run_id)


def test_without_matplotlib_one_warning_says_what_to_install_and_all_else_is_there(
    uri: str, records: list[TrialRecord], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[0])
    (message,) = told()
    assert "the report is left out" in message
    assert "pip install 'transfer-pruner[plot]'" in message
    assert "savings/pairs.csv" in artifacts_of(uri, tracker.run_id)
    assert only_run(uri).info.status == "FINISHED"


def test_an_outage_keeps_the_report_for_the_replay(
    uri: str, records: list[TrialRecord], told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri=refused()) as tracker:
        tracker.record(records[0])
    client, run_id = replayed(tracker, uri, told())
    html = client.download_artifacts(run_id, "savings/report.html")
    assert "<svg" in Path(html).read_text()


def test_a_long_search_costs_no_memory_while_mlflow_is_away(told: Told) -> None:
    settings = {"lr": 0.1, "layers": 3, "optimizer": "adam"}

    def record(number: int) -> TrialRecord:
        return TrialRecord(number, "s", "t", "eliminated", 0.1, hyperparameters=settings)

    with SavingsTracker(tracking_uri=refused(), close_seconds=0, report=False) as tracker:
        for number in range(100):
            tracker.record(record(number))
        tracemalloc.start()
        for number in range(100, 20_100):
            tracker.record(record(number))
        retained = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        # Less than a byte a decision, and what MLflow's client holds after a refusal.
        assert retained < 500_000
        assert tracker.savings().trials_eliminated == 20_100


def test_a_record_of_a_known_trial_corrects_it(uri: str, records: list[TrialRecord]) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[1])
        for record in records:
            tracker.record(record)
        corrected = TrialRecord(**{**vars(records[1]), "seconds": 3.0})
        tracker.record(corrected)
    run = only_run(uri)
    assert run.data.metrics["savings/seconds_spent"] == pytest.approx(15.04)
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "savings/trials_trained")
    # Each trial once, and the last step again with what is known better.
    assert [metric.step for metric in history] == [*range(1, 12), 11]


def test_the_users_run_is_written_into_and_not_ended(uri: str, records: list[TrialRecord]) -> None:
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("mine"))
    client.log_metric(run.info.run_id, "f1", 0.9)
    client.set_tag(run.info.run_id, "mlflow.note.content", "my own words")
    with SavingsTracker(run_id=run.info.run_id, tracking_uri=uri) as tracker:
        for record in records:
            tracker.record(record)
    after = only_run(uri, "mine")
    assert after.info.status == "RUNNING"
    assert after.data.metrics["f1"] == 0.9
    assert "savings/seconds_spent" in after.data.metrics
    assert after.data.tags["mlflow.note.content"] == "my own words"


def test_a_search_that_goes_on_later_goes_on_in_its_run(
    uri: str, search: Search, decisions: Decisions, agrees_with: AgreesWith
) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        study = search(tracker, 15)
    with SavingsTracker(run_id=tracker.run_id, tracking_uri=uri) as later:
        search(later, 15, study)
    assert later.run_id == tracker.run_id
    table = decisions(MlflowClient(uri), str(tracker.run_id))
    assert len(table) == 30
    agrees_with(table, study)


def test_a_search_may_go_on_with_another_rule_and_its_run_is_ended_again(
    uri: str, rule: EliminationRule, records: list[TrialRecord], told: Told
) -> None:
    with pytest.raises(RuntimeError), SavingsTracker(tracking_uri=uri, rule=rule) as tracker:
        tracker.record(records[1])
        raise RuntimeError
    other = EliminationRule({("s1", "t"): rule.decide("a", "b")}, {"rule": "top_k", "k": 2})
    with SavingsTracker(run_id=tracker.run_id, tracking_uri=uri, rule=other) as later:
        later.record(records[2])
    assert told() == []
    assert later.savings().trials_trained == 2
    run = only_run(uri, "transfer_pruner")
    assert run.info.status == "FINISHED"
    # A parameter cannot be changed; the tags tell of the rule that decided last.
    assert run.data.params["transfer_pruner.k"] == "1"
    assert run.data.tags["transfer_pruner.rule"] == '{"rule": "top_k", "k": 2}'


def test_a_second_tracker_of_one_run_gets_a_run_beneath_it(
    uri: str, current_uri: str, search: Search, decisions: Decisions, told: Told
) -> None:
    client = MlflowClient(uri)
    mlflow.set_experiment("mine")
    with (
        mlflow.start_run() as run,
        SavingsTracker() as one,
        SavingsTracker("mine", run_id=run.info.run_id) as other,
    ):
        search(one, 10)
        search(other, 10)
    assert ["gets a run of its own" in message for message in told()] == [True]
    assert one.run_id == run.info.run_id != other.run_id
    assert len(decisions(client, str(one.run_id))) == len(decisions(client, str(other.run_id)))
    assert client.get_run(str(other.run_id)).data.tags["mlflow.parentRunId"] == run.info.run_id


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_search_that_stops_leaves_a_run_that_says_so(
    uri: str, error: type[BaseException], status: str, records: list[TrialRecord]
) -> None:
    with pytest.raises(error), SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(records[1])
        raise error
    run = only_run(uri)
    assert run.info.status == status
    assert "savings/seconds_spent" in run.data.metrics


class Hole:
    """A socket that takes connections and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self._listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def hole() -> Iterator[Hole]:
    hole = Hole()
    yield hole
    hole.close()


class Failing(BaseHTTPRequestHandler):
    """Answers everything with 500, as a server does whose database is gone."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.asked.append(self.path)  # type: ignore[attr-defined]

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def failing() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refused() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def replayed(tracker: SavingsTracker, uri: str, told: list[str]) -> tuple[MlflowClient, str]:
    """Do what the warning says, with another store since the one it was meant for is no store."""
    assert sum("could not be written to" in message for message in told) == 1
    assert f"transfer-pruner sync {tracker.spool}" in told[-1]
    assert len(told) == 2
    (run_id,) = sync(tracker.spool, tracking_uri=uri).run_ids
    return MlflowClient(uri), run_id


@pytest.mark.parametrize("where", ["down", "wrong host"])
def test_a_server_that_is_not_there_costs_a_warning_and_no_decision(
    where: str,
    uri: str,
    search: Search,
    decisions: Decisions,
    agrees_with: AgreesWith,
    told: Told,
) -> None:
    nowhere = refused() if where == "down" else "http://mlflow.invalid:5000"
    with SavingsTracker("trec-is", tracking_uri=nowhere) as tracker:
        study = search(tracker, 30, n_jobs=2)
    assert tracker.run_id is None
    agrees_with(decisions(*replayed(tracker, uri, told())), study)


def test_a_server_that_never_answers_is_not_waited_for(
    hole: Hole, uri: str, search: Search, decisions: Decisions, agrees_with: AgreesWith, told: Told
) -> None:
    with SavingsTracker("trec-is", tracking_uri=hole.uri, close_seconds=30) as tracker:
        study = search(tracker, 30)
        # All trials are over, and the first question to MLflow is still open.
        assert len(hole.connections) == 1
        assert not told()
    agrees_with(decisions(*replayed(tracker, uri, told())), study)


def test_closing_waits_no_longer_than_it_is_told_to(
    hole: Hole, records: list[TrialRecord], told: Told
) -> None:
    with SavingsTracker(tracking_uri=hole.uri, close_seconds=0, report=False) as tracker:
        tracker.record(records[0])
    writer = tracker._writer
    assert writer is not None
    assert writer.is_alive()
    (message,) = told()
    assert "transfer-pruner sync" in message
    # It gives up what it is at, and says no more: whatever runs by then is another search.
    hole.close()
    writer.join(60)
    assert not writer.is_alive()
    assert told() == [message]
    Spool(tracker.spool, print).close()


def test_a_server_that_fails_is_asked_less_and_less(
    failing: ThreadingHTTPServer,
    uri: str,
    search: Search,
    decisions: Decisions,
    agrees_with: AgreesWith,
    told: Told,
) -> None:
    address = f"http://127.0.0.1:{failing.server_address[1]}"
    with SavingsTracker("trec-is", tracking_uri=address) as tracker:
        study = search(tracker, 30)
        time.sleep(7)
    # At 0 and about 4 seconds, and when closed: MLflow's client alone asks 8 times a call.
    assert 2 <= len(failing.asked) <= 4  # type: ignore[attr-defined]
    agrees_with(decisions(*replayed(tracker, uri, told())), study)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no leave to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_a_warning_and_mlflow_gets_everything(
    small_disk: Path,
    uri: str,
    search: Search,
    decisions: Decisions,
    agrees_with: AgreesWith,
    told: Told,
) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri, spool=small_disk) as tracker:
        study = search(tracker, 200)
    (message,) = told()
    assert "No space left on device" in message or "part of a line" in message
    agrees_with(decisions(MlflowClient(uri), str(tracker.run_id)), study)


def test_without_disk_and_without_server_it_says_that_the_rest_is_lost(
    tmp_path: Path, search: Search, told: Told
) -> None:
    (tmp_path / "file").write_text("no folder")
    with SavingsTracker(tracking_uri=refused(), spool=tmp_path / "file" / "spool") as tracker:
        study = search(tracker, 10)
    assert len(study.trials) == 10
    assert tracker.savings().trials_trained > 0
    assert "the rest is lost" in told()[-1]


def test_where_warnings_are_errors_training_sees_none(search: Search) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TransferPrunerWarning)
        with SavingsTracker(tracking_uri=refused()) as tracker:
            study = search(tracker, 10)
    assert len(study.trials) == 10


def test_what_cannot_be_written_is_left_out_and_told(
    uri: str, records: list[TrialRecord], told: Told
) -> None:
    circle: dict[str, object] = {}
    circle["self"] = circle
    with SavingsTracker("trec-is", tracking_uri=uri) as tracker:
        tracker.record(TrialRecord(0, "s", "t", "trained", 1.0, hyperparameters={"lr": circle}))
        tracker.log_metrics({"f1": "high"})  # type: ignore[dict-item]
        tracker.record(records[1])
    assert [message.startswith("left out of MLflow: ValueError") for message in told()] == [
        True
    ] * 2
    assert only_run(uri).data.metrics["savings/trials_trained"] == 1


@pytest.mark.parametrize("name", ["", "/etc/x.png", "../x.png"])
def test_a_name_that_leaves_the_run_is_refused(name: str, tmp_path: Path, uri: str) -> None:
    tracker = SavingsTracker(tracking_uri=uri)
    with pytest.raises(ValueError, match="artifact must be a relative name"):
        tracker.log_figure(Figure(), name)
    with pytest.raises(ValueError, match="which is no file"):
        tracker.log_report(tmp_path / "missing.html")


def test_what_is_wrong_already_here_is_said_at_once(uri: str) -> None:
    for name in ("", " ", "x" * 501):
        with pytest.raises(ValueError, match=f"experiment must be a name .* but got '{name}'"):
            SavingsTracker(name, tracking_uri=uri)
    with pytest.raises(ValueError, match="close_seconds cannot be negative but got -1"):
        SavingsTracker(tracking_uri=uri, close_seconds=-1)
    with pytest.raises(mlflow.MlflowException):
        SavingsTracker(tracking_uri="htp://127.0.0.1:5000")


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


@pytest.mark.parametrize("told_by", ["the rule", "the trials"])
def test_proxy_scores_are_paid_for_whoever_tells_of_them(
    uri: str, records: list[TrialRecord], told_by: str
) -> None:
    rule = EliminationRule({}, {}, scoring_seconds=2.0) if told_by == "the rule" else None
    if rule is None:
        records = [replace(record, scoring_seconds=2.0) for record in records]
    with SavingsTracker("trec-is", tracking_uri=uri, maximize=True, rule=rule) as tracker:
        for record in records:
            tracker.record(record)
    metrics = only_run(uri).data.metrics
    assert metrics["savings/scoring_seconds"] == tracker.savings().scoring_seconds == 2
    assert metrics["savings/seconds_spent"] == pytest.approx(14 + 2 + 0.04)
    history = MlflowClient(uri).get_metric_history(tracker.run_id, "savings/seconds_spent")
    assert min(point.value for point in history) > 2
    assert "| proxy scores | 2.0 | measured |" in only_run(uri).data.tags["mlflow.note.content"]
    path = mlflow.artifacts.download_artifacts(
        run_id=tracker.run_id, artifact_path="savings/report.html", tracking_uri=uri
    )
    assert re.search(r"proxy scores</td>\s*<td[^>]*>2.0", Path(path).read_text())
