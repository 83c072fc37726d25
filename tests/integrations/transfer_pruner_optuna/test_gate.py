"""Eliminated pairs never train; samplers, pruners and the study stay as the user made them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.search_space import intersection_search_space
from optuna.trial import TrialState

from transfer_pruner import (
    Decision,
    EliminationRule,
    TransferPrunerWarning,
    TrialRecord,
    estimate_audit,
)
from transfer_pruner_optuna import gate, records_from_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

TASKS = ["a", "b", "c", "d", "e", "f"]
SPACE = {
    "source": CategoricalDistribution(TASKS),
    "target": CategoricalDistribution(TASKS),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "layers": IntDistribution(1, 4),
}


def rule_keeping(kept: set[tuple[str, str]]) -> EliminationRule:
    return EliminationRule(
        {
            (source, target): Decision((source, target) not in kept, -1.0, 0.25, "told so")
            for source in TASKS
            for target in TASKS
            if source != target
        },
        {"rule": "by hand"},
    )


@pytest.fixture
def rule() -> EliminationRule:
    """Six of thirty pairs are kept: a is a source for everyone, and b for a."""
    return rule_keeping({("a", target) for target in TASKS} | {("b", "a")})


class Objective:
    """An objective that logs which pairs entered its body, and which trained."""

    def __init__(self, fail: bool = False) -> None:
        self.entered = 0
        self.trained: list[tuple[str, str]] = []
        self.fail = fail
        self._lock = threading.Lock()

    def __call__(self, trial: optuna.Trial) -> float:
        with self._lock:
            self.entered += 1
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        layers = trial.suggest_int("layers", 1, 4)
        with self._lock:
            self.trained.append((source, target))
        if self.fail:
            raise RuntimeError("CUDA out of memory")
        return float(TASKS.index(source)) + lr * layers


class Log:
    def __init__(self) -> None:
        self.records: list[TrialRecord] = []

    def record(self, record: TrialRecord) -> None:
        self.records.append(record)


def eliminated(rule: EliminationRule, pair: tuple[str, str]) -> bool:
    return rule.decide(*pair).eliminated


@pytest.mark.parametrize("space", [SPACE, None], ids=["space given", "space learnt"])
def test_no_eliminated_pair_trains_and_its_trial_is_pruned_with_all_parameters(
    rule: EliminationRule, space: dict[str, optuna.distributions.BaseDistribution] | None
) -> None:
    objective = Objective()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    study.optimize(gate(objective, rule, search_space=space), n_trials=60)
    assert not any(eliminated(rule, pair) for pair in objective.trained)
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(pruned) > 10
    assert len(complete) == len(objective.trained) > 5
    for trial in pruned:
        assert trial.params.keys() == SPACE.keys()
        assert eliminated(rule, (trial.params["source"], trial.params["target"]))


def test_with_the_space_given_the_body_is_not_even_entered(rule: EliminationRule) -> None:
    objective = Objective()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(objective, rule, search_space=SPACE), n_trials=60)
    assert objective.entered == len(study.get_trials(states=(TrialState.COMPLETE,)))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("space", [SPACE, None], ids=["space given", "space learnt"])
def test_tpe_still_infers_every_parameter_afterwards(
    rule: EliminationRule, space: dict[str, optuna.distributions.BaseDistribution] | None
) -> None:
    sampler = optuna.samplers.TPESampler(multivariate=True, seed=3)
    study = optuna.create_study(sampler=sampler)
    study.optimize(gate(Objective(), rule, search_space=space), n_trials=40)
    trials = study.get_trials()
    inferred = intersection_search_space(trials, include_pruned=True)
    assert inferred.keys() == SPACE.keys()
    assert sampler.infer_relative_search_space(study, trials[-1]).keys() == SPACE.keys()


def test_an_existing_study_shows_what_eliminated_trials_would_have_had(
    rule: EliminationRule,
) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(Objective(), n_trials=3)
    objective = Objective()
    study.optimize(gate(objective, rule), n_trials=40)
    assert len(study.trials) == 43
    gated = study.trials[3:]
    assert len(objective.trained) == sum(t.state == TrialState.COMPLETE for t in gated) < 30
    assert all(trial.params.keys() == SPACE.keys() for trial in gated)


def test_in_a_fresh_study_a_pair_that_trains_comes_first(rule: EliminationRule) -> None:
    for seed in range(5):
        objective = Objective()
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.optimize(gate(objective, rule), n_trials=3)
        assert len(study.trials) == 3
        first = study.trials[0]
        assert first.state == TrialState.COMPLETE
        assert first.params["source"] != first.params["target"], "a transfer shows the space"
        assert all(trial.params.keys() == SPACE.keys() for trial in study.trials)


def test_every_trial_is_the_users_and_callbacks_see_the_one_that_trained(
    rule: EliminationRule,
) -> None:
    seen = []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"source": "f", "target": "e"})
    limit = optuna.study.MaxTrialsCallback(2, states=(TrialState.COMPLETE,))
    study.optimize(
        gate(Objective(), rule),
        n_trials=30,
        callbacks=[limit, lambda _, trial: seen.append(trial.number)],
    )
    assert seen == [trial.number for trial in study.trials]
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 2
    assert study.trials[0].state == TrialState.PRUNED


def test_what_was_enqueued_is_nobodys_to_change(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"source": "f", "target": "e"})
    study.enqueue_trial({"source": "a", "target": "b"})
    study.optimize(gate(Objective(), rule), n_trials=2)
    pairs = [(trial.params["source"], trial.params["target"]) for trial in study.trials]
    assert pairs == [("f", "e"), ("a", "b")]
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]


@pytest.mark.parametrize("seed", range(4))
def test_a_grid_whose_first_pair_is_eliminated_is_visited_whole(
    rule: EliminationRule, seed: int
) -> None:
    grid = {"source": TASKS, "target": ["e", "f"], "lr": [0.1, 0.2]}
    trained = []

    def objective(trial: optuna.Trial) -> float:
        pair = [trial.suggest_categorical(name, grid[name]) for name in ("source", "target")]
        trained.append((*pair, trial.suggest_categorical("lr", grid["lr"])))
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.GridSampler(grid, seed=seed))
    study.optimize(gate(objective, rule))
    assert len(study.trials) == 24
    kept = {
        (s, t, lr)
        for s in TASKS
        for t in ("e", "f")
        for lr in (0.1, 0.2)
        if not eliminated(rule, (s, t))
    }
    assert set(trained) == kept
    assert len(trained) == len(kept)


def test_where_every_pair_is_eliminated_nothing_trains() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", ["a", "b"])
        trial.suggest_categorical("target", ["e", "f"])
        raise AssertionError("trained")

    study = optuna.create_study()
    with pytest.warns(TransferPrunerWarning, match="the rule eliminates every pair that it knows"):
        study.optimize(gate(objective, rule_keeping(set())), n_trials=5)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 5


def test_a_broad_except_around_the_training_does_not_swallow_the_decision(
    rule: EliminationRule,
) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        try:
            source = trial.suggest_categorical("source", TASKS)
            target = trial.suggest_categorical("target", TASKS)
            trained.append((source, target))
        except Exception:
            trained.append(("swallowed", "swallowed"))
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(objective, rule), n_trials=30)
    assert ("swallowed", "swallowed") not in trained
    assert not any(eliminated(rule, pair) for pair in trained)


def test_decisions_are_recorded_as_numbers_and_the_rule_once(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(Objective(), rule, search_space=SPACE), n_trials=30)
    frame = study.trials_dataframe()
    is_pruned = frame["state"] == "PRUNED"
    assert (frame["user_attrs_transfer_pruner.eliminated"] == is_pruned).all()
    assert (frame[is_pruned]["user_attrs_transfer_pruner.score"] == -1.0).all()
    assert (frame[is_pruned]["user_attrs_transfer_pruner.reason"] == "told so").all()
    assert study.user_attrs["transfer_pruner.rule"]["fingerprint"] == rule.fingerprint


def test_the_tracker_is_told_of_every_trial(rule: EliminationRule) -> None:
    log = Log()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(Objective(), rule, tracker=log), n_trials=40)
    assert sorted(record.number for record in log.records) == [t.number for t in study.trials]
    by_number = {record.number: record for record in log.records}
    for trial in study.trials:
        record = by_number[trial.number]
        assert record.outcome == ("eliminated" if trial.state == TrialState.PRUNED else "trained")
        assert record.target == trial.params["target"]
        assert record.hyperparameters == {k: trial.params[k] for k in ("lr", "layers")}
        if record.outcome == "trained":
            assert record.value == trial.value
        same = trial.params["source"] == trial.params["target"]
        assert record.source == (None if same else trial.params["source"])


def test_a_failing_objective_fails_as_it_would_without_the_gate(rule: EliminationRule) -> None:
    log = Log()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    gated = gate(Objective(fail=True), rule, search_space=SPACE, tracker=log)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        study.optimize(gated, n_trials=50)
    assert study.trials[-1].state == TrialState.FAIL
    assert log.records[-1].outcome == "failed"


def test_a_value_that_is_no_number_is_optunas_to_refuse(rule: EliminationRule) -> None:
    log = Log()
    study = optuna.create_study()
    wrong = gate(lambda _: None, rule, search_space=SPACE, tracker=log)  # type: ignore[arg-type]
    study.enqueue_trial({"source": "a", "target": "b"})
    study.optimize(wrong, n_trials=1)
    assert study.trials[0].state == TrialState.FAIL
    assert len(log.records) == 1


def test_trials_that_a_pruner_stops_early_have_trained(rule: EliminationRule) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", TASKS)
        trial.suggest_categorical("target", TASKS)
        trial.report(1.0, 1)
        raise optuna.TrialPruned

    log = Log()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(objective, rule, tracker=log), n_trials=20)
    assert {record.outcome for record in log.records} == {"trained", "eliminated"}


def test_hyperband_stays_in_place_and_works(rule: EliminationRule) -> None:
    def objective(trial: optuna.Trial) -> float:
        value = Objective()(trial)
        for step in range(1, 10):
            trial.report(value / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(gate(objective, rule, search_space=SPACE), n_trials=60)
    assert study.pruner is pruner
    states = {trial.state for trial in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    reported = [trial for trial in study.trials if trial.intermediate_values]
    for trial in reported:
        assert not eliminated(rule, (trial.params["source"], trial.params["target"]))


def test_a_fixed_target_searches_over_sources_only(rule: EliminationRule) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        trained.append(trial.suggest_categorical("aux", [None, *TASKS]))
        return trial.suggest_float("lr", 0, 1)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(objective, rule, source_param="aux", target="f"), n_trials=40)
    assert set(trained) <= {None, "a", "f", *TASKS}
    kept = [t.params["aux"] for t in study.get_trials(states=(TrialState.COMPLETE,))]
    assert set(kept) == {None, "a", "f"}


def test_several_objectives(rule: EliminationRule) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        return Objective()(trial), 1.0

    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(gate(objective, rule, search_space=SPACE), n_trials=40)
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        assert not eliminated(rule, (trial.params["source"], trial.params["target"]))


@pytest.mark.parametrize("space", [SPACE, None], ids=["space given", "space learnt"])
def test_threads_agree(
    rule: EliminationRule,
    space: dict[str, optuna.distributions.BaseDistribution] | None,
    tmp_path: Path,
) -> None:
    objective, log = Objective(), Log()
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    study.optimize(gate(objective, rule, search_space=space, tracker=log), n_trials=60, n_jobs=4)
    assert not any(eliminated(rule, pair) for pair in objective.trained)
    assert all(trial.state.is_finished() for trial in study.trials)
    assert sorted(r.number for r in log.records) == [t.number for t in study.trials]
    for trial in study.get_trials(states=(TrialState.PRUNED,)):
        assert trial.params.keys() == SPACE.keys()


def test_processes_on_one_storage_agree(rule: EliminationRule, tmp_path: Path) -> None:
    rule.save(tmp_path / "rule")
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="shared", storage=storage)
    worker = textwrap.dedent(f"""
        import optuna
        from transfer_pruner import EliminationRule
        from transfer_pruner_optuna import gate

        TASKS = {TASKS!r}

        def objective(trial):
            source = trial.suggest_categorical("source", TASKS)
            target = trial.suggest_categorical("target", TASKS)
            trial.suggest_float("lr", 1e-4, 1e-1, log=True)
            trial.set_user_attr("trained", 1)
            return 0.0

        study = optuna.load_study(study_name="shared", storage={storage!r})
        rule = EliminationRule.load({str(tmp_path / "rule")!r})
        study.optimize(gate(objective, rule), n_trials=20)
    """)
    workers = [subprocess.Popen([sys.executable, "-c", worker]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    assert len(trials) >= 40
    assert all(trial.state.is_finished() for trial in trials)
    for trial in trials:
        out = eliminated(rule, (trial.params["source"], trial.params["target"]))
        assert out == (trial.state == TrialState.PRUNED)
        assert out == ("trained" not in trial.user_attrs)
        assert trial.params.keys() == {"source", "target", "lr"}


def test_unknown_tasks_are_trained_with_one_warning(rule: EliminationRule) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", ["x", "y"])
        trial.suggest_categorical("target", TASKS)
        return 0.0

    study = optuna.create_study()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study.optimize(gate(objective, rule), n_trials=20)
    ours = [w for w in caught if issubclass(w.category, TransferPrunerWarning)]
    assert len(ours) == 1
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert rule.unknown_pairs


@pytest.mark.parametrize(
    "sampler",
    [
        lambda: optuna.samplers.GridSampler({"source": TASKS, "target": TASKS}, seed=0),
        lambda: optuna.samplers.BruteForceSampler(seed=0),
    ],
    ids=["grid", "brute force"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_grid_is_visited_whole(
    rule: EliminationRule, sampler: Callable[[], optuna.samplers.BaseSampler]
) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        trained.append((source, target))
        return 0.0

    study = optuna.create_study(sampler=sampler())
    space = {name: SPACE[name] for name in ("source", "target")}
    study.optimize(gate(objective, rule, search_space=space))
    assert len(study.trials) == 36
    assert len(trained) == len(set(trained)) == 6 + 5 + 1


def test_a_search_space_without_the_pair_is_refused(
    rule: EliminationRule, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match="search_space lacks 'target'; it has: source"):
        gate(Objective(), rule, search_space={"source": SPACE["source"]})
    wrap: Callable[..., object] = gate
    with pytest.raises(ValueError, match="search_space lacks 'aux'"):
        wrap(Objective(), rule, search_space=SPACE, source_param="aux")


class Branching:
    """An objective that transfers in one of its branches only."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, str]] = []

    def __call__(self, trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        if trial.suggest_categorical("transfer", [False, True]):
            source = trial.suggest_categorical("source", TASKS)
            target = trial.suggest_categorical("target", TASKS)
            trial.suggest_int("frozen_layers", 0, 4)
            self.trained.append((source, target))
        return lr


def test_a_pair_that_one_branch_suggests_is_decided_there(rule: EliminationRule) -> None:
    objective = Branching()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(gate(objective, rule), n_trials=80)
    assert not any(eliminated(rule, pair) for pair in objective.trained)
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(pruned) > 20
    for trial in pruned:
        assert trial.params.keys() == {"lr", "transfer", "source", "target", "frozen_layers"}
    for trial in complete:
        assert ("source" in trial.params) == trial.params["transfer"]
    assert len(study.trials) == 80


def test_single_task_trials_of_another_branch_stay_what_they_are(rule: EliminationRule) -> None:
    # All finished trials happen to be transfers; that proves nothing about the next one.
    objective = Branching()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    gated = gate(objective, rule)
    for source in ("a", "f", "a", "b"):
        study.enqueue_trial({"transfer": True, "source": source, "target": "a"})
    study.optimize(gated, n_trials=4)
    for _ in range(5):
        study.enqueue_trial({"transfer": False})
    study.optimize(gated, n_trials=5)
    alone = study.trials[4:]
    assert all(trial.state == TrialState.COMPLETE for trial in alone)
    assert all(trial.params.keys() == {"lr", "transfer"} for trial in alone)
    assert len(records_from_study(study)) == 4, "and are no transfers"


def test_eliminated_trials_get_no_parameters_of_other_branches(rule: EliminationRule) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", TASKS)
        trial.suggest_categorical("target", TASKS)
        if trial.suggest_categorical("opt", ["adam", "sgd"]) == "sgd":
            trial.suggest_float("momentum", 0, 1)
        else:
            trial.suggest_float("beta", 0, 1)
        return trial.suggest_float("lr", 1e-4, 1e-1, log=True)

    for seed in range(3):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.enqueue_trial({"source": "a", "target": "b", "opt": "sgd"})
        study.optimize(gate(objective, rule), n_trials=60)
        for trial in study.trials:
            own = "momentum" if trial.params.get("opt") == "sgd" else "beta"
            assert trial.params.keys() <= {"source", "target", "opt", own, "lr"}
        sgd = [t for t in study.trials if t.params.get("opt") == "sgd"]
        assert sgd
        assert all({"momentum", "lr"} <= trial.params.keys() for trial in sgd), "what is known"


def test_a_joint_trial_is_eliminated_for_one_bad_source(rule: EliminationRule) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        aux = [trial.suggest_categorical(name, [None, "a", "b", "c"]) for name in ("aux1", "aux2")]
        trained.append((*aux, trial.suggest_categorical("target", ["a", "d"])))
        return trial.suggest_float("lr", 0, 1)

    log = Log()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    gated = gate(objective, rule, source_param=["aux1", "aux2"], tracker=log)
    study.optimize(gated, n_trials=200)
    # Kept are a -> d and b -> a, beside no source at all and the target itself.
    keeps = {"d": {None, "a"}, "a": {None, "a", "b"}}
    assert len(set(trained)) == 4 + 9
    assert all({one, other} <= keeps[target] for one, other, target in trained)
    assert {r.source for r in log.records if r.outcome == "trained"} == {None, "a", "b"}
    assert ("a", "c") in {r.source for r in log.records if r.outcome == "eliminated"}


def test_one_of_several_objectives_is_the_score(rule: EliminationRule) -> None:
    log = Log()
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.enqueue_trial({"source": "a", "target": "b"})

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        return Objective()(trial), 7.0

    study.optimize(gate(objective, rule, objective_index=1, tracker=log), n_trials=1)
    assert [record.value for record in log.records] == [7.0]


def test_audit_trials_run_although_their_pair_is_eliminated(rule: EliminationRule) -> None:
    def search() -> tuple[optuna.Study, Objective, Log]:
        objective, log = Objective(), Log()
        sampler = optuna.samplers.RandomSampler(seed=0)
        study = optuna.create_study(study_name="audited", sampler=sampler)
        gated = gate(objective, rule, search_space=SPACE, audit_fraction=0.25, tracker=log)
        study.optimize(gated, n_trials=120)
        return study, objective, log

    study, objective, log = search()
    audits = [t.number for t in study.trials if t.user_attrs.get("transfer_pruner.audit") == 1]
    ran_all_the_same = [pair for pair in objective.trained if eliminated(rule, pair)]
    assert len(audits) == len(ran_all_the_same) > 5
    assert audits == [
        t.number for t in search()[0].trials if "transfer_pruner.audit" in t.user_attrs
    ]
    for trial in study.trials:
        marks = trial.user_attrs
        assert marks["transfer_pruner.eliminated"] == eliminated(
            rule, (trial.params["source"], trial.params["target"])
        )
        assert (trial.state == TrialState.PRUNED) == (
            marks["transfer_pruner.eliminated"] == 1 and trial.number not in audits
        )
    told = estimate_audit(sorted(log.records, key=lambda r: r.number), maximize=False)
    assert told.trials_audited == len(audits)
    assert told.trials_eliminated - told.trials_audited == len(
        study.get_trials(states=(TrialState.PRUNED,))
    )
    read = estimate_audit(records_from_study(study), maximize=False)
    assert (read.false_eliminations, read.missed_gain) == (
        told.false_eliminations, pytest.approx(told.missed_gain),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["fixed", "frozen"])
def test_a_single_setting_is_looked_at_without_a_search(rule: EliminationRule, kind: str) -> None:
    params = {"source": "f", "target": "e", "lr": 0.01, "layers": 2}
    trial: optuna.trial.BaseTrial = optuna.trial.FixedTrial(params)
    if kind == "frozen":
        trial = optuna.trial.create_trial(params=params, distributions=SPACE, value=0.0)
    assert eliminated(rule, ("f", "e"))
    look: Callable[[optuna.trial.BaseTrial], object] = gate(Objective(), rule)  # type: ignore[assignment]
    assert look(trial) == 5 + 0.02


def test_brute_force_runs_what_survives_in_the_order_in_which_it_was_enqueued() -> None:
    sources = ["x", "y", "z", "w"]
    worth = dict(zip(sources, [0.1, 0.3, 0.2, 0.0], strict=True))
    rule = EliminationRule(
        {(s, "t"): Decision(s == "w", worth[s], 0.5, "told so") for s in sources}, {}
    )
    space = {"source": sources, "layers": [1, 2]}

    def searched(trial: optuna.Trial) -> float:
        trial.suggest_categorical("layers", [1, 2])
        return worth[trial.suggest_categorical("source", sources)]

    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    kept = rule.table().query("not eliminated").sort_values("priority", ascending=False)
    for source in kept["source"]:
        for layers in (1, 2):
            study.enqueue_trial({"source": source, "layers": layers})
    study.optimize(gate(searched, rule, search_space=space, target="t"), n_trials=30)
    assert len(study.trials) == len({str(sorted(t.params.items())) for t in study.trials}) == 8
    complete = [t.params["source"] for t in study.get_trials(states=(TrialState.COMPLETE,))]
    assert complete == ["y", "y", "z", "z", "x", "x"]
