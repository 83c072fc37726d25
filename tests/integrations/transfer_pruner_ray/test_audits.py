"""One draw of audits for all adapters: none eliminates what another one runs to measure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")
pytest.importorskip("optuna")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from optuna.samplers import RandomSampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from transfer_pruner import Decision, EliminationRule, estimate_audit
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_ray import (
    TransferScheduler,
    TransferSearcher,
    TransferVariantGenerator,
    filter_param_space,
    records_from_results,
)
from transfer_pruner_ray.marks import AUDIT, ELIMINATED

TASKS = ["a", "b", "c", "d"]
PAIRS = list(ordered_pairs(TASKS).itertuples(index=False, name=None))
ONLY_A_HELPS = EliminationRule({(s, t): Decision(s != "a", 0.5, 0.5, "") for s, t in PAIRS}, {})
GRID = {
    "setting": {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS)},
    "lr": tune.uniform(0, 1),
}
DRAWN = {
    "setting": {"source": tune.choice(TASKS), "target": tune.choice(TASKS)},
    "lr": tune.uniform(0, 1),
}
PAIR = {"source_param": "setting/source", "target_param": "setting/target"}
AUDITS: dict[str, Any] = {**PAIR, "audit_fraction": 0.4}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("way", ["filter", "generator", "searcher"])
def test_an_audit_of_one_adapter_runs_whatever_the_scheduler_draws(
    way: str, tmp_path: Path
) -> None:
    def train_pair(config: dict[str, Any]) -> None:
        tune.report({"score": config["lr"], "keys": ",".join(sorted(config["setting"]))})

    settings: dict[str, Any] = {"search_alg": None, "num_samples": 2}
    space: dict[str, Any] = GRID
    if way == "filter":
        space = filter_param_space(GRID, ONLY_A_HELPS, **AUDITS)
    elif way == "generator":
        settings["search_alg"] = TransferVariantGenerator(ONLY_A_HELPS, **AUDITS)
    else:
        space = DRAWN
        inner = OptunaSearch(sampler=RandomSampler(0))
        settings |= {"num_samples": 20}
        settings["search_alg"] = TransferSearcher(inner, ONLY_A_HELPS, **AUDITS)
    results = tune.Tuner(
        train_pair,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            reuse_actors=True,
            # It would eliminate all that a filter or another draw has left.
            scheduler=TransferScheduler(ONLY_A_HELPS, **PAIR),
            **settings,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    assert not any(ELIMINATED in result.metrics for result in results)
    # The folder tells, and no rule is needed.
    records = records_from_results(tmp_path / "search", metric="score", mode="max", **PAIR)
    audits = [record for record in records if record.audit]
    ran = [r for r in records if ONLY_A_HELPS.decide(r.source, r.target).eliminated]
    assert audits == ran
    assert len(audits) > 1
    assert 1 < estimate_audit(records).trials_audited == len(audits) < len(records)
    # The mark is nobody's hyperparameter, and stands beside the pair.
    assert {name for record in records for name in record.hyperparameters} == {"lr"}
    keys = {result.metrics["keys"] for result in results}
    marked = {"filter": {f"source,target,{AUDIT}"}, "generator": {"source,target"}}
    both = {f"source,target,{AUDIT}", "source,target"}
    assert keys == marked.get(way, both)


class Own(Domain):
    """A domain of the user's, which says nothing of its range."""


def audits_of(space: dict[str, Any], **settings: Any) -> set[tuple[str, str]]:
    """List the eliminated pairs that a filter leaves in."""
    every = {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS), **space}
    filtered = filter_param_space(every, ONLY_A_HELPS, audit_fraction=0.5, **settings)
    pairs = (pair.values for pair in filtered["source"].categories)
    return {(source, target) for source, target, mark in pairs if mark}


def test_a_filtered_space_draws_anew_in_another_search_and_alike_in_the_same() -> None:
    name = {"search_name": "one"}
    assert audits_of({"lr": 1}, **name) == audits_of({"lr": 2}, **name)
    other = [audits_of({}, search_name=f"search {n}") for n in range(5)]
    assert len({frozenset(audits) for audits in other}) > 1
    # Unnamed, a search is called after its space.
    again = [
        audits_of(
            {
                "lr": tune.uniform(0, 1),
                "warmup": tune.sample_from(lambda: step),  # noqa: B023
                "own": Own(),
                "weights": np.array([step]),
            }
        )
        for step in range(2)
    ]
    assert again[0] == again[1], "in another process every object has another address"
    unnamed = [audits_of({"lr": tune.uniform(0, high)}) for high in range(1, 6)]
    assert len({frozenset(audits) for audits in unnamed}) > 1


def test_points_that_the_user_names_are_no_audits() -> None:
    every = {"source": tune.grid_search(TASKS), "target": tune.grid_search(TASKS)}
    filtered = filter_param_space(every, ONLY_A_HELPS, audit_fraction=1.0)
    made = tune.search.BasicVariantGenerator(points_to_evaluate=[{"source": "c", "target": "b"}])
    experiment = tune.experiment.Experiment("named", run=print, config=filtered)
    made.add_configurations([experiment])
    configs = [made.next_trial().config for _ in range(1)]
    assert configs == [{"source": "c", "target": "b", AUDIT: ""}]


def test_a_mark_of_another_rule_is_no_audit_of_this_one() -> None:
    other = EliminationRule({("b", "a"): Decision(True, 0.1, 0.1, "")}, {})
    for rule, kept in ((ONLY_A_HELPS, True), (other, False)):
        generator = TransferVariantGenerator(ONLY_A_HELPS)
        config = {"source": "b", "target": "a", AUDIT: rule.fingerprint}
        generator.add_configurations(
            [tune.experiment.Experiment("marked", run=print, config=config)]
        )
        assert (generator.next_trial() is not None) == kept
