"""A filtered search space is the old one without the eliminated pairs, and nothing else changes."""

from __future__ import annotations

import copy
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0"

import ray
from ray import tune
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.variant_generator import generate_variants
from ray.tune.utils import flatten_dict

from transfer_pruner import LearningRule, PairParams, TransferPredictor, TransferPrunerWarning
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner.rule.verdict import is_audited
from transfer_pruner_ray.marks import split_audit
from transfer_pruner_ray.space import eliminated_pairs, filter_param_space

NEWEST = tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 60)
TASKS = ["a", "b", "c", "d"]
PAIRS = list(ordered_pairs(TASKS).itertuples(index=False, name=None))


def rule_without(*eliminated: tuple[str, str]) -> EliminationRule:
    """Eliminate these pairs of the four tasks, and keep the others."""
    return EliminationRule({p: Decision(p in eliminated, 0.5, 0.5, "as told") for p in PAIRS}, {})


RULE = rule_without(("a", "b"), ("c", "b"), ("a", "c"), ("d", "c"), ("b", "d"))
HALF = {"source": "a", "target": tune.grid_search(["b", "c", "d"])}


def expanded(
    space: dict[str, Any], samples: int = 1, constant: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """List the configurations that Tune makes of a space."""
    rng = np.random.RandomState(seed)
    return [
        flatten_dict(spec["config"])
        for _ in range(samples)
        for _, spec in generate_variants({"config": space}, constant, random_state=rng)
    ]


def counted(configs: list[dict[str, Any]]) -> Counter[str]:
    return Counter(repr(sorted(config.items())) for config in configs)


def unmarked(
    configs: list[dict[str, Any]], rule: EliminationRule, pair_of: PairParams
) -> list[dict[str, Any]]:
    """Take the audits' marks out, which stand where they have to and nowhere else."""
    found = []
    for config in configs:
        params, audit_of = split_audit(config)
        eliminated = rule.decide(*pair_of(params)).eliminated
        assert audit_of == (rule.fingerprint if eliminated else "")
        found.append(params)
    return found


def kept(
    configs: list[dict[str, Any]], rule: EliminationRule, pair_of: PairParams, audit: float = 0.0
) -> list[dict[str, Any]]:
    """Filter finished configurations, one by one."""

    def keeps(config: dict[str, Any]) -> bool:
        source, target = pair_of(config)
        eliminated = rule.decide(source, target).eliminated
        return not eliminated or is_audited(audit, "grid", "", source, target)

    return [config for config in configs if not pair_of.is_in(config) or keeps(config)]


SOURCES = st.lists(
    st.one_of(
        st.sampled_from([None, *TASKS]),
        st.lists(st.sampled_from(TASKS), min_size=1, max_size=3),
        st.lists(st.sampled_from(TASKS), min_size=1, max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=6,
)
TARGETS = st.lists(st.sampled_from(TASKS), min_size=1, max_size=4)
RULES = st.lists(st.sampled_from(PAIRS)).map(lambda eliminated: rule_without(*eliminated))


@pytest.mark.filterwarnings("ignore:the rule eliminates every pair")
@given(
    sources=SOURCES,
    targets=TARGETS,
    rule=RULES,
    others=st.integers(1, 3),
    samples=st.integers(1, 2),
    # Before Ray 2.60 all variants share the last value of the grid then.
    constant=st.booleans() if NEWEST else st.just(False),
    audit=st.sampled_from([0.0, 0.5]),
    nested=st.sampled_from(["no", "both", "source"]),
    target_first=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_grid_keeps_exactly_the_variants_whose_pair_is_kept(
    sources: list[Any],
    targets: list[str],
    rule: EliminationRule,
    others: int,
    samples: int,
    constant: bool,
    audit: float,
    nested: str,
    target_first: bool,
) -> None:
    source = {"source": tune.grid_search(sources)}
    target = {"target": tune.grid_search(targets)}
    seeds = {"seed": tune.grid_search(list(range(others))), "fixed": 3}
    names = {"source_param": "source", "target_param": "target"}
    if nested == "source":
        source = {"init": source}
        names["source_param"] = "init/source"
    space = {**target, **source, **seeds} if target_first else {**source, **target, **seeds}
    if nested == "both":
        space = {"train_loop_config": space, "batch": tune.grid_search([8, 16])}
        names = {name: f"train_loop_config/{where}" for name, where in names.items()}
    expected = kept(expanded(space, samples), rule, PairParams(**names), audit)
    settings: Any = {**names, "audit_fraction": audit, "search_name": "grid"}
    if not expected:
        with pytest.raises(ValueError, match="no pair left"):
            filter_param_space(space, rule, **settings)
        return
    filtered = filter_param_space(space, rule, **settings)
    made = unmarked(expanded(filtered, samples, constant), rule, PairParams(**names))
    assert counted(made) == counted(expected)
    # Once more: what was made of it is no longer the same object as the space.
    again = filter_param_space(space, rule, **settings)
    assert counted(expanded(again)) == counted(expanded(filtered))


@pytest.mark.filterwarnings("ignore:the rule eliminates every pair")
@given(rule=RULES, fixed=st.sampled_from(TASKS), by_name=st.booleans(), sources=SOURCES)
@settings(max_examples=50, deadline=None)
def test_a_search_over_sources_only_stays_a_plain_grid(
    rule: EliminationRule, fixed: str, by_name: bool, sources: list[Any]
) -> None:
    space = {"source": tune.grid_search([None, *sources]), "lr": tune.grid_search([1, 2])}
    target = fixed if by_name else None
    if not by_name:
        space["target"] = fixed
    filtered = filter_param_space(space, rule, target=target)
    assert list(filtered["source"]) == ["grid_search"]
    expected = kept(expanded(space), rule, PairParams(target=target))
    assert counted(expanded(filtered)) == counted(expected)


@pytest.mark.skipif(not NEWEST, reason="Ray before 2.60 makes no variants of such a space itself")
@pytest.mark.parametrize("kind", [tune.grid_search, tune.choice])
@pytest.mark.parametrize(
    "pairs",
    [
        [{"source": s, "target": t, "lr": 1} for s, t in PAIRS],
        [{"source": s, "target": tune.grid_search(TASKS)} for s in [None, *TASKS]],
        [HALF, {"source": tune.grid_search(["c", "d"]), "target": tune.grid_search(TASKS)}],
        [{"source": "a", "target": "b"}, HALF, "no pair at all"],
    ],
    ids=["constants", "conditional", "two conditional grids", "mixed"],
)
def test_spaces_between_which_a_grid_or_a_choice_stands_are_filtered_inside(
    kind: Callable[[list[Any]], Any], pairs: list[Any]
) -> None:
    names = {"source_param": "pair/source", "target_param": "pair/target"}
    space = {"pair": kind(pairs), "seed": tune.grid_search([1, 2])}
    filtered = filter_param_space(space, RULE, **names)
    samples = 1 if kind is tune.grid_search else 200
    was, now = (expanded(s, samples) for s in (space, filtered))
    expected = counted(kept(was, RULE, PairParams(**names)))
    if kind is tune.grid_search:
        assert counted(now) == expected
    else:
        # Drawn, and the first draws choose between fewer spaces: the same ones come up.
        assert set(counted(now)) == set(expected)


# Of b, a is the best source and then c; of c it is a, and b is eliminated. d is not known.
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
@pytest.mark.parametrize("audit", [0.0, 1.0])
def test_what_is_left_of_a_grid_is_best_first(audit: float) -> None:
    space = {
        "source": tune.grid_search(["b", "d", "c", "a"]),
        "target": tune.grid_search(["b", "c"]),
        "lr": tune.grid_search([0.1, 0.2]),
    }
    made = expanded(filter_param_space(space, ORDERED, audit_fraction=audit))
    pairs = list(dict.fromkeys((config["source"], config["target"]) for config in made))
    assert set(pairs[:2]) == {("b", "b"), ("c", "c")}
    assert set(pairs[2:4]) == {("a", "b"), ("a", "c")}
    assert pairs[4] == ("c", "b")
    assert set(pairs[5:7]) == {("d", "b"), ("d", "c")}
    # An audit has no place in the order.
    assert pairs[7:] == ([("b", "c")] if audit else [])
    # lr comes before source in the alphabet: every pair has all of its values in a row.
    assert [config["lr"] for config in made] == [0.1, 0.2] * len(pairs)


@pytest.mark.filterwarnings("ignore:the rule does not know the pair")
def test_grids_of_sources_and_of_spaces_are_best_first_and_choices_are_left() -> None:
    sources = {"source": tune.grid_search(["d", "c", None, "a"]), "target": "b"}
    made = expanded(filter_param_space(sources, ORDERED))
    assert [config["source"] for config in made] == [None, "a", "c", "d"]
    spaces = [{"source": "c", "target": "b"}, {"source": "a", "target": tune.grid_search(["c"])}]
    names = {"source_param": "pair/source", "target_param": "pair/target"}
    filtered = filter_param_space({"pair": tune.grid_search(spaces)}, ORDERED, **names)
    assert [pair["source"] for pair in filtered["pair"]["grid_search"]] == ["a", "c"]
    filtered = filter_param_space({"pair": tune.choice(spaces)}, ORDERED, **names)
    assert [pair["source"] for pair in filtered["pair"].categories] == ["c", "a"]
    # A rule without an order changes none.
    made = expanded(filter_param_space(sources, rule_without()))
    assert [config["source"] for config in made] == ["d", "c", None, "a"]


def test_two_choices_draw_uniformly_from_the_kept_pairs() -> None:
    space = {
        "source": tune.choice([None, *TASKS, "b"]),
        "target": tune.choice(TASKS),
        "lr": tune.uniform(0, 1),
    }
    n = 3000
    drawn = expanded(filter_param_space(space, RULE), n)
    pairs = Counter((config["source"], config["target"]) for config in drawn)
    alive = [(s, t) for s in [None, *TASKS, "b"] for t in TASKS if not RULE.decide(s, t).eliminated]
    assert set(pairs) == set(alive)
    expected = {pair: n * share / len(alive) for pair, share in Counter(alive).items()}
    chi_square = sum((pairs[p] - e) ** 2 / e for p, e in expected.items())
    # Seeded; its mean is the number of pairs less one, and 45 is its 99.9% quantile for 20.
    assert chi_square < 45
    assert len({config["lr"] for config in drawn}) == n


@pytest.mark.parametrize("grid", ["source", "target"])
def test_of_a_choice_within_a_grid_each_draws_what_is_kept_of_it(grid: str) -> None:
    values = {"source": TASKS, "target": ["b", "c", "d"]}
    space = {
        name: tune.grid_search(tasks) if name == grid else tune.choice(tasks)
        for name, tasks in values.items()
    }
    rule = rule_without(("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("d", "c"))
    drawn = expanded(filter_param_space(space, rule), 300)
    points = [x for x in values[grid] if grid == "target" or x != "a"]
    assert Counter(config[grid] for config in drawn) == dict.fromkeys(points, 300)
    alive = {(s, t) for s in TASKS for t in values["target"] if not rule.decide(s, t).eliminated}
    assert {(config["source"], config["target"]) for config in drawn} == alive


def test_other_parameters_are_drawn_anew_for_every_pair_unless_they_are_held_constant() -> None:
    space = {
        "lr": tune.uniform(0, 1),
        "source": tune.grid_search([None, *TASKS]),
        "target": tune.grid_search(TASKS),
        "double": tune.sample_from(lambda spec: 2 * spec.config.lr),
    }
    filtered = filter_param_space(space, RULE)
    drawn = expanded(filtered)
    assert len({config["lr"] for config in drawn}) == len(drawn) == 20 - 5
    assert all(config["double"] == 2 * config["lr"] for config in drawn)
    if NEWEST:
        assert len({config["lr"] for config in expanded(filtered, constant=True)}) == 1


@pytest.mark.filterwarnings("ignore:the rule eliminates every pair")
@given(rule=RULES, choose=st.sets(st.sampled_from(["one", "two", "target"]), max_size=2))
@settings(max_examples=25, deadline=None)
def test_joint_transfer_from_several_parameters_is_filtered_as_a_whole(
    rule: EliminationRule, choose: set[str]
) -> None:
    values = {"one": [None, "a", "b"], "two": [None, "c"], "target": ["a", "c", "d"]}
    space = {
        name: tune.choice(tasks) if name in choose else tune.grid_search(tasks)
        for name, tasks in values.items()
    }
    pair_of = PairParams(("one", "two"))
    filtered = filter_param_space(space, rule, source_param=("one", "two"))
    whole = {name: tune.grid_search(tasks) for name, tasks in values.items()}
    expected = set(counted(kept(expanded(whole), rule, pair_of)))
    drawn = counted(expanded(filtered, 100 if choose else 1))
    assert set(drawn) <= expected
    if not choose:
        assert drawn == counted(kept(expanded(whole), rule, pair_of))
    elif choose == {"one", "two"}:
        assert set(drawn) == expected


def test_what_is_removed_can_be_asked_for() -> None:
    space = {"source": tune.grid_search(["a", "a", ["a", "d"], None]), "target": "b"}
    assert eliminated_pairs(space, RULE) == {("a", "b"): 2, (("a", "d"), "b"): 1}
    assert eliminated_pairs(space, rule_without()) == {}
    assert eliminated_pairs({"source": "a", "target": "b"}, RULE) == {("a", "b"): 1}
    assert not eliminated_pairs(space, RULE, audit_fraction=1.0)


def test_the_users_space_is_left_as_it_was() -> None:
    target, source = tune.grid_search(TASKS), tune.choice([None, *TASKS])
    space = {"nested": {"source": source, "target": target, "lr": tune.uniform(0, 1)}}
    filtered = filter_param_space(
        space, RULE, source_param="nested/source", target_param="nested/target"
    )
    expanded(filtered)
    assert space["nested"]["target"] is target
    assert target == {"grid_search": TASKS}
    assert source.categories == [None, *TASKS]
    assert filtered["nested"]["lr"] is space["nested"]["lr"]
    assert list(filtered["nested"]) == list(space["nested"])


@pytest.mark.parametrize(
    ("space", "settings", "complaint"),
    [
        ({"source": "a"}, {}, r"space lacks 'source' and 'target'; it has: source\."),
        ({"x": {"source": "a", "target": "b"}}, {}, "it has: x/source, x/target"),
        ({"source": tune.sample_from(lambda: "a"), "target": "b"}, {}, "TransferScheduler"),
        ({"source": tune.grid_search([tune.choice(["a"])]), "target": "b"}, {}, "plain values"),
        ({"source": "a", "target": tune.choice([tune.choice(["b"])])}, {}, "plain values"),
        ({"source": ["a", tune.grid_search(["b"])], "target": "c"}, {}, "plain values"),
        (
            {"s": tune.grid_search([{"source": "a"}]), "target": "b"},
            {"source_param": "s/source"},
            "TransferVariantGenerator",
        ),
        ({"source": "a", "target": "b"}, {}, "no pair left: the rule eliminates all 1"),
        ({"source": None, "target": "b"}, {"audit_fraction": 2}, "audit_fraction must be from 0"),
        ([("source", "a")], {}, "space must be a dict"),
    ],
)
def test_what_cannot_be_filtered_is_refused_with_advice(
    space: Any, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        filter_param_space(space, RULE, **settings)


@pytest.mark.parametrize("source_param", ["source_*", "source_{target}", lambda params: "a"])
def test_where_the_source_is_known_of_a_trial_only_nothing_can_be_filtered(
    source_param: Any,
) -> None:
    space = {"source_b": tune.grid_search(TASKS), "target": "b"}
    with pytest.raises(ValueError, match="source_param must name parameters here but got"):
        filter_param_space(space, RULE, source_param=source_param)


@pytest.mark.parametrize("wrong", ["rule/", None, TransferPredictor(), {"source": "a"}])
def test_what_is_no_rule_is_refused_swapped_arguments_too(wrong: Any) -> None:
    for arguments in (({"source": "a", "target": "b"}, wrong), (RULE, {"source": "a"})):
        with pytest.raises(ValueError, match="rule must be an EliminationRule"):
            filter_param_space(*arguments)


class FailingRule(EliminationRule):
    def decide(self, source: Any, target: Any) -> Decision:
        raise OSError("the disk is gone")


def test_a_rule_that_fails_leaves_the_space_whole_and_is_told() -> None:
    space = {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS)}
    with pytest.warns(TransferPrunerWarning, match="the rule failed and the trial is kept"):
        filtered = filter_param_space(space, FailingRule({}, {}))
    assert counted(expanded(filtered)) == counted(expanded(space))


def test_tasks_of_numpy_and_of_an_enum_are_named_as_the_rule_names_them() -> None:
    class Task(Enum):
        B = "b"

    decisions = {(s, "b"): Decision(s == "1", 0.5, 0.5, "") for s in ("1", "2")}
    rule = EliminationRule(decisions, {})
    sources = [None, np.int64(1), np.str_("b")]
    filtered = filter_param_space({"source": tune.grid_search(sources), "target": Task.B}, rule)
    assert expanded(filtered) == [{"source": s, "target": Task.B} for s in (None, "b")]


def test_a_rule_that_learns_is_refused_since_a_space_is_filtered_once() -> None:
    rule = LearningRule(TransferPredictor(), pairs=ordered_pairs(TASKS))
    with pytest.raises(ValueError, match=r"pass rule.refitted\(\)"):
        filter_param_space({"source": "a", "target": "b"}, rule)  # type: ignore[arg-type]


def test_a_pair_that_the_rule_does_not_know_stays_in() -> None:
    space = {"source": tune.grid_search(["a", "z"]), "target": tune.grid_search(["b"])}
    with pytest.warns(TransferPrunerWarning, match="does not know the pair 'z' -> 'b'"):
        filtered = filter_param_space(space, RULE)
    assert expanded(filtered) == [{"source": "z", "target": "b"}]


def test_the_driver_pays_for_the_pairs_that_are_left() -> None:
    tasks = [f"task-{i}" for i in range(100)]
    kept_of = {(s, t): i % 20 == 0 for i, (s, t) in enumerate((s, t) for s in tasks for t in tasks)}
    rule = EliminationRule({p: Decision(not k, 0.5, 0.5, "") for p, k in kept_of.items()}, {})
    space = {
        "source": tune.grid_search(tasks),
        "target": tune.grid_search(tasks),
        "lr": tune.uniform(0, 1),
    }
    filtered = filter_param_space(space, rule)
    assert len(expanded(filtered)) == sum(k or s == t for (s, t), k in kept_of.items())
    # Tune copies the space for every trial: what it copies does not grow with the pairs.
    copied = copy.deepcopy(filtered)
    assert copied["source"] is filtered["source"]
    assert copied["target"] is filtered["target"]


def test_search_algorithms_refuse_a_filtered_space_and_name_what_to_use() -> None:
    optuna_search = pytest.importorskip("ray.tune.search.optuna").OptunaSearch(
        metric="score", mode="max"
    )
    two_choices = {"source": tune.choice([None, *TASKS]), "target": tune.choice(TASKS)}
    with pytest.raises(ValueError, match="TransferSearcher"):
        optuna_search.set_search_properties("score", "max", filter_param_space(two_choices, RULE))
    # A single choice is as good as any.
    one_choice = filter_param_space({"source": tune.choice([None, *TASKS])}, RULE, target="b")
    assert optuna_search.set_search_properties("score", "max", one_choice)
    assert {optuna_search.suggest(str(i))["source"] for i in range(60)} == {None, "b", "d"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train_pair() -> Callable[[dict[str, Any]], None]:
    """Make the trainable anew, so that workers get it whole: they cannot import this module."""

    def train_pair(config: dict[str, Any]) -> None:
        tune.report({"score": 0.0, "keys": ",".join(sorted(config))})

    return train_pair


class Interrupt(tune.Callback):
    """Press Ctrl-C when so many trials have finished, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.left = 3

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGINT)


def seen(results: tune.ResultGrid) -> list[dict[str, Any]]:
    return [result.metrics["config"] for result in results if "score" in (result.metrics or {})]


@pytest.mark.parametrize("pass_space_again", [True, False])
def test_a_run_trains_the_kept_pairs_and_a_restored_one_the_rest_of_them(
    cluster: None, tmp_path: Path, pass_space_again: bool
) -> None:
    space = {
        "source": tune.grid_search([None, "a", "b"]),
        "target": tune.grid_search(["b", "c"]),
        "seed": tune.grid_search([1, 2]),
        "lr": tune.uniform(0, 1),
    }
    trainable = train_pair()
    interrupted = tune.Tuner(
        trainable,
        param_space=filter_param_space(space, RULE),
        # One at a time, so that most variants are not made yet when it stops.
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[Interrupt(tmp_path / "interrupted")],
        ),
    ).fit()
    expected = kept(expanded(space), RULE, PairParams())
    assert len(seen(interrupted)) < len(expected)
    again = {"param_space": filter_param_space(space, RULE)} if pass_space_again else {}
    results = tune.Tuner.restore(str(tmp_path / "run"), trainable, **again).fit()
    assert not results.errors
    trained = seen(results)
    assert len({config["lr"] for config in trained}) == len(expected)
    for configs in (trained, expected):
        for config in configs:
            config.pop("lr")
    assert counted(trained) == counted(expected)
    assert {result.metrics["keys"] for result in results} == {"lr,seed,source,target"}


def test_points_to_evaluate_name_the_whole_pair_or_nothing_of_it(
    cluster: None, tmp_path: Path
) -> None:
    space = {"source": tune.grid_search([None, *TASKS]), "target": tune.grid_search(TASKS)}
    filtered = filter_param_space({**space, "seed": tune.randint(5, 9)}, RULE)

    def run(*points: dict[str, Any]) -> list[dict[str, Any]]:
        generator = BasicVariantGenerator(points_to_evaluate=list(points))
        tuner = tune.Tuner(
            train_pair(),
            param_space=filtered,
            tune_config=tune.TuneConfig(search_alg=generator, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        )
        return seen(tuner.fit())

    assert [(c["source"], c["target"]) for c in run({"source": "b", "target": "a"})] == [("b", "a")]
    assert [c["seed"] for c in run({"seed": 1})] == [1] * 15
    for half in ({"source": "b"}, {"target": "a"}):
        with pytest.raises(Exception, match="Failed to evaluate expression") as error:
            run(half)
        assert "name source and target both" in str(error.value.__context__)
