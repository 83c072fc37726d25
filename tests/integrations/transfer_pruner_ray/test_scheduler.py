"""A search in Ray Tune in which eliminated pairs cost no actor, whatever schedules the others."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import cloudpickle, tune
from ray._private.state import actors as actor_table
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    ResourceChangingScheduler,
    TrialScheduler,
)

from transfer_pruner import LearningRule, PairParams, TransferPredictor, TransferPrunerWarning
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner.rule.current import CurrentRule, Finished
from transfer_pruner.rule.verdict import is_audited
from transfer_pruner_ray.marks import AUDIT, ELIMINATED, PREFIX, PROBABILITY, REASON, SCORE
from transfer_pruner_ray.scheduler import TransferScheduler, finished_trial

TASKS = ["a", "b", "c"]
SIX = ["a", "b", "c", "d", "e", "f"]
EVERY = 8


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass
class Search:
    """What came of a search, and what it cost: three counts of actors that must agree."""

    results: tune.ResultGrid
    scheduler: TrialScheduler
    requested: int
    started: int
    trained: dict[str, dict[str, Any]]

    @property
    def eliminated(self) -> set[str]:
        return {r.metrics["trial_id"] for r in self.results if ELIMINATED in r.metrics}

    @property
    def ids(self) -> set[str]:
        return {r.metrics["trial_id"] for r in self.results}

    @property
    def pairs(self) -> set[tuple[str | None, str]]:
        """Pairs that trained."""
        return {(told["source"], told["target"]) for told in self.trained.values()}


Run = Callable[..., Search]


def only_a_helps() -> EliminationRule:
    """Keep transfer from a, and eliminate every other pair."""
    pairs = ordered_pairs(TASKS).itertuples(index=False, name=None)
    return EliminationRule(
        {(s, t): Decision(s != "a", ord(s) / 100, 0.25, f"{s} to {t}") for s, t in pairs}, {}
    )


def nothing_helps() -> EliminationRule:
    pairs = ordered_pairs(TASKS).itertuples(index=False, name=None)
    return EliminationRule({pair: Decision(True, 0.1, np.nan, "no") for pair in pairs}, {})


def learning_rule() -> LearningRule:
    return LearningRule(
        TransferPredictor(), refit_every=EVERY, min_probability=0.2, pairs=ordered_pairs(SIX)
    )


def train_pair() -> Callable[[dict[str, Any]], None]:
    """Make the trainable anew, so that workers get it whole: they cannot import this module."""

    def train_pair(config: dict[str, Any]) -> None:
        pair = config.get("pair", config)
        told = {"source": pair.get("source"), "target": pair.get("target"), "pid": os.getpid()}
        name = tune.get_context().get_trial_id()
        with open(f"{config['out']}/{name}", "a") as file:
            file.write(json.dumps(told) + "\n")
        if told["source"] == config.get("fails", "nothing"):
            raise RuntimeError("as it was told to")
        source = told["source"] if isinstance(told["source"], str) else ""
        gain = 0.1 * ("abcdef".find(source) - 2) if source and source != told["target"] else 0.0
        tune.report({"score": 0.5 + gain})

    return train_pair


def stepwise() -> type[tune.Trainable]:
    """Make a trainable that schedulers may pause, stop and clone."""

    class Stepwise(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            told = {"source": config["source"], "target": config["target"], "pid": os.getpid()}
            with open(f"{config['out']}/{self.trial_id}", "a") as file:
                file.write(json.dumps(told) + "\n")

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            return {"score": self.iteration + self.config["lr"]}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    return Stepwise


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return run_in(tmp_path, monkeypatch)


def run_in(folder: Path, patch: pytest.MonkeyPatch) -> Run:
    """Run searches over pairs of TASKS, the single-task baselines among them, and count actors."""
    # A restore finds every trial as it was left.
    patch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    requests: list[Any] = []
    add_actor = RayActorManager.add_actor

    def counting(self: RayActorManager, *args: Any, **kwargs: Any) -> Any:
        requests.append(kwargs)
        return add_actor(self, *args, **kwargs)

    patch.setattr(RayActorManager, "add_actor", counting)
    (folder / "out").mkdir()

    def run(
        scheduler: TrialScheduler,
        space: dict[str, Any] | None = None,
        *,
        trainable: Any = None,
        restore: bool = False,
        failures: tune.FailureConfig | None = None,
        callbacks: list[Any] | None = None,
        stop: dict[str, Any] | None = None,
        reuse_actors: bool = True,
        **tune_config: Any,
    ) -> Search:
        requested, started = len(requests), len(actor_table())
        trainable = trainable or train_pair()
        if space is None:
            space = {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS)}
        space = {"out": str(folder / "out"), **space}
        if restore:
            tuner = tune.Tuner.restore(str(folder / "search"), trainable, param_space=space)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    reuse_actors=reuse_actors,
                    **{"metric": "score", "mode": "max"} | tune_config,
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=str(folder),
                    verbose=0,
                    failure_config=failures,
                    callbacks=callbacks,
                    stop=stop,
                ),
            )
        results = tuner.fit()
        return Search(
            results,
            # A restored search has a copy.
            tuner._local_tuner._tune_config.scheduler,
            len(requests) - requested,
            len(actor_table()) - started,
            trained_in(folder),
        )

    return run


def trained_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what the trainable wrote: by trial, what it trained at first."""
    return {
        file.name: json.loads(file.read_text().splitlines()[0])
        for file in (folder / "out").iterdir()
    }


