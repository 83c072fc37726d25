"""One rule, the same pairs: Optuna and Ray Tune eliminate alike and tell the same savings of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from transfer_pruner import Decision, EliminationRule, estimate_audit, estimate_savings
from transfer_pruner_optuna import gate, records_from_study, transfers_from_study

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray import tune  # noqa: E402
from ray.tune.search import BasicVariantGenerator  # noqa: E402

from transfer_pruner_ray import (  # noqa: E402
    TransferScheduler,
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
