"""The redirecting sampler: every trial trains a surviving pair, whoever proposes it and however."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner import (
    Decision,
    EliminationRule,
    LearningRule,
    TransferPredictor,
    TransferPrunerWarning,
    estimate_audit,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.rule.verdict import is_audited
from transfer_pruner_optuna import gate, records_from_study
from transfer_pruner_optuna.sampler import TransferSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore::FutureWarning"
)

TASKS = ["a", "b", "c", "d", "e", "f"]
Objective = Callable[[optuna.Trial], float]


def rule_keeping(kept: set[tuple[str, str]], tasks: list[str] = TASKS) -> EliminationRule:
    return EliminationRule(
        {
            (source, target): Decision((source, target) not in kept, -1.0, 0.25, "told so")
            for source in tasks
            for target in tasks
            if source != target
        },
        {"rule": "by hand"},
    )


@pytest.fixture
def rule() -> EliminationRule:
    """Six of thirty pairs are kept: a is a source for everyone, and b for a."""
    return rule_keeping({("a", target) for target in TASKS} | {("b", "a")})


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    layers = trial.suggest_int("layers", 1, 4)
    return float(TASKS.index(source) + TASKS.index(target)) + lr * layers


def target_first(trial: optuna.Trial) -> float:
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    target = trial.suggest_categorical("target", TASKS)
    return float(TASKS.index(target) - TASKS.index(trial.suggest_categorical("source", TASKS)))


def eliminated(rule: EliminationRule, trial: FrozenTrial) -> bool:
    return rule.decide(trial.params["source"], trial.params["target"]).eliminated


def of_a_package(name: str, package: str, sampler: Callable[[], BaseSampler]) -> Any:
    missing = find_spec(package) is None
    return pytest.param(
        sampler, id=name, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed")
    )


SAMPLERS = [
    pytest.param(lambda: optuna.samplers.RandomSampler(seed=1), id="random"),
    pytest.param(lambda: optuna.samplers.TPESampler(seed=1), id="TPE"),
    pytest.param(lambda: optuna.samplers.TPESampler(multivariate=False, seed=1), id="TPE alone"),
    pytest.param(
        lambda: optuna.samplers.TPESampler(multivariate=True, group=True, seed=1), id="TPE groups"
    ),
    pytest.param(lambda: optuna.samplers.QMCSampler(scramble=True, seed=1), id="QMC"),
    pytest.param(lambda: optuna.samplers.NSGAIISampler(population_size=8, seed=1), id="NSGA-II"),
    pytest.param(lambda: optuna.samplers.NSGAIIISampler(population_size=8, seed=1), id="NSGA-III"),
    of_a_package("CMA-ES", "cmaes", lambda: optuna.samplers.CmaEsSampler(seed=1)),
    of_a_package("GP", "torch", lambda: optuna.samplers.GPSampler(seed=1, n_startup_trials=8)),
]


def trials_for(sampler: BaseSampler) -> int:
    """A GP takes seconds for what the others do in milliseconds."""
    return 16 if isinstance(sampler, optuna.samplers.GPSampler) else 40


@pytest.mark.parametrize("base_sampler", SAMPLERS)
def test_every_trial_completes_with_a_surviving_pair(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    base = base_sampler()
    study = optuna.create_study(sampler=TransferSampler(rule, base, seed=0))
    study.optimize(objective, n_trials=trials_for(base))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert not any(eliminated(rule, trial) for trial in study.trials)
    assert {trial.distributions["source"] for trial in study.trials} == {
        CategoricalDistribution(TASKS)
    }
    redirected = [t for t in study.trials if "transfer_pruner.redirected" in t.user_attrs]
    assert len(redirected) > 3
    for trial in study.trials:
        assert trial.user_attrs["transfer_pruner.eliminated"] == 0


@pytest.mark.parametrize("base_sampler", SAMPLERS[:7])
def test_the_target_may_be_suggested_first(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    study = optuna.create_study(sampler=TransferSampler(rule, base_sampler(), seed=0))
    study.optimize(target_first, n_trials=40)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert not any(eliminated(rule, trial) for trial in study.trials)


def test_with_the_gate_alone_a_gp_returns_to_eliminated_pairs(rule: EliminationRule) -> None:
    pytest.importorskip("torch")
    n_trials = 30

    def search(searched: Objective, sampler: BaseSampler) -> Counter[str]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(searched, n_trials=n_trials)
        return Counter(trial.state.name for trial in study.trials)

    def gp() -> BaseSampler:
        return optuna.samplers.GPSampler(seed=0, n_startup_trials=5)

    gated = search(gate(objective, rule), gp())
    assert gated["PRUNED"] > n_trials / 2
    assert search(objective, TransferSampler(rule, gp(), seed=0)) == {"COMPLETE": n_trials}


def test_surviving_pairs_are_as_likely_as_one_another_under_random_search(
    rule: EliminationRule,
) -> None:
    # b survives as a source for a only: suggested first, it must not become rare or frequent.
    sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=0), seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=480)
    seen = Counter((t.params["source"], t.params["target"]) for t in study.trials)
    assert len(seen) == 12  # six kept pairs with another source, six baselines; a is one of both
    assert min(seen.values()) > 20
    assert max(seen.values()) < 70


class Stubborn(BaseSampler):
    """A sampler that always wants the same."""

    def __init__(self, **wanted: Any) -> None:
        self._wanted = wanted

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: Any
    ) -> Any:
        return self._wanted[param_name]


def test_the_target_that_the_base_sampler_wants_is_kept_if_a_source_survives_for_it() -> None:
    rule = rule_keeping({("a", "c"), ("d", "c"), ("b", "e")})
    sampler = TransferSampler(rule, Stubborn(source="b", target="c", lr=0.5), seed=0)
    study = optuna.create_study(sampler=sampler)
    space = {
        "source": CategoricalDistribution(TASKS),
        "target": CategoricalDistribution(TASKS),
        "lr": FloatDistribution(0, 1),
    }
    for _ in range(40):
        study.tell(study.ask(space), 0.0)
    assert {t.params["target"] for t in study.trials[1:]} == {"c"}
    assert {t.params["source"] for t in study.trials[1:]} == {"a", "c", "d"}
    assert {t.params["lr"] for t in study.trials} == {0.5}
    assert all(t.user_attrs["transfer_pruner.redirected"] == 1 for t in study.trials[1:])


def test_where_no_source_survives_for_the_target_the_source_is_kept() -> None:
    rule = rule_keeping({("b", "e"), ("a", "f")})
    sampler = TransferSampler(rule, Stubborn(source="b", target="d"), seed=0)
    study = optuna.create_study(sampler=sampler)
    space = {
        "target": CategoricalDistribution(["d", "e", "f"]),
        "source": CategoricalDistribution(["a", "b", "c"]),
    }
    for _ in range(10):
        study.tell(study.ask(space), 0.0)
    assert {(t.params["source"], t.params["target"]) for t in study.trials[1:]} == {("b", "e")}


def ordered_rule(sources: str = "bcde", kept: str = "bcd", targets: str = "af") -> EliminationRule:
    """Sources are worse from b on, and those that are not kept are eliminated."""
    return EliminationRule(
        {
            (source, target): Decision(source not in kept, -float(rank), 0.25, "told so")
            for rank, source in enumerate(sources)
            for target in targets
        },
        {"rule": "by hand"},
    )


def proposals_of(n: int, base: BaseSampler, tell: bool = True, **more: Any) -> list[FrozenTrial]:
    """Ask for trials of the target a whose source is one of a to e; the target is its baseline."""
    sampler = TransferSampler(ordered_rule(), base, **{"target": "a", "seed": 0, **more})
    study = optuna.create_study(sampler=sampler)
    for _ in range(n):
        trial = study.ask()
        trial.suggest_categorical("source", ["a", "b", "c", "d", "e"])
        trial.suggest_int("layers", 1, 2)
        if tell:
            study.tell(trial, 0.0)
    return study.get_trials()


def test_an_eliminated_proposal_gives_way_to_the_best_surviving_pair_tried_least() -> None:
    trials = proposals_of(7, Stubborn(source="e", layers=1))
    # All at one setting: every pair once, then those that were tried least again.
    assert [t.params["source"] for t in trials] == ["a", "b", "c", "d", "b", "c", "d"]
    assert {t.params["layers"] for t in trials} == {1}
    assert all(t.user_attrs["transfer_pruner.redirected"] == 1 for t in trials)
    assert {t.user_attrs["transfer_pruner.proposed"]["source"] for t in trials} == {"e"}


def test_what_others_are_running_comes_after_what_nobody_has_tried() -> None:
    trials = proposals_of(5, Stubborn(source="e", layers=1), tell=False)
    assert [t.params["source"] for t in trials] == ["a", "b", "c", "d", "b"]


def test_redirected_trials_repeat_no_setting_while_another_is_left() -> None:
    for seed in range(3):
        trials = proposals_of(24, optuna.samplers.RandomSampler(seed=seed))
        settings = {(source, layers) for source in "bcd" for layers in (1, 2)}
        tried: set[tuple[str, int]] = set()
        for trial in trials:
            own = trial.params["source"], trial.params["layers"]
            if "transfer_pruner.redirected" in trial.user_attrs and own[0] != "a":
                assert own not in tried or settings <= tried
            tried.add(own)
        assert settings <= tried


def test_a_surviving_proposal_stands_whatever_is_better() -> None:
    trials = proposals_of(6, Stubborn(source="d", layers=2))
    assert {t.params["source"] for t in trials} == {"d"}
    assert not any("transfer_pruner.redirected" in t.user_attrs for t in trials)


def test_no_random_number_chooses_among_pairs_that_have_an_order() -> None:
    def sources(seed: int) -> list[str]:
        trials = proposals_of(12, optuna.samplers.RandomSampler(seed=5), seed=seed)
        return [trial.params["source"] for trial in trials]

    assert sources(0) == sources(1) == sources(2)


def test_the_best_source_of_the_proposed_target_and_another_target_only_if_none_is_left() -> None:
    decisions = dict(ordered_rule(targets="a").decisions) | {
        (source, "f"): Decision(True, -1.0, 0.25, "told so") for source in "bcde"
    }
    rule = EliminationRule(decisions, {})
    space = {
        "source": CategoricalDistribution(["b", "c", "d", "e"]),
        "target": CategoricalDistribution(["a", "f"]),
    }

    def asked(target: str) -> list[tuple[str, str]]:
        sampler = TransferSampler(rule, Stubborn(source="e", target=target), seed=0)
        study = optuna.create_study(sampler=sampler)
        for _ in range(6):
            study.tell(study.ask(space), 0.0)
        return [(t.params["source"], t.params["target"]) for t in study.trials]

    # In the first trial the choices of the target are not known yet.
    assert Counter(asked("a")) == dict.fromkeys([("b", "a"), ("c", "a"), ("d", "a")], 2)
    assert {target for _, target in asked("f")[1:]} == {"a"}


def test_hyperparameters_come_from_one_proposal_and_never_from_an_eliminated_one_before(
    rule: EliminationRule,
) -> None:
    # TPE samples them together with the pair.
    proposals: list[dict[str, Any]] = []

    class Watched(optuna.samplers.TPESampler):
        def sample_relative(self, *args: Any) -> dict[str, Any]:
            proposals.append(super().sample_relative(*args))
            return proposals[-1]

    sampler = TransferSampler(rule, Watched(seed=0, multivariate=True), seed=0)
    study = optuna.create_study(sampler=sampler)
    asked_again = 0
    for number in range(60):
        proposals.clear()
        study.optimize(objective, n_trials=1)
        params = study.trials[number].params
        if number >= 10:
            assert proposals[-1].items() >= {k: params[k] for k in ("lr", "layers")}.items()
            asked_again += len(proposals) > 1 and params == proposals[-1]
    assert asked_again > 5


def test_a_source_without_any_kept_partner_is_not_even_suggested_first() -> None:
    # Neither in the first trial, when only the rule knows what the targets may be, nor later.
    sources, targets = ["a", "b", "c"], ["d", "e", "f"]
    rule = EliminationRule(
        {
            (s, t): Decision((s, t) != ("c", "e"), 0.1, 0.5, "told so")
            for s in sources
            for t in targets
        },
        {},
    )

    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", sources)
        return float(len(source + trial.suggest_categorical("target", targets)))

    for seed in range(10):
        sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=seed), seed=seed)
        study = optuna.create_study(sampler=sampler)
        study.optimize(searched, n_trials=4)
        assert all(trial.params == {"source": "c", "target": "e"} for trial in study.trials)


def test_an_existing_study_shows_a_new_sampler_what_can_be_suggested() -> None:
    # The rule would let b be suggested first, for the sake of a target that this study has not.
    rule = rule_keeping({("a", "f"), ("b", "c")})

    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", ["a", "b"])
        return float(len(source + trial.suggest_categorical("target", ["d", "e", "f"])))

    for seed in range(10):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.optimize(searched, n_trials=1)
        study.sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=seed))
        study.optimize(searched, n_trials=3)
        assert all(t.params == {"source": "a", "target": "f"} for t in study.trials[1:])


@pytest.mark.filterwarnings("ignore:the rule eliminates every pair")
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000), target_comes_first=st.booleans())
def test_what_can_survive_survives(
    data: st.DataObject, seed: int, target_comes_first: bool
) -> None:
    pairs = [(s, t) for s in TASKS for t in TASKS if s != t]
    rule = rule_keeping(set(data.draw(st.lists(st.sampled_from(pairs)))))
    sources = data.draw(st.lists(st.sampled_from([None, *TASKS]), min_size=1, unique=True))
    targets = data.draw(st.lists(st.sampled_from(TASKS), min_size=1, unique=True))
    space: dict[str, BaseDistribution] = {
        "source": CategoricalDistribution(sources),
        "target": CategoricalDistribution(targets),
        "lr": FloatDistribution(0, 1),
    }
    if target_comes_first:
        space = dict(reversed(space.items()))
    possible = any(not rule.decide(s, t).eliminated for s in sources for t in targets)
    sampler = TransferSampler(rule, optuna.samplers.TPESampler(seed=seed, n_startup_trials=3))
    study = optuna.create_study(sampler=sampler)
    for number in range(6):
        study.tell(study.ask(space), float(number))
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    # In the first trial the choices of what is suggested second are not known.
    assert {eliminated(rule, trial) for trial in study.trials[1:]} == {not possible}
    marked = [trial.user_attrs["transfer_pruner.eliminated"] for trial in study.trials[1:]]
    assert marked == [eliminated(rule, trial) for trial in study.trials[1:]]


def test_equal_seeds_search_alike(rule: EliminationRule) -> None:
    def search() -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=TransferSampler(rule, seed=3))
        study.optimize(objective, n_trials=30)
        return [trial.params for trial in study.trials]

    assert search() == search()


def test_threads_on_a_database(rule: EliminationRule, tmp_path: Path) -> None:
    sampler = TransferSampler(rule, seed=0)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", sampler=sampler)
    study.optimize(objective, n_trials=40, n_jobs=4)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert not any(eliminated(rule, trial) for trial in study.trials)
    assert len({str(trial.params) for trial in study.trials}) == 40
    assert not sampler._redirector._pairs, "what a trial is to be given is forgotten when it ends"


def test_processes_on_one_database(rule: EliminationRule, tmp_path: Path) -> None:
    rule.save(tmp_path / "rule")
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="shared", storage=storage)
    worker = textwrap.dedent(f"""
        import optuna
        from transfer_pruner import EliminationRule
        from transfer_pruner_optuna.sampler import TransferSampler

        TASKS = {TASKS!r}

        def objective(trial):
            source = trial.suggest_categorical("source", TASKS)
            target = trial.suggest_categorical("target", TASKS)
            return trial.suggest_float("lr", 1e-4, 1e-1, log=True)

        rule = EliminationRule.load({str(tmp_path / "rule")!r})
        study = optuna.load_study(
            study_name="shared", storage={storage!r}, sampler=TransferSampler(rule)
        )
        study.optimize(objective, n_trials=20)
    """)
    workers = [subprocess.Popen([sys.executable, "-c", worker]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in workers] == [0, 0]
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    assert len(trials) == 40
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert not any(eliminated(rule, trial) for trial in trials)


def test_a_study_is_pickled_with_its_sampler_and_goes_on(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=TransferSampler(rule, seed=0))
    study.optimize(objective, n_trials=12)
    waiting = study.ask()
    assert waiting.suggest_categorical("source", TASKS)
    copy: optuna.Study = pickle.loads(pickle.dumps(study))  # noqa: S301
    copy.optimize(objective, n_trials=12)
    finished = copy.get_trials(states=(TrialState.COMPLETE,))
    assert len(finished) == 24
    assert not any(eliminated(rule, trial) for trial in finished)


def test_another_process_may_tell_how_a_trial_ended(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=TransferSampler(rule, seed=0))
    space = {name: CategoricalDistribution(TASKS) for name in ("source", "target")}
    numbers = [study.ask(space).number for _ in range(20)]
    study.sampler = TransferSampler(rule)
    for number in numbers:
        study.tell(number, 0.0)
    assert {t.user_attrs["transfer_pruner.eliminated"] for t in study.trials} == {0}
    assert sum(t.user_attrs.get("transfer_pruner.redirected", 0) for t in study.trials) > 3


@pytest.mark.parametrize("base_sampler", SAMPLERS[:2])
def test_hyperband_shows_samplers_one_bracket_and_still_works(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    def searched(trial: optuna.Trial) -> float:
        value = objective(trial)
        for step in range(1, 10):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(
        sampler=TransferSampler(rule, base_sampler(), seed=0),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
    )
    study.optimize(searched, n_trials=60)
    assert not any(eliminated(rule, trial) for trial in study.trials)
    stopped = study.get_trials(states=(TrialState.PRUNED,))
    assert stopped
    assert all(trial.intermediate_values for trial in stopped)
    trained = [r for r in records_from_study(study) if r.outcome == "trained"]
    assert [record.number for record in trained] == [trial.number for trial in study.trials]


@pytest.mark.parametrize("pruner", [None, optuna.pruners.HyperbandPruner(1, 9)], ids=str)
def test_a_learning_rule_learns_from_all_trials(pruner: optuna.pruners.BasePruner | None) -> None:
    # Gains are the source's alone, so that after a while the bad sources are known.
    rule = LearningRule(
        TransferPredictor(), refit_every=20, min_probability=0.2, pairs=ordered_pairs(TASKS)
    )

    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        return 0.0 if source == target else 0.1 * (TASKS.index(source) - 2.5)

    study = optuna.create_study(
        direction="maximize",
        sampler=TransferSampler(rule, optuna.samplers.RandomSampler(seed=0), seed=0),
        pruner=pruner,
    )
    for task in TASKS:
        study.enqueue_trial({"source": task, "target": task})
    study.optimize(searched, n_trials=160)
    redirected = [t.number for t in study.trials if "transfer_pruner.redirected" in t.user_attrs]
    assert min(redirected) >= 20
    late = study.trials[100:]
    assert len([number for number in redirected if number >= 100]) > 20
    learnt = [t for t in late if t.params["source"] in ("a", "b")]
    early = [t for t in study.trials[6:20] if t.params["source"] in ("a", "b")]
    assert len(learnt) / len(late) < len(early) / 14


def test_an_enqueued_pair_is_nobody_s_to_change_but_the_gate_catches_it(
    rule: EliminationRule,
) -> None:
    def search(searched: Objective) -> list[FrozenTrial]:
        study = optuna.create_study(sampler=TransferSampler(rule, seed=0))
        for _ in range(3):
            study.enqueue_trial({"source": "f", "target": "c"})
        study.optimize(searched, n_trials=20)
        return study.trials

    alone = search(objective)
    assert [t.params["source"] for t in alone[:3]] == ["f"] * 3
    assert {t.state for t in alone} == {TrialState.COMPLETE}
    assert all(t.user_attrs["transfer_pruner.eliminated"] == 1 for t in alone[:3])
    assert not any("transfer_pruner.audit" in t.user_attrs for t in alone[:3]), "nothing was drawn"
    gated = search(gate(objective, rule))
    pruned = [t for t in gated if t.state == TrialState.PRUNED]
    assert [(t.params["source"], t.params["target"]) for t in pruned] == [("f", "c")] * 3
    assert all(t.user_attrs["transfer_pruner.eliminated"] == 1 for t in pruned)
    assert all(eliminated(rule, t) == (t in pruned) for t in gated)


@pytest.mark.parametrize("searched", [objective, target_first])
def test_the_other_half_of_a_pair_goes_with_the_half_that_was_enqueued(
    rule: EliminationRule, searched: Objective
) -> None:
    study = optuna.create_study(sampler=TransferSampler(rule, seed=0))
    study.optimize(searched, n_trials=15)
    for _ in range(20):
        study.enqueue_trial({"source": "b"})
        study.enqueue_trial({"target": "e"})
    study.optimize(searched, n_trials=40)
    assert not any(eliminated(rule, trial) for trial in study.trials)
    halves = [trial.system_attrs["fixed_params"] for trial in study.trials[15:]]
    assert all(
        half.items() <= t.params.items() for half, t in zip(halves, study.trials[15:], strict=True)
    )


@pytest.mark.parametrize("name", ["source", "target"])
def test_what_a_partial_fixed_sampler_fixes_stays_and_the_rest_goes_with_it(
    rule: EliminationRule, name: str
) -> None:
    fixed = optuna.samplers.PartialFixedSampler(
        {name: "b"}, optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
    )
    study = optuna.create_study(sampler=TransferSampler(rule, fixed, seed=0))
    study.optimize(objective, n_trials=25)
    assert {trial.params[name] for trial in study.trials} == {"b"}
    assert not any(eliminated(rule, trial) for trial in study.trials)
    assert len({str(trial.params) for trial in study.trials}) == 25


def test_around_the_sampler_what_is_fixed_passes_by_it_and_the_gate_catches_it(
    rule: EliminationRule,
) -> None:
    around = optuna.samplers.PartialFixedSampler({"source": "f"}, TransferSampler(rule, seed=0))
    study = optuna.create_study(sampler=around)
    study.optimize(gate(objective, rule), n_trials=30)
    trained = study.get_trials(states=(TrialState.COMPLETE,))
    assert not any(eliminated(rule, trial) for trial in trained)
    assert all(eliminated(rule, t) for t in study.get_trials(states=(TrialState.PRUNED,)))


@pytest.mark.parametrize("base_sampler", SAMPLERS[:4])
def test_a_target_may_be_fixed_outside_the_study(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    def searched(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("from", [None, *TASKS])
        return trial.suggest_float("lr", 0, 1) + len(source or "")

    sampler = TransferSampler(rule, base_sampler(), source_param="from", target="c", seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(searched, n_trials=40)
    assert {trial.params["from"] for trial in study.trials} <= {None, "a", "c"}
    assert all(trial.user_attrs["transfer_pruner.eliminated"] == 0 for trial in study.trials)


@pytest.mark.parametrize("base_sampler", SAMPLERS[:6])
def test_in_joint_transfer_every_source_survives(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    def searched(trial: optuna.Trial) -> float:
        first = trial.suggest_categorical("first", [None, *TASKS])
        trial.suggest_categorical("target", TASKS)
        return float(first == trial.suggest_categorical("second", [None, *TASKS]))

    sampler = TransferSampler(rule, base_sampler(), source_param=["first", "second"], seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(searched, n_trials=40)
    for trial in study.trials[1:]:
        sources = [trial.params["first"], trial.params["second"]]
        assert not rule.decide(sources, trial.params["target"]).eliminated
    assert sum("transfer_pruner.redirected" in t.user_attrs for t in study.trials) > 5


@pytest.mark.parametrize("base_sampler", SAMPLERS[:6])
def test_a_source_may_be_suggested_in_one_branch_only(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    def searched(trial: optuna.Trial) -> float:
        target = trial.suggest_categorical("target", TASKS)
        if trial.suggest_categorical("transfer", [True, False]):
            trial.suggest_categorical("source", TASKS)
        return trial.suggest_float("lr", 0, 1) + TASKS.index(target)

    study = optuna.create_study(sampler=TransferSampler(rule, base_sampler(), seed=0))
    study.optimize(searched, n_trials=60)
    with_pair = [trial for trial in study.trials if "source" in trial.params]
    assert 0 < len(with_pair) < 60
    assert not any(eliminated(rule, trial) for trial in with_pair)
    for trial in study.trials:
        assert ("transfer_pruner.eliminated" in trial.user_attrs) == ("source" in trial.params)


@pytest.mark.parametrize("base_sampler", [*SAMPLERS[:7]])
def test_several_objectives(rule: EliminationRule, base_sampler: Callable[[], BaseSampler]) -> None:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=TransferSampler(rule, base_sampler(), seed=0)
    )
    study.optimize(lambda trial: (objective(trial), target_first(trial)), n_trials=30)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert not any(eliminated(rule, trial) for trial in study.trials)


def test_of_several_objectives_a_learning_rule_must_be_told_which() -> None:
    rule = LearningRule(TransferPredictor(), pairs=ordered_pairs(TASKS))
    directions = ["minimize", "maximize"]
    study = optuna.create_study(directions=directions, sampler=TransferSampler(rule))
    with pytest.raises(ValueError, match="objective_index must be from 0 to 1 but got None"):
        study.ask()
    chosen = TransferSampler(rule, objective_index=1)
    study = optuna.create_study(directions=directions, sampler=chosen)
    study.optimize(lambda trial: (objective(trial), 0.0), n_trials=5)
    assert len(study.trials) == 5


def test_audited_proposals_run_as_they_are(rule: EliminationRule) -> None:
    sampler = TransferSampler(
        rule, optuna.samplers.RandomSampler(seed=0), audit_fraction=0.3, seed=0
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=200)
    audits = [t for t in study.trials if "transfer_pruner.audit" in t.user_attrs]
    redirected = [t for t in study.trials if "transfer_pruner.redirected" in t.user_attrs]
    assert not {t.number for t in audits} & {t.number for t in redirected}
    assert 0.15 < len(audits) / (len(audits) + len(redirected)) < 0.45
    for trial in study.trials:
        pair = trial.params["source"], trial.params["target"]
        assert (trial in audits) == eliminated(rule, trial)
        assert trial not in audits or is_audited(0.3, study.study_name, trial.number, *pair)
        assert trial.user_attrs["transfer_pruner.eliminated"] == int(trial in audits)
    # Sources that survive nowhere are audited as often as the others.
    assert {t.params["source"] for t in audits} == {"b", "c", "d", "e", "f"}
    estimate = estimate_audit(records_from_study(study))
    assert estimate.trials_audited == len(audits)


def test_a_gate_with_the_same_fraction_lets_audits_pass(rule: EliminationRule) -> None:
    sampler = TransferSampler(rule, audit_fraction=0.3, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(gate(objective, rule, audit_fraction=0.3), n_trials=60)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert any("transfer_pruner.audit" in trial.user_attrs for trial in study.trials)


def test_trials_that_fail_or_are_stopped_early_have_trained(rule: EliminationRule) -> None:
    def searched(trial: optuna.Trial) -> float:
        objective(trial)
        if trial.number % 3 == 0:
            raise optuna.TrialPruned
        if trial.number % 3 == 1:
            raise RuntimeError("CUDA out of memory")
        return 0.0

    study = optuna.create_study(sampler=TransferSampler(rule, seed=0))
    study.optimize(searched, n_trials=12, catch=(RuntimeError,))
    assert {t.user_attrs["transfer_pruner.eliminated"] for t in study.trials} == {0}
    redirected = sum("transfer_pruner.redirected" in trial.user_attrs for trial in study.trials)
    outcomes = Counter(record.outcome for record in records_from_study(study))
    assert outcomes == {"trained": 8, "failed": 4, "eliminated": redirected}


def test_a_trial_with_a_score_shows_it_and_the_study_shows_the_rule(rule: EliminationRule) -> None:
    study = optuna.create_study(sampler=TransferSampler(rule, target="c", seed=0))
    study.enqueue_trial({"source": "a"})
    study.optimize(lambda trial: len(trial.suggest_categorical("source", TASKS)), n_trials=1)
    assert study.trials[0].user_attrs == {
        "transfer_pruner.eliminated": 0,
        "transfer_pruner.rule": rule.fingerprint,
        "transfer_pruner.score": -1.0,
        "transfer_pruner.probability": 0.25,
        "transfer_pruner.priority": 1.0,
    }
    (record,) = records_from_study(study, target="c")
    assert record.priority == 1.0, "from the storage alone"
    assert study.user_attrs["transfer_pruner.rule"]["fingerprint"] == rule.fingerprint


def test_unknown_tasks_are_left_alone_with_one_warning(rule: EliminationRule) -> None:
    def searched(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", ["x", "y"])
        trial.suggest_categorical("target", TASKS)
        return 0.0

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = optuna.create_study(sampler=TransferSampler(rule, seed=0))
        study.optimize(searched, n_trials=30)
    assert sum(issubclass(w.category, TransferPrunerWarning) for w in caught) == 1
    assert {t.params["source"] for t in study.trials} == {"x", "y"}
    assert not any("transfer_pruner.redirected" in t.user_attrs for t in study.trials)


def test_a_rule_that_fails_leaves_the_proposals_with_one_warning() -> None:
    class Failing(EliminationRule):
        def decide(self, source: Any, target: Any) -> Decision:
            raise ZeroDivisionError("oh")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler = TransferSampler(Failing({}, {}), optuna.samplers.RandomSampler(seed=0))
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=40)
    ours = [w for w in caught if issubclass(w.category, TransferPrunerWarning)]
    assert [str(w.message) for w in ours] == [
        "the rule failed and the trial is kept: ZeroDivisionError: oh"
    ]
    alone = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    alone.optimize(objective, n_trials=40)
    assert {t.params["source"] for t in study.trials} == set(TASKS)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_source_that_is_a_number_is_left_to_the_base_sampler(rule: EliminationRule) -> None:
    def searched(trial: optuna.Trial) -> float:
        number = trial.suggest_int("source", 0, 5)
        return number + TASKS.index(trial.suggest_categorical("target", TASKS))

    def search(sampler: BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(searched, n_trials=30)
        assert not any(trial.user_attrs for trial in study.trials)
        return [trial.params for trial in study.trials]

    tpe = optuna.samplers.TPESampler
    assert search(TransferSampler(rule, tpe(seed=0))) == search(tpe(seed=0))


def test_with_nothing_eliminated_the_base_sampler_searches_as_if_alone() -> None:
    kept = rule_keeping({(s, t) for s in TASKS for t in TASKS})

    def search(sampler: BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(target_first, n_trials=40)
        return [trial.params for trial in study.trials]

    tpe = optuna.samplers.TPESampler
    assert search(TransferSampler(kept, tpe(seed=0))) == search(tpe(seed=0))


def test_threads_do_not_repeat_one_another(rule: EliminationRule) -> None:
    def drawn(sampler: TransferSampler) -> list[Any]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=5)
        return [trial.params for trial in study.trials]

    first, second = (TransferSampler(rule, seed=0) for _ in range(2))
    second.reseed_rng()
    assert drawn(first) != drawn(second)


@pytest.mark.parametrize(
    "base_sampler",
    [
        lambda: optuna.samplers.GridSampler({"source": TASKS}),
        lambda: optuna.samplers.BruteForceSampler(),
    ],
)
def test_samplers_that_visit_every_point_once_are_refused(
    rule: EliminationRule, base_sampler: Callable[[], BaseSampler]
) -> None:
    with pytest.raises(ValueError, match=r"(Grid|BruteForce)Sampler.*gate\(objective, rule, sea"):
        TransferSampler(rule, base_sampler())


def test_an_audit_fraction_is_a_share(rule: EliminationRule) -> None:
    with pytest.raises(ValueError, match=r"audit_fraction must be from 0 to 1 but got 1\.5"):
        TransferSampler(rule, audit_fraction=1.5)
