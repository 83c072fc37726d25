"""A search that ends by itself, and says why."""

from __future__ import annotations

import logging
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

from transfer_pruner import EliminationRule, LearningRule, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import StopWhenSettled, TransferSampler, gate

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TASKS = ["a", "b", "c", "d"]
GAINS = {"a": 0.1, "b": -0.1, "c": 0.0, "d": -0.05}


def learning_rule() -> LearningRule:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(GAINS)
    return LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 0, 1)
    return (0.0 if source == target else GAINS[source]) + 0.0001 * lr


def a_study(rule: LearningRule, direction: str = "maximize", **more: Any) -> optuna.Study:
    sampler = TransferSampler(rule, RandomSampler(seed=0))
    return optuna.create_study(direction=direction, sampler=sampler, **more)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_search_ends_when_nothing_is_expected_to_be_better(
    direction: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.INFO, "optuna.transfer_pruner")
    rule = learning_rule()
    study = a_study(rule, direction)
    sign = 1 if direction == "maximize" else -1
    study.optimize(
        lambda trial: sign * objective(trial),
        n_trials=200,
        callbacks=[StopWhenSettled(rule, tolerance=0.005)],
    )
    assert 8 < len(study.trials) < 60
    told = study.user_attrs["transfer_pruner.settled"]
    assert told["trials"] == len(study.trials)
    assert 0 <= told["priority"] <= told["tolerance"] == 0.005
    assert "expected to improve its target by more than 0.005" in told["reason"]
    assert f"transfers to {len(TASKS)} targets" in told["reason"]
    assert told["reason"] in caplog.text


def test_every_process_decides_alike_from_the_storage(tmp_path: Any) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    rule = learning_rule()
    study = a_study(rule, storage=storage, study_name="s")
    stop = StopWhenSettled(rule, tolerance=0.005)
    study.optimize(objective, n_trials=100, callbacks=[stop])
    # Another process has another sampler, another rule object, and has seen nothing.
    elsewhere = optuna.load_study(study_name="s", storage=storage, sampler=TPESampler(seed=1))
    there = StopWhenSettled(learning_rule(), tolerance=0.005).settled(elsewhere)
    assert there == study.user_attrs["transfer_pruner.settled"]
    assert StopWhenSettled(learning_rule(), tolerance=1e-9).settled(elsewhere) is None


def test_without_baselines_a_search_is_never_settled() -> None:
    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", ["a", "b"])
        return GAINS[source]

    rule = learning_rule()
    sampler = TransferSampler(rule, RandomSampler(seed=0), target="c")
    study = optuna.create_study(direction="maximize", sampler=sampler)
    stop = StopWhenSettled(rule, tolerance=100, target="c")
    with pytest.warns(match="Run baseline trials"):
        study.optimize(searched, n_trials=15, callbacks=[stop])
    assert len(study.trials) == 15
    assert "transfer_pruner.settled" not in study.user_attrs


def test_every_target_that_is_searched_needs_a_baseline() -> None:
    rule = learning_rule()
    study = a_study(rule)
    stop = StopWhenSettled(rule, tolerance=100)
    for source, target in [("a", "a"), ("b", "a"), ("b", "b"), ("c", "c")]:
        study.enqueue_trial({"source": source, "target": target})
    study.optimize(objective, n_trials=4, callbacks=[stop])
    assert stop.settled(study) is None
    study.enqueue_trial({"source": "d", "target": "d"})
    study.optimize(objective, n_trials=40, callbacks=[stop])
    # With twenty transfers, of four pairs beyond the first of every target.
    assert len(study.trials) == 4 + 20
    measured = {(t.params["source"], t.params["target"]) for t in study.trials}
    assert len(measured) == 4 + 4 + 4


def test_baselines_alone_settle_nothing() -> None:
    rule = learning_rule()
    study = a_study(rule)
    study.optimize(objective, n_trials=4)
    assert StopWhenSettled(rule, tolerance=100).settled(study) is None


def test_a_search_that_has_tried_everything_ends() -> None:
    def searched(trial: optuna.Trial) -> float:
        return GAINS[trial.suggest_categorical("source", [None, *TASKS][:3]) or "c"]

    rule = learning_rule()
    sampler = TransferSampler(rule, RandomSampler(seed=0), target="d")
    study = optuna.create_study(direction="maximize", sampler=sampler)
    stop = StopWhenSettled(rule, tolerance=0, target="d")
    study.optimize(searched, n_trials=50, callbacks=[stop])
    # b is eliminated by attributions, the worst of three with few transfers measured.
    assert len(study.trials) < 5
    assert "tried at every setting" in study.user_attrs["transfer_pruner.settled"]["reason"]


def test_it_goes_with_a_gate_too() -> None:
    rule = learning_rule()
    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=0))
    stop = StopWhenSettled(rule, tolerance=0.005)
    study.optimize(gate(objective, rule), n_trials=300, callbacks=[stop])
    assert len(study.trials) < 300
    assert "transfer_pruner.settled" in study.user_attrs


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rule": EliminationRule({}, {})}, "rule must be a LearningRule"),
        ({"tolerance": -1}, "tolerance must be 0 or more but got -1"),
        ({"tolerance": float("nan")}, "tolerance must be 0 or more but got nan"),
        ({"source_param": ["x", "y"]}, "source_param must name one parameter"),
        ({"source_param": "source_*"}, "source_param must name one parameter"),
    ],
)
def test_bad_input_stops_early(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        StopWhenSettled(**{"rule": learning_rule(), **arguments})
