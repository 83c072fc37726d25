"""One rule, the same pairs: Optuna and Ray Tune eliminate alike and tell the same savings of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from transfer_pruner import (
    Decision,
    EliminationRule,
    LearningRule,
    TransferPredictor,
    estimate_audit,
    estimate_savings,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import (
    StopWhenSettled,
    TransferSampler,
    gate,
    records_from_study,
    transfers_from_study,
)

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray import tune  # noqa: E402
from ray.tune.search import BasicVariantGenerator, Searcher  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402

import transfer_pruner_ray  # noqa: E402
from transfer_pruner_ray import (  # noqa: E402
    TransferScheduler,
    TransferSearcher,
    TransferVariantGenerator,
    filter_param_space,
    records_from_results,
    transfers_from_results,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

TASKS = ["a", "b", "c", "d"]
RULE = EliminationRule(
    {
        (source, target): Decision((i + j) % 3 != 0, i - j / 10, 0.5, f"{source} {target}")
        for i, source in enumerate(TASKS)
        for j, target in enumerate(TASKS)
        if source != target
    },
    {},
    scoring_seconds=4.5,
)


def score(source: str, target: str) -> float:
    return TASKS.index(source) / 10 + TASKS.index(target) / 100


def train_pair(config: dict[str, str]) -> None:
    tune.report({"score": score(config["source"], config["target"])})


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        return score(source, trial.suggest_categorical("target", TASKS))

    space = {
        name: optuna.distributions.CategoricalDistribution(TASKS) for name in ("source", "target")
    }
    sampler = optuna.samplers.GridSampler({"source": TASKS, "target": TASKS}, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(gate(objective, RULE, search_space=space))
    return study


def test_a_search_that_never_had_our_adapters_has_no_audits(tmp_path: Path) -> None:
    """An eliminated pair that ran was not drawn at random: only a mark makes an audit."""

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        return score(source, trial.suggest_categorical("target", TASKS))

    space = {"source": TASKS, "target": TASKS}
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.GridSampler(space, seed=0)
    )
    study.optimize(objective)
    results = tune.Tuner(
        train_pair,
        param_space={name: tune.grid_search(tasks) for name, tasks in space.items()},
        tune_config=tune.TuneConfig(metric="score", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(name="plain", storage_path=str(tmp_path), verbose=0),
    ).fit()
    in_ray, in_optuna = records_from_results(results, RULE), records_from_study(study, RULE)
    for records in (in_ray, in_optuna):
        assert len(records) == 16
        assert not any(record.audit for record in records)
        assert estimate_audit(records).headline() == "no audit trial among 0 eliminated ones."
        assert not any(name.endswith("rate") for name in estimate_audit(records).metrics())


@pytest.mark.parametrize("way", ["scheduler", "filter", "generator"])
def test_the_same_pairs_train_and_teach_the_same(
    way: str, study: optuna.Study, tmp_path: Path
) -> None:
    space = {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS)}
    tuner = tune.Tuner(
        train_pair,
        param_space=filter_param_space(space, RULE) if way == "filter" else space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            reuse_actors=True,
            scheduler=TransferScheduler(RULE) if way == "scheduler" else None,
            search_alg=(
                TransferVariantGenerator(RULE) if way == "generator" else BasicVariantGenerator()
            ),
        ),
        run_config=tune.RunConfig(name=way, storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    in_ray, in_optuna = records_from_results(results, RULE), records_from_study(study, RULE)

    def told(records: list, outcome: str) -> set:
        return {(r.source, r.target, r.score) for r in records if r.outcome == outcome and r.source}

    assert told(in_ray, "trained") == told(in_optuna, "trained")
    assert len(told(in_ray, "trained")) == 4
    assert estimate_savings(in_ray).scoring_seconds == RULE.scoring_seconds
    assert estimate_savings(in_optuna).scoring_seconds == RULE.scoring_seconds
    # The study's trials tell of it, and Ray's where one was eliminated, without the rule.
    assert estimate_savings(records_from_study(study)).scoring_seconds == RULE.scoring_seconds
    alone = estimate_savings(records_from_results(results)).scoring_seconds
    assert alone == (RULE.scoring_seconds if way == "scheduler" else 0)
    if way == "scheduler":
        # The others leave no trace of what they passed over.
        assert told(in_ray, "eliminated") == told(in_optuna, "eliminated")
        reasons = {(r.source, r.target): r.reason for r in in_ray if r.outcome == "eliminated"}
        assert reasons == {pair: f"{pair[0]} {pair[1]}" for pair in reasons}
    columns = ["source", "target", "gain", "score", "baseline"]
    there = transfers_from_results(results)[columns].sort_values(columns, ignore_index=True)
    here = transfers_from_study(study)[columns].sort_values(columns, ignore_index=True)
    assert there.equals(here)


def test_audits_and_savings_are_read_alike(tmp_path: Path) -> None:
    space = {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS)}
    tuner = tune.Tuner(
        train_pair,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            reuse_actors=True,
            num_samples=3,
            scheduler=TransferScheduler(RULE, audit_fraction=0.3),
        ),
        run_config=tune.RunConfig(name="audited", storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    # The folder alone tells which were audits: no rule is passed.
    for source in (results, tmp_path / "audited"):
        records = records_from_results(source, metric="score", mode="max")
        audits = [record for record in records if record.audit]
        assert audits
        assert all(RULE.decide(r.source, r.target).eliminated for r in audits)
        assert {r.reason for r in audits} == {f"{r.source} {r.target}" for r in audits}
        audit, savings = estimate_audit(records), estimate_savings(records)
        assert audit.trials_audited == savings.trials_audited == len(audits)
        assert audit.trials_eliminated == 8 * 3 == savings.trials_eliminated + len(audits)
        assert savings.trials_trained == 8 * 3 + len(audits)
        assert savings.scoring_seconds == RULE.scoring_seconds
        assert savings.seconds_spent > 0


def learning_rule() -> LearningRule:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(TASKS.index)
    return LearningRule(TransferPredictor(feature_columns=["attribution_score"]), pairs=pairs)


LRS = [0.1, 0.2]


def gained(source: str, target: str, lr: float) -> float:
    """Score b highest as a source, whatever attributions say."""
    gain = {"a": -0.05, "b": 0.1, "c": 0.02, "d": 0.0}[source]
    return 0.5 + (0.0 if source == target else gain) + 0.001 * lr


def optuna_order(rule: LearningRule, n: int) -> tuple[list[tuple[str, str]], dict | None]:
    stop = StopWhenSettled(rule, tolerance=0.005)
    sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=0))
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        # Hyperparameters are the base sampler's, and those of two hosts differ.
        trial.suggest_categorical("lr", LRS)
        return gained(source, target, 0.1)

    study.optimize(objective, n_trials=n, callbacks=[stop])
    pairs = [(trial.params["source"], trial.params["target"]) for trial in study.trials]
    return pairs, study.user_attrs.get("transfer_pruner.settled")


def ray_order(rule: LearningRule, n: int) -> tuple[list[tuple[str, str]], dict | None]:
    search = TransferSearcher(OptunaSearch(sampler=optuna.samplers.RandomSampler(seed=0)), rule)
    stop = transfer_pruner_ray.StopWhenSettled(rule, tolerance=0.005)
    space = {name: tune.choice(TASKS) for name in ("source", "target")} | {"lr": tune.choice(LRS)}
    search.set_search_properties("score", "max", space)
    pairs = []
    for i in range(n):
        config = search.suggest(str(i))
        pairs.append((config["source"], config["target"]))
        result = {"score": gained(*pairs[-1], 0.1), "time_total_s": 1.0}
        stop(str(i), result)
        search.on_trial_complete(str(i), result)
        if stop.stop_all():
            return pairs, search._history.stopped
    return pairs, None


def test_the_same_finished_trials_give_the_same_next_pair_and_the_same_end() -> None:
    there, why_there = optuna_order(learning_rule(), 60)
    here, why_here = ray_order(learning_rule(), 60)
    assert here == there
    assert 8 < len(here) < 32
    assert why_here is not None
    assert why_there is not None
    assert why_here.pop("exhaustive_trials") == 32
    assert why_here.pop("priority") == pytest.approx(why_there.pop("priority"))
    assert why_here == why_there


def test_pairs_that_are_running_come_last_in_both() -> None:
    rule = learning_rule()
    sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=0))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {
        name: optuna.distributions.CategoricalDistribution(TASKS) for name in ("source", "target")
    }
    asked = [study.ask(space).params for _ in range(16)]
    search = TransferSearcher(OptunaSearch(sampler=optuna.samplers.RandomSampler(seed=0)), rule)
    search.set_search_properties(
        "score", "max", {name: tune.choice(TASKS) for name in ("source", "target")}
    )
    assert [search.suggest(str(i)) for i in range(16)] == asked
    assert len({tuple(params.values()) for params in asked}) == 16


class AlwaysOptuna(optuna.samplers.RandomSampler):
    """Propose d -> b, which the rule eliminates."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, space: Any) -> Any:
        return {"source": "d", "target": "b"}[param_name]