def check_everything_is_told(search: Search, rule: EliminationRule) -> None:
    """Check that each trial is as the rule decided, and that the eliminated ones say why."""
    assert search.eliminated.isdisjoint(search.trained)
    assert search.ids == search.eliminated | set(search.trained)
    for result in search.results:
        config, metrics = result.config, result.metrics
        decision = rule.decide(config["source"], config["target"])
        assert decision.eliminated == (ELIMINATED in metrics)
        ours = {key: value for key, value in metrics.items() if key.startswith("transfer_pruner")}
        if decision.eliminated:
            assert ours.pop(PROBABILITY, np.nan) == pytest.approx(decision.probability, nan_ok=True)
            assert ours == {
                ELIMINATED: 1,
                SCORE: decision.score,
                REASON: decision.reason,
                PREFIX + "rule": rule.fingerprint,
                PREFIX + "priority": decision.priority,
            }
        else:
            assert not ours


def test_an_eliminated_trial_costs_no_actor_and_says_why(run: Run, tmp_path: Path) -> None:
    rule = only_a_helps()
    space = {"source": tune.grid_search(TASKS), "target": tune.grid_search(["a", "b"])}
    search = run(TransferScheduler(rule), space, reuse_actors=False)
    check_everything_is_told(search, rule)
    assert search.pairs == {("a", "a"), ("a", "b"), ("b", "b")}
    pids = {told["pid"] for told in search.trained.values()}
    assert search.requested == search.started == len(search.trained) == len(pids) == 3
    assert search.results.num_terminated == 6
    assert search.results.get_best_result().metrics["trial_id"] in search.trained
    told = search.scheduler.debug_string()
    assert told.startswith("TransferScheduler: 3 eliminated, 0 audited, 3 kept, 0 unknown pairs\n")
    assert FIFOScheduler().debug_string() in told
    # The folder alone tells as much: its state, each trial's results, and the whole as a table.
    states = {t.trial_id: t for t in tune.ExperimentAnalysis(str(tmp_path / "search")).trials}
    assert {i for i, trial in states.items() if ELIMINATED in trial.last_result} == (
        search.eliminated
    )
    lines = {}
    for file in (tmp_path / "search").glob("*/result.json"):
        (line,) = map(json.loads, file.read_text().splitlines())
        lines[line["trial_id"]] = line
    assert {i for i, line in lines.items() if ELIMINATED in line} == search.eliminated
    assert all(lines[i][REASON] == states[i].last_result[REASON] for i in search.eliminated)
    table = search.results.get_dataframe()
    assert set(table["trial_id"][table[ELIMINATED] == 1]) == search.eliminated
    assert table[ELIMINATED].isna().sum() == len(search.trained)
    restored = tune.Tuner.restore(str(tmp_path / "search"), train_pair()).get_results()
    assert {r.metrics["trial_id"] for r in restored if ELIMINATED in r.metrics} == search.eliminated


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_concurrent_trials": 1},
        {"num_samples": 70},
        {"num_samples": -1, "time_budget_s": 1},
    ],
    ids=str,
)
def test_a_search_whose_pairs_are_all_eliminated_ends_and_starts_nothing(
    run: Run, tmp_path: Path, settings: dict[str, Any]
) -> None:
    space = {"source": tune.grid_search(["a", "b"]), "target": tune.grid_search(["c"])}
    search = run(TransferScheduler(nothing_helps()), space, **settings)
    assert search.requested == search.started == len(search.trained) == 0
    assert len(search.results) == len(search.eliminated)
    kept_on_disk = tune.ExperimentAnalysis(str(tmp_path / "search")).trials
    assert all(t.status == Trial.TERMINATED for t in kept_on_disk)
    assert {t.trial_id for t in kept_on_disk if ELIMINATED in t.last_result} == search.eliminated
    if settings.get("num_samples") == -1:
        assert len(search.results) > 100
    else:
        assert len(search.results) == 2 * settings.get("num_samples", 1)
    with pytest.raises(RuntimeError, match="No best trial found"):
        search.results.get_best_result()


