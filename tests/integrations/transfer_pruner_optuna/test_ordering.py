"""The sampler of a rule that learns: the pair that is worth most comes next, whoever is running."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner import (
    Decision,
    EliminationRule,
    LearningRule,
    TransferPredictor,
    TrialRecord,
    estimate_audit,
    estimate_savings,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import (
    TrackingCallback,
    TransferPruner,
    TransferSampler,
    gate,
    plot_savings,
    records_from_study,
    transfers_from_study,
)
from transfer_pruner_optuna.history import History

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TASKS = ["a", "b", "c", "d", "e", "f"]
Pair = tuple[Any, str]


def learning_rule(tasks: list[str] = TASKS, **more: Any) -> LearningRule:
    """Before anything is measured, later sources are told to be a bit better."""
    pairs = ordered_pairs(tasks)
    pairs["attribution_score"] = pairs["source"].map(tasks.index).astype(float)
    predictor = TransferPredictor(feature_columns=["attribution_score"])
    return LearningRule(predictor, pairs=pairs, **more)


def gain(source: Any, target: str) -> float:
    """The best source is b, of which attributions think little."""
    if source in (None, target):
        return 0.0
    return {"a": -0.05, "b": 0.1, "c": 0.02, "d": -0.02, "e": 0.04, "f": 0.0}[source]


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    return gain(source, trial.suggest_categorical("target", TASKS))


def target_first(trial: optuna.Trial) -> float:
    target = trial.suggest_categorical("target", TASKS)
    return gain(trial.suggest_categorical("source", TASKS), target)


def pair(trial: FrozenTrial) -> Pair:
    return trial.params["source"], trial.params["target"]


def a_search(
    searched: Callable[[optuna.Trial], float] = objective,
    n_trials: int = 20,
    base: BaseSampler | None = None,
    direction: str = "maximize",
    **more: Any,
) -> list[FrozenTrial]:
    sampler = TransferSampler(learning_rule(), base or RandomSampler(seed=0), **more)
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(searched, n_trials=n_trials)
    return study.trials


@pytest.mark.parametrize("searched", [objective, target_first])
def test_baselines_come_first_and_then_the_pair_of_the_highest_priority(
    searched: Callable[[optuna.Trial], float],
) -> None:
    trials = a_search(searched, n_trials=14)
    assert [pair(trial) for trial in trials[:6]] == [(task, task) for task in TASKS]
    rule = learning_rule()
    for trial in trials[6:]:
        study = optuna.create_study(direction="maximize")
        study.add_trials(trials[: trial.number])
        learnt = rule.refitted()
        if trial.number > 6:
            learnt = rule.refitted(transfers_from_study(study))
        table = learnt.table()
        tried = [pair(before) for before in trials[: trial.number]]
        left = table[~table["eliminated"]]
        names = zip(left["source"], left["target"], strict=True)
        left = left[np.array([named not in tried for named in names])]
        best = left.sort_values(["priority", "target", "source"], ascending=[False, True, True])
        assert pair(trial) == (best["source"].iloc[0], best["target"].iloc[0])


def test_no_random_number_chooses_a_pair() -> None:
    orders = [
        [pair(trial) for trial in a_search(base=base, seed=seed)]
        for seed, base in enumerate([RandomSampler(seed=5), TPESampler(seed=7), RandomSampler()])
    ]
    assert orders[0] == orders[1] == orders[2]


def test_a_baseline_may_be_no_source_and_the_target_may_be_fixed() -> None:
    def searched(trial: optuna.Trial) -> float:
        return gain(trial.suggest_categorical("from", [None, *TASKS[1:]]), "a")

    trials = a_search(searched, 6, source_param="from", target="a")
    assert trials[0].params["from"] is None
    assert len({trial.params["from"] for trial in trials}) == 6
    assert sum(trial.params["from"] is None for trial in trials) == 1


def test_a_pair_that_is_exhausted_comes_after_all_others() -> None:
    def searched(trial: optuna.Trial) -> float:
        value = objective(trial)
        return value + 0.001 * trial.suggest_int("layers", 1, 2)

    seen = Counter((*pair(t), t.params["layers"]) for t in a_search(searched, 24))
    assert max(seen.values()) == 1


class Stubborn(BaseSampler):
    """Like a GP that has made up its mind: it proposes all parameters together, always the same."""

    def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
        return {
            "source": optuna.distributions.CategoricalDistribution([None, *TASKS[1:]]),
            "layers": optuna.distributions.IntDistribution(1, 2),
        }

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {"source": "c", "layers": 2}

    def sample_independent(self, *_: Any) -> Any:
        raise AssertionError("nothing is left to ask for")


def test_a_sampler_that_is_not_asked_again_trains_no_pair_twice_while_others_wait() -> None:
    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [None, *TASKS[1:]])
        return gain(source, "a") + 0.01 * trial.suggest_int("layers", 1, 2)

    trials = a_search(searched, 6, Stubborn(), target="a")
    assert trials[0].params["source"] is None
    assert len({trial.params["source"] for trial in trials}) == 6
    assert {trial.params["layers"] for trial in trials} == {2}


class Sure(RandomSampler):
    """Like TPE after some trials: of this hyperparameter it proposes one choice, whoever asks."""

    def sample_independent(self, study: Any, trial: Any, name: str, space: Any) -> Any:
        return 2 if name == "layers" else super().sample_independent(study, trial, name, space)


def test_a_sampler_that_is_sure_of_one_choice_trains_nothing_twice() -> None:
    def searched(trial: optuna.Trial) -> float:
        return objective(trial) + 0.1 * trial.suggest_int("layers", 1, 2)

    trials = a_search(searched, 24, Sure(seed=0))
    seen = Counter((*pair(t), t.params["layers"]) for t in trials)
    assert max(seen.values()) == 1
    assert {trial.params["layers"] for trial in trials} == {1, 2}


def test_what_is_suggested_before_the_pair_is_not_trained_with_it_again() -> None:
    def searched(trial: optuna.Trial) -> float:
        return 0.001 * trial.suggest_int("layers", 1, 2) + objective(trial)

    seen = Counter((*pair(t), t.params["layers"]) for t in a_search(searched, 24))
    assert max(seen.values()) == 1


def test_enqueued_pairs_stay_and_halves_are_completed_with_the_best() -> None:
    study = optuna.create_study(
        direction="maximize", sampler=TransferSampler(learning_rule(), RandomSampler(seed=0))
    )
    study.enqueue_trial({"source": "a", "target": "f"})
    study.enqueue_trial({"source": "c"})
    study.enqueue_trial({"target": "d"})
    study.optimize(objective, n_trials=12)
    assert pair(study.trials[0]) == ("a", "f")
    assert study.trials[1].params["source"] == "c"
    assert study.trials[1].params["target"] != "c"
    assert pair(study.trials[2]) == ("d", "d"), "its baseline"
    study.enqueue_trial({"target": "d"})
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].params["target"] == "d"
    assert study.trials[-1].params["source"] != "d"


def test_a_minimizing_study_finds_the_best_source_too() -> None:
    losses = a_search(lambda trial: -objective(trial), 20, direction="minimize")
    scores = a_search(objective, 20)
    assert [pair(trial) for trial in losses] == [pair(trial) for trial in scores]


TWELVE = [f"task{i:02d}" for i in range(12)]


def gains_of(seed: int) -> dict[str, float]:
    gains = np.random.default_rng(seed).permutation(np.linspace(-0.1, 0.1, 12))
    return dict(zip(TWELVE, gains.tolist(), strict=True))


def finished_until_best(sampler: Callable[[], BaseSampler], seed: int) -> int:
    gains = gains_of(seed)

    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TWELVE)
        target = trial.suggest_categorical("target", TWELVE[:4])
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        effect = 0.0 if source == target else gains[source]
        return 0.5 + effect - 0.002 * abs(np.log10(lr) + 2.5)

    study = optuna.create_study(direction="maximize", sampler=sampler())
    best = max(gains.values())
    study.optimize(
        searched,
        n_trials=80,
        callbacks=[lambda study, trial: study.stop() if trial.value > 0.49 + best else None],
    )
    return len(study.trials)


def test_the_best_source_is_found_in_fewer_trials_than_by_the_base_sampler_alone() -> None:
    def ours(seed: int) -> int:
        pairs = ordered_pairs(TWELVE)
        noise = np.random.default_rng(seed + 100).normal(0, 0.05, len(pairs))
        pairs["attribution_score"] = pairs["source"].map(gains_of(seed)) + noise
        predictor = TransferPredictor(feature_columns=["attribution_score"])
        rule = LearningRule(predictor, pairs=pairs)
        return finished_until_best(lambda: TransferSampler(rule, TPESampler(seed=seed)), seed)

    def alone(seed: int) -> int:
        return finished_until_best(lambda: TPESampler(seed=seed), seed)

    seeds = range(6)
    assert np.mean([ours(seed) for seed in seeds]) < 0.8 * np.mean([alone(s) for s in seeds])


def test_pairs_that_are_running_come_after_others() -> None:
    study = optuna.create_study(
        direction="maximize", sampler=TransferSampler(learning_rule(), RandomSampler(seed=0))
    )
    # Asked for all at once: none has suggested anything when the next one is asked for.
    space = {
        name: optuna.distributions.CategoricalDistribution(TASKS) for name in ("source", "target")
    }
    running = [study.ask(space) for _ in range(15)]
    pairs = [(trial.params["source"], trial.params["target"]) for trial in running]
    assert len({*pairs}) == 15
    assert pairs[:6] == [(task, task) for task in TASKS]


def test_four_threads_train_no_pair_twice_while_others_wait(tmp_path: Path) -> None:
    barrier = threading.Barrier(4, timeout=60)

    def searched(trial: optuna.Trial) -> float:
        value = objective(trial)
        barrier.wait()
        return value

    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path / 'study.db'}",
        direction="maximize",
        sampler=TransferSampler(learning_rule(start=0.0), RandomSampler(seed=0)),
    )
    study.optimize(searched, n_trials=20, n_jobs=4)
    assert len({pair(trial) for trial in study.trials}) == 20
    assert {pair(trial) for trial in study.trials[:8]} > {(task, task) for task in TASKS}


def test_all_that_is_left_is_running_and_the_least_taken_is_shared() -> None:
    def searched(trial: optuna.Trial) -> None:
        trial.suggest_categorical("source", [None, "b", "c"])
        trial.suggest_float("lr", 0, 1)

    sampler = TransferSampler(learning_rule(start=0.0), RandomSampler(seed=0), target="a")
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(7):
        searched(study.ask())
    assert Counter(t.params["source"] for t in study.trials) == {None: 1, "b": 3, "c": 3}


def test_a_pair_or_a_baseline_that_keeps_failing_does_not_hold_the_search_up() -> None:
    def searched(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.params["source"] in ("f",) or trial.params == {"source": "c", "target": "c"}:
            raise MemoryError
        return value

    study = optuna.create_study(
        direction="maximize", sampler=TransferSampler(learning_rule(), RandomSampler(seed=0))
    )
    study.optimize(searched, n_trials=50, catch=MemoryError)
    failed = Counter(pair(t) for t in study.trials if t.state == TrialState.FAIL)
    assert failed["c", "c"] == 3
    assert max(failed.values()) == 3
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) > 20


WORKER = """
import os, signal, sys
import optuna
sys.path.insert(0, {folder!r})
from test_ordering import learning_rule, objective, TransferSampler, RandomSampler

