"""A real store for each test, and searches that several modules tell their stories with."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tests.integrations.postgres import find_postgres, postgresql
from tests.integrations.transfer_pruner_mlflow.server import Server
from transfer_pruner import Decision, EliminationRule, TransferPrunerWarning, TrialRecord
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate

TASKS = ["a", "b", "c"]
SPACE: dict[str, BaseDistribution] = {
    "source": CategoricalDistribution(TASKS),
    "target": CategoricalDistribution(TASKS),
    "lr": FloatDistribution(0, 1),
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server on each kind of database that MLflow's users have."""
    with ExitStack() as stack:
        store = None
        if request.param == "postgresql":
            programs = find_postgres()
            if programs is None:
                pytest.skip("no PostgreSQL server is installed here")
            store = stack.enter_context(postgresql(programs))
        server = Server(tmp_path_factory.mktemp("server"), store)
        stack.callback(server.kill)
        server.start()
        yield server


@pytest.fixture
def current_uri(uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The user has set the tracking URI."""
    # Recorded here, so that what MLflow itself does to the environment is undone.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    mlflow.set_tracking_uri(uri)
    yield uri
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
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


@pytest.fixture
def rule() -> EliminationRule:
    return EliminationRule(
        {(s, t): Decision(s != "a", 0.1, 0.5, "told so") for s in TASKS for t in TASKS if s != t},
        {"rule": "top_k", "k": 1},
    )


def objective(trial: optuna.Trial) -> float:
    trial.suggest_categorical("source", TASKS)
    trial.suggest_categorical("target", TASKS)
    return float(trial.suggest_float("lr", 0, 1))


@pytest.fixture
def search(rule: EliminationRule) -> Callable[..., optuna.Study]:
    def search(
        tracker: SavingsTracker,
        n_trials: int = 20,
        study: optuna.Study | None = None,
        **arguments: object,
    ) -> optuna.Study:
        study = study or optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(
            gate(objective, rule, search_space=SPACE, audit_fraction=0.2, tracker=tracker),
            n_trials=n_trials,
            **arguments,  # type: ignore[arg-type]
        )
        return study

    return search


@pytest.fixture
def decisions() -> Callable[[MlflowClient, str], pd.DataFrame]:
    """What a run holds of a search, checked to hold every decision exactly once."""

    def read(client: MlflowClient, run_id: str) -> pd.DataFrame:
        path = client.download_artifacts(run_id, "savings/decisions.csv")
        table = pd.read_csv(path, keep_default_na=False)
        assert table["number"].is_unique
        times = (pd.to_datetime(table["decided"], format="ISO8601")).astype("datetime64[ms, UTC]")
        for key, outcome in (
            ("savings/trials_eliminated", "eliminated"),
            ("savings/trials_trained", "trained"),
        ):
            history = client.get_metric_history(run_id, key)
            assert [m.step for m in history] == list(range(1, len(table) + 1)), key
            assert [m.value for m in history] == list((table["outcome"] == outcome).cumsum())
            assert [m.timestamp for m in history] == list(times.astype("int64")), key
        ours = ("savings/", "audit/")
        for key in filter(lambda key: key.startswith(ours), client.get_run(run_id).data.metrics):
            history = client.get_metric_history(run_id, key)
            assert len({m.step for m in history}) == len(history), key
        pairs = pd.read_csv(client.download_artifacts(run_id, "savings/pairs.csv"))
        assert pairs["trials"].sum() == len(table)
        return table

    return read


@pytest.fixture
def agrees_with() -> Callable[[pd.DataFrame, optuna.Study], None]:
    """MLflow's decisions are those of the study's own storage."""

    def check(table: pd.DataFrame, study: optuna.Study) -> None:
        trials = study.trials
        assert sorted(table["number"]) == [trial.number for trial in trials]
        for row in table.itertuples():
            trial = trials[row.number]
            state = "PRUNED" if row.outcome == "eliminated" else "COMPLETE"
            assert trial.state.name == state
            assert trial.params["target"] == row.target

    return check


@pytest.fixture
def told() -> Iterator[Callable[[], list[str]]]:
    """Tell what we have warned of, from whichever thread."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TransferPrunerWarning)
        yield lambda: [
            str(warning.message)
            for warning in caught
            if issubclass(warning.category, TransferPrunerWarning)
        ]
