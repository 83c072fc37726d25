"""`mlflow.autolog()` sees the user's fits and none of ours, whatever runs beside them."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import sklearn.model_selection
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.distributions import CategoricalDistribution
from sklearn.linear_model import Ridge

import transfer_pruner
from transfer_pruner import (
    LearningRule,
    TaskEmbedding,
    TransferPredictor,
    estimate_savings,
)
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate, records_from_study

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6.0)


@pytest.fixture
def autolog(current_uri: str) -> Iterator[str]:
    """The user has asked for autologging; models and data sets take seconds and tell no more."""
    mlflow.autolog(log_models=False, log_datasets=False, silent=True)
    yield current_uri
    mlflow.autolog(disable=True, silent=True)


def runs() -> list[Run]:
    client = MlflowClient()
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def estimators() -> list[str]:
    return [run.data.tags["estimator_name"] for run in runs()]


@pytest.mark.parametrize("in_a_run", [False, True])
def test_a_search_that_learns_leaves_the_users_fits_and_no_other(
    autolog: str,
    in_a_run: bool,
    embeddings: dict[str, TaskEmbedding],
    transfers: pd.DataFrame,
) -> None:
    tasks = sorted(embeddings)
    gains = transfers.set_index(["source", "target"])["gain"]
    space = {name: CategoricalDistribution(tasks) for name in ("source", "target")}

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", tasks)
        target = trial.suggest_categorical("target", tasks)
        if trial.number == 3:
            Ridge(alpha=3.0).fit(X, Y)
        return float(gains.get((source, target), 0.0))

    rule = LearningRule(TransferPredictor(embeddings), start=0, refit_every=12)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for task in tasks:
        study.enqueue_trial({"source": task, "target": task})
    active = mlflow.start_run() if in_a_run else None
    with SavingsTracker("savings", rule=rule, study=study, report=False) as tracker:
        study.optimize(gate(objective, rule, search_space=space, tracker=tracker), n_trials=40)
    mlflow.end_run()
    records = records_from_study(study)
    assert "learnt from" in "".join(record.reason for record in records)
    assert estimate_savings(records).trials_eliminated > 0
    found = {run.info.run_id: run for run in runs()}
    savings = found.pop(str(tracker.run_id))
    assert not [name for name in savings.data.metrics if name.startswith("training_")]
    (users,) = found.values()
    assert users.data.tags["estimator_name"] == "Ridge"
    assert users.data.params["alpha"] == "3.0"
    assert len(users.data.params) == len(Ridge().get_params())
    assert active is None or users.info.run_id == active.info.run_id


class Slow(Ridge):  # type: ignore[misc]
    """A regressor of the user's that fits while something else happens."""

    began, go_on = threading.Event(), threading.Event()

    def fit(self, X: np.ndarray, y: np.ndarray) -> Slow:
        self.began.set()
        assert self.go_on.wait(60)
        super().fit(np.nan_to_num(X), y)
        return self


def test_what_the_user_fits_in_another_thread_meanwhile_is_logged(
    autolog: str, transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(regressor=Slow())
    ours = threading.Thread(target=predictor.fit, args=(transfers, transfers["gain"]))
    ours.start()
    assert Slow.began.wait(60)
    Ridge().fit(X, Y)
    # Scikit-learn's own, during which MLflow turns autologging off, and then on, for all threads.
    sklearn.model_selection.cross_val_score(Ridge(), X, Y, cv=2)
    Slow.go_on.set()
    ours.join(60)
    assert hasattr(predictor, "measured_")
    assert estimators() == ["Ridge"]
    Ridge().fit(X, Y)
    assert estimators() == ["Ridge"] * 2


def test_a_fit_that_fails_leaves_autologging_as_it_was(
    autolog: str, transfers: pd.DataFrame
) -> None:
    # Ridge takes no missing values.
    predictor = TransferPredictor(regressor=Ridge(), feature_columns=["size"])
    some = transfers.assign(size=[float("nan"), *range(1, len(transfers))])
    with pytest.raises(ValueError, match="NaN"):
        predictor.fit(some, some["gain"])
    assert estimators() == []
    Ridge().fit(X, Y)
    assert estimators() == ["Ridge"]


def test_whatever_the_core_fits_it_fits_unlogged() -> None:
    # These fit a TransferPredictor, whose own fit sees to it for all that it calls.
    thin = {"explain/pair.py", "cli/fit.py", "predictor/estimator.py", "predictor/regression.py"}
    core = Path(transfer_pruner.__file__).parent
    found = set()
    for path in core.rglob("*.py"):
        tree = ast.parse(path.read_text())
        unlogged = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any("unlogged()" in ast.unparse(item) for item in block.items)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("fit", "fit_transform"):
                found.add(path.name)
                assert id(node) in unlogged or str(path.relative_to(core)) in thin, (
                    f"{path}:{node.lineno}"
                )
    assert {"avoided.py", "process.py", "learning.py"} <= found