BASES: dict[str, Callable[[], TrialScheduler]] = {
    "ASHA": lambda: ASHAScheduler(max_t=3, grace_period=1),
    "HyperBand": lambda: HyperBandScheduler(max_t=3),
    "MedianStopping": lambda: MedianStoppingRule(grace_period=1, min_samples_required=1),
    "PBT": lambda: PopulationBasedTraining(
        perturbation_interval=1, hyperparam_mutations={"lr": [0.1, 0.2]}
    ),
    "ResourceChanging": lambda: ResourceChangingScheduler(ASHAScheduler(max_t=3)),
}
STEPS = {"training_iteration": 3}
SPACE = {
    "source": tune.grid_search(TASKS),
    "target": tune.grid_search(["b"]),
    "lr": tune.uniform(0.1, 0.2),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "ResourceChanging" else []) for n in BASES],
)
def test_a_base_scheduler_is_told_of_kept_trials_alone(run: Run, name: str) -> None:
    base = BASES[name]()
    told: list[tuple[str, str]] = []
    for method in ("on_trial_add", "on_trial_result", "on_trial_complete", "on_trial_remove"):
        setattr(base, method, told_of(told, method, getattr(base, method)))
    one_at_a_time = 1 if name == "MedianStopping" else None
    search = run(
        TransferScheduler(only_a_helps(), base),
        SPACE,
        trainable=stepwise(),
        stop=STEPS,
        num_samples=2,
        reuse_actors=name != "ResourceChanging",
        max_concurrent_trials=one_at_a_time,
    )
    check_everything_is_told(search, only_a_helps())
    assert search.pairs == {("a", "b"), ("b", "b")}
    assert len(search.eliminated) == 2
    assert {trial for _, trial in told} == set(search.trained)
    assert [trial for what, trial in told if what == "on_trial_add"] == sorted(search.trained)
    assert base.debug_string() in search.scheduler.debug_string()
    assert search.scheduler.metric == base.metric == "score"
    assert search.scheduler.supports_buffered_results == base.supports_buffered_results


