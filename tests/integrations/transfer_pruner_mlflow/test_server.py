"""A real server, on SQLite and PostgreSQL, killed and started again: it has each decision once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient

from tests.integrations.transfer_pruner_mlflow.server import Server
from transfer_pruner import EliminationRule, TrialRecord
from transfer_pruner_mlflow import SavingsTracker, sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Search = Callable[..., optuna.Study]
Decisions = Callable[[MlflowClient, str], pd.DataFrame]
AgreesWith = Callable[[pd.DataFrame, optuna.Study], None]
Told = Callable[[], list[str]]


def test_a_search_is_shown_over_http(
    server: Server, search: Search, decisions: Decisions, agrees_with: AgreesWith
) -> None:
    with SavingsTracker("http", tracking_uri=server.uri) as tracker:
        study = search(tracker, 30, n_jobs=2)
    client = MlflowClient(server.uri)
    assert client.get_run(str(tracker.run_id)).info.status == "FINISHED"
    agrees_with(decisions(client, str(tracker.run_id)), study)
    again = sync(tracker.spool)
    assert again.points_sent == 0
    agrees_with(decisions(client, str(tracker.run_id)), study)


def test_tasks_and_numbers_of_any_kind_are_shown(server: Server, told: Told) -> None:
    # Half a character is what the name of a file may hold.
    names = ["中文", "a\nb", "x, y", 'a "quoted" one', "\ud800", "e" * 5000, "=1+1", "😀", "\0"]
    odd = [
        TrialRecord(i, name, "t", "trained", 1.0, 0.5, reason=name) for i, name in enumerate(names)
    ]
    odd += [
        TrialRecord(20 + i, "s", name, "trained", seconds, value, hyperparameters={name: seconds})
        for i, (name, seconds, value) in enumerate(
            [("inf", math.inf, 0.5), ("nan", 1.0, math.nan), ("-inf", 1.0, -math.inf)]
        )
    ]
    settings = {"k": 3, "of (all)": "x", "text": "\ud800中", "long": "ä" * 4000}
    rule = EliminationRule({}, settings)
    with SavingsTracker("odd", tracking_uri=server.uri, rule=rule, report=False) as tracker:
        for record in odd:
            tracker.record(record)
        tracker.log_metrics({"f1 macro/dev-2.ä": 0.7, "inf": math.inf})
    assert told() == []
    client = MlflowClient(server.uri)
    run = client.get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["f1 macro/dev-2.ä"] == 0.7
    assert run.data.params["transfer_pruner.k"] == "3"
    path = client.download_artifacts(str(tracker.run_id), "savings/decisions.csv")
    table = pd.read_csv(path, keep_default_na=False)
    assert list(table["source"])[: len(names)] == [
        name.encode("utf-8", "backslashreplace").decode() for name in names
    ]


@pytest.mark.parametrize("back", ["before the search is over", "when the search is long over"])
def test_a_server_that_is_killed_in_the_middle_has_every_decision_once(
    back: str,
    server: Server,
    search: Search,
    decisions: Decisions,
    agrees_with: AgreesWith,
    told: Told,
) -> None:
    client = MlflowClient(server.uri)
    tracker = SavingsTracker("outages", tracking_uri=server.uri)

    def points() -> int:
        if tracker.run_id is None:
            return 0
        return len(client.get_metric_history(tracker.run_id, "savings/trials_trained"))

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 200
        while points() < count and time.monotonic() < deadline:
            time.sleep(0.5)
        assert points() >= count

    def interfere(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 60:
            wait_for(50)
            # Some of what is being sent now arrives, and its answer does not.
            server.kill()
        if trial.number == 120:
            # Long enough for the tracker to have noticed.
            time.sleep(10)
        if trial.number == 150 and back == "before the search is over":
            server.start()
            wait_for(140)

    with tracker:
        study = search(tracker, 200, callbacks=[interfere])
    messages = told()
    assert "could not be written to" in messages[0]
    if back == "when the search is long over":
        assert "transfer-pruner sync" in messages[1]
        server.start()
        first, second = sync(tracker.spool), sync(tracker.spool)
        assert first.points_already_there > 0
        assert (first.decisions, second.points_sent) == (200, 0)
    else:
        assert len(messages) == 1
    run = client.get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1 + (back.startswith("when"))
    agrees_with(decisions(client, str(tracker.run_id)), study)


def test_a_server_that_starts_after_the_search_gets_it_from_then_on(
    server: Server, search: Search, decisions: Decisions, agrees_with: AgreesWith, told: Told
) -> None:
    server.kill()
    with SavingsTracker("late", tracking_uri=server.uri) as tracker:
        search_before = search(tracker, 20)
        assert tracker.run_id is None
        server.start()
        study = search(tracker, 20, search_before)
    assert len(told()) == 1
    client = MlflowClient(server.uri)
    agrees_with(decisions(client, str(tracker.run_id)), study)
