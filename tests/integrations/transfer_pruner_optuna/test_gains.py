"""What a base sampler learns from in a study of several targets: gains, not scores."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from transfer_pruner import (
    Decision,
    EliminationRule,
    LearningRule,
    PairParams,
    TransferPredictor,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import TransferSampler
from transfer_pruner_optuna.gains import Gains

TASKS = ["advice", "news", "weather"]
SPACE = {
    "source": CategoricalDistribution([None, *TASKS]),
    "target": CategoricalDistribution(TASKS),
    "lr": FloatDistribution(0.0, 1.0),
}


class Watching(RandomSampler):
    """Remembers the scores of the trials that it sees."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.seen: list[FrozenTrial] = []

    def sample_independent(self, study: Any, trial: Any, name: str, space: Any) -> Any:
        self.seen = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return super().sample_independent(study, trial, name, space)


def finished(source: str | None, target: str, value: float, lr: float = 0.5) -> FrozenTrial:
    params = {"source": source, "target": target, "lr": lr}
    return create_trial(params=params, distributions=SPACE, value=value)


def study_of(*trials: FrozenTrial, **options: Any) -> optuna.Study:
    study = optuna.create_study(direction="maximize", **options)
    study.add_trials(trials)
    return study


def shown(study: optuna.Study, pair_of: PairParams | None = None) -> list[float]:
    seen = Gains(pair_of or PairParams()).study(study)
    return [round(trial.value, 6) for trial in seen.trials if trial.value is not None]


def test_a_score_is_shown_as_what_it_gains_over_the_targets_baseline() -> None:
    trials = [
        *(finished(None, "news", 0.9), finished(None, "weather", 0.2)),
        *(finished("advice", "news", 0.8), finished("advice", "weather", 0.3)),
    ]
    assert shown(study_of(*trials)) == [0.0, 0.0, -0.1, 0.1]


def test_a_task_as_its_own_source_is_a_baseline_and_several_count_by_their_mean() -> None:
    trials = [finished("news", "news", 0.9), finished(None, "news", 0.7)]
    assert shown(study_of(*trials, finished("advice", "news", 0.9))) == [0.1, -0.1, 0.1]


def test_without_a_baseline_scores_are_told_from_their_targets_mean() -> None:
    trials = [finished("advice", "news", 0.8), finished("weather", "news", 0.6)]
    assert shown(study_of(*trials)) == [0.1, -0.1]


def test_what_was_reported_before_a_trial_was_stopped_is_shown_alike() -> None:
    stopped = create_trial(
        state=TrialState.PRUNED,
        params={"source": "advice", "target": "news", "lr": 0.5},
        distributions=SPACE,
        intermediate_values={1: 0.7, 2: 0.95},
    )
    study = study_of(finished(None, "news", 0.9), stopped)
    seen = Gains(PairParams()).study(study).trials[1]
    assert {k: round(v, 6) for k, v in seen.intermediate_values.items()} == {1: -0.2, 2: 0.05}
    assert seen.values is None


def test_an_infinite_score_spoils_no_others() -> None:
    trials = [finished(None, "news", float("-inf")), finished("advice", "news", 0.5)]
    assert shown(study_of(*trials)) == [float("-inf"), 0.0]


def test_the_studys_own_trials_stay_as_they_are() -> None:
    study = study_of(finished(None, "news", 0.9), finished("advice", "news", 0.8))
    seen = Gains(PairParams()).study(study)
    assert [t.value for t in seen.get_trials(deepcopy=False)] != [0.9, 0.8]
    assert [t.value for t in study.get_trials(deepcopy=False)] == [0.9, 0.8]
    assert seen.study_name == study.study_name


def test_new_trials_and_new_baselines_are_shown_next_time() -> None:
    study = study_of(finished("advice", "news", 0.8))
    gains = Gains(PairParams())

    def values() -> list[float | None]:
        trial = study.ask()
        found = [t.value for t in gains.study(study).trials[:-1]]
        study.tell(trial, state=TrialState.FAIL)
        return [None if x is None else round(x, 6) for x in found]

    assert values() == [0.0]
    study.add_trial(finished(None, "news", 0.9))
    assert values() == [-0.1, None, 0.0]


@pytest.mark.parametrize(
    ("pair_of", "directions"),
    [
        (PairParams(target="news"), ["maximize"]),
        (PairParams(["source", "other"]), ["maximize"]),
        (PairParams(), ["maximize", "minimize"]),
    ],
)
def test_one_target_several_sources_and_several_objectives_are_shown_as_they_are(
    pair_of: PairParams, directions: list[str]
) -> None:
    study = optuna.create_study(directions=directions)
    assert Gains(pair_of).study(study) is study


def rules() -> tuple[LearningRule, EliminationRule]:
    pairs = ordered_pairs(TASKS)
    decisions = {
        (source, target): Decision(False, 0.1, 0.5, "kept")
        for source, target in zip(pairs["source"], pairs["target"], strict=True)
    }
    return LearningRule(TransferPredictor(), pairs=pairs), EliminationRule(decisions, {})


@pytest.mark.parametrize(("number", "expected"), [(0, [0.0, -0.1]), (1, [0.9, 0.8])])
def test_the_base_sampler_of_a_rule_that_learns_sees_gains_and_of_another_one_scores(
    number: int, expected: list[float]
) -> None:
    base = Watching()
    trials = [finished(None, "news", 0.9), finished("advice", "news", 0.8)]
    study = study_of(*trials, sampler=TransferSampler(rules()[number], base))
    study.ask(SPACE)
    assert [round(trial.value or 0.0, 6) for trial in base.seen] == expected


def test_what_was_shown_is_not_pickled() -> None:
    study, gains = study_of(finished(None, "news", 0.9)), Gains(PairParams())
    assert [trial.value for trial in gains.study(study).trials] == [0.0]
    again = pickle.loads(pickle.dumps(gains))  # noqa: S301
    assert again.__dict__ == Gains(PairParams()).__dict__
    assert [trial.value for trial in again.study(study).trials] == [0.0]


def test_tpe_learns_a_hyperparameter_from_gains_where_targets_are_unlike() -> None:
    # News are easy, and lose by a low rate; the weather is hard, and gains by a high one.
    trials = [finished(None, "news", 0.9), finished(None, "weather", 0.3)]
    for step in range(10):
        trials.append(finished("advice", "news", 0.85 + step / 1000, lr=0.2 + step / 100))
        trials.append(finished("advice", "weather", 0.4 + step / 1000, lr=0.8 + step / 100))
    sampler = TransferSampler(rules()[0], TPESampler(seed=0), seed=0)
    study = study_of(*trials, sampler=sampler)
    asked = []
    for _ in range(20):
        trial = study.ask(SPACE)
        asked.append(trial.params["lr"])
        study.tell(trial, state=TrialState.FAIL)
    assert sum(asked) / len(asked) > 0.6


def test_a_sampler_may_copy_what_it_sees() -> None:
    study = study_of(finished(None, "news", 0.5), finished("advice", "news", 0.7))
    seen = copy.copy(Gains(PairParams()).study(study))
    assert [round(trial.value or 0.0, 6) for trial in seen.trials] == [0.0, 0.2]
    assert seen.study_name == study.study_name
