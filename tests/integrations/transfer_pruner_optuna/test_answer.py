"""What a study found, read from its storage and written back into it."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import optuna
import pytest

from tests.integrations.transfer_pruner_optuna.told_search import search, told_study
from transfer_pruner import TransferPrunerWarning, find_answer
from transfer_pruner_optuna import (
    TrackingCallback,
    answer_from_study,
    record_answer,
    records_from_study,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", ["a", "b", "t"])
    trial.suggest_categorical("target", ["t"])
    return {"a": 0.6, "b": 0.4, "t": 0.5}[source]


def test_the_answer_of_a_gated_study_is_that_of_its_records() -> None:
    study = told_study()
    answer = answer_from_study(study, dev_sizes=100)
    assert answer == find_answer(records_from_study(study), dev_sizes=100)
    t, u = answer.targets
    assert t.best is not None
    assert (t.best.source, t.best.hyperparameters) == ("a", {"lr": 0.1})
    assert t.gain == pytest.approx(0.1)
    assert u.best is not None
    assert (u.best.source, u.best.value) == ("b", 0.7)


def test_one_of_several_objectives_is_chosen() -> None:
    study = search(None, directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="objective_index must be from 0 to 1 but got None"):
        answer_from_study(study)
    up = answer_from_study(study, objective_index=1).targets[0]
    down = answer_from_study(study, objective_index=0).targets[0]
    assert up.best is not None
    assert up.best.value == 0.6
    assert down.best is not None
    assert (down.best.value, down.maximize) == (0, False)


def test_a_pruned_trial_is_no_answer() -> None:
    def stopped_early(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number == 0:
            trial.report(0.99, 0)
            raise optuna.TrialPruned
        return value

    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"source": "b", "target": "t"})
    study.enqueue_trial({"source": "t", "target": "t"})
    study.optimize(stopped_early, n_trials=2)
    (answer,) = answer_from_study(study).targets
    assert answer.best is not None
    assert answer.best.source is None


def test_the_answer_is_written_once_and_read_by_whoever_opens_the_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    study.sampler = optuna.samplers.GridSampler({"source": ["a", "b", "t"], "target": ["t"]})
    study.optimize(objective)
    written = record_answer(study)
    told = optuna.load_study(study_name="mine", storage=url).user_attrs["transfer_pruner.answer"]
    assert told == {"targets": json.loads(json.dumps(written.as_dict())), "trials": 3}
    assert told["targets"]["t"]["source"] == "a"
    assert told["targets"]["t"]["second_source"] == ""


def test_the_callback_writes_it_at_milestones_and_not_after_every_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = optuna.create_study(direction="maximize")
    written: list[int] = []
    write = study.set_user_attr

    def counted(key: str, value: object) -> None:
        written.append(len(study.trials))
        write(key, value)

    monkeypatch.setattr(study, "set_user_attr", counted)
    study.optimize(objective, n_trials=60, callbacks=[TrackingCallback()])
    assert written == [*range(1, 11), *range(15, 61, 5)]
    assert study.user_attrs["transfer_pruner.answer"]["trials"] == 60


def test_a_study_without_a_direction_of_its_own_or_without_pairs_goes_on() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.optimize(lambda trial: (1.0, objective(trial)), 2, callbacks=[TrackingCallback()])
    assert "transfer_pruner.answer" not in study.user_attrs
    chosen = TrackingCallback(objective_index=1)
    study.optimize(lambda trial: (1.0, objective(trial)), 2, callbacks=[chosen])
    assert list(study.user_attrs["transfer_pruner.answer"]["targets"]) == ["t"]
    other = optuna.create_study()
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2, callbacks=[TrackingCallback()])
    assert other.user_attrs["transfer_pruner.answer"] == {"targets": {}, "trials": 0}


def test_what_a_storage_does_not_take_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(direction="maximize")

    def full(key: str, value: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(study, "set_user_attr", full)
    with pytest.warns(TransferPrunerWarning, match="OSError: disk is full") as caught:
        study.optimize(objective, n_trials=4, callbacks=[TrackingCallback()])
    assert len(caught) == 1
    assert len(study.trials) == 4


def work(url: str, source: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="mine", storage=url)
    study.enqueue_trial({"source": source, "target": "t"})
    study.optimize(objective, n_trials=1, callbacks=[TrackingCallback()])


def test_processes_that_share_a_study_find_one_answer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="mine", storage=url, direction="maximize")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(work, [url] * 3, ["t", "b", "a"]))
    answer = record_answer(study)
    assert answer.targets[0].trials_finished == 3
    told = study.user_attrs["transfer_pruner.answer"]
    assert told["targets"]["t"]["source"] == "a"
    assert told["targets"]["t"]["gain"] == pytest.approx(0.1)
