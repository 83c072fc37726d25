"""How a study ended: what of the exhaustive search it never started, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.samplers import BruteForceSampler, RandomSampler
from optuna.trial import TrialState

from transfer_pruner import (
    Decision,
    EliminationRule,
    LearningRule,
    TransferPredictor,
    estimate_savings,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import (
    StopWhenSettled,
    TransferSampler,
    ending_from_study,
    gate,
    records_from_study,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TASKS = ["a", "b", "c"]
GAINS = {"a": 0.1, "b": -0.1, "c": 0.0}


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    layers = trial.suggest_int("layers", 1, 7, step=2)
    rate = trial.suggest_float("rate", 0.0, 0.3, step=0.1)
    return (0.0 if source == target else GAINS[source]) + 1e-5 * layers + 1e-5 * rate


def search(searched: Callable[[optuna.Trial], float], n_trials: int | None) -> optuna.Study:
    sampler = RandomSampler(seed=0) if n_trials else BruteForceSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(searched, n_trials=n_trials)
    return study


def test_the_exhaustive_search_has_as_many_trials_as_brute_force_runs() -> None:
    whole = search(objective, None)
    assert len(whole.trials) == 3 * 3 * 4 * 4
    assert ending_from_study(whole) == {"exhaustive_trials": 144, "stopped": None}
    part = search(objective, 20)
    assert ending_from_study(part)["exhaustive_trials"] == 144
    savings = estimate_savings(records_from_study(part), **ending_from_study(part))
    assert savings.trials_never_started == 124
    assert savings.estimated_never_started_seconds > 0


def test_what_is_eliminated_is_not_what_was_never_started() -> None:
    rule = EliminationRule(
        {(s, t): Decision(s == "b", 0.0, 0.5, "told so") for s in TASKS for t in TASKS if s != t},
        {},
    )
    study = search(gate(objective, rule), 30)
    savings = estimate_savings(records_from_study(study), **ending_from_study(study))
    assert savings.trials_eliminated > 3
    assert savings.trials_never_started is not None
    known = savings.trials_trained + savings.trials_eliminated + savings.trials_never_started
    points = {tuple(sorted(trial.params.items())) for trial in study.trials}
    assert len(points) <= 30
    assert 144 <= known <= 144 + 30 - len(points)


def test_no_source_and_the_target_itself_are_one_baseline() -> None:
    def searched(trial: optuna.Trial) -> float:
        return len(trial.suggest_categorical("source", [None, *TASKS]) or "") + 0.0

    study = search(searched, 3)
    assert ending_from_study(study, target="a")["exhaustive_trials"] == 3


def continuous(trial: optuna.Trial) -> float:
    return objective(trial) + trial.suggest_float("lr", 0, 1)


def in_branches(trial: optuna.Trial) -> float:
    value = objective(trial)
    return value + trial.suggest_int("k", 1, 2) if trial.params["source"] == "a" else value


def numbered(trial: optuna.Trial) -> float:
    trial.suggest_categorical("target", TASKS)
    return float(trial.suggest_int("source", 0, 2))


@pytest.mark.parametrize("searched", [continuous, in_branches, numbered])
def test_where_it_cannot_be_counted_nothing_is_claimed(searched: Any) -> None:
    study = search(searched, 12)
    assert ending_from_study(study)["exhaustive_trials"] is None


def test_of_a_search_that_runs_nothing_is_claimed_yet() -> None:
    study = search(objective, 5)
    live = study.ask()
    assert ending_from_study(study)["exhaustive_trials"] is None
    study.tell(live, state=TrialState.FAIL)
    assert ending_from_study(study)["exhaustive_trials"] == 144
    study.enqueue_trial({"source": "a"})
    assert ending_from_study(study)["exhaustive_trials"] is None
    empty = optuna.create_study()
    assert ending_from_study(empty) == {"exhaustive_trials": None, "stopped": None}


def test_why_it_stopped_goes_with_what_it_saved() -> None:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(GAINS)
    rule = LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)
    sampler = TransferSampler(rule, RandomSampler(seed=0))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    stop = StopWhenSettled(rule, tolerance=0.01)
    study.optimize(objective, n_trials=140, callbacks=[stop])
    savings = estimate_savings(records_from_study(study), **ending_from_study(study))
    assert savings.stopped == study.user_attrs["transfer_pruner.settled"]["reason"]
    assert savings.trials_never_started is not None
    assert savings.trials_never_started > 100