class AlwaysRay(Searcher):
    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, str]:
        return {"source": "d", "target": "b"}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


def test_of_a_rule_that_does_not_learn_an_eliminated_proposal_gives_way_to_the_same_pairs() -> None:
    scores = {"a": 0.5, "c": 0.9, "d": 0.1}
    decisions = {(s, "b"): Decision(s == "d", x, 0.5, "") for s, x in scores.items()}
    study = optuna.create_study(
        sampler=TransferSampler(EliminationRule(decisions, {}), AlwaysOptuna())
    )

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", TASKS)
        trial.suggest_categorical("target", ["b"])
        return 0.0

    # In a study without trials the choices of what is suggested second are not known.
    space = {"source": TASKS, "target": ["b"]}
    first = optuna.trial.create_trial(
        params={"source": "d", "target": "b"},
        distributions={
            name: optuna.distributions.CategoricalDistribution(tasks)
            for name, tasks in space.items()
        },
        value=0.0,
    )
    study.add_trial(first)
    study.optimize(objective, n_trials=6)
    there = [(trial.params["source"], trial.params["target"]) for trial in study.trials[1:]]
    search = TransferSearcher(AlwaysRay(metric="score", mode="max"), EliminationRule(decisions, {}))
    search.set_search_properties(
        "score", "max", {"source": tune.choice(TASKS), "target": tune.choice(["b"])}
    )
    here = []
    for i in range(6):
        config = search.suggest(str(i))
        here.append((config["source"], config["target"]))
        search.on_trial_complete(str(i), {"score": 0.0})
    assert here == there
    assert here[:3] == [("b", "b"), ("c", "b"), ("a", "b")]
