"""A search that learns as it runs, with nothing but the study's storage to remember it by."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sklearn.base import BaseEstimator, RegressorMixin

from transfer_pruner import LearningRule, PairParams, TransferPredictor, TransferPrunerWarning
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import EliminationRule
from transfer_pruner_optuna import TransferPruner, gate, records_from_study
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.records import transfers_from_trials

optuna.logging.set_verbosity(optuna.logging.WARNING)

TASKS = ["a", "b", "c", "d", "e", "f"]
TWELVE = [f"t{i:02d}" for i in range(12)]
EVERY = 10
SPACE = {
    "source": CategoricalDistribution(TASKS),
    "target": CategoricalDistribution(TASKS),
    "lr": FloatDistribution(0.0, 1.0),
}

Objective = Callable[[optuna.Trial], float]


def learning_rule() -> LearningRule:
    return LearningRule(TransferPredictor(), refit_every=EVERY, pairs=ordered_pairs(TASKS))


def objective(trial: optuna.Trial) -> float:
    """Gains are the source's alone, from -0.3 to 0.3; the learning rate hardly matters."""
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 0.0, 1.0)
    trial.set_user_attr("trained", 1)
    gain = 0.0 if source == target else 0.12 * (TASKS.index(source) - 2.5)
    return 0.5 + gain + 0.02 * lr


def a_study(storage: object = None, seed: int = 0) -> optuna.Study:
    """A study in which every target's single-task baseline is what runs first."""
    study = optuna.create_study(
        study_name="shared",
        direction="maximize",
        storage=storage,  # type: ignore[arg-type]
        sampler=optuna.samplers.RandomSampler(seed=seed),
        load_if_exists=True,
    )
    if not study.trials:
        for task in TASKS:
            study.enqueue_trial({"source": task, "target": task})
    return study


def storage_of(kind: str, folder: str | Path) -> object:
    if kind == "sqlite":
        return f"sqlite:///{folder}/study.db"
    return JournalStorage(JournalFileBackend(f"{folder}/study.log"))


