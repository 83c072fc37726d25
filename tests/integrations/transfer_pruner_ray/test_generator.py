"""Tune's own grid and random search passes over eliminated trials, and is otherwise the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0"

import ray
from ray import tune
from ray.tune.experiment import Experiment
from ray.tune.search import BasicVariantGenerator

from transfer_pruner import (
    LearningRule,
    TransferPredictor,
    TransferPrunerWarning,
    TrialRecord,
    estimate_savings,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner.rule.verdict import is_audited
from transfer_pruner_ray.generator import TransferVariantGenerator
from transfer_pruner_ray.marks import AUDIT
from transfer_pruner_ray.records import records_from_results
from transfer_pruner_ray.searcher import TransferSearcher

TASKS = ["a", "b", "c"]
PAIRS = list(ordered_pairs(TASKS).itertuples(index=False, name=None))
ONLY_A_HELPS = EliminationRule({(s, t): Decision(s != "a", 0.5, 0.5, "") for s, t in PAIRS}, {})
OTHER = "values of other types"
SPACE = {
    "source": tune.grid_search([None, *TASKS]),
    "target": tune.grid_search(TASKS),
    "seed": tune.grid_search([1, 2]),
    "lr": tune.uniform(0, 1),
}


def train_pair() -> Callable[[dict[str, Any]], None]:
    """Make the trainable anew, so that workers get it whole: they cannot import this module."""

    def train_pair(config: dict[str, Any]) -> None:
        tune.report({"score": 0.0})

    return train_pair


def made_by(
    generator: BasicVariantGenerator, space: dict[str, Any], samples: int = 1
) -> list[dict[str, Any]]:
    """Let a generator make all of its trials, and finish each."""
    generator.add_configurations(
        [Experiment("made", run=train_pair(), config=space, num_samples=samples)]
    )
    made = []
    while not generator.is_finished():
        trial = generator.next_trial()
        if trial is not None:
            marked = AUDIT in vars(trial)
            made.append({"id": trial.trial_id, "audited": marked, **trial.config})
            generator.on_trial_complete(trial.trial_id)
    return made


def is_eliminated(config: dict[str, Any]) -> bool:
    return ONLY_A_HELPS.decide(config["source"], config["target"]).eliminated


def keeps(config: dict[str, Any], fraction: float = 0.0) -> bool:
    pair = config["source"], config["target"]
    return not is_eliminated(config) or is_audited(fraction, "", config["id"], *pair)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("max_concurrent", [0, 1])
@pytest.mark.parametrize("constant", [False, True])
def test_the_trials_are_those_of_tune_without_the_eliminated_ones(
    fraction: float, max_concurrent: int, constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trial ids start with the search's own name: here both have one.
    monkeypatch.setenv("_TEST_TUNE_TRIAL_UUID", "search")
    settings: Any = {
        "random_state": 3,
        "max_concurrent": max_concurrent,
        "constant_grid_search": constant,
        "points_to_evaluate": [{"source": "b", "target": "a"}, {"source": "a", "seed": 1}],
    }
    tunes = made_by(BasicVariantGenerator(**settings), SPACE, samples=4)
    generator = TransferVariantGenerator(ONLY_A_HELPS, audit_fraction=fraction, **settings)
    ours = made_by(generator, SPACE, samples=4)
    left = [config for config in tunes if keeps(config, fraction)]
    assert ours == [{**config, "audited": is_eliminated(config)} for config in left]
    gone = Counter((c["source"], c["target"]) for c in tunes if not keeps(c, fraction))
    assert generator.eliminated_pairs == gone


def test_a_space_that_cannot_be_filtered_is_searched_all_the_same() -> None:
    # Source and target in grids of their own.
    space = {
        "start": tune.grid_search([{"source": "a"}, {"source": "b", "freeze": True}]),
        "target": tune.grid_search(TASKS),
    }
    generator = TransferVariantGenerator(ONLY_A_HELPS, source_param="start/source")
    pairs = [(c["start"]["source"], c["target"]) for c in made_by(generator, space)]
    assert pairs == [("a", "a"), ("a", "b"), ("b", "b"), ("a", "c")]


def test_a_trial_without_the_pair_is_kept_with_one_warning() -> None:
    generator = TransferVariantGenerator(ONLY_A_HELPS, source_param="from")
    with pytest.warns(
        TransferPrunerWarning,
        match="no 'from' and 'target' among the parameters; there are: source",
    ) as caught:
        assert len(made_by(generator, SPACE)) == 24
    assert len(caught) == 1


# Of b, a is the best source and then c; of c it is a, and b is eliminated; of a nothing is known.
ORDERED = EliminationRule(
    {
        ("c", "b"): Decision(False, 0.2, 0.5, ""),
        ("a", "b"): Decision(False, 0.9, 0.5, ""),
        ("b", "c"): Decision(True, 0.1, 0.5, ""),
        ("a", "c"): Decision(False, 0.9, 0.5, ""),
    },
    {},
)


@pytest.mark.filterwarnings("ignore:the rule does not know the pair")
@pytest.mark.parametrize("max_concurrent", [0, 1])
def test_what_is_left_comes_best_first_under_the_ids_that_tune_gives(
    max_concurrent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TEST_TUNE_TRIAL_UUID", "search")
    settings: Any = {"random_state": 3, "max_concurrent": max_concurrent}
    space = SPACE | {"source": tune.grid_search(TASKS)}
    made = made_by(TransferVariantGenerator(ORDERED, **settings), space, samples=2)
    pairs = list(dict.fromkeys((config["source"], config["target"]) for config in made))
    assert set(pairs[:3]) == {(task, task) for task in TASKS}
    assert set(pairs[3:5]) == {("a", "b"), ("a", "c")}
    assert pairs[5] == ("c", "b")
    assert set(pairs[6:]) == {("b", "a"), ("c", "a")}
    tunes = made_by(BasicVariantGenerator(**settings), space, samples=2)
    left = [c for c in tunes if not ORDERED.decide(c["source"], c["target"]).eliminated]
    by_id = sorted(({**c, "audited": False} for c in made), key=lambda c: c["id"])
    assert by_id == left
    # An audit has no place in the order, and runs last.
    audited = made_by(TransferVariantGenerator(ORDERED, audit_fraction=1.0, **settings), space)
    assert [config["audited"] for config in audited] == [False] * 16 + [True] * 2


@pytest.mark.filterwarnings("ignore:the rule does not know the pair")
def test_more_variants_than_can_be_made_beforehand_are_ordered_a_thousand_at_a_time() -> None:
    space = {"source": tune.choice(TASKS), "target": "b"}
    generator = TransferVariantGenerator(ORDERED, random_state=1)
    generator.add_configurations(
        [Experiment("made", run=train_pair(), config=space, num_samples=10**9)]
    )
    given = [generator.next_trial() for _ in range(1_200)]
    sources = [trial.config["source"] for trial in given if trial is not None]
    assert sources[:1_000] == sorted(sources[:1_000], key="bac".index)
    assert sources[1_000] == "b"
    generator.set_finished()
    assert generator.is_finished()


GAINS = {"a": 0.1, "b": -0.1, "c": 0.0}


def learning_rule() -> LearningRule:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(GAINS)
    return LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)


def finish(generator: BasicVariantGenerator, trial: Any) -> tuple[str, str]:
    source, target = trial.config["source"], trial.config["target"]
    gain = 0.0 if source == target else GAINS[source]
    generator.on_trial_complete(trial.trial_id, {"score": gain + trial.config["seed"] / 1000})
    return source, target


def learning_generator(space: dict[str, Any], **settings: Any) -> TransferVariantGenerator:
    generator = TransferVariantGenerator(learning_rule(), **settings)
    assert generator.set_search_properties("score", "max", space)
    generator.add_configurations([Experiment("made", run=train_pair(), config=space)])
    return generator


LEARNT = {
    "source": tune.grid_search(TASKS),
    "target": tune.grid_search(TASKS),
    "seed": tune.grid_search([1, 2, 3]),
}


def test_a_rule_that_learns_orders_the_rest_as_trials_finish() -> None:
    generator = learning_generator(LEARNT, max_concurrent=1)
    pairs = []
    while not generator.is_finished():
        trial = generator.next_trial()
        if trial is not None:
            assert generator.next_trial() is None
            pairs.append(finish(generator, trial))
    assert pairs[:3] == [("a", "a"), ("b", "b"), ("c", "c")]
    # By attributions and then by what was measured a is the best source.
    assert set(pairs[3:7]) >= {("a", "b"), ("a", "c")}
    # Every variant is tried, or passed over at the end, when nothing can bring it back.
    passed = generator.eliminated_pairs
    assert Counter(pairs) + Counter(passed) == Counter({(s, t): 3 for s in TASKS for t in TASKS})
    assert set(passed) <= {pair for pair in PAIRS if pair[0] != "a"}


def test_trials_at_once_do_not_all_have_the_first_pair() -> None:
    generator = learning_generator(LEARNT)
    given = [generator.next_trial() for _ in range(9)]
    pairs = [(t.config["source"], t.config["target"]) for t in given if t is not None]
    assert len(set(pairs)) == 9
    assert pairs[:3] == [("a", "a"), ("b", "b"), ("c", "c")]


def test_a_saved_generator_goes_on_in_the_same_order(tmp_path: Path) -> None:
    first = learning_generator(LEARNT, max_concurrent=2)
    for _ in range(6):
        finish(first, first.next_trial())
    running = first.next_trial()
    first.save_to_dir(str(tmp_path), "now")
    again = learning_generator(LEARNT, max_concurrent=2)
    again.restore_from_dir(str(tmp_path))
    orders = []
    for generator in (first, again):
        pairs = [finish(generator, running)]
        while (trial := generator.next_trial()) is not None:
            pairs.append(finish(generator, trial))
        orders.append(pairs)
    assert orders[0] == orders[1]
    assert len(orders[0]) > 6


def test_a_rule_that_learns_needs_a_score() -> None:
    generator = TransferVariantGenerator(learning_rule())
    with pytest.raises(ValueError, match="needs a score to learn from, but metric is None"):
        generator.set_search_properties(None, None, LEARNT)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("space", "what"),
    [
        (
            {"source": tune.grid_search(list(np.unique([2, 1]))), "target": 3},
            "values of other types",
        ),
        ({"source": "a", "target": tune.sample_from(lambda spec: "b")}, "tune.sample_from"),
        (
            {"source": tune.grid_search([["a", np.int64(1)]]), "target": "b"},
            "values of other types",
        ),
    ],
    ids=["numpy", "sample_from", "in a list"],
)
@pytest.mark.parametrize("adapter", ["generator", "searcher"])
def test_tasks_that_tune_hides_are_refused_before_anything_runs(
    cluster: None, tmp_path: Path, space: dict[str, Any], what: str, adapter: str
) -> None:
    search_alg: Any = TransferVariantGenerator(ONLY_A_HELPS)
    if adapter == "searcher":
        optuna_search = pytest.importorskip("ray.tune.search.optuna").OptunaSearch()
        search_alg = TransferSearcher(optuna_search, ONLY_A_HELPS)
    tuner = tune.Tuner(
        train_pair(),
        param_space=space,
        tune_config=tune.TuneConfig(metric="score", mode="max", search_alg=search_alg),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    with pytest.raises(ValueError, match=f"has {what} in param_space.* use TransferScheduler"):
        tuner.fit()


def test_hidden_values_of_other_parameters_cost_nothing() -> None:
    weights = ("__ref_ph", "12345678")
    space = {**SPACE, "weights": tune.grid_search([weights])}
    assert len(made_by(TransferVariantGenerator(ONLY_A_HELPS), space)) == 16


def test_a_parameter_of_each_branch_and_a_function_of_them_name_the_source() -> None:
    branches = [{"target": t, f"source_{t}": tune.grid_search(TASKS)} for t in ("b", "c")]
    space = {"pair": tune.grid_search(branches)}

    def read(params: Mapping[str, Any]) -> Any:
        return params[f"pair/source_{params['pair/target']}"]

    for source_param in ("pair/source_*", "pair/source_{target}", read):
        generator = TransferVariantGenerator(
            ONLY_A_HELPS, source_param=source_param, target_param="pair/target"
        )
        made = [config["pair"] for config in made_by(generator, space)]
        assert [c[f"source_{c['target']}"] for c in made] == ["a", "b", "a", "c"]
        assert generator.eliminated_pairs == {("c", "b"): 1, ("b", "c"): 1}


@pytest.mark.parametrize("wrong", ["rule/", None, TransferPredictor(), SPACE])
def test_what_is_no_rule_is_refused_when_it_is_given(wrong: Any) -> None:
    with pytest.raises(ValueError, match="rule must be an EliminationRule"):
        TransferVariantGenerator(wrong)


class FailingRule(EliminationRule):
    def decide(self, source: Any, target: Any) -> Decision:
        raise OSError("the disk is gone")


def test_a_rule_that_fails_keeps_every_trial_and_is_told_once() -> None:
    generator = TransferVariantGenerator(FailingRule({}, {}))
    with pytest.warns(TransferPrunerWarning, match="the rule failed and the trial is") as caught:
        assert len(made_by(generator, SPACE)) == 24
    assert len(caught) == 1


class Ledger:
    """A tracker; like one that writes to a server it cannot be pickled."""

    maximize = False

    def __init__(self) -> None:
        self.records: list[TrialRecord] = []
        self.lock = threading.Lock()

    def record(self, record: TrialRecord) -> None:
        self.records.append(record)


def test_a_run_takes_as_many_slots_as_there_are_kept_trials(cluster: None, tmp_path: Path) -> None:
    ledger = Ledger()
    generator = TransferVariantGenerator(ONLY_A_HELPS, max_concurrent=1, tracker=ledger)
    results = tune.Tuner(
        train_pair(),
        param_space=SPACE,
        tune_config=tune.TuneConfig(search_alg=generator, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    pairs = Counter((r.metrics["config"]["source"], r.metrics["config"]["target"]) for r in results)
    kept = [
        (s, t)
        for s in [None, *TASKS]
        for t in TASKS
        if not is_eliminated({"source": s, "target": t})
    ]
    assert pairs == dict.fromkeys(kept, 2)
    # What was passed over is told to a tracker, or counted among the records afterwards.
    told = Counter((r.source, r.target, r.outcome, r.maximize) for r in ledger.records)
    assert told == {(*pair, "eliminated", False): 2 for pair in generator.eliminated_pairs}
    assert len({r.number for r in ledger.records}) == len(ledger.records) == 8
    assert all(set(r.hyperparameters) == {"seed", "lr"} for r in ledger.records)
    records = records_from_results(results, passed_over=generator.eliminated_pairs)
    savings = estimate_savings(records)
    assert (savings.trials_trained, savings.trials_eliminated) == (16, 8)
    assert savings.pairs_eliminated == 4
    assert len({record.number for record in records}) == 24


DRIVER = """
import json, sys, time
import ray
from ray import tune
from transfer_pruner.rule import EliminationRule
from transfer_pruner_ray.generator import TransferVariantGenerator

