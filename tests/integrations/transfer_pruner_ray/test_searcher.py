"""A search algorithm is asked again until its pair is kept, and learns only from what trained."""

from __future__ import annotations

import json
import math
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ray")
pytest.importorskip("optuna")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0"

import optuna
import ray
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import HyperBandForBOHB
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.hyperopt import HyperOptSearch
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict

from transfer_pruner import LearningRule, TransferPredictor, TransferPrunerWarning, TrialRecord
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner.rule.verdict import is_audited
from transfer_pruner_ray.marks import AUDIT
from transfer_pruner_ray.searcher import TransferSearcher

TASKS = ["a", "b", "c"]
PAIRS = list(ordered_pairs(TASKS).itertuples(index=False, name=None))
ONLY_A_HELPS = EliminationRule({(s, t): Decision(s != "a", 0.5, 0.5, "") for s, t in PAIRS}, {})
SPACE = {
    "source": tune.choice(["a", "b", "c"]),
    "target": tune.choice(["a", "b", "c"]),
    "lr": tune.uniform(0, 1),
}
KEPT = {(s, t) for s in TASKS for t in TASKS if s in ("a", t)}


def optuna_search() -> Searcher:
    return OptunaSearch(sampler=TPESampler(seed=1, n_startup_trials=5))


def hyperopt_search() -> Searcher:
    pytest.importorskip("hyperopt", reason="HyperOptSearch needs hyperopt")
    return HyperOptSearch(n_initial_points=5, random_state_seed=1)


def bohb_search() -> Searcher:
    pytest.importorskip("hpbandster", reason="TuneBOHB needs hpbandster")
    pytest.importorskip("ConfigSpace", reason="TuneBOHB needs ConfigSpace")
    if tuple(map(int, ray.__version__.split(".")[:2])) < (2, 60):
        pytest.skip("TuneBOHB before Ray 2.60 needs an older ConfigSpace")
    return TuneBOHB(seed=1)


SEARCHES = [optuna_search, hyperopt_search, bohb_search]


def score_of(config: dict[str, Any]) -> float:
    return "abc".find(str(config["source"])) - 10 * (config.get("lr", 0) - 0.3) ** 2


def search(
    searcher: Searcher,
    n: int,
    space: dict[str, Any] | None = None,
    at_once: int = 1,
    start: int = 0,
    score: Callable[[dict[str, Any]], float] = score_of,
    mode: str = "max",
) -> list[dict[str, Any]]:
    """Do what Tune does with a searcher: ask, tell every result, complete; some trials at once."""
    space = SPACE if space is None else space
    if not start:
        assert searcher.set_search_properties("score", mode, space, num_samples=n)
    running: list[tuple[str, dict[str, Any]]] = []
    made: list[dict[str, Any]] = []
    constants = {k: v for k, v in flatten_dict(space).items() if isinstance(v, (str, int))}
    while len(made) < n or running:
        while len(made) < n and len(running) < at_once:
            trial_id = f"trial{start + len(made)}"
            config = searcher.suggest(trial_id)
            if not isinstance(config, dict):
                assert config is None
                break
            made.append(constants | flatten_dict(config))
            running.append((trial_id, made[-1]))
        trial_id, config = running.pop(0)
        result = {"score": score(config), "training_iteration": 1, "time_total_s": 2.0}
        result["hyperband_info"] = {"budget": 1}
        searcher.on_trial_result(trial_id, result)
        searcher.on_trial_complete(trial_id, result)
    return made


