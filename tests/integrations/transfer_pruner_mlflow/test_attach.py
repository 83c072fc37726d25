"""Which run is written into, and that nobody else's run, parent or parameter is lost by it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient

from transfer_pruner import EliminationRule, TrialRecord
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_mlflow.attach import attach

Search = Callable[..., optuna.Study]
Decisions = Callable[[MlflowClient, str], pd.DataFrame]


def experiment_of(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return str(experiment.experiment_id)


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")}


def storage_of(client: MlflowClient, name: str) -> optuna.storages.BaseStorage:
    from mlflow.optuna.storage import MlflowStorage

    experiment_id = client.create_experiment(name)
    return MlflowStorage(experiment_id=experiment_id)  # type: ignore[no-any-return]


def test_the_first_of_five_is_taken(current_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(current_uri)
    study = optuna.create_study(storage=storage_of(client, "studies"))
    other = client.create_run("0").info.run_id
    assert attach(None, None, None, None).run_id is None
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    assert attach(None, None, None, None).run_id == other
    # Beginning a run takes this one from the environment.
    monkeypatch.delenv("MLFLOW_RUN_ID")
    with mlflow.start_run() as active:
        monkeypatch.setenv("MLFLOW_RUN_ID", other)
        assert attach(None, None, None, None).run_id == active.info.run_id
        assert attach(None, None, None, study).run_id == study._study_id
        assert attach("named", None, None, study).run_id == study._study_id
        assert attach(None, "mine", None, study).run_id == "mine"
        named = attach("named", None, None, None)
        assert (named.run_id, named.parent_run_id) == (None, active.info.run_id)
        # Of another store, neither is a run.
        elsewhere = attach(None, None, "http://127.0.0.1:9", None)
        assert (elsewhere.run_id, elsewhere.parent_run_id) == (None, None)
    in_memory = optuna.create_study()
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert attach(None, None, None, in_memory).run_id is None


def test_where_to_write_is_settled_when_the_tracker_is_made(
    current_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = attach(None, None, "sqlite:///mlflow.db", None)
    assert relative.tracking_uri == current_uri
    with mlflow.start_run() as run:
        tracker = SavingsTracker()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/later.db")
    with tracker:
        tracker.record(TrialRecord(0, "s", "t", "trained", 1.0))
    assert (
        "savings/seconds_spent" in MlflowClient(current_uri).get_run(run.info.run_id).data.metrics
    )
    assert not (tmp_path / "later.db").exists()


def test_an_active_run_keeps_everything(current_uri: str, search: Search) -> None:
    with mlflow.start_run() as run:
        mlflow.log_params({"transfer_pruner.k": "mine", "lr": 0.1})
        rule = EliminationRule({}, {"k": 3})
        before = settings()
        with SavingsTracker(rule=rule) as tracker:
            search(tracker, 20, n_jobs=2)
            assert mlflow.active_run().info.run_id == run.info.run_id
        assert settings() == before
        assert mlflow.active_run().info.run_id == run.info.run_id
        mlflow.log_metric("f1", 0.9)
        held = MlflowClient().get_run(run.info.run_id)
        assert held.info.status == "RUNNING"
    assert tracker.run_id == run.info.run_id
    assert held.data.params == {"transfer_pruner.k": "mine", "lr": "0.1"}
    assert held.data.metrics["f1"] == 0.9
    assert held.data.metrics["savings/trials_eliminated"] > 0
    assert held.data.tags["transfer_pruner.rule"] == '{"k": 3}'
    assert len(mlflow.search_runs()) == 1


def test_a_named_experiment_gets_a_run_of_its_own_beneath_the_active_one(
    current_uri: str, search: Search
) -> None:
    client = MlflowClient()
    mlflow.set_experiment("mine")
    with mlflow.start_run() as run:
        with SavingsTracker("mine") as same:
            search(same, 5)
        with SavingsTracker("other") as other:
            search(other, 5)
    assert len({run.info.run_id, same.run_id, other.run_id}) == 3
    assert client.get_run(str(same.run_id)).data.tags["mlflow.parentRunId"] == run.info.run_id
    assert "mlflow.parentRunId" not in client.get_run(str(other.run_id)).data.tags
    assert "savings/trials_trained" not in client.get_run(run.info.run_id).data.metrics
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_study_that_mlflow_stores_shows_its_savings_and_stays_whole(
    current_uri: str, search: Search, decisions: Decisions
) -> None:
    client = MlflowClient()
    storage = storage_of(client, "studies")
    study = optuna.create_study(study_name="pairs", storage=storage, direction="maximize")
    with SavingsTracker(study=study) as tracker:
        search(tracker, 5, study)
    run_id = str(study._study_id)
    assert tracker.run_id == run_id
    assert len(decisions(client, run_id)) == 5
    assert client.get_run(run_id).info.status == "RUNNING"
    again = optuna.load_study(study_name="pairs", storage=storage)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
    assert "transfer_pruner.rule" in again.user_attrs
    search(tracker, 1, again)
    assert len(again.trials) == 6


def test_an_experiment_that_holds_a_study_gets_no_foreign_run(
    current_uri: str, search: Search
) -> None:
    client = MlflowClient()
    storage = storage_of(client, "studies")
    study = optuna.create_study(study_name="pairs", storage=storage)
    with SavingsTracker("studies") as tracker:
        search(tracker, 4, study)
    assert tracker.experiment_id == experiment_of(client, "studies-savings")
    # A run that is no trial and no study would be taken for one of them.
    runs = client.search_runs([experiment_of(client, "studies")])
    assert len(runs) == 1 + 4
    assert len(optuna.load_study(study_name="pairs", storage=storage).trials) == 4


def test_the_callback_of_optuna_integration_logs_all_its_trials(
    current_uri: str, rule: EliminationRule, search: Search
) -> None:
    integration = pytest.importorskip("optuna_integration.mlflow")
    callback = integration.MLflowCallback(
        tracking_uri=current_uri, metric_name="f1", mlflow_kwargs={"nested": True}
    )
    mlflow.set_experiment("pairs")
    study = optuna.create_study(study_name="pairs", sampler=optuna.samplers.RandomSampler(seed=0))
    with mlflow.start_run() as run, SavingsTracker() as tracker:
        search(tracker, 12, study, callbacks=[callback])
        assert mlflow.active_run().info.run_id == run.info.run_id
    client = MlflowClient()
    children = client.search_runs(
        [experiment_of(client, "pairs")], f"tags.mlflow.parentRunId = '{run.info.run_id}'"
    )
    assert len(children) == 12
    assert all(child.data.params.keys() == {"source", "target", "lr"} for child in children)
    parent = client.get_run(run.info.run_id)
    assert tracker.run_id == run.info.run_id
    assert parent.info.status == "FINISHED"
    assert (
        parent.data.metrics["savings/trials_trained"]
        + parent.data.metrics["savings/trials_eliminated"]
        == 12
    )


@pytest.mark.slow
def test_the_callback_of_transformers_keeps_its_run_and_parameters(
    current_uri: str, search: Search
) -> None:
    transformers = pytest.importorskip("transformers")
    integrations = pytest.importorskip("transformers.integrations")

    # Of its base class itself transformers would remember what it finds out, for all its heirs.
    class Model(transformers.PreTrainedModel):  # type: ignore[name-defined, misc]
        pass

    model = Model(transformers.PretrainedConfig(hidden_size=16))
    # Transformers' own TrainingArguments take accelerate; of them, the callback reads these two.
    arguments = SimpleNamespace(run_name="fine-tuning", to_dict=lambda: {"learning_rate": 0.1})
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    state.is_world_process_zero = True
    client = MlflowClient()
    with mlflow.start_run() as run, SavingsTracker() as tracker:
        callback = integrations.MLflowCallback()
        callback.on_train_begin(arguments, state, control, model=model)
        search(tracker, 10)
        callback.on_log(arguments, state, control, logs={"loss": 0.5}, model=model)
        callback.on_train_end(arguments, state, control)
        del callback
        assert mlflow.active_run().info.run_id == run.info.run_id
    mlflow.flush_async_logging()
    held = client.get_run(run.info.run_id)
    assert tracker.run_id == run.info.run_id
    assert held.data.params["hidden_size"] == "16"
    assert held.data.params["learning_rate"] == "0.1"
    assert held.data.metrics["loss"] == 0.5
    assert held.data.metrics["savings/trials_eliminated"] > 0
    assert held.info.status == "FINISHED"


@pytest.mark.slow
def test_the_callback_of_ray_logs_its_trials_beneath_the_run(
    current_uri: str, rule: EliminationRule, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    client = MlflowClient()
    mlflow.set_experiment("pairs")
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    try:
        with mlflow.start_run() as run, SavingsTracker(rule=rule) as tracker:
            callback = MLflowLoggerCallback(
                tracking_uri=current_uri,
                experiment_name="pairs",
                tags={"mlflow.parentRunId": run.info.run_id},
            )
            results = tune.Tuner(
                lambda config: tune.report({"f1": 0.5}),
                param_space={
                    "source": tune.grid_search(["a", "b"]),
                    "target": tune.grid_search(["b", "c"]),
                },
                run_config=tune.RunConfig(storage_path=str(tmp_path), callbacks=[callback]),
            ).fit()
            from transfer_pruner_ray import records_from_results

            for record in records_from_results(results):
                tracker.record(record)
            assert mlflow.active_run().info.run_id == run.info.run_id
    finally:
        ray.shutdown()
    children = client.search_runs(
        [experiment_of(client, "pairs")], f"tags.mlflow.parentRunId = '{run.info.run_id}'"
    )
    assert len(children) == 4
    assert all(child.info.status == "FINISHED" for child in children)
    assert {(c.data.params["source"], c.data.params["target"]) for c in children} == {
        (s, t) for s in "ab" for t in "bc"
    }
    assert client.get_run(run.info.run_id).data.metrics["savings/trials_trained"] == 4