def searched(trial):
    value = objective(trial)
    if trial.number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return value

study = optuna.create_study(
    study_name="s", storage={storage!r}, direction="maximize",
    sampler=TransferSampler(learning_rule(), RandomSampler(seed=3)),
)
study.optimize(searched, n_trials=30)
"""


def test_a_search_that_was_killed_goes_on_in_the_same_order(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    script = textwrap.dedent(WORKER).format(folder=str(Path(__file__).parent), storage=storage)
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ}, check=False)
    assert ended.returncode == -signal.SIGKILL
    study = optuna.load_study(
        study_name="s",
        storage=storage,
        sampler=TransferSampler(learning_rule(), RandomSampler(seed=4)),
    )
    assert [t.state for t in study.trials[13:]] == [TrialState.RUNNING]
    study.tell(13, state=TrialState.FAIL)
    study.optimize(objective, n_trials=8)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    unbroken = a_search(n_trials=21)
    assert [pair(trial) for trial in complete] == [pair(trial) for trial in unbroken]


def test_audited_proposals_run_as_they_are_beside_what_is_chosen() -> None:
    sampler = TransferSampler(learning_rule(), RandomSampler(seed=0), audit_fraction=0.9)
    # Which proposals are drawn follows from the study's name.
    study = optuna.create_study(study_name="s", direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=50)
    audits = [t for t in study.trials if t.user_attrs.get("transfer_pruner.audit") == 1]
    assert len(audits) > 2
    assert all(t.user_attrs["transfer_pruner.eliminated"] == 1 for t in audits)
    others = [t for t in study.trials if t not in audits]
    assert all(t.user_attrs["transfer_pruner.eliminated"] == 0 for t in others)
    assert estimate_audit(records_from_study(study)).trials_audited == len(audits)


def test_the_audit_estimate_rests_on_marked_audits_and_not_on_what_is_explored() -> None:
    # b is the best source, and is eliminated nearly everywhere at first.
    scores = ordered_pairs(TASKS)
    rule = learning_rule(start=0.5).refine(scores.assign(score=scores["source"].map(TASKS.index)))
    sampler = TransferSampler(rule, RandomSampler(seed=0), audit_fraction=0.3)
    study = optuna.create_study(study_name="s", direction="maximize", sampler=sampler)
    study.enqueue_trial({"source": "b", "target": "f"})
    study.optimize(objective, n_trials=60)
    trials = study.trials
    assert trials[0].user_attrs["transfer_pruner.eliminated"] == 1, "enqueued: nobody drew it"
    audits = [t for t in trials if t.user_attrs.get("transfer_pruner.audit") == 1]
    explored = [t for t in trials[1:] if t not in audits and len({*pair(t)}) == 2]
    assert audits
    assert all(t.user_attrs["transfer_pruner.eliminated"] == 0 for t in explored)
    # Some pairs were eliminated at first, and came back as the rule learnt.
    first = rule.refitted()
    assert any(first.decide(*pair(t)).eliminated for t in explored)
    best: dict[str, float] = {}
    for trial in trials:
        if trial not in audits:
            target = trial.params["target"]
            best[target] = max(best.get(target, -math.inf), trial.value or 0.0)
    missed = [max(0.0, (t.value or 0.0) - best[t.params["target"]]) for t in audits]
    estimate = estimate_audit(records_from_study(study))
    assert estimate.trials_audited == len(audits)
    assert estimate.false_eliminations == sum(miss > 0 for miss in missed)
    assert estimate.missed_gain == pytest.approx(np.mean(missed))
    # However many of the others are explored, or how well they do, the sample is the same.
    unmarked = [r for r in records_from_study(study) if not r.audit]
    assert estimate_audit(unmarked).trials_audited == 0


def test_a_proposal_that_the_rule_does_not_know_stands() -> None:
    def searched(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", [None, "new", "b", "c"])
        return 0.0

    sampler = TransferSampler(learning_rule(), RandomSampler(seed=0), target="a")
    study = optuna.create_study(sampler=sampler)
    with pytest.warns(match="does not know the pair 'new' -> 'a'"):
        study.optimize(searched, n_trials=20)
    assert 2 < sum(t.params["source"] == "new" for t in study.trials) < 12


def test_of_joint_transfer_no_order_is_told() -> None:
    def searched(trial: optuna.Trial) -> float:
        for name in ("first", "second"):
            trial.suggest_categorical(name, [None, *TASKS])
        trial.suggest_categorical("target", TASKS)
        return 0.0

    def search(rule: LearningRule | EliminationRule) -> list[dict[str, Any]]:
        sampler = TransferSampler(
            rule, TPESampler(seed=0), source_param=["first", "second"], seed=0
        )
        study = optuna.create_study(sampler=sampler)
        study.optimize(searched, n_trials=15)
        return [trial.params for trial in study.trials]

    assert search(learning_rule(refit_every=100)) == search(learning_rule().refitted())


def test_what_has_finished_is_read_once() -> None:
    study = optuna.create_study()
    history = History(TransferSampler(learning_rule())._pair_of)
    study.optimize(objective, n_trials=5)
    history.update(study)
    live = study.ask()
    live.suggest_categorical("source", TASKS)
    live.suggest_categorical("target", TASKS)
    history.update(study)
    assert [trial.number for trial in history.running] == [5]
    study.tell(live, 0.0)
    history.update(study)
    history.update(study)
    assert not history.running
    assert sum(tried.results for tried in history._tried.values()) == 6


def test_a_rule_that_was_refined_takes_the_best_scored_first_and_its_seconds_are_counted() -> None:
    scores = ordered_pairs(TASKS).assign(score=0.0, seconds=0.25)
    scores.loc[scores["source"] == "b", "score"] = 1.0
    rule = learning_rule(start=0.0).refine(scores)
    told: list[TrialRecord] = []

    class Told:
        def record(self, record: TrialRecord) -> None:
            told.append(record)

    study = optuna.create_study(
        direction="maximize", sampler=TransferSampler(rule, seed=0, tracker=Told())
    )
    study.optimize(objective, n_trials=11)
    pairs = [pair(trial) for trial in study.trials]
    assert pairs[:6] == [(task, task) for task in TASKS]
    assert {source for source, target in pairs[6:] if target != "b"} == {"b"}
    for records in (told, records_from_study(study)):
        assert estimate_savings(records).scoring_seconds == 0.25 * 30


def test_a_search_counts_what_a_proxy_score_of_ones_own_took_by_itself() -> None:
    def score(source: str, target: str) -> float:
        time.sleep(0.001)
        return float(source == "b")

    rule = learning_rule(start=0.0).refine(score)
    study = optuna.create_study(direction="maximize", sampler=TransferSampler(rule, seed=0))
    study.optimize(objective, n_trials=3)
    seconds = estimate_savings(records_from_study(study)).scoring_seconds
    assert seconds == rule.scoring_seconds >= 0.001 * len(rule)


def reporting(trial: optuna.Trial) -> float:
    value = objective(trial)
    trial.report(value, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return value


@pytest.mark.parametrize("adapter", ["gate", "pruner"])
def test_every_adapter_tells_what_the_proxy_scores_took(adapter: str) -> None:
    decisions = {
        pair: Decision(False, 0.0, math.nan, "kept")
        for pair in ordered_pairs(TASKS).itertuples(index=False, name=None)
    }
    rule = EliminationRule(decisions, {}).refine(
        ordered_pairs(TASKS).assign(score=1.0, seconds=0.5), k=2
    )
    told: list[TrialRecord] = []

    class Told:
        def record(self, record: TrialRecord) -> None:
            told.append(record)

    study = optuna.create_study(direction="maximize", sampler=RandomSampler(0))
    if adapter == "gate":
        study.optimize(gate(objective, rule, tracker=Told()), n_trials=10)
    else:
        study = optuna.create_study(
            direction="maximize", sampler=RandomSampler(0), pruner=TransferPruner(rule)
        )
        study.optimize(reporting, n_trials=10, callbacks=[TrackingCallback(Told())])
    for records in (told, records_from_study(study)):
        savings = estimate_savings(records)
        assert savings.scoring_seconds == 0.5 * 30
        assert savings.seconds_spent > 0.5 * 30
    drawn = plot_savings(study).data
    spent = next(trace for trace in drawn if "spent" in (trace.name or ""))
    assert spent.y[-1] > 0.5 * 30


@pytest.mark.parametrize("seed", range(3))
def test_before_the_variances_are_fitted_no_pair_runs_again_and_again(seed: int) -> None:
    # With a continuous hyperparameter no pair is ever tried at all its settings.
    tasks = [f"t{i}" for i in range(8)]
    rng = np.random.default_rng(seed)
    gains = {task: rng.normal(0, 0.05) for task in tasks[1:]} | {"t0": 0.0}
    pairs = ordered_pairs(tasks)
    noisy = pairs["source"].map(gains) / 2 + rng.normal(0, 0.05, len(pairs))
    rule = LearningRule(
        TransferPredictor(feature_columns=["attribution_score"]),
        pairs=pairs.assign(attribution_score=noisy),
    )

    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", tasks)
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        return float(gains[source] - 0.002 * abs(np.log10(rate) + 2.5))

    sampler = TransferSampler(rule, RandomSampler(seed=seed), target="t0")
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(searched, n_trials=11)
    tried = Counter(trial.params["source"] for trial in study.trials[1:])
    assert len(tried) >= 4, "three or four of seven survive at first"
    assert max(tried.values()) <= 4
    times = [list(tried).index(trial.params["source"]) for trial in study.trials[1:]]
    assert all(len({*times[i : i + 4]}) > 1 for i in range(7)), times
