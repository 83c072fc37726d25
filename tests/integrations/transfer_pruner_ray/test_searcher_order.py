"""The trials of a search algorithm get the pair that is worth most, and it knows which they had."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("optuna")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.hyperopt import HyperOptSearch
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict

from transfer_pruner import Decision, EliminationRule, LearningRule, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_ray.marks import AUDIT
from transfer_pruner_ray.searcher import TransferSearcher

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TASKS = ["a", "b", "c", "d"]
GAINS = {"a": 0.1, "b": -0.1, "c": 0.0, "d": -0.05}
SPACE = {
    "source": tune.choice(TASKS),
    "target": tune.choice(TASKS),
    "lr": tune.uniform(0, 1),
}
BASELINES = [(task, task) for task in TASKS]


def learning_rule() -> LearningRule:
    """By attributions a helps most, then c, d and b."""
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(GAINS)
    return LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)


def score_of(config: dict[str, Any]) -> float:
    source, target = config["source"], config["target"]
    gain = 0.0 if source in (None, target) else GAINS[source]
    return gain + 0.001 * config.get("lr", 0)


def optuna_search() -> Searcher:
    return OptunaSearch(sampler=TPESampler(seed=1, n_startup_trials=5))


def random_search() -> Searcher:
    return OptunaSearch(sampler=RandomSampler(seed=1))


def hyperopt_search() -> Searcher:
    pytest.importorskip("hyperopt", reason="HyperOptSearch needs hyperopt")
    return HyperOptSearch(n_initial_points=5, random_state_seed=1)


class InTurn(Searcher):
    """An algorithm of the user's, which can be told nothing but what Tune tells of trials."""

    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.asked: list[str] = []
        self.told: list[tuple[str, float | None, bool]] = []

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self.asked.append(trial_id)
        return {"source": "b", "target": "c", "lr": len(self.asked) / 100}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.told.append((trial_id, (result or {}).get("score"), error))

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        pass


def search(
    searcher: Searcher,
    n: int,
    space: dict[str, Any] | None = None,
    *,
    at_once: int = 1,
    start: int = 0,
    fails: Callable[[dict[str, Any]], bool] = lambda config: False,
) -> list[dict[str, Any]]:
    """Do what Tune does with a searcher; some trials at once."""
    space = SPACE if space is None else space
    if not start:
        assert searcher.set_search_properties("score", "max", space, num_samples=n)
    constants = {k: v for k, v in flatten_dict(space).items() if isinstance(v, (str, int))}
    running: list[tuple[str, dict[str, Any]]] = []
    made: list[dict[str, Any]] = []
    while len(made) < n or running:
        while len(made) < n and len(running) < at_once:
            trial_id = f"trial{start + len(made)}"
            config = searcher.suggest(trial_id)
            if not isinstance(config, dict):
                break
            made.append(constants | flatten_dict(config))
            running.append((trial_id, made[-1]))
        trial_id, config = running.pop(0)
        if fails(config):
            searcher.on_trial_complete(trial_id, error=True)
            continue
        plain = {name.rpartition("/")[2]: value for name, value in config.items()}
        result = {"score": score_of(plain), "training_iteration": 1, "time_total_s": 2.0}
        searcher.on_trial_result(trial_id, result)
        searcher.on_trial_complete(trial_id, result)
    return made


