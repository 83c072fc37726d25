from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from transfer_pruner import Decision, EliminationRule
from transfer_pruner_optuna import TransferPruner, records_from_study

TASKS = ["a", "b", "c"]
RULE = EliminationRule(
    {(s, t): Decision(s != "a", 0.5, 0.5, "told so") for s in TASKS for t in TASKS if s != t}, {}
)


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 0, 1)
    if trial.should_prune():
        raise optuna.TrialPruned
    assert source == target or source == "a", "trained an eliminated pair"
    for step in range(1, 5):
        trial.report(lr, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return lr


def test_eliminated_pairs_are_pruned_before_training_and_marked() -> None:
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=TransferPruner(RULE)
    )
    study.optimize(objective, n_trials=40)
    outcomes = {record.outcome for record in records_from_study(study)}
    assert outcomes == {"trained", "eliminated"}
    for trial in study.trials:
        out = trial.state == TrialState.PRUNED
        assert trial.user_attrs["transfer_pruner.eliminated"] == int(out)
        assert trial.params.keys() == {"source", "target", "lr"}


def test_the_wrapped_pruner_has_the_rest(tmp_path: object) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/study.db",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=TransferPruner(RULE, wrapped_pruner=optuna.pruners.MedianPruner(n_startup_trials=2)),
    )
    study.optimize(objective, n_trials=60)
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    stopped_early = [trial for trial in pruned if trial.intermediate_values]
    assert stopped_early
    assert all(trial.user_attrs["transfer_pruner.eliminated"] == 0 for trial in stopped_early)
    by_number = {record.number: record.outcome for record in records_from_study(study)}
    assert {by_number[trial.number] for trial in stopped_early} == {"trained"}


def test_ask_and_tell() -> None:
    study = optuna.create_study(pruner=TransferPruner(RULE, target="b"))
    for source in ("c", None, "a"):
        study.enqueue_trial({"source": source})
    space = {"source": optuna.distributions.CategoricalDistribution([None, *TASKS])}
    answers = [study.ask(space).should_prune() for _ in range(3)]
    assert answers == [True, False, False]
    assert all(isinstance(answer, bool) for answer in answers)


def test_a_trial_without_the_pair_is_left_to_the_wrapped_pruner() -> None:
    study = optuna.create_study(pruner=TransferPruner(RULE))
    assert study.ask().should_prune() is False


def test_hyperband_cannot_be_wrapped() -> None:
    with pytest.raises(ValueError, match=r"cannot be a HyperbandPruner.*gate"):
        TransferPruner(RULE, wrapped_pruner=optuna.pruners.HyperbandPruner())