def told_of(told: list[tuple[str, str]], name: str, method: Callable[..., Any]) -> Any:
    def recorded(controller: Any, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        told.append((name, trial.trial_id))
        return method(controller, trial, *args, **kwargs)

    return recorded


def test_it_works_inside_a_resource_changing_scheduler(run: Run) -> None:
    inner = TransferScheduler(only_a_helps(), ASHAScheduler(max_t=3))
    outer = ResourceChangingScheduler(inner)
    search = run(outer, SPACE, trainable=stepwise(), stop=STEPS, reuse_actors=False)
    check_everything_is_told(search, only_a_helps())
    assert search.pairs == {("a", "b"), ("b", "b")}
    # What resource allocators ask of the scheduler that they find inside.
    assert (outer.metric, inner._metric, inner._mode) == ("score", "score", "max")


@pytest.mark.parametrize(
    "failures", [{"fail_fast": True}, {"max_failures": 1}], ids=lambda given: next(iter(given))
)
def test_a_failing_trial_is_tried_again_or_ends_the_search_and_is_never_eliminated(
    run: Run, tmp_path: Path, failures: dict[str, Any]
) -> None:
    space = {
        "source": tune.grid_search(["a", "b", "c"]),
        "target": tune.grid_search(["b"]),
        "fails": "a",
    }
    search = run(
        TransferScheduler(only_a_helps(), ASHAScheduler()),
        space,
        failures=tune.FailureConfig(**failures),
        max_concurrent_trials=1,
    )
    (failed,) = (i for i, told in search.trained.items() if told["source"] == "a")
    attempts = len((tmp_path / "out" / failed).read_text().splitlines())
    assert attempts == failures.get("max_failures", 0) + 1
    assert search.results.num_errors == 1
    assert search.eliminated.isdisjoint(search.trained)
    if "max_failures" in failures:
        assert search.pairs == {("a", "b"), ("b", "b")}
        assert len(search.eliminated) == 1


def test_nested_and_joint_pairs_are_found(run: Run) -> None:
    pairs = [
        {"source": ["a", "c"], "target": "b"},
        {"source": ["a"], "target": "b"},
        {"source": ["b"], "target": "b"},
        {"source": "c", "target": "a"},
    ]
    space = {"pair": tune.grid_search(pairs)}
    scheduler = TransferScheduler(
        only_a_helps(), source_param="pair/source", target_param="pair/target"
    )
    search = run(scheduler, space, max_concurrent_trials=1)
    out = [r.config["pair"] for r in search.results if ELIMINATED in r.metrics]
    assert out == [pairs[0], pairs[3]]
    joint = next(r for r in search.results if r.config["pair"] == pairs[0])
    assert joint.metrics[REASON] == "c: c to b"


def test_several_parameters_hold_the_sources_of_a_search_for_one_target(run: Run) -> None:
    space = {
        "first": tune.grid_search(["a", "b"]),
        "second": tune.grid_search([None, "c"]),
    }
    scheduler = TransferScheduler(only_a_helps(), source_param=("first", "second"), target="b")
    search = run(scheduler, space, max_concurrent_trials=1)
    kept = [(r.config["first"], r.config["second"]) for r in search.results if "score" in r.metrics]
    assert sorted(kept, key=str) == [("a", None), ("b", None)]


class FailingRule(EliminationRule):
    def decide(self, source: Any, target: str) -> Decision:
        raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    ("rule", "params", "told"),
    [
        (only_a_helps(), {}, "does not know the pair"),
        (FailingRule({}, {}), {}, "the rule failed"),
        (
            only_a_helps(),
            {"source_param": "from"},
            "no 'from' and 'target' among the parameters; there are: out, source, target",
        ),
    ],
    ids=["unknown pair", "failing rule", "no pair"],
)
def test_what_the_rule_cannot_decide_is_kept_with_one_warning(
    run: Run, rule: EliminationRule, params: dict[str, Any], told: str
) -> None:
    space = {"source": tune.grid_search(["x", "y"]), "target": tune.grid_search(["b"])}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search = run(TransferScheduler(rule, **params), space, max_concurrent_trials=1)
    ours = [str(w.message) for w in caught if issubclass(w.category, TransferPrunerWarning)]
    assert len(ours) == 1
    assert told in ours[0]
    assert search.pairs == {("x", "b"), ("y", "b")}
    assert not search.eliminated


def test_a_warning_that_is_an_error_does_not_end_the_search(run: Run) -> None:
    space = {"source": "x", "target": "b"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TransferPrunerWarning)
        assert run(TransferScheduler(only_a_helps()), space).pairs == {("x", "b")}


