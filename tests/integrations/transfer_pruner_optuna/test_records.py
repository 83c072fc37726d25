from __future__ import annotations

import math
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from transfer_pruner import Decision, EliminationRule, TransferPredictor, estimate_savings
from transfer_pruner_optuna import records_from_study, transfers_from_study


def add(
    study: optuna.Study, source: str | None, target: str, value: float, **params: object
) -> None:
    values = {"source": source, "target": target, **params}
    choices = {"source": [None, "a", "b", "t", "u"], "target": ["t", "u"], "lr": [0.1, 0.01]}
    study.add_trial(
        create_trial(
            params=values,
            distributions={
                name: optuna.distributions.CategoricalDistribution(choices[name]) for name in values
            },
            value=value,
        )
    )


def test_gains_are_against_the_baseline_with_the_same_hyperparameters() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, None, "t", 0.5, lr=0.1)
    add(study, "t", "t", 0.7, lr=0.01)
    add(study, "a", "t", 0.8, lr=0.1)
    add(study, "a", "t", 0.8, lr=0.01)
    table = transfers_from_study(study)
    assert list(table.columns) == [
        "source", "target", "gain", "score", "baseline", "seconds", "lr",
    ]  # fmt: skip
    assert table["gain"].tolist() == pytest.approx([0.3, 0.1])


def test_without_the_same_hyperparameters_the_mean_baseline_stands_in() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, None, "t", 0.4)
    add(study, None, "t", 0.6)
    add(study, "a", "t", 0.8, lr=0.1)
    assert transfers_from_study(study)["gain"].tolist() == pytest.approx([0.3])


def test_less_is_better_in_a_study_that_minimizes() -> None:
    study = optuna.create_study(direction="minimize")
    add(study, None, "t", 0.5)
    add(study, "a", "t", 0.3)
    row = transfers_from_study(study).iloc[0]
    assert row["gain"] == pytest.approx(0.2)
    assert row["score"] == -0.3


def test_targets_without_a_baseline_have_no_gain() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, None, "t", 0.5)
    add(study, "a", "t", 0.6)
    add(study, "a", "u", 0.9)
    assert transfers_from_study(study)["target"].tolist() == ["t"]


def test_an_existing_study_is_training_data() -> None:
    study = optuna.create_study(direction="maximize")
    for target in ("t", "u"):
        add(study, None, target, 0.5)
        add(study, "a", target, 0.7)
        add(study, "b", target, 0.4)
    transfers = transfers_from_study(study)
    predictor = TransferPredictor().fit(transfers, transfers["gain"])
    good, bad = predictor.predict(transfers[:2])
    assert good >= bad


def test_a_study_without_transfers_or_baselines_says_what_is_missing() -> None:
    study = optuna.create_study(study_name="mine")
    with pytest.raises(ValueError, match=r"study 'mine': .* of 0 trials with a source and 0"):
        transfers_from_study(study)
    add(study, "a", "t", 0.5)
    with pytest.raises(ValueError, match=r"1 trials with a source .* Run baseline trials"):
        transfers_from_study(study)
    two = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="objective_index must be from 0 to 1"):
        transfers_from_study(two)


def test_records_tell_outcomes_apart() -> None:
    study = optuna.create_study()
    add(study, "a", "t", 0.5, lr=0.1)
    for state, mark in ((TrialState.PRUNED, 1), (TrialState.PRUNED, 0), (TrialState.FAIL, 0)):
        study.add_trial(
            create_trial(
                state=state,
                params={"source": "b", "target": "t"},
                distributions={
                    "source": optuna.distributions.CategoricalDistribution(["a", "b"]),
                    "target": optuna.distributions.CategoricalDistribution(["t"]),
                },
                user_attrs={"transfer_pruner.eliminated": mark, "transfer_pruner.score": -2.0},
            )
        )
    study.ask()
    records = records_from_study(study)
    assert [r.outcome for r in records] == ["trained", "eliminated", "trained", "failed"]
    assert records[0].hyperparameters == {"lr": 0.1}
    assert math.isnan(records[0].score)
    assert records[1].score == -2.0
    rule = EliminationRule({("b", "t"): Decision(True, -2.0, 0.25, "told so")}, {})
    told = records_from_study(study, rule)
    assert (told[1].probability, told[1].reason) == (0.25, "told so")
    assert told[1].priority == rule.decide("b", "t").priority > 0
    assert told[0].reason == ""
    assert estimate_savings(records).trials_eliminated == 1


def test_a_trial_whose_worker_died_did_not_train_over_the_weekend() -> None:
    study = optuna.create_study()
    begun = datetime(2026, 1, 2, 18, 0)
    for state, took in (
        (TrialState.COMPLETE, 60),
        (TrialState.COMPLETE, 90),
        (TrialState.FAIL, 30),
    ):
        study.add_trial(finished(state, begun, timedelta(seconds=took)))
    study.add_trial(finished(TrialState.FAIL, begun, timedelta(days=3)))
    assert [r.seconds for r in records_from_study(study)] == [60, 90, 30, 90]


def finished(state: TrialState, begun: datetime, took: timedelta) -> optuna.trial.FrozenTrial:
    trial = create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        params={"source": "a", "target": "t"},
        distributions={
            name: optuna.distributions.CategoricalDistribution(["a", "t"])
            for name in ("source", "target")
        },
    )
    trial.datetime_start, trial.datetime_complete = begun, begun + took
    return trial