def disagreements(study: optuna.Study, rule: LearningRule) -> list[int]:
    """Make every decision again from the storage alone; name the trials where it was another.

    What had finished when a trial was decided is known up to what finished while it ran.
    """
    pair_of = PairParams()
    finished = sorted(
        study.get_trials(states=(TrialState.COMPLETE,)), key=lambda t: (ended(t), t.number)
    )
    rules: dict[int, EliminationRule] = {0: rule.refitted()}
    different = []
    for trial in study.get_trials():
        begin = sum(ended(other) < trial.datetime_start for other in finished)
        end = sum(ended(other) < ended(trial) for other in finished)
        answers = []
        # One that finished just before the trial began may not have been visible yet.
        for refit in range(max(begin - 1, 0) // EVERY, end // EVERY + 1):
            if refit not in rules:
                evidence = finished[: refit * EVERY]
                rules[refit] = rule.refitted(transfers_from_trials(study, evidence, pair_of))
            answers.append(rules[refit].decide(*pair_of(trial.params)))
        told = trial.user_attrs["transfer_pruner.eliminated"]
        score = trial.user_attrs.get("transfer_pruner.score", np.nan)
        if not any(
            answer.eliminated == told and np.isclose(answer.score, score, equal_nan=True)
            for answer in answers
        ):
            different.append(trial.number)
    return different


def ended(trial: FrozenTrial) -> object:
    return trial.datetime_complete


def check(study: optuna.Study, *, strays: int = 0) -> None:
    assert len(disagreements(study, learning_rule())) <= strays
    eliminated = [t.user_attrs["transfer_pruner.eliminated"] for t in study.trials]
    assert not any(eliminated[:EVERY])
    assert sum(eliminated[-20:]) > 5
    for trial in study.trials:
        out = trial.user_attrs["transfer_pruner.eliminated"] == 1
        assert trial.state == (TrialState.PRUNED if out else TrialState.COMPLETE)
        assert ("trained" in trial.user_attrs) != out
        assert trial.params.keys() == SPACE.keys()


@pytest.mark.parametrize("space", [SPACE, None], ids=["space given", "space learnt"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_decisions_follow_from_the_finished_trials(
    n_jobs: int, space: dict[str, optuna.distributions.BaseDistribution] | None
) -> None:
    study = a_study()
    gated = gate(objective, learning_rule(), search_space=space)
    study.optimize(gated, n_trials=90, n_jobs=n_jobs)
    check(study)
    reasons = [t.user_attrs.get("transfer_pruner.reason", "") for t in study.trials]
    assert any("measured for" in r and "learnt from" in r for r in reasons)


def test_it_refits_every_so_many_finished_trials_and_records_its_settings_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    refitted = LearningRule.refitted

    def counted(rule: LearningRule, transfers: object = None) -> EliminationRule:
        if transfers is not None:
            asked.append(threading.get_ident())
        return refitted(rule, transfers)  # type: ignore[arg-type]

    monkeypatch.setattr(LearningRule, "refitted", counted)
    study = a_study()
    rule = learning_rule()
    study.optimize(gate(objective, rule, search_space=SPACE), n_trials=10)
    note = study.user_attrs["transfer_pruner.rule"]
    assert note == {"fingerprint": rule.refitted().fingerprint, **rule.settings}
    study.optimize(gate(objective, rule, search_space=SPACE), n_trials=80, n_jobs=2)
    n_complete = len(study.get_trials(states=(TrialState.COMPLETE,)))
    # The last two trials began before the other one finished, and nobody asks after them.
    assert (n_complete - 2) // EVERY <= len(asked) <= n_complete // EVERY
    assert study.user_attrs["transfer_pruner.rule"] == note


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_on_one_storage_agree_and_a_restart_continues(kind: str, tmp_path: Path) -> None:
    study = a_study(storage_of(kind, tmp_path))
    study.optimize(gate(objective, learning_rule(), search_space=SPACE), n_trials=len(TASKS))
    worker = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from {Path(__file__).stem} import *

        study = a_study(storage_of({kind!r}, {str(tmp_path)!r}), seed=int(sys.argv[1]))
        study.optimize(gate(objective, learning_rule(), search_space=SPACE), n_trials=35)
    """)
    workers = [subprocess.Popen([sys.executable, "-c", worker, seed]) for seed in "12"]
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    study = a_study(storage_of(kind, tmp_path), seed=3)
    study.optimize(gate(objective, learning_rule(), search_space=SPACE), n_trials=20)
    assert len(study.trials) == len(TASKS) + 2 * 35 + 20
    # Of two that finish within the same milliseconds, one may see the wrong one first.
    check(study, strays=2)


def test_a_restart_decides_as_who_was_there_all_along(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study, there = a_study(storage), Evidence(learning_rule(), PairParams())
    gated = gate(objective, learning_rule(), search_space=SPACE)
    for _ in range(4):
        study.optimize(gated, n_trials=10)
        anew = Evidence(learning_rule(), PairParams()).rule(a_study(storage))
        assert there.rule(study).fingerprint == anew.fingerprint
    assert there.rule(study).settings["transfers"] > 0


def test_a_trial_that_becomes_visible_late_is_made_up_for() -> None:
    study = a_study()
    study.optimize(objective, n_trials=2 * EVERY + 1)
    *early, late, last = sorted(study.trials, key=lambda t: (ended(t), t.number))
    here = optuna.create_study(study_name="shared", direction="maximize")
    here.add_trials([*early, last])
    now = Evidence(learning_rule(), PairParams())
    too_early = now.rule(here).fingerprint
    here.add_trial(late)
    everyones = Evidence(learning_rule(), PairParams()).rule(study).fingerprint
    assert now.rule(here).fingerprint == everyones != too_early


def test_the_pruner_learns_too() -> None:
    def asking(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        trial.suggest_float("lr", 0.0, 1.0)
        if trial.should_prune():
            raise optuna.TrialPruned
        trial.report(0.0, 1)
        assert not trial.should_prune()
        assert source in TASKS
        assert target in TASKS
        return objective(trial)

    study = a_study()
    study.pruner = TransferPruner(learning_rule())
    study.optimize(asking, n_trials=90, n_jobs=2)
    check(study)
    assert {record.outcome for record in records_from_study(study)} == {"trained", "eliminated"}


def test_a_trial_that_trains_is_not_stopped_by_what_others_teach_meanwhile() -> None:
    study = a_study()
    pruner = TransferPruner(learning_rule())
    study.pruner = pickle.loads(pickle.dumps(pruner))  # noqa: S301
    study.optimize(objective, n_trials=6)
    pair = {"source": "a", "target": "f"}
    study.enqueue_trial(pair)
    early = study.ask(SPACE)
    assert early.params["source"] == "a"
    assert early.should_prune() is False
    study.optimize(objective, n_trials=60)
    assert early.should_prune() is False
    study.enqueue_trial(pair)
    assert study.ask(SPACE).should_prune() is True


def test_the_pruner_decides_and_writes_once_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    study = a_study()
    study.pruner = TransferPruner(learning_rule())
    study.optimize(objective, n_trials=40)
    study.enqueue_trial({"source": "f", "target": "a"})
    trial = study.ask(SPACE)
    written: list[str] = []
    write = study._storage.set_trial_user_attr

    def counted(trial_id: int, key: str, value: object) -> None:
        written.append(key.removeprefix("transfer_pruner."))
        write(trial_id, key, value)

    monkeypatch.setattr(study._storage, "set_trial_user_attr", counted)
    for step in range(5):
        assert trial.should_prune() is False
        trial.report(0.5, step)
    assert written == ["eliminated", "rule", "score", "probability", "priority"]


class Failing(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, x: np.ndarray, y: np.ndarray) -> Failing:
        raise RuntimeError("out of memory")


def test_a_failing_predictor_keeps_every_pair_with_one_warning() -> None:
    failing = TransferPredictor(regressor=Failing())
    rule = LearningRule(failing, refit_every=EVERY, pairs=ordered_pairs(TASKS))
    study = a_study()
    with pytest.warns(TransferPrunerWarning, match="every pair is kept") as warned:
        study.optimize(gate(objective, rule, search_space=SPACE), n_trials=60)
    assert len([w for w in warned if issubclass(w.category, TransferPrunerWarning)]) == 1
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_study_without_baselines_says_that_nothing_is_learnt() -> None:
    def without(trial: optuna.Trial) -> float:
        return objective(trial)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    pairs = ordered_pairs(TASKS)
    for source, target in pairs.itertuples(index=False):
        study.enqueue_trial({"source": source, "target": target})
    with pytest.warns(TransferPrunerWarning, match="learnt nothing from 10 .* Run baseline") as w:
        study.optimize(gate(without, learning_rule(), search_space=SPACE), n_trials=len(pairs))
    assert len(w) == 1
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    gated = gate(objective, learning_rule(), search_space=SPACE)
    with pytest.raises(ValueError, match="objective_index must be from 0 to 1 but got None"):
        study.optimize(gated, n_trials=1)


def test_one_gate_in_two_studies_of_one_name_keeps_them_apart() -> None:
    now = Evidence(learning_rule(), PairParams())
    prints = []
    for seed in (0, 1):
        study = a_study(seed=seed)
        study.optimize(objective, n_trials=40)
        prints.append(now.rule(study).fingerprint)
        assert prints[-1] == Evidence(learning_rule(), PairParams()).rule(study).fingerprint
    assert prints[0] != prints[1]


def trials_until_found(seed: int, rule: LearningRule | None) -> tuple[float, float]:
    """Finished trials until the best pair ran, and until each target's best source did, on average.

    A search at random of twelve tasks, 200 finished trials at most.
    """
    rng = np.random.default_rng(seed)
    quality = dict(zip(TWELVE, rng.permutation(np.linspace(-0.1, 0.1, 12)), strict=True))
    gains = {
        (source, target): quality[source] + rng.normal(0, 0.02)
        for source, target in ordered_pairs(TWELVE).itertuples(index=False)
    }
    trained: list[tuple[str, str]] = []

    def search(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TWELVE)
        target = trial.suggest_categorical("target", TWELVE)
        trained.append((source, target))
        return 0.5 + gains.get((source, target), 0.0)

    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed)
    )
    for task in TWELVE:
        study.enqueue_trial({"source": task, "target": task})
    space = {name: CategoricalDistribution(TWELVE) for name in ("source", "target")}
    run: Objective = search if rule is None else gate(search, rule, search_space=space)
    while len(trained) < 200:
        study.optimize(run, n_trials=20)

    def found(pair: tuple[str, str]) -> int:
        return min(trained.index(pair), 200) if pair in trained else 200

    of_each = [
        max((pair for pair in gains if pair[1] == target), key=lambda pair: gains[pair])
        for target in TWELVE
    ]
    best = max(gains, key=lambda pair: gains[pair])
    return found(best), float(np.mean([found(pair) for pair in of_each]))


def test_a_search_that_learns_finds_the_best_pairs_in_fewer_finished_trials() -> None:
    def rule() -> LearningRule:
        return LearningRule(TransferPredictor(), pairs=ordered_pairs(TWELVE))

    learning = np.array([trials_until_found(seed, rule()) for seed in range(5)])
    without = np.array([trials_until_found(seed, None) for seed in range(5)])
    assert (learning[:, 0] <= without[:, 0] + 10).all()
    assert (learning.mean(axis=0) < 0.9 * without.mean(axis=0)).all()