def test_audit_trials_run_and_are_drawn_alike_after_a_restore(run: Run, tmp_path: Path) -> None:
    rule = only_a_helps()
    space = {
        "source": tune.grid_search(["b", "c"]),
        "target": tune.grid_search(["a"]),
        "lr": tune.grid_search(list(range(12))),
    }
    scheduler = TransferScheduler(rule, audit_fraction=0.3)
    with pytest.raises(DriverDiedError):
        run(scheduler, space, callbacks=[InterruptAfter(1, tmp_path / "died")])
    search = run(scheduler, space, restore=True)
    trials = tune.ExperimentAnalysis(str(tmp_path / "search")).trials
    audited = {t.trial_id for t in trials if hasattr(t, AUDIT)}
    drawn = {
        t.trial_id
        for t in trials
        if is_audited(0.3, "", t.trial_id, t.config["source"], t.config["target"])
    }
    assert audited == drawn == set(search.trained)
    assert search.ids - drawn == search.eliminated
    assert len(search.ids) == 24
    for trial in trials:
        if hasattr(trial, AUDIT):
            decision = rule.decide(trial.config["source"], trial.config["target"])
            mark = getattr(trial, AUDIT)
            assert (mark["audit"], mark["rule"]) == (1, rule.fingerprint)
            assert (mark["score"], mark["reason"]) == (decision.score, decision.reason)
            assert not any(key.startswith("transfer_pruner") for key in trial.last_result)


class DriverDiedError(Exception):
    pass


class InterruptAfter(tune.Callback):
    """The driver dies as soon as so many trials have ended."""

    def __init__(self, trials: int, died: Path) -> None:
        self.left = trials
        self.died = died

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        # Once: a restored search has this callback too.
        if self.left <= 0 and not self.died.exists():
            self.died.touch()
            # A thread of Tune's copies the state into the experiment's folder, and in this process
            # lives on: what it has half written nobody can restore. While it was busy with an
            # earlier state it has left this one out.
            storage = trials[0].storage
            storage.syncer.wait()
            for file in Path(storage.experiment_driver_staging_path).iterdir():
                if file.is_file():
                    shutil.copy(file, storage.experiment_fs_path)
            raise DriverDiedError


def test_a_restored_base_scheduler_does_not_wait_for_what_has_ended(
    run: Run, tmp_path: Path
) -> None:
    scheduler = TransferScheduler(only_a_helps(), HyperBandScheduler(max_t=3))
    with pytest.raises(DriverDiedError):
        run(
            scheduler,
            SPACE,
            trainable=stepwise(),
            stop=STEPS,
            num_samples=2,
            callbacks=[InterruptAfter(1, tmp_path / "died")],
        )
    before = tune.ExperimentAnalysis(str(tmp_path / "search")).trials
    assert any(t.status == Trial.TERMINATED and ELIMINATED not in t.last_result for t in before)
    assert any(t.status != Trial.TERMINATED for t in before)
    search = run(scheduler, SPACE, trainable=stepwise(), restore=True)
    check_everything_is_told(search, only_a_helps())
    assert len(search.ids) == 6
    assert search.scheduler.debug_string().startswith("TransferScheduler: 2 eliminated, 0 audited")