def pairs_of(configs: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    return [(config["source"], config["target"]) for config in configs]


def known_to(inner: Any) -> list[dict[str, Any]]:
    """What an algorithm has in its model: configurations of trials with a value."""
    if isinstance(inner, OptunaSearch):
        complete = [t for t in inner._ot_study.trials if t.state == TrialState.COMPLETE]
        assert [t.value for t in complete] == pytest.approx([score_of(t.params) for t in complete])
        return [t.params for t in complete]
    from hyperopt.base import STATUS_OK

    done = [t for t in inner._hpopt_trials.trials if t["result"].get("status") == STATUS_OK]
    found = [{name: value[0] for name, value in t["misc"]["vals"].items()} for t in done]
    return [c | {name: TASKS[c[name]] for name in ("source", "target")} for c in found]


INNER = [optuna_search, random_search, hyperopt_search]


@pytest.mark.parametrize("inner", INNER)
def test_baselines_come_first_then_what_is_worth_most_and_the_algorithm_knows(
    inner: Callable[[], Searcher],
) -> None:
    searcher = TransferSearcher(inner(), learning_rule())
    made = search(searcher, 16)
    assert pairs_of(made)[:4] == BASELINES
    # By attributions and then by what was measured: a helps whichever target.
    assert set(pairs_of(made)[4:7]) == {("a", "b"), ("a", "c"), ("a", "d")}
    assert known_to(searcher.searcher) == made
    assert len({config["lr"] for config in made}) == 16


def test_an_algorithm_that_is_slow_to_ask_chooses_the_hyperparameters_too() -> None:
    pytest.importorskip("torch", reason="GPSampler needs torch")
    searcher = TransferSearcher(
        OptunaSearch(sampler=GPSampler(seed=1, n_startup_trials=4)), learning_rule()
    )
    made = search(searcher, 8)
    assert pairs_of(made)[:4] == BASELINES
    assert known_to(searcher.searcher) == made


def test_an_algorithm_that_cannot_be_told_hears_of_every_trial_under_its_own_name() -> None:
    inner = InTurn()
    made = search(TransferSearcher(inner, learning_rule()), 6)
    assert pairs_of(made)[:4] == BASELINES
    assert [name for name, _, _ in inner.told] == inner.asked == [f"trial{i}" for i in range(6)]
    assert [score for _, score, _ in inner.told] == [score_of(config) for config in made]
    assert [config["lr"] for config in made] == [i / 100 for i in range(1, 7)]


@pytest.mark.parametrize("inner", INNER)
def test_trials_at_once_do_not_all_take_the_first(inner: Callable[[], Searcher]) -> None:
    rule = learning_rule()
    searcher = TransferSearcher(inner(), rule)
    made = search(searcher, 10, at_once=16)
    assert pairs_of(made)[:4] == BASELINES
    # Half of the sources are eliminated by attributions: six pairs are left, each once.
    assert len(set(pairs_of(made))) == 10
    assert [source for source, _ in pairs_of(made)[4:7]] == ["a", "a", "a"]


@pytest.mark.parametrize(
    "nest",
    [
        lambda inner, rule: ConcurrencyLimiter(TransferSearcher(inner, rule), 3),
        lambda inner, rule: TransferSearcher(ConcurrencyLimiter(inner, 3), rule),
        lambda inner, rule: ConcurrencyLimiter(TransferSearcher(inner, rule), 3, batch=True),
        lambda inner, rule: TransferSearcher(ConcurrencyLimiter(inner, 3, batch=True), rule),
    ],
    ids=["limiter outside", "limiter inside", "batches outside", "batches inside"],
)
@pytest.mark.parametrize("inner", INNER)
def test_a_limit_of_trials_at_once_counts_trials(
    inner: Callable[[], Searcher], nest: Callable[[Searcher, Any], Searcher]
) -> None:
    made = search(nest(inner(), learning_rule()), 12, at_once=6)
    assert len(made) == 12
    assert pairs_of(made)[:4] == BASELINES


def test_a_repeater_outside_repeats_what_is_worth_most_and_one_inside_is_left_alone() -> None:
    outside = Repeater(TransferSearcher(random_search(), learning_rule()), 2, set_index=False)
    made = search(outside, 8)
    assert pairs_of(made)[::2] == pairs_of(made)[1::2] == BASELINES
    inside = TransferSearcher(Repeater(random_search(), 2, set_index=False), learning_rule())
    made = search(inside, 8)
    assert made[::2] == made[1::2]


def test_a_pair_is_trained_at_settings_that_it_has_not_had() -> None:
    space = SPACE | {"lr": tune.choice([0.1, 0.2, 0.3]), "target": "b"}
    made = search(TransferSearcher(random_search(), learning_rule()), 9, space)
    assert pairs_of(made)[:2] == [("b", "b"), ("a", "b")]
    seen = Counter((*pair, config["lr"]) for pair, config in zip(pairs_of(made), made, strict=True))
    assert set(seen.values()) == {1}


def test_a_pair_that_keeps_failing_holds_nothing_up() -> None:
    def fails(config: dict[str, Any]) -> bool:
        return config["source"] == "a" or config["source"] == config["target"] == "c"

    made = search(TransferSearcher(random_search(), learning_rule()), 24, fails=fails)
    counts = Counter(pairs_of(made))
    assert counts["c", "c"] == 3
    assert max(count for (source, _), count in counts.items() if source == "a") == 3
    assert {source for source, _ in counts} >= {"a", "c", "d"}


@pytest.mark.parametrize("inner", [optuna_search, hyperopt_search])
def test_nested_and_fixed_parameters(inner: Callable[[], Searcher]) -> None:
    space = {
        "pair": {"source": tune.choice([None, *TASKS])},
        "target": "d",
        "lr": tune.uniform(0, 1),
    }
    searcher = TransferSearcher(inner(), learning_rule(), source_param="pair/source")
    made = search(searcher, 6, space)
    assert [config["pair/source"] for config in made][:2] == [None, "a"]
    named = TransferSearcher(inner(), learning_rule(), target="d")
    made = search(named, 4, {"source": tune.choice(TASKS), "target": "d"})
    assert [config["source"] for config in made][:2] == ["d", "a"]


def test_a_space_that_optuna_was_made_with() -> None:
    space = {
        "source": CategoricalDistribution(TASKS),
        "target": CategoricalDistribution(TASKS),
        "lr": FloatDistribution(0, 1),
    }
    inner = OptunaSearch(space=space, metric="score", mode="max", sampler=RandomSampler(1))
    searcher = TransferSearcher(inner, learning_rule())
    assert not searcher.set_search_properties(None, None, {})
    made = search(searcher, 6, {}, start=1)
    assert pairs_of(made)[:4] == BASELINES
    assert known_to(inner) == made


# Of the target c, a is best, then d; b is eliminated. Of the target d nothing is kept but c.
STATIC = EliminationRule(
    {
        ("a", "c"): Decision(False, 0.9, 0.5, ""),
        ("d", "c"): Decision(False, 0.5, 0.5, ""),
        ("b", "c"): Decision(True, 0.1, 0.5, ""),
        ("a", "d"): Decision(True, 0.1, 0.5, ""),
        ("b", "d"): Decision(True, 0.2, 0.5, ""),
    },
    {},
)


def test_what_the_user_has_enqueued_stands_if_it_is_kept() -> None:
    points = [{"source": s, "target": "c", "lr": 0.5} for s in ("d", "b")]
    inner = OptunaSearch(sampler=RandomSampler(1), points_to_evaluate=points)
    made = search(TransferSearcher(inner, learning_rule()), 6)
    assert made[:2] == points
    assert pairs_of(made)[2:] == BASELINES
    assert known_to(inner) == made
    inner = OptunaSearch(sampler=RandomSampler(1), points_to_evaluate=points)
    made = search(TransferSearcher(inner, STATIC), 2, SPACE)
    assert made == [points[0], {"source": "c", "target": "c", "lr": 0.5}]
    assert known_to(inner) == made


def test_an_eliminated_pair_gives_way_to_the_best_that_has_had_the_fewest_trials() -> None:
    inner = InTurn()
    searcher = TransferSearcher(inner, STATIC)
    made = search(searcher, 5)
    assert pairs_of(made) == [("c", "c"), ("a", "c"), ("d", "c"), ("a", "c"), ("d", "c")]
    # Each rejected suggestion is one trial: nothing is asked again.
    assert len(inner.asked) == 5
    assert searcher.redirected_pairs == searcher.eliminated_pairs == {("b", "c"): 5}
    # At once, what is running counts as had.
    made = search(TransferSearcher(InTurn(), STATIC), 4, at_once=4)
    assert pairs_of(made) == [("c", "c"), ("a", "c"), ("d", "c"), ("a", "c")]


@pytest.mark.parametrize("inner", INNER)
def test_an_algorithm_knows_what_an_eliminated_pair_gave_way_to(
    inner: Callable[[], Searcher],
) -> None:
    rule = EliminationRule(STATIC.decisions, {})
    with pytest.warns(match="does not know the pair"):
        searcher = TransferSearcher(inner(), rule)
        made = search(searcher, 30)
    assert not any(rule.decide(*pair).eliminated for pair in pairs_of(made))
    assert searcher.redirected_pairs
    assert known_to(searcher.searcher) == made


def test_of_a_rule_that_does_not_learn_kept_suggestions_stand() -> None:
    space = {"source": tune.choice(["a", "d"]), "target": "c", "lr": tune.uniform(0, 1)}
    plain = random_search()
    asked = search(plain, 10, space)
    assert search(TransferSearcher(random_search(), STATIC), 10, space) == asked


def test_an_audit_is_what_was_suggested_and_eliminated() -> None:
    searcher = TransferSearcher(random_search(), STATIC, audit_fraction=0.5)
    made = search(searcher, 40, SPACE | {"source": tune.choice(["a", "b", "d"]), "target": "c"})
    audits = [config for config in made if AUDIT in config]
    assert 3 < len(audits) < 15
    assert set(pairs_of(audits)) == {("b", "c")}
    assert ("b", "c") not in pairs_of([config for config in made if AUDIT not in config])
    # Of a rule that learns: nothing is eliminated before there are 20 transfers.
    searcher = TransferSearcher(random_search(), learning_rule(), audit_fraction=0.5)
    made = search(searcher, 60)
    assert not any(AUDIT in config for config in made[:24])
    audits = [config for config in made if AUDIT in config]
    assert audits
    assert {config[AUDIT] for config in audits} == {learning_rule().refitted().fingerprint}


@pytest.mark.parametrize("inner", INNER)
def test_a_saved_search_goes_on_in_the_same_order(
    inner: Callable[[], Searcher], tmp_path: Path
) -> None:
    first = TransferSearcher(inner(), learning_rule())
    search(first, 7, at_once=2)
    first.suggest("running")
    first.save(str(tmp_path / "saved"))
    again = TransferSearcher(inner(), learning_rule())
    # The space is not passed again.
    again.restore(str(tmp_path / "saved"))
    assert search(again, 8, start=100) == search(first, 8, start=100)


DRIVER = """
    import json, os, signal, sys, time
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_GLOBAL_CHECKPOINT_S": "0"}
    sys.path.insert(0, HERE)
    import ray
    from ray import tune
    from test_searcher_order import TASKS, learning_rule, random_search, score_of
    from transfer_pruner_ray import TransferSearcher

    folder, name, kill_after = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def train_pair(config):
        gains = {"a": 0.1, "b": -0.1, "c": 0.0, "d": -0.05}
        same = config["source"] == config["target"]
        tune.report({"score": (0 if same else gains[config["source"]]) + config["lr"]})

    class Kill(tune.Callback):
        left = kill_after
        def on_trial_result(self, iteration, trials, trial, result, **info):
            self.left -= 1
            if not self.left and not os.path.exists(folder + "/once"):
                open(folder + "/once", "w").close()
                # Tune copies its checkpoints in the background: of half of one it starts over.
                time.sleep(1)
                os.killpg(0, signal.SIGKILL)

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    path = os.path.join(folder, name)
    if os.path.exists(path):
        tuner = tune.Tuner.restore(path, train_pair)
    else:
        space = {n: tune.choice(TASKS) for n in ("source", "target")}
        tuner = tune.Tuner(
            train_pair,
            param_space=space | {"lr": tune.choice([0.001, 0.002])},
            tune_config=tune.TuneConfig(
                metric="score", mode="max", num_samples=12, max_concurrent_trials=1,
                search_alg=TransferSearcher(random_search(), learning_rule()), reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name, storage_path=folder, verbose=0,
                callbacks=[Kill()] if kill_after else [],
            ),
        )
    order = sorted(tuner.fit(), key=lambda r: int(r.metrics["experiment_tag"].split("_")[0]))
    configs = [result.metrics["config"] for result in order]
    pairs = [[c["source"], c["target"]] for c in configs]
    print(json.dumps(pairs))
    ray.shutdown()
"""


def drive(folder: Path, name: str, kill_after: int) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(DRIVER).replace("HERE", repr(str(Path(__file__).parent)))
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), name, str(kill_after)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_in_the_same_order(tmp_path: Path) -> None:
    whole = drive(tmp_path, "whole", 0)
    assert not whole.returncode, whole.stderr
    assert drive(tmp_path, "killed", 6).returncode == -9
    restored = drive(tmp_path, "killed", 0)
    assert not restored.returncode, restored.stderr
    assert restored.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