def pairs_of(configs: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    return [(config["source"], config["target"]) for config in configs]


@pytest.mark.parametrize("inner", SEARCHES)
def test_every_trial_has_a_kept_pair_and_every_rejected_one_is_counted(
    inner: Callable[[], Searcher],
) -> None:
    searcher = TransferSearcher(inner(), ONLY_A_HELPS)
    assert set(pairs_of(search(searcher, 25))) <= KEPT
    assert searcher.rejected == sum(searcher.eliminated_pairs.values()) > 0
    assert set(searcher.eliminated_pairs) <= set(PAIRS) - KEPT
    assert all(type(task) is str for pair in searcher.eliminated_pairs for task in pair)


@given(
    eliminated=st.sets(st.sampled_from(PAIRS), max_size=5),
    fraction=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None)
def test_decisions_are_those_of_the_rule_and_of_the_audit(
    eliminated: set[tuple[str, str]], fraction: float, seed: int
) -> None:
    rule = EliminationRule({p: Decision(p in eliminated, 0.5, 0.5, "") for p in PAIRS}, {})
    # Random search asks the same whatever it is told, so that all of its asks are known.
    asked = pairs_of(search(OptunaSearch(sampler=RandomSampler(seed)), 30))
    # As trial, pair and mark of an audit, with every suggestion's own draw.
    kept: list[tuple[Any, str]] = []
    marks: list[str | None] = []
    dropped: list[tuple[Any, str]] = []
    gone: Counter[tuple[Any, str]] = Counter()
    redirected: Counter[tuple[Any, str]] = Counter()
    told: list[TrialRecord] = []
    for pair in asked:
        name = f"trial{len(kept)}" + (f"-{len(dropped)}" if dropped else "")
        if pair in eliminated and not is_audited(fraction, "", name, *pair):
            dropped.append(pair)
            continue
        kept.append(pair)
        redirected.update(dropped[:1])
        marks.append(rule.fingerprint if pair in eliminated else None)
        gone.update(dropped)
        dropped = []
    tracker = SimpleNamespace(record=told.append)
    searcher = TransferSearcher(
        OptunaSearch(sampler=RandomSampler(seed)), rule, audit_fraction=fraction, tracker=tracker
    )
    made = search(searcher, len(kept))
    assert pairs_of(made) == kept
    assert searcher.redirected_pairs == redirected
    assert Counter((r.source, r.target) for r in told) == redirected
    assert [config.get(AUDIT) for config in made] == marks
    assert searcher.eliminated_pairs == gone


@pytest.mark.parametrize("inner", SEARCHES)
@pytest.mark.parametrize(
    "nest",
    [
        lambda inner, rule: ConcurrencyLimiter(TransferSearcher(inner, rule), 2),
        lambda inner, rule: TransferSearcher(ConcurrencyLimiter(inner, 2), rule),
        lambda inner, rule: ConcurrencyLimiter(TransferSearcher(inner, rule), 2, batch=True),
        lambda inner, rule: TransferSearcher(ConcurrencyLimiter(inner, 2, batch=True), rule),
    ],
    ids=["limiter outside", "limiter inside", "batches outside", "batches inside"],
)
def test_a_limit_of_trials_at_once_counts_trials_and_not_asks(
    inner: Callable[[], Searcher], nest: Callable[[Searcher, Any], Searcher]
) -> None:
    made = search(nest(inner(), ONLY_A_HELPS), 16, at_once=4)
    assert len(made) == 16
    assert set(pairs_of(made)) <= KEPT


@pytest.mark.parametrize("inside", [False, True])
def test_repeated_trials_repeat_kept_pairs(inside: bool) -> None:
    inner = optuna_search()
    if inside:
        searcher: Searcher = TransferSearcher(Repeater(inner, 3, set_index=False), ONLY_A_HELPS)
    else:
        searcher = Repeater(TransferSearcher(inner, ONLY_A_HELPS), 3, set_index=False)
    with warnings.catch_warnings():
        # Of a group without a score numpy takes a mean.
        warnings.simplefilter("ignore", RuntimeWarning)
        made = search(searcher, 18)
    groups = [made[i : i + 3] for i in range(0, 18, 3)]
    assert all(first == second == third for first, second, third in groups)
    assert set(pairs_of(made)) <= KEPT
    complete = [t for t in inner._ot_study.trials if t.state == TrialState.COMPLETE]
    assert [t.value for t in complete] == pytest.approx([score_of(group[0]) for group in groups])


def test_optuna_hears_of_rejected_trials_that_they_failed() -> None:
    # Not TPE, which may insist on a pair until it is told a bad value.
    inner = OptunaSearch(sampler=RandomSampler(seed=1))
    searcher = TransferSearcher(inner, ONLY_A_HELPS)
    made = search(searcher, 20, score=lambda config: config["lr"])
    states = Counter(trial.state for trial in inner._ot_study.trials)
    assert states == {TrialState.COMPLETE: 20, TrialState.FAIL: searcher.rejected}
    complete = [t for t in inner._ot_study.trials if t.state == TrialState.COMPLETE]
    assert [t.value for t in complete] == [config["lr"] for config in made]
    assert [t.params for t in complete] == made


def test_a_sampler_that_insists_on_an_eliminated_pair_is_brought_off_it() -> None:
    pytest.importorskip("torch", reason="GPSampler needs torch")
    inner = OptunaSearch(sampler=GPSampler(seed=1, n_startup_trials=6))
    searcher = TransferSearcher(inner, ONLY_A_HELPS, max_resamples=60)
    # Of what trains, nothing is better than the baselines of b and c: the model expects the pairs
    # of b and c to be as good.
    made = search(
        searcher, 12, score=lambda config: score_of(config) - 5 * (config["source"] == "a")
    )
    assert set(pairs_of(made)) <= KEPT
    told = [t.value for t in inner._ot_study.trials if t.state == TrialState.COMPLETE]
    assert len(told) > 12


def test_what_a_user_fixed_in_the_space_is_part_of_the_pair() -> None:
    space = {"init": {"source": tune.choice(TASKS), "lr": tune.uniform(0, 1)}, "target": "b"}
    for inner in (optuna_search, hyperopt_search):
        searcher = TransferSearcher(inner(), ONLY_A_HELPS, source_param="init/source")
        made = search(searcher, 12, space, score=lambda config: config["init/lr"])
        assert {config["init/source"] for config in made} == {"a", "b"}
        assert set(searcher.eliminated_pairs) == {("c", "b")}
    named = TransferSearcher(optuna_search(), ONLY_A_HELPS, target="c")
    made = search(named, 12, {"source": tune.choice(TASKS)})
    assert {config["source"] for config in made} == {"a", "c"}


def test_a_space_that_branches_is_searched_as_it_is() -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        if trial.suggest_categorical("target", ["b", "c"]) == "b":
            return {"source": trial.suggest_categorical("source of b", ["a", "b", "c"])}
        return {"source": trial.suggest_categorical("source of c", ["b", "c"])}

    inner = OptunaSearch(space=space, metric="score", mode="max", sampler=RandomSampler(1))
    searcher = TransferSearcher(inner, ONLY_A_HELPS)
    assert not searcher.set_search_properties(None, None, {"fixed": 1})
    made = [searcher.suggest(str(i)) for i in range(30)]
    assert set(pairs_of(made)) == {("a", "b"), ("b", "b"), ("c", "c")}


def test_the_search_ends_with_a_warning_where_nothing_is_kept() -> None:
    kept = {("a", "b"): Decision(False, 0.5, 0.5, "")}
    nothing = EliminationRule(kept | {(s, "d"): Decision(True, 0.5, 0.5, "") for s in TASKS}, {})
    searcher = TransferSearcher(optuna_search(), nothing, max_resamples=7)
    searcher.set_search_properties("score", "max", {**SPACE, "target": tune.choice(["d"])})
    with pytest.warns(TransferPrunerWarning, match="the last 7 pairs that OptunaSearch suggested"):
        assert searcher.suggest("one") == Searcher.FINISHED
    assert searcher.rejected == 7


@pytest.mark.parametrize("inner", SEARCHES)
@pytest.mark.parametrize("through", ["a file", "a folder", "Tune's state"])
def test_a_saved_search_goes_on_as_it_would_have(
    inner: Callable[[], Searcher], through: str, tmp_path: Path
) -> None:
    first = TransferSearcher(inner(), ONLY_A_HELPS)
    search(first, 12)
    first.suggest("running")
    second = TransferSearcher(inner(), ONLY_A_HELPS)
    second.set_search_properties("score", "max", SPACE)
    if through == "a file":
        first.save(str(tmp_path / "saved"))
        second.restore(str(tmp_path / "saved"))
    elif through == "a folder":
        first.save_to_dir(str(tmp_path))
        second.restore_from_dir(str(tmp_path))
    else:
        # The searcher and its wrapper are saved apart.
        first.searcher.save(str(tmp_path / "saved"))
        second.searcher.restore(str(tmp_path / "saved"))
        second.set_state(first.get_state())
    assert second.eliminated_pairs == first.eliminated_pairs
    result = {"score": 1.0, "training_iteration": 1}
    for searcher in (first, second):
        # Under whichever of its names the inner searcher knows it.
        searcher.on_trial_result("running", result)
        searcher.on_trial_complete("running", result)
    if inner is not bohb_search:
        # BOHB draws from numpy's global generator.
        assert search(second, 5, start=13) == search(first, 5, start=13)
    assert second.get_state().keys() == first.get_state().keys()


SIX = ["a", "b", "c", "d", "e", "f"]
SIX_SPACE = {
    "source": tune.choice([None, *SIX]),
    "target": tune.choice(SIX),
    "size": tune.choice([(1, 2), (3, 4)]),
}


def learning_rule() -> LearningRule:
    return LearningRule(TransferPredictor(), refit_every=20, pairs=ordered_pairs(SIX))


def error_of(config: dict[str, Any]) -> float:
    """An error that transfer from a and b halves, and from the others doubles."""
    source, target = config["source"], config["target"]
    if source in (None, target):
        return 1.0
    return 0.5 if source in ("a", "b") else 2.0 + SIX.index(target) / 100


def random_search(seed: int = 1) -> Searcher:
    return OptunaSearch(sampler=RandomSampler(seed))


def test_a_rule_that_learns_eliminates_what_did_not_help(tmp_path: Path) -> None:
    searcher = TransferSearcher(random_search(), learning_rule())
    first = search(searcher, 60, SIX_SPACE, score=error_of, mode="min")
    assert len({source for source, _ in pairs_of(first)}) == 7
    later = search(searcher, 40, SIX_SPACE, score=error_of, mode="min", start=60)
    assert searcher.rejected
    bad = [s for s, t in pairs_of(later) if s not in (None, "a", "b", t)]
    assert len(bad) < sum(s not in (None, "a", "b", t) for s, t in pairs_of(first[20:])) / 2

    # All of it is a function of what is saved, and that is plain data.
    searcher.save(str(tmp_path / "saved"))
    again = TransferSearcher(random_search(), learning_rule())
    again.set_search_properties("score", "min", SIX_SPACE)
    again.restore(str(tmp_path / "saved"))
    assert search(again, 20, SIX_SPACE, score=error_of, mode="min", start=100) == search(
        searcher, 20, SIX_SPACE, score=error_of, mode="min", start=100
    )
    assert again.eliminated_pairs == searcher.eliminated_pairs
    json.loads((tmp_path / "saved.transfer.json").read_text())


def test_a_rule_that_learns_goes_on_by_attributions_without_baseline_trials() -> None:
    space = {"source": tune.choice(["a", "b"]), "target": tune.choice(["c", "d"])}
    searcher = TransferSearcher(random_search(), learning_rule())
    with pytest.warns(TransferPrunerWarning, match="learnt nothing from 20 finished trials"):
        assert len(search(searcher, 30, space, score=error_of, mode="min")) == 30
    assert not searcher.rejected


def test_warnings_that_are_errors_do_not_end_the_search() -> None:
    space = {"source": tune.choice(["a", "b"]), "target": tune.choice(["c", "d", "unknown"])}
    searcher = TransferSearcher(random_search(), learning_rule())
    with warnings.catch_warnings():
        warnings.simplefilter("error", TransferPrunerWarning)
        assert len(search(searcher, 45, space, score=error_of, mode="min")) == 45


def test_failed_trials_and_those_without_a_score_teach_nothing() -> None:
    searcher = TransferSearcher(random_search(), learning_rule())
    searcher.set_search_properties("score", "max", SIX_SPACE)
    for i in range(40):
        searcher.suggest(str(i))
        if i % 2:
            searcher.on_trial_complete(str(i), error=True)
        else:
            searcher.on_trial_complete(str(i), {"score": math.nan})
    assert searcher.get_state()["running"] == {}
    assert searcher.get_state()["records"] == []


class FailingRule(EliminationRule):
    def decide(self, source: Any, target: Any) -> Decision:
        raise OSError("the disk is gone")


def test_a_rule_that_fails_keeps_every_suggestion_and_is_told_once() -> None:
    searcher = TransferSearcher(random_search(), FailingRule({}, {}))
    with pytest.warns(TransferPrunerWarning, match="the rule failed and the trial is") as caught:
        assert len(search(searcher, 12)) == 12
    assert len(caught) == 1


def test_a_parameter_of_each_branch_names_the_source() -> None:
    space = {
        "target": tune.choice(["b", "c"]),
        "source_b": tune.choice(TASKS),
        "source_c": tune.choice(TASKS),
        "fixed": "a",
    }
    searcher = TransferSearcher(random_search(), ONLY_A_HELPS, source_param="source_{target}")
    made = search(searcher, 12, space, score=lambda config: 0.0)
    assert {(c[f"source_{c['target']}"], c["target"]) for c in made} <= KEPT
    # A constant, which algorithms leave out, is there for a function that reads it.
    fixed = TransferSearcher(random_search(), ONLY_A_HELPS, source_param=lambda p: p["fixed"])
    assert len(search(fixed, 4, space, score=lambda config: 0.0)) == 4
    assert not fixed.rejected


def test_bad_settings_are_refused_with_advice() -> None:
    for wrong in ("rule/", None, TransferPredictor(), optuna_search()):
        with pytest.raises(ValueError, match="rule must be an EliminationRule"):
            TransferSearcher(optuna_search(), wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="searcher must be one of Tune's search algorithms"):
        TransferSearcher(ONLY_A_HELPS, optuna_search())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use TransferVariantGenerator or filter_param_space"):
        TransferSearcher(tune.search.BasicVariantGenerator(), ONLY_A_HELPS)
    with pytest.raises(ValueError, match="max_resamples must be at least 1 but got 0"):
        TransferSearcher(optuna_search(), ONLY_A_HELPS, max_resamples=0)
    with pytest.raises(ValueError, match="audit_fraction must be from 0 to 1 but got 2"):
        TransferSearcher(optuna_search(), ONLY_A_HELPS, audit_fraction=2)
    several = OptunaSearch(
        space={"source": optuna.distributions.CategoricalDistribution(["a"])},
        metric=["score", "time"],
        mode=["max", "min"],
    )
    with pytest.raises(ValueError, match="needs one score to learn from"):
        TransferSearcher(several, learning_rule()).suggest("one")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train_pair() -> type[tune.Trainable]:
    """Make the trainable anew, so that workers get it whole: they cannot import this module."""

    class TrainPair(tune.Trainable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            score = "abc".find(self.config["source"]) - 10 * (self.config["lr"] - 0.3) ** 2
            return {"score": score, "done": self.iteration >= 8}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    return TrainPair


class Interrupt(tune.Callback):
    """Press Ctrl-C when so many trials have finished, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.left = 4

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGINT)


def trained(results: tune.ResultGrid) -> list[dict[str, Any]]:
    assert not results.errors
    return [result.metrics["config"] for result in results if "score" in (result.metrics or {})]


def test_a_restored_run_completes_its_number_of_trials(cluster: None, tmp_path: Path) -> None:
    trainable = train_pair()
    # A constant of the space, which is not passed again.
    space = {**SPACE, "target": "b"}
    interrupted = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=8,
            max_concurrent_trials=2,
            search_alg=TransferSearcher(optuna_search(), ONLY_A_HELPS),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[Interrupt(tmp_path / "interrupted")],
        ),
    ).fit()
    before = trained(interrupted)
    assert 4 <= len(before) < 8
    tuner = tune.Tuner.restore(str(tmp_path / "run"), trainable)
    configs = trained(tuner.fit())
    assert len(configs) == 8
    assert {config["source"] for config in configs} == {"a", "b"}
    searcher = tuner._local_tuner._tune_config.search_alg
    assert set(searcher.eliminated_pairs) == {("c", "b")}
    finished = [t for t in searcher.searcher._ot_study.trials if t.state == TrialState.COMPLETE]
    assert len(finished) == 8
    assert {config["lr"] for config in configs} == {t.params["lr"] for t in finished}


def test_bohb_pauses_and_goes_on_under_its_own_names(cluster: None, tmp_path: Path) -> None:
    bohb = bohb_search()
    results = tune.Tuner(
        train_pair(),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=6,
            max_concurrent_trials=2,
            search_alg=TransferSearcher(bohb, ONLY_A_HELPS),
            scheduler=HyperBandForBOHB(max_t=8, reduction_factor=2),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    configs = trained(results)
    assert len(configs) == 6
    assert set(pairs_of(configs)) <= KEPT