def test_loggers_hear_of_the_trials_that_run_and_of_no_others(run: Run, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    search = run(
        TransferScheduler(only_a_helps()),
        {**SPACE, "lr": 0.1},
        callbacks=[MLflowLoggerCallback(tracking_uri=uri, experiment_name="search")],
        max_concurrent_trials=1,
    )
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("search")
    logged = client.search_runs([experiment.experiment_id])
    assert len(logged) == len(search.trained) == 2
    assert all(run.info.status == "FINISHED" for run in logged)
    assert {run.data.params["source"] for run in logged} == {"a", "b"}
    (out,) = (r for r in search.results if ELIMINATED in r.metrics)
    assert os.listdir(out.path) == ["result.json"]
    for result in search.results:
        if ELIMINATED not in result.metrics:
            files = " ".join(os.listdir(result.path))
            assert all(name in files for name in ("progress.csv", "params.json", "tfevents"))


def test_tune_keeps_a_small_copy_that_knows_nothing_of_the_search(run: Run) -> None:
    scheduler = TransferScheduler(only_a_helps(), ASHAScheduler(), audit_fraction=0.2)
    before = len(cloudpickle.dumps(scheduler))
    assert before < 4_000
    search = run(scheduler, {**SPACE, "lr": 0.1}, max_concurrent_trials=1)
    assert len(search.ids) == 3
    copied = pickle.loads(cloudpickle.dumps(scheduler))  # noqa: S301
    assert "TransferScheduler: 0 eliminated, 0 audited, 0 kept" in copied.debug_string()


PAIR = {"source_param": "pair/source", "target_param": "pair/target"}


def learning_space() -> dict[str, Any]:
    """List the baselines first, then every pair."""
    tasks = [{"source": task, "target": task} for task in SIX]
    pairs = ordered_pairs(SIX).sample(frac=1, random_state=0).to_dict("records")
    return {"pair": tune.grid_search(tasks + pairs)}


@dataclass
class Learnt:
    """A search with a rule that learns: as its driver died, and after it was restored."""

    search: Search
    trained_before: set[str]
    before: list[Trial]
    after: list[Trial]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learnt]:
    folder = tmp_path_factory.mktemp("learnt")
    with pytest.MonkeyPatch.context() as patch:
        run = run_in(folder, patch)
        scheduler = TransferScheduler(learning_rule(), **PAIR)
        interrupt = InterruptAfter(3 * EVERY + 2, folder / "died")
        with pytest.raises(DriverDiedError):
            run(scheduler, learning_space(), callbacks=[interrupt], num_samples=2)
        before = tune.ExperimentAnalysis(str(folder / "search")).trials
        trained = set(trained_in(folder))
        search = run(scheduler, learning_space(), restore=True)
        after = tune.ExperimentAnalysis(str(folder / "search")).trials
        yield Learnt(search, trained, before, after)


def finished(trials: list[Trial]) -> list[Trial]:
    """List the trials that trained to their end, in the order in which they told it."""
    ended = [t for t in trials if t.status == Trial.TERMINATED and "score" in t.last_result]
    return sorted(ended, key=lambda t: (t.run_metadata.last_result_time, t.trial_id))


def rules(trials: list[Trial]) -> list[EliminationRule]:
    """Make every rule that the search had, from what its trials reported."""
    table = pd.DataFrame(
        {**t.config["pair"], "score": t.last_result["score"]} for t in finished(trials)
    )
    made = [learning_rule().refitted()]
    for end in range(EVERY, len(table) + 1, EVERY):
        part = table[:end]
        is_baseline = part["source"] == part["target"]
        baselines = part[is_baseline].groupby("target")["score"].mean()
        part = part[~is_baseline & part["target"].isin(baselines.index)]
        gains = part["score"] - part["target"].map(baselines).astype(float)
        made.append(learning_rule().refitted(part.assign(gain=gains)))
    return made


def test_a_rule_that_learns_eliminates_more_as_evidence_grows(learnt: Learnt) -> None:
    out = [t for t in learnt.after if ELIMINATED in t.last_result]
    assert len(learnt.search.ids) == len(learnt.after) == 2 * len(SIX) ** 2
    assert len(out) > 10
    assert learnt.search.eliminated == {t.trial_id for t in out}
    assert learnt.search.eliminated.isdisjoint(learnt.search.trained)
    assert learnt.search.ids == learnt.search.eliminated | set(learnt.search.trained)
    had = rules(learnt.after)
    assert not any(had[0].table()["eliminated"])
    used = set()
    for trial in out:
        pair = trial.config["pair"]
        decisions = [rule.decide(pair["source"], pair["target"]) for rule in had]
        ours = [d.eliminated and d.reason == trial.last_result[REASON] for d in decisions]
        used.add(ours.index(True))
    assert len(used) > 1


