"""Studies as their owners have them: other names, types, directions, samplers and storages."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from transfer_pruner import (
    Decision,
    EliminationRule,
    TransferPredictor,
    TransferPrunerWarning,
    TrialRecord,
    estimate_audit,
    estimate_savings,
)
from transfer_pruner.records import is_maximizing
from transfer_pruner_optuna import (
    TrackingCallback,
    TransferPruner,
    TransferSampler,
    gate,
    records_from_study,
    transfers_from_study,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

Param = str | Callable[[Mapping[str, Any]], Any]
SOURCES, TARGETS = ["a", "b", "c"], ["d", "e"]


def a_rule(kept: str = "a", target_names: Mapping[str, Any] | None = None) -> EliminationRule:
    """Keep one source of every target."""
    return EliminationRule(
        {(s, t): Decision(s != kept, 0.5, 0.25, "told so") for s in SOURCES for t in TARGETS}, {}
    )


def a_study(**more: Any) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **more)


def suggest_pair(trial: optuna.Trial, source: str = "source", target: str = "target") -> str:
    return str(
        trial.suggest_categorical(source, SOURCES) + trial.suggest_categorical(target, TARGETS)
    )


class Log:
    def __init__(self) -> None:
        self.records: list[TrialRecord] = []

    def record(self, record: TrialRecord) -> None:
        self.records.append(record)


def pruned(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return list(study.get_trials(states=(TrialState.PRUNED,)))


# Direction and results


def test_a_minimizing_study_reads_the_right_way_round() -> None:
    study = a_study(study_name="minimizing")
    study.enqueue_trial({"source": "d", "target": "d"})

    def loss(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [*SOURCES, "d"])
        trial.suggest_categorical("target", ["d"])
        return {"d": 0.5, "a": 0.3}.get(source, 0.9)

    study.optimize(gate(loss, a_rule(), audit_fraction=0.5), n_trials=60)
    records = records_from_study(study)
    assert not is_maximizing(records)
    audit = estimate_audit(records)
    assert audit.trials_audited > 5
    assert audit.false_eliminations == 0, "what was eliminated loses more"
    gains = transfers_from_study(study).groupby("source")["gain"].mean()
    assert gains["a"] == pytest.approx(0.2)
    assert gains["b"] == pytest.approx(-0.4)


def test_a_stopped_trials_last_value_is_no_result() -> None:
    study = a_study(direction="maximize")
    for source, value, stopped in ((None, 0.7, False), ("a", 0.8, False), ("a", 0.5, True)):
        trial = study.ask(
            {
                "source": CategoricalDistribution([None, "a"]),
                "target": CategoricalDistribution(["d"]),
            },
        )
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED) if stopped else study.tell(trial, value)
        del source
    values = {record.number: record.value for record in records_from_study(study)}
    assert values[2] != values[2], "NaN"
    assert {t.number for t in pruned(study)} == {2}


# Names and types of the pair


@pytest.mark.parametrize("adapter", ["gate", "pruner", "sampler"])
def test_parameters_of_other_names_are_told_once(adapter: str) -> None:
    study = a_study()
    rule = a_rule()

    def objective(trial: optuna.Trial) -> float:
        suggest_pair(trial, "src", "tgt")
        trial.should_prune()
        return 0.0

    searched: Any = objective
    if adapter == "gate":
        searched = gate(objective, rule)
    elif adapter == "pruner":
        study.pruner = TransferPruner(rule)
    else:
        study.sampler = TransferSampler(rule, seed=0)
    with pytest.warns(TransferPrunerWarning, match="there are: src, tgt") as caught:
        study.optimize(searched, n_trials=15)
    assert len([w for w in caught if issubclass(w.category, TransferPrunerWarning)]) == 1
    assert not pruned(study)


def test_after_the_run_the_parameters_that_there_are_are_named() -> None:
    study = a_study()
    study.optimize(lambda trial: float(len(suggest_pair(trial, "src", "tgt"))), n_trials=3)
    with pytest.raises(ValueError, match="there are: src, tgt"):
        transfers_from_study(study)


def test_trials_of_a_branch_without_a_pair_are_no_reason_to_warn() -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("transfer", [False, True]):
            suggest_pair(trial)
        return trial.suggest_float("lr", 0, 1)

    study = a_study()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TransferPrunerWarning)
        study.optimize(gate(objective, a_rule()), n_trials=30)


@pytest.mark.parametrize(
    "source_param",
    ["source_{target}", "source_*", lambda params: params[f"source_{params['target']}"]],
    ids=["pattern", "glob", "callable"],
)
def test_each_branch_may_have_a_source_parameter_of_its_own(source_param: Param) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        target = trial.suggest_categorical("target", TARGETS)
        source = trial.suggest_categorical(f"source_{target}", [None, *SOURCES])
        trained.append(source)
        return trial.suggest_float("lr", 0, 1)

    study = a_study()
    study.optimize(gate(objective, a_rule(), source_param=source_param), n_trials=40)
    assert set(trained) == {None, "a"}
    assert pruned(study)
    records = records_from_study(study, source_param=source_param)
    assert len(records) == 40
    assert {tuple(record.hyperparameters) for record in records} <= {("lr",), ()}
    pruner = a_study(pruner=TransferPruner(a_rule(), source_param=source_param))

    def asking(trial: optuna.Trial) -> float:
        target = trial.suggest_categorical("target", TARGETS)
        source = trial.suggest_categorical(f"source_{target}", [None, *SOURCES])
        if trial.should_prune():
            raise optuna.TrialPruned
        assert source in (None, "a")
        return 0.0

    pruner.optimize(asking, n_trials=20)
    assert pruned(pruner)


def test_a_sampler_needs_to_know_what_to_redirect() -> None:
    with pytest.raises(ValueError, match="source_param must name parameters here"):
        TransferSampler(a_rule(), source_param="source_{target}")


def test_integer_tasks_are_tasks() -> None:
    rule = EliminationRule(
        {(s, t): Decision(s != 0, 0.5, 0.5, "") for s in (0, 3, 37) for t in (5, 37) if s != t}, {}
    )
    study = a_study(direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [0, 3, 5, 37])
        target = trial.suggest_categorical("target", [5, 37])
        assert source in (0, target, 5)
        return 0.1 * source + target

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TransferPrunerWarning)  # 5 -> 37 is not known
        study.optimize(gate(objective, rule), n_trials=60)
    assert pruned(study)
    table = transfers_from_study(study)
    assert set(table["source"]) == {"0", "5"}
    assert set(table["target"]) == {"5", "37"}


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_tuples_are_choices_on_a_storage_that_writes_json(kind: str, tmp_path: Path) -> None:
    storage: Any = f"sqlite:///{tmp_path}/study.db"
    if kind == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
        storage = optuna.storages.JournalStorage(backend)
    study = a_study(storage=storage)

    def objective(trial: optuna.Trial) -> float:
        suggest_pair(trial)
        layers = trial.suggest_categorical("layers", [(64,), (64, 64)])
        return float(len(layers))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Optuna's, of tuples
        study.optimize(gate(objective, a_rule()), n_trials=25)
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
        study.sampler = TransferSampler(a_rule(), optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=10)
    assert not study.get_trials(states=(TrialState.FAIL,))
    assert all("layers" in trial.params for trial in study.trials)


def test_a_fixed_target_and_a_suggested_one_contradict_each_other() -> None:
    study = a_study()
    study.optimize(suggest_and_zero, n_trials=3)
    for read in (records_from_study, transfers_from_study):
        with pytest.raises(ValueError, match="target is 'd' but the parameters have 'target' too"):
            read(study, target="d")
    with pytest.raises(ValueError, match="target is 'd' but the parameters have 'target' too"):
        study.optimize(gate(suggest_and_zero, a_rule(), target="d"), n_trials=3)


def suggest_and_zero(trial: optuna.Trial) -> float:
    suggest_pair(trial)
    return 0.0


# Samplers


@pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("adapter", ["gate", "pruner"])
@pytest.mark.parametrize(
    "sampler",
    [
        lambda f: optuna.samplers.TPESampler(seed=0, constraints_func=f),
        lambda f: optuna.samplers.NSGAIISampler(seed=0, constraints_func=f),
        lambda f: optuna.samplers.NSGAIIISampler(seed=0, constraints_func=f),
        lambda f: optuna.samplers.GPSampler(seed=0, constraints_func=f, n_startup_trials=12),
    ],
    ids=["TPE", "NSGA-II", "NSGA-III", "GP"],
)
def test_constraints_that_read_what_the_objective_stores(
    adapter: str, sampler: Callable[[Any], optuna.samplers.BaseSampler]
) -> None:
    def constraints(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
        return (trial.user_attrs["memory"] - 1.0, -1.0)

    def objective(trial: optuna.Trial) -> float:
        suggest_pair(trial)
        if adapter == "pruner" and trial.should_prune():
            raise optuna.TrialPruned
        trial.set_user_attr("memory", 0.5)
        return trial.suggest_float("lr", 0, 1)

    study = optuna.create_study(sampler=sampler(constraints))
    study.enqueue_trial({"source": "b", "target": "d"})
    if adapter == "pruner":
        study.pruner = TransferPruner(a_rule())
        study.optimize(objective, n_trials=15)
    else:
        study.optimize(gate(objective, a_rule()), n_trials=15)
    assert pruned(study)
    assert study.best_trial.user_attrs["memory"] == 0.5


def memory_of(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
    return (trial.user_attrs["memory"] - 1.0,)


def test_a_study_with_constraints_is_pickled_behind_a_gate_as_without_one() -> None:
    sampler = optuna.samplers.NSGAIISampler(seed=0, constraints_func=memory_of)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"source": "b", "target": "d"})
    study.optimize(gate(suggest_and_zero, a_rule()), n_trials=1)
    copy = pickle.loads(pickle.dumps(study))  # noqa: S301
    copy.enqueue_trial({"source": "c", "target": "d"})
    copy.optimize(gate(suggest_and_zero, a_rule()), n_trials=1)
    assert len(pruned(copy)) == 2


def test_constraints_that_fail_on_a_trial_that_trained_are_the_users_to_mend() -> None:
    def constraints(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
        return (trial.user_attrs["memory"],)

    sampler = optuna.samplers.TPESampler(seed=0, constraints_func=constraints)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"source": "a", "target": "d"})
    with pytest.raises(KeyError, match="memory"):
        study.optimize(gate(suggest_and_zero, a_rule()), n_trials=1)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("given", [True, False], ids=["space given", "space left out"])
def test_brute_force_goes_on_behind_the_gate_in_any_order_of_suggestions(given: bool) -> None:
    trained = []

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_categorical("lr", [0.1, 0.2])
        trained.append((suggest_pair(trial), lr))
        return 0.0

    space = {"source": SOURCES, "target": TARGETS, "lr": [0.1, 0.2]} if given else None
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    study.optimize(objective, n_trials=2)
    study.optimize(gate(objective, a_rule(), search_space=space))
    gated = set(trained[2:])
    assert {pair for pair, _ in gated} <= {"ad", "ae"}
    assert set(trained) >= {(pair, lr) for pair in ("ad", "ae") for lr in (0.1, 0.2)}
    assert len(trained) == len(set(trained))


def test_a_search_space_is_taken_as_lists_of_choices_too() -> None:
    space = {"source": SOURCES, "target": TARGETS}
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(space))
    study.optimize(gate(suggest_and_zero, a_rule(), search_space=space))
    assert len(study.trials) == 6
    assert len(pruned(study)) == 4
    with pytest.raises(ValueError, match=r"search_space\['source'\] must be a distribution or"):
        gate(suggest_and_zero, a_rule(), search_space={"source": "abc", "target": TARGETS})


def test_nothing_that_survives_is_said_by_every_adapter() -> None:
    nothing = a_rule(kept="nobody")
    said = "the rule eliminates every pair that it knows"
    with pytest.warns(TransferPrunerWarning, match=said):
        a_study().optimize(gate(suggest_and_zero, nothing), n_trials=2)
    sampled = optuna.create_study(sampler=TransferSampler(nothing, seed=0))
    with pytest.warns(TransferPrunerWarning, match=said):
        sampled.optimize(suggest_and_zero, n_trials=4)
    assert {t.user_attrs["transfer_pruner.eliminated"] for t in sampled.trials} == {1}
    assert {t.state for t in sampled.trials} == {TrialState.COMPLETE}
    study = a_study(pruner=TransferPruner(nothing))
    trial = study.ask({"source": CategoricalDistribution(["b"]), "target": TARGET_D})
    with pytest.warns(TransferPrunerWarning, match=said):
        assert trial.should_prune()


TARGET_D = CategoricalDistribution(["d"])


# Marks, and studies that share a name


def test_a_mark_of_another_rule_decides_nothing() -> None:
    first, second = a_rule("a"), a_rule("b")
    study = a_study()
    study.optimize(gate(suggest_and_zero, first, audit_fraction=0.5), n_trials=20)
    old = study.trials
    for trial in old:
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    study.optimize(gate(suggest_and_zero, second), n_trials=20)
    for trial in study.trials[20:]:
        marks = trial.user_attrs
        out = trial.params["source"] != "b"
        assert (trial.state == TrialState.PRUNED) == out == marks["transfer_pruner.eliminated"]
        assert marks["transfer_pruner.rule"] == second.fingerprint
        assert not marks.get("transfer_pruner.audit")
    assert not any(record.audit for record in records_from_study(study)[20:])
    pruning = a_study(pruner=TransferPruner(second))
    for trial in old:
        pruning.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        space = {
            "source": CategoricalDistribution(SOURCES),
            "target": CategoricalDistribution(TARGETS),
        }
        asked = pruning.ask(space)
        assert asked.should_prune() == (trial.params["source"] != "b")
        pruning.tell(asked, 0.0)


def test_one_gate_serves_studies_of_one_name_one_after_the_other(tmp_path: Path) -> None:
    gated = gate(lambda trial: trial.suggest_float("lr", 0, 1) + len(suggest_pair(trial)), a_rule())
    other = gate(suggest_and_zero, a_rule())
    for n, url in enumerate(["one", "one", "two"]):
        storage = f"sqlite:///{tmp_path}/{url}.db"
        if n == 1:
            optuna.delete_study(study_name="shared", storage=storage)
        study = a_study(study_name="shared", storage=storage)
        study.optimize(gated, n_trials=6)
        study.optimize(other, n_trials=3)
        assert not study.get_trials(states=(TrialState.FAIL,))
        assert study.user_attrs["transfer_pruner.rule"]["fingerprint"] == a_rule().fingerprint
        assert all("lr" in trial.params for trial in study.trials[:6])
    memory = [a_study(study_name="shared") for _ in range(2)]
    for study in memory:
        study.optimize(gated, n_trials=6)
        assert len(study.trials) == 6


def test_two_studies_draw_their_audits_apart() -> None:
    drawn = []
    for name in ("one", "two"):
        study = a_study(study_name=name)
        study.optimize(gate(suggest_and_zero, a_rule(), audit_fraction=0.5), n_trials=60)
        drawn.append({t.number for t in study.trials if "transfer_pruner.audit" in t.user_attrs})
    assert drawn[0] != drawn[1]


# Processes


def plain(trial: optuna.Trial) -> float:
    suggest_pair(trial)
    return float(pickle.loads(pickle.dumps(trial)).number)  # noqa: S301


def optimize_gated(gated: Any, url: str) -> int:
    study = optuna.load_study(study_name="shared", storage=url)
    study.optimize(gated, n_trials=4)
    return len(study.trials)


def test_a_gate_goes_to_another_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = a_study(study_name="shared", storage=url)
    gated = gate(plain, a_rule(), audit_fraction=0.1)
    study.optimize(gated, n_trials=4)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(optimize_gated, (gated, url)) >= 8
    assert not study.get_trials(states=(TrialState.FAIL,))


def test_a_trial_that_ranks_share_is_refused_clearly() -> None:
    gated: Any = gate(suggest_and_zero, a_rule())
    with pytest.raises(ValueError, match="use TransferPruner, and should_prune"):
        gated(None)


# What is given wrongly


@pytest.mark.parametrize("wrong", ["rule/", TransferPredictor(), EliminationRule, None])
@pytest.mark.parametrize("adapter", ["gate", "pruner", "sampler"])
def test_a_rule_that_is_none_is_refused_at_once(adapter: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match="rule must be an EliminationRule or a LearningRule"):
        if adapter == "gate":
            gate(suggest_and_zero, wrong)
        elif adapter == "pruner":
            TransferPruner(wrong)
        else:
            TransferSampler(wrong)


def test_what_is_swapped_or_no_instance_is_refused_at_once() -> None:
    swapped: Any = gate
    with pytest.raises(ValueError, match="objective must be callable"):
        swapped(a_rule(), suggest_and_zero)
    wrong: Any = optuna.pruners.MedianPruner
    with pytest.raises(ValueError, match="wrapped_pruner must be a pruner"):
        TransferPruner(a_rule(), wrapped_pruner=wrong)
    wrong = optuna.samplers.TPESampler
    with pytest.raises(ValueError, match="base_sampler must be a sampler"):
        TransferSampler(a_rule(), wrong)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_objective_has_a_name() -> None:
    study = a_study(directions=["minimize", "maximize"])
    study.set_metric_names(["seconds", "f1"])
    log = Log()

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        suggest_pair(trial)
        return 3.0, 0.5

    study.enqueue_trial({"source": "a", "target": "d"})
    study.optimize(gate(objective, a_rule(), objective_index="f1", tracker=log), n_trials=1)
    assert [(r.value, r.maximize) for r in log.records] == [(0.5, True)]
    assert [r.value for r in records_from_study(study, objective_index="f1")] == [0.5]
    with pytest.raises(ValueError, match="has the metric names: seconds, f1"):
        records_from_study(study, objective_index="accuracy")


# Savings of every adapter


def test_what_a_sampler_redirects_is_saved_and_told() -> None:
    log = Log()
    sampler = TransferSampler(a_rule(), optuna.samplers.RandomSampler(seed=0), seed=0, tracker=log)
    study = optuna.create_study(sampler=sampler)
    study.optimize(suggest_and_zero, n_trials=40)
    redirected = [t for t in study.trials if t.user_attrs.get("transfer_pruner.redirected") == 1]
    assert len(redirected) > 15
    records = records_from_study(study)
    proposals = [record for record in records if record.outcome == "eliminated"]
    assert [r.number for r in proposals] == [t.number for t in redirected]
    assert {r.source for r in proposals} == {"b", "c"}
    savings = estimate_savings(records)
    assert savings.trials_eliminated == len(redirected)
    assert savings.estimated_seconds_saved > 0
    told = [(r.number, r.source, r.target, r.outcome) for r in log.records]
    assert told == [(r.number, r.source, r.target, r.outcome) for r in records]


def test_a_callback_tells_a_tracker_of_every_trial() -> None:
    log = Log()
    study = a_study(pruner=TransferPruner(a_rule()))

    def objective(trial: optuna.Trial) -> float:
        suggest_pair(trial)
        if trial.should_prune():
            raise optuna.TrialPruned
        return 1.0

    study.optimize(objective, n_trials=20, callbacks=[TrackingCallback(log)])
    assert [(r.number, r.outcome) for r in log.records] == [
        (r.number, r.outcome) for r in records_from_study(study)
    ]
    assert {r.outcome for r in log.records} == {"trained", "eliminated"}


# What it costs


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_is_marked_in_one_transaction(kind: str, tmp_path: Path) -> None:
    storage: Any = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    if kind == "journal":
        storage = optuna.storages.JournalStorage(backend)
    writes: list[int] = []
    if kind == "sqlite":
        import sqlalchemy

        sqlalchemy.event.listen(storage.engine, "commit", lambda _: writes.append(1))
    else:
        append = backend.append_logs

        def counted(logs: list[dict[str, Any]]) -> None:
            writes.append(1)
            append(logs)

        backend.append_logs = counted  # type: ignore[method-assign]
    space = {"source": SOURCES, "target": TARGETS}
    counts = {}
    for name, rule in (("plain", None), ("gated", a_rule("a"))):
        study = a_study(study_name=name, storage=storage)
        searched = gate(suggest_and_zero, rule, search_space=space) if rule else suggest_and_zero
        study.enqueue_trial({"source": "a", "target": "d"})
        study.optimize(searched, n_trials=1)
        study.enqueue_trial({"source": "b", "target": "d"})
        study.enqueue_trial({"source": "a", "target": "d"})
        counts[name] = []
        for _ in range(2):
            before = len(writes)
            study.optimize(searched, n_trials=1)
            counts[name].append(len(writes) - before)
    eliminated, kept = (after - before for before, after in zip(*counts.values(), strict=True))
    assert kept <= 1
    assert eliminated <= 2


def test_a_sampler_decides_on_few_pairs_however_many_tasks_there_are() -> None:
    tasks = [f"t{n}" for n in range(60)]
    asked: list[tuple[Any, Any]] = []

    class Counting(EliminationRule):
        def decide(self, source: Any, target: Any) -> Decision:
            asked.append((source, target))
            return super().decide(source, target)

    rule = Counting(
        {(s, t): Decision(s != "t0", 0.1, 0.5, "") for s in tasks for t in tasks if s != t}, {}
    )

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", tasks)
        trial.suggest_categorical("target", tasks)
        return 0.0

    sampler = TransferSampler(rule, optuna.samplers.GPSampler(seed=0), seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=5)
    assert len(asked) < 5 * 4 * len(tasks), "not every pair at every trial"
