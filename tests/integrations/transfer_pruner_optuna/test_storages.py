"""On every storage, with threads, processes and kills: elimination is right, nothing is lost."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.integrations.postgres import find_postgres, postgresql
from tests.integrations.transfer_pruner_optuna.storages import (
    GRACE,
    Row,
    grpc_proxy,
    open_storage,
    read_rows,
    running_again,
)
from tests.integrations.transfer_pruner_optuna.worker import (
    SPACE,
    TASKS,
    Job,
    Log,
    learning_rule,
    rule_of,
    value_of,
    work,
)
from transfer_pruner import Decision, EliminationRule, PairParams, estimate_savings
from transfer_pruner_optuna import gate, records_from_study
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.records import transfers_from_trials

optuna.logging.set_verbosity(optuna.logging.WARNING)

ROOT = Path(__file__).parents[3]
ELIMINATED = "transfer_pruner.eliminated"
N_PROCESSES, N_THREADS = 4, 4


def a_rule() -> EliminationRule:
    """Six of thirty pairs are kept: a is a source for everyone, and b for a. No score is twice."""
    decisions = {}
    for rank, (source, target) in enumerate(product(TASKS, TASKS)):
        if source != target:
            kept = source == "a" or (source, target) == ("b", "a")
            reason = f"rank {rank} of {source} for {target}"
            decisions[source, target] = Decision(not kept, -0.01 * rank, 0.25, reason)
    return EliminationRule(decisions, {"rule": "by hand"})


@dataclass
class Search:
    """A study on a real storage, and the workers that search in it."""

    kind: str
    where: str
    folder: Path
    adapter: str
    name: str = "shared"
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, n_trials: int, **options: Any) -> subprocess.Popen[bytes]:
        """Start a worker in a process of its own."""
        seed = len(self.workers) + 1
        job = self.job(n_trials, seed=seed, **options)
        command = [sys.executable, "-W", "ignore", "-m", Job.__module__, job.start()]
        self.workers.append(subprocess.Popen(command, cwd=ROOT))
        return self.workers[-1]

    def job(self, n_trials: int, **options: Any) -> Job:
        where = self.kind, self.where, self.name, str(self.folder)
        return Job(*where, adapter=self.adapter, n_trials=n_trials, **options)

    def told(self, state: str | None = None) -> list[dict[str, Any]]:
        """List the trials that a worker was told have finished."""
        return [told for told in Log.read(self.folder, "told") if state in (None, told["state"])]

    def study(self, heartbeat: int = 0) -> optuna.Study:
        storage = open_storage(self.kind, self.where, heartbeat)
        return optuna.load_study(study_name=self.name, storage=storage)

    def rows(self) -> dict[int, Row]:
        return read_rows(self.kind, self.where, self.name)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    programs = find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL server: initdb is neither on the path nor in /usr/lib")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install psycopg[binary]")
    with postgresql(programs) as url:
        yield url


def place(kind: str, folder: Path, request: pytest.FixtureRequest, until: ExitStack) -> str:
    """Make the storage; say where it is."""
    if kind == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    if kind == "grpc":
        pytest.importorskip("grpc", reason="no gRPC: pip install grpcio")
        return until.enter_context(grpc_proxy(f"sqlite:///{folder}/study.db?timeout=120"))
    return f"{folder}/study.log" if kind == "journal" else f"sqlite:///{folder}/study.db"


def begin(search: Search, heartbeat: int = 0, direction: str = "maximize") -> optuna.Study:
    storage = None
    if search.kind != "memory":
        storage = open_storage(search.kind, search.where, heartbeat)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(
        study_name=search.name, direction=direction, storage=storage, sampler=sampler
    )


@dataclass
class Finished:
    """A search after its workers have come home."""

    asked: int
    rule: EliminationRule
    trials: list[FrozenTrial]
    study: optuna.Study
    search: Search

    @property
    def eliminated(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if self.rule.decide(*pair(trial)).eliminated]


def pair(trial: FrozenTrial) -> tuple[str, str]:
    return trial.params["source"], trial.params["target"]


def matrix() -> Iterator[Any]:
    """Every adapter on every storage; some wait for the slow tests, where each runs longer too."""
    fast = {("grpc", "gate"), ("sqlite", "gate"), ("postgresql", "gate"), ("postgresql", "pruner")}
    for kind, adapter in product(KINDS, ADAPTERS):
        if kind in ("memory", "journal"):
            yield pytest.param((kind, adapter, 40), id=f"{kind}, {adapter}")
            continue
        if (kind, adapter) in fast:
            yield pytest.param((kind, adapter, 20), id=f"{kind}, {adapter}")
        more = f"{kind}, {adapter}, 160 trials"
        yield pytest.param((kind, adapter, 40), id=more, marks=pytest.mark.slow)


KINDS = ["memory", "sqlite", "journal", "grpc", "postgresql"]
ADAPTERS = ["gate", "gate, space given", "pruner"]


@pytest.fixture(scope="module", params=matrix())
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """Four processes of four threads on one storage; in memory, one process of sixteen threads."""
    kind, adapter, each = request.param
    folder = tmp_path_factory.mktemp("search")
    rule = a_rule()
    rule.save(folder / "rule")
    asked = each * N_PROCESSES
    with ExitStack() as until:
        where = place(kind, folder, request, until)
        search = Search(kind, where, folder, adapter, name=f"{adapter}, {asked} trials")
        study = begin(search)
        if kind == "memory":
            work(search.job(asked, n_jobs=N_PROCESSES * N_THREADS, seconds=0.002), study)
        else:
            for _ in range(N_PROCESSES):
                search.start(each, n_jobs=N_THREADS, seconds=0.002)
            assert [worker.wait(timeout=250) for worker in search.workers] == [0] * N_PROCESSES
        yield Finished(asked, rule, study.get_trials(), study, search)


def test_no_trial_is_lost(finished: Finished) -> None:
    assert len(finished.trials) == finished.asked
    assert [trial.number for trial in finished.trials] == list(range(len(finished.trials)))
    assert all(trial.state.is_finished() for trial in finished.trials)
    by_number = {trial.number: trial for trial in finished.trials}
    told = finished.search.told()
    assert len(told) == len({line["number"] for line in told}) == finished.asked
    for line in told:
        trial = by_number[line["number"]]
        assert (trial.state.name, trial.value) == (line["state"], line["value"])


def test_no_eliminated_pair_trains_and_no_kept_one_is_missed(finished: Finished) -> None:
    begun = Log.read(finished.search.folder, "begin")
    assert not any(
        finished.rule.decide(line["params"]["source"], line["params"]["target"]).eliminated
        for line in begun
    )
    complete = {t.number for t in finished.trials if t.state == TrialState.COMPLETE}
    assert sorted(line["number"] for line in begun) == sorted(complete)
    assert {t.number for t in finished.trials} - complete == {t.number for t in finished.eliminated}
    assert min(len(complete), len(finished.eliminated)) > 10
    for trial in finished.trials:
        expected = value_of(trial.params) if trial.number in complete else None
        assert trial.value == expected


def test_an_eliminated_trial_is_pruned_with_every_parameter(finished: Finished) -> None:
    for trial in finished.eliminated:
        assert trial.state == TrialState.PRUNED
        assert trial.params.keys() == SPACE.keys()
        assert trial.distributions == SPACE


def test_every_thread_of_every_process_decides_as_the_rule(finished: Finished) -> None:
    for trial in finished.trials:
        decision = finished.rule.decide(*pair(trial))
        expected: dict[str, Any] = {
            ELIMINATED: int(decision.eliminated),
            "transfer_pruner.rule": finished.rule.fingerprint,
        }
        if not math.isnan(decision.score):
            expected["transfer_pruner.score"] = decision.score
        if not math.isnan(decision.probability):
            expected["transfer_pruner.probability"] = decision.probability
        if not math.isnan(decision.priority):
            expected["transfer_pruner.priority"] = decision.priority
        if decision.eliminated:
            expected["transfer_pruner.reason"] = decision.reason
        assert trial.user_attrs == expected


def test_the_savings_are_what_the_storage_holds(finished: Finished) -> None:
    savings = estimate_savings(records_from_study(finished.study, finished.rule))
    assert savings.trials_eliminated == len(finished.eliminated)
    assert savings.trials_trained == len(Log.read(finished.search.folder, "end"))
    assert savings.trials_failed == savings.trials_audited == 0
    assert savings.pairs_eliminated == len({pair(trial) for trial in finished.eliminated})
    seconds = sum((t.datetime_complete - t.datetime_start).total_seconds() for t in finished.trials)
    assert savings.seconds_spent == pytest.approx(seconds)


def wait_for(n_told: int, search: Search) -> None:
    deadline = time.monotonic() + 200
    while len(search.told()) < n_told:
        assert time.monotonic() < deadline, f"only {len(search.told())} trials in time"
        time.sleep(0.01)


def is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished()


@pytest.fixture
def searching(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str, str], Search]]:
    """Make a storage of a kind and a search in it, whose workers do not outlive the test."""
    searches = []
    with ExitStack() as until:

        def make(kind: str, adapter: str) -> Search:
            where = place(kind, tmp_path, request, until)
            searches.append(Search(kind, where, tmp_path, adapter, name=request.node.name))
            return searches[-1]

        yield make
        for worker in (worker for search in searches for worker in search.workers):
            worker.kill()
            worker.wait()


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("journal", "gate"),
        pytest.param("postgresql", "gate", marks=pytest.mark.slow),
        pytest.param("sqlite", "gate", marks=pytest.mark.slow),
        pytest.param("postgresql", "pruner", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_is_killed_takes_nothing_with_it_and_another_resumes(
    kind: str, adapter: str, searching: Callable[[str, str], Search]
) -> None:
    search, rule = searching(kind, adapter), a_rule()
    rule.save(search.folder / "rule")
    study = begin(search)
    victim, *others = [search.start(100, seconds=0.005) for _ in range(4)]
    wait_for(150, search)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    before = [trial for trial in study.get_trials() if is_finished(trial)]
    assert [worker.wait(timeout=250) for worker in others] == [0, 0, 0]
    missing = 400 - sum(map(is_finished, study.get_trials()))
    assert 0 < missing <= 100
    assert search.start(missing).wait(timeout=250) == 0

    trials = search.study().get_trials()
    left = [trial for trial in trials if not is_finished(trial)]
    assert len(trials) - len(left) == 400
    assert [trial.state for trial in left] in ([], [TrialState.RUNNING])
    assert all(trials[trial.number] == trial for trial in before)
    for told in search.told():
        trial = trials[told["number"]]
        assert (trial.state.name, trial.value) == (told["state"], told["value"])

    trained = {trial.number for trial in trials if trial.state == TrialState.COMPLETE}
    begun = [line["number"] for line in Log.read(search.folder, "begin")]
    assert len(begun) == len(set(begun))
    assert trained <= set(begun) <= trained | {trial.number for trial in left}
    for trial in filter(is_finished, trials):
        assert (trial.number not in trained) == rule.decide(*pair(trial)).eliminated
        assert trial.params.keys() == SPACE.keys()

    # What is left RUNNING is neither spent nor saved.
    rows = [row for row in search.rows().values() if row.state != "RUNNING"]
    states = Counter(row.state for row in rows)
    savings = estimate_savings(records_from_study(search.study(), rule))
    assert savings.trials_trained == states["COMPLETE"] == len(trained)
    assert savings.trials_eliminated == states["PRUNED"] == 400 - len(trained)
    assert savings.trials_eliminated == sum(row.attributes[ELIMINATED] for row in rows)
    assert savings.trials_failed == 0
    spent = sum(row.seconds for row in rows)
    assert savings.seconds_spent == pytest.approx(spent)
    pruned = {pair(trial) for trial in trials if trial.state == TrialState.PRUNED}
    assert savings.pairs_eliminated == len(pruned)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("sqlite", "gate"),
        pytest.param("postgresql", "pruner", marks=pytest.mark.slow),
        pytest.param("sqlite", "pruner", marks=pytest.mark.slow),
        pytest.param("postgresql", "gate", marks=pytest.mark.slow),
    ],
)
def test_with_a_heartbeat_the_trial_that_died_fails_and_runs_again(
    kind: str, adapter: str, searching: Callable[[str, str], Search]
) -> None:
    search, rule = searching(kind, adapter), a_rule()
    rule.save(search.folder / "rule")
    study = begin(search, heartbeat=1)
    study.enqueue_trial({"source": "a", "target": "c"})
    assert search.start(50, heartbeat=1, dies_in=3).wait(timeout=100) == -signal.SIGKILL
    (dead,) = study.get_trials(states=(TrialState.RUNNING,))
    assert dead.number == Log.read(search.folder, "begin")[-1]["number"]
    records = records_from_study(study, rule)
    assert dead.number not in {record.number for record in records}
    assert len(records) == len(study.get_trials()) - 1
    time.sleep(GRACE + 1.5)
    assert search.start(20, heartbeat=1).wait(timeout=100) == 0

    trials = study.get_trials()
    assert all(map(is_finished, trials))
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [trial.number for trial in failed] == [dead.number]
    (again,) = [t for t in trials if t.system_attrs.get("retry_history") == [dead.number]]
    assert again.params == dead.params
    assert (again.state, again.value) == (TrialState.COMPLETE, value_of(dead.params))
    savings = estimate_savings(records_from_study(study, rule))
    states = Counter(row.state for row in search.rows().values())
    assert savings.trials_failed == states["FAIL"] == 1
    assert savings.trials_trained == states["COMPLETE"] == len(Log.read(search.folder, "end"))
    assert savings.trials_eliminated == states["PRUNED"] > 0


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_audit_trial_that_died_and_runs_again_is_recorded_as_what_happened() -> None:
    rule, trained = a_rule(), []
    distributions = {name: SPACE[name] for name in ("source", "target")}

    def objective(trial: optuna.Trial) -> float:
        trained.append(trial.number)
        return 0.0

    study = optuna.create_study()
    gated = gate(objective, rule, search_space=distributions, audit_fraction=0.5)
    for _ in range(20):
        study.enqueue_trial({"source": "f", "target": "e"})
    study.optimize(gated, n_trials=20)
    assert 0 < len(trained) < 20
    run_again = running_again()
    for number in list(trained):
        run_again(study, study.trials[number])
    study.optimize(gated, n_trials=len(trained))
    told = {record.number for record in records_from_study(study) if record.outcome == "trained"}
    assert told == set(trained)


def rule_at(study: optuna.Study, evidence: list[FrozenTrial]) -> EliminationRule:
    """Refit from the trials that had finished, in the order in which they did."""
    rule = learning_rule()
    known = evidence[: len(evidence) // rule.refit_every * rule.refit_every]
    return rule.refitted(transfers_from_trials(study, known, PairParams()) if known else None)


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("journal", "gate, space given"),
        pytest.param("postgresql", "gate", marks=pytest.mark.slow),
        pytest.param("sqlite", "pruner", marks=pytest.mark.slow),
    ],
)
def test_workers_that_learn_and_come_back_decide_as_who_was_there_all_along(
    kind: str, adapter: str, searching: Callable[[str, str], Search]
) -> None:
    search = searching(kind, adapter)
    study = begin(search)
    for task in TASKS:
        study.enqueue_trial({"source": task, "target": task})
    # One worker alone takes them: on sqlite, Optuna may give an enqueued trial to two.
    assert search.start(len(TASKS)).wait(timeout=250) == 0
    there = Evidence(rule_of(search.folder), PairParams())
    victim, *others = [search.start(30, seconds=0.01) for _ in range(4)]
    wait_for(50, search)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    assert [worker.wait(timeout=250) for worker in others] == [0, 0, 0]
    n_before = len(study.get_trials())
    everyones = there.rule(study)
    assert everyones.settings["transfers"] >= 10

    back = search.start(40)
    assert back.wait(timeout=250) == 0
    knew, knows = (Log.read(search.folder, event) for event in ("start", "stop"))
    fingerprints = {"pid": back.pid, "fingerprint": everyones.fingerprint}
    assert {"event": "start", **fingerprints} in knew
    fingerprints["fingerprint"] = there.rule(study).fingerprint
    assert {"event": "stop", **fingerprints} in knows
    trials = study.get_trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    assert len(trials) == n_before + 40
    for trial in trials[n_before:]:
        evidence = [t for t in complete if t.datetime_complete < trial.datetime_start]
        decision = rule_at(study, evidence).decide(*pair(trial))
        assert trial.user_attrs[ELIMINATED] == decision.eliminated
        assert (trial.state == TrialState.PRUNED) == decision.eliminated
        if decision.eliminated:
            assert trial.user_attrs["transfer_pruner.reason"] == decision.reason
    assert any(trial.user_attrs[ELIMINATED] for trial in trials[n_before:])