@pytest.mark.slow
def test_a_trial_that_waits_for_resources_gives_back_its_request(run: Run) -> None:
    rule = LearningRule(
        TransferPredictor(),
        refit_every=4,
        min_targets=1,
        min_probability=0.9,
        pairs=ordered_pairs(TASKS),
    )
    search = run(TransferScheduler(rule), num_samples=2, reuse_actors=False)
    assert len(search.ids) == search.requested == 18
    assert search.eliminated
    assert search.eliminated.isdisjoint(search.trained)
    assert search.started == len(search.trained) == 18 - len(search.eliminated)
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}


def test_a_restored_search_goes_on_with_the_decisions_that_it_had(learnt: Learnt) -> None:
    before = {t.trial_id for t in learnt.before if ELIMINATED in t.last_result}
    assert before
    assert before <= learnt.search.eliminated
    assert before.isdisjoint(learnt.search.trained)
    assert {t.trial_id for t in finished(learnt.before)} <= learnt.trained_before
    # The first rule of the restored search is the last one of the search that died.
    last = rules(learnt.before)[-1]
    now = CurrentRule(learning_rule())("", evidence(learnt.before, PairParams(**PAIR)))
    assert now.table().equals(last.table())
    assert last.settings["transfers"] > 0
    told = learnt.search.scheduler.debug_string()
    count = len(learnt.search.eliminated)
    assert told.startswith(f"TransferScheduler: {count} eliminated, 0 audited, {72 - count} kept")


def evidence(trials: list[Trial], pair_of: PairParams) -> list[Finished]:
    found = [finished_trial(trial, pair_of, "score", maximize=True) for trial in trials]
    return [trial for trial in found if trial is not None]


class StopsSlowLearners(FIFOScheduler):
    """Another scheduler that stops some trials early, and always the same ones."""

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return self.STOP if trial.config["lr"] < 0.15 else self.CONTINUE


def test_trials_that_were_stopped_early_teach_nothing(run: Run, tmp_path: Path) -> None:
    rule = LearningRule(
        TransferPredictor(), refit_every=1, min_targets=1, pairs=ordered_pairs(TASKS)
    )
    run(
        TransferScheduler(rule, StopsSlowLearners()),
        SPACE | {"lr": tune.grid_search([0.1, 0.2])},
        trainable=stepwise(),
        stop=STEPS,
    )
    trials = tune.ExperimentAnalysis(str(tmp_path / "search")).trials
    steps = [(t.config["lr"], t.last_result["training_iteration"]) for t in finished(trials)]
    assert sorted(steps) == [(0.1, 1)] * len(TASKS) + [(0.2, 3)] * len(TASKS)
    pairs = len(TASKS) - 1
    for longest_only, learnt_from in [(True, pairs), (False, 2 * pairs)]:
        now = CurrentRule(rule, longest_only=longest_only)
        learnt = now("", evidence(finished(trials), PairParams()))
        assert learnt.settings["transfers"] == learnt_from


def test_a_rule_cannot_learn_from_a_search_without_a_score() -> None:
    for base in (None, ASHAScheduler()):
        scheduler = TransferScheduler(learning_rule(), base)
        with pytest.raises(ValueError, match="metric is None and mode is None"):
            scheduler.set_search_properties(None, None)
    own = ASHAScheduler(metric="score", mode="min")
    for base in (own, ResourceChangingScheduler(own)):
        assert TransferScheduler(learning_rule(), base).set_search_properties(None, None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"rule": TransferPredictor()}, "rule must be an EliminationRule"),
        ({"rule": "rule/"}, "rule must be an EliminationRule"),
        ({"rule": ASHAScheduler()}, "rule must be an EliminationRule"),
        ({"base_scheduler": "asha"}, "base_scheduler must be a scheduler of ray.tune"),
        ({"audit_fraction": 2}, "audit_fraction must be from 0 to 1 but got 2"),
        ({"source_param": ()}, "source_param must name a parameter"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_stop_early(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TransferScheduler(**{"rule": only_a_helps(), **arguments})