folder, resume = sys.argv[1], len(sys.argv) > 2

def train_pair(config):
    time.sleep(0.5)
    tune.report({"score": 0.0})
    with open(f"{folder}/trained", "a") as file:
        file.write(json.dumps(config) + "\\n")

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
if resume:
    tuner = tune.Tuner.restore(f"{folder}/run", train_pair)
else:
    tasks = ["a", "b", "c"]
    tuner = tune.Tuner(
        train_pair,
        param_space={
            "source": tune.grid_search([None, *tasks]),
            "target": tune.grid_search(tasks),
            "lr": tune.uniform(0, 1),
        },
        tune_config=tune.TuneConfig(
            search_alg=TransferVariantGenerator(
                EliminationRule.load(f"{folder}/rule"), max_concurrent=1
            ),
            num_samples=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="run", storage_path=folder, verbose=0),
    )
results = tuner.fit()
generator = tuner._local_tuner._tune_config.search_alg
counts = [[s, t, n] for (s, t), n in generator.eliminated_pairs.items()]
trained = [result.metrics["config"] for result in results]
with open(f"{folder}/result.json", "w") as file:
    json.dump({"eliminated": counts, "trained": trained, "errors": len(results.errors)}, file)
"""


@pytest.mark.slow
def test_a_search_whose_driver_was_killed_goes_on_and_passes_over_the_same_trials(
    tmp_path: Path,
) -> None:
    ONLY_A_HELPS.save(tmp_path / "rule")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "TUNE_GLOBAL_CHECKPOINT_S": "2"}
    command = [sys.executable, str(driver), str(tmp_path)]
    trained = tmp_path / "trained"
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    # Tune copies its checkpoints into place bit by bit: a driver that dies meanwhile leaves half of
    # one, and a search that starts over. So not then.
    while True:
        saved = max((f.stat().st_mtime for f in (tmp_path / "run").glob("*.json")), default=0.0)
        enough = trained.exists() and len(trained.read_text().splitlines()) >= 4
        if enough and 0.3 < time.time() - saved < 1:
            break
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The driver and the small cluster that it started.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run([*command, "resume"], env=environment, check=True, timeout=240)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["errors"] == 0
    whole = [(s, t) for s in [None, *TASKS] for t in TASKS]
    kept = Counter(
        {pair: 2 for pair in whole if not is_eliminated({"source": pair[0], "target": pair[1]})}
    )
    assert Counter((c["source"], c["target"]) for c in result["trained"]) == kept
    assert {(s, t): n for s, t, n in result["eliminated"]} == {
        pair: 2 for pair in whole if pair not in kept
    }
