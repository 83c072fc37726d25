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


def test_an_existing_study_shows_its_space_and_no_extra_trial_runs(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(Objective(), n_trials=3)
    objective = Objective()
    study.optimize(gate(objective, rule), n_trials=40)
    assert len(study.trials) == 43
    gated = study.trials[3:]
    assert objective.entered == sum(trial.state == TrialState.COMPLETE for trial in gated)


def test_a_fresh_study_learns_its_space_from_one_kept_pair(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"source": "f", "target": "e"})
    objective = Objective()
    study.optimize(gate(objective, rule), n_trials=1)
    first, scout = study.trials
    assert first.state == TrialState.PRUNED
    assert first.params.keys() == SPACE.keys()
    assert scout.state == TrialState.COMPLETE
    assert objective.trained == [("e", "e")] or not eliminated(rule, objective.trained[0])
    assert scout.params["target"] == "e"
    assert scout.user_attrs["transfer_pruner.scout"] == 1


def test_the_scout_leaves_what_the_user_enqueued_alone(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"source": "f", "target": "e"})
    study.enqueue_trial({"source": "a", "target": "b"})
    study.optimize(gate(Objective(), rule), n_trials=1)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.PRUNED, TrialState.WAITING, TrialState.COMPLETE]


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
    scouts = sum("transfer_pruner.scout" in trial.user_attrs for trial in study.trials)
    assert len(study.trials) == 24 + scouts
    assert scouts == (study.trials[0].state == TrialState.PRUNED)
    kept = {
        (s, t, lr)
        for s in TASKS
        for t in ("e", "f")
        for lr in (0.1, 0.2)
        if not eliminated(rule, (s, t))
    }
    assert set(trained) == kept
    assert len(trained) == len(kept) + scouts


def test_where_every_pair_is_eliminated_nothing_trains() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", ["a", "b"])
        trial.suggest_categorical("target", ["e", "f"])
        raise AssertionError("trained")

    study = optuna.create_study()
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


def test_a_scout_that_the_pruner_stops_has_shown_the_space(rule: EliminationRule) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        trial.suggest_float("lr", 0, 1)
        trained.append((source, target))
        raise optuna.TrialPruned

    study = optuna.create_study()
    study.enqueue_trial({"source": "f", "target": "e"})
    study.optimize(gate(objective, rule), n_trials=1)
    assert len(trained) == 1
    assert all(trial.params.keys() == {"source", "target", "lr"} for trial in study.trials)


def test_a_value_that_is_no_number_is_optunas_to_refuse(rule: EliminationRule) -> None:
    log = Log()
    study = optuna.create_study()
    wrong = gate(lambda _: None, rule, search_space=SPACE, tracker=log)  # type: ignore[arg-type]
    study.enqueue_trial({"source": "a", "target": "b"})
    study.optimize(wrong, n_trials=1)
    assert study.trials[0].state == TrialState.FAIL
    assert len(log.records) == 1


def test_a_failing_scout_fails_loudly(rule: EliminationRule) -> None:
    study = optuna.create_study()
    study.enqueue_trial({"source": "f", "target": "e"})
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        study.optimize(gate(Objective(fail=True), rule), n_trials=1)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}


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
    # At most one trial more than asked for: the scout, and only while the branch was not known.
    scouts = [trial for trial in study.trials if "transfer_pruner.scout" in trial.user_attrs]
    assert len(study.trials) - 80 == len(scouts) <= 1


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_scout_takes_the_branch_of_the_trial_that_needs_it(rule: EliminationRule) -> None:
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, group=True)
    )
    study.enqueue_trial({"lr": 0.01, "transfer": True, "source": "f", "target": "e"})
    objective = Branching()
    study.optimize(gate(objective, rule), n_trials=1)
    first, scout = study.trials
    assert scout.params["transfer"] is True
    assert first.params.keys() == scout.params.keys()
    assert len(objective.trained) == 1


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
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
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
