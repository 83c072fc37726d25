"""A Ray Tune experiment becomes records and transfers, from its folder alone, no pickle read."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from transfer_pruner import (
    Decision,
    EliminationRule,
    TransferPrunerWarning,
    estimate_audit,
    estimate_savings,
)
from transfer_pruner.cli import main
from transfer_pruner_ray import records_from_results, transfers_from_results

ray = pytest.importorskip("ray")
from ray import tune  # noqa: E402

if TYPE_CHECKING:
    from ray.tune import ResultGrid

SCORES = {None: 0.5, "a": 0.6, "b": 0.4, "t": 0.7}


def train_pair(config: dict[str, object]) -> None:
    pair = config["pair"]
    assert isinstance(pair, dict)
    if pair["source"] == "broken":
        raise RuntimeError("CUDA out of memory")
    for step in (0.5, 1.0):
        tune.report({"scores": {"f1": SCORES[pair["source"]] * step}})
        if pair["source"] == "b":
            return


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResultGrid]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    space = {
        "pair": {"source": tune.grid_search([None, "a", "b", "t", "broken"]), "target": "t"},
        "width": np.int64(8),
    }
    tuner = tune.Tuner(
        train_pair,
        param_space=space,
        tune_config=tune.TuneConfig(metric="scores/f1", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path_factory.mktemp("results")), name="pairs", verbose=0
        ),
    )
    yield tuner.fit()
    ray.shutdown()


PAIR = {"source_param": "pair/source", "target_param": "pair/target"}


def test_a_result_grid_becomes_transfers(results: ResultGrid) -> None:
    table = transfers_from_results(results, **PAIR)
    assert table[["source", "target"]].to_numpy().tolist() == [["a", "t"], ["b", "t"]]
    # The baseline is the mean of the trial without a source and that of the target itself.
    assert table["gain"].tolist() == pytest.approx([0.6 - 0.6, 0.2 - 0.6])
    assert table["width"].tolist() == [8, 8]
    assert table.attrs["left_out"] == {"failed": 1, "baseline": 2}


def test_its_folder_says_the_same(results: ResultGrid) -> None:
    folder = Path(results.experiment_path)
    there = transfers_from_results(folder, metric="scores/f1", mode="max", **PAIR)
    assert there.equals(transfers_from_results(results, **PAIR))
    by_uri = transfers_from_results(folder.as_uri(), metric="scores/f1", mode="min", **PAIR)
    assert by_uri["gain"].tolist() == pytest.approx((-there["gain"]).tolist())


def test_a_trial_that_was_stopped_early_has_seconds_but_no_value(results: ResultGrid) -> None:
    records = records_from_results(results, min_iterations=2, **PAIR)
    by_source = {record.source: record for record in records if record.source}
    assert math.isnan(by_source["b"].value)
    assert by_source["b"].outcome == "trained"
    assert by_source["b"].seconds > 0
    assert by_source["broken"].outcome == "failed"
    assert transfers_from_results(results, min_iterations=2, **PAIR)["source"].tolist() == ["a"]


def test_a_rule_fills_in_scores_and_makes_no_audit(results: ResultGrid) -> None:
    rule = EliminationRule({("b", "t"): Decision(True, -0.3, 0.1, "told so")}, {})
    rule.unknown_pairs.add(("a", "t"))  # known to be unknown: no warning is needed
    records = records_from_results(results, rule, **PAIR)
    assert not any(r.audit for r in records), "nothing was drawn at random"
    assert [r.score for r in records if r.source == "b"] == [-0.3]
    assert [r.priority for r in records if r.source == "b"] == [rule.decide("b", "t").priority]
    assert estimate_audit(records).headline() == "no audit trial among 0 eliminated ones."
    savings = estimate_savings(records)
    assert (savings.trials_trained, savings.trials_failed, savings.trials_audited) == (4, 1, 0)


def test_reading_an_experiment_runs_no_code_and_needs_no_ray(
    results: ResultGrid, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path}/exploded",)

    folder = tmp_path / "pairs"
    shutil.copytree(results.experiment_path, folder)
    (state,) = folder.glob("experiment_state-*.json")
    content = json.loads(state.read_text())
    trap = {"_type": "CLOUDPICKLE_FALLBACK", "value": pickle.dumps(Bomb()).hex()}
    for trial in content["trial_data"]:
        settings = json.loads(trial[0])
        settings["config"]["trap"] = settings["storage"] = trap
        trial[0] = json.dumps(settings)
    state.write_text(json.dumps(content))
    read = (
        "import sys; from transfer_pruner_ray import transfers_from_results as read\n"
        f"table = read({str(folder)!r}, metric='scores/f1', mode='max', source_param='pair/source',"
        " target_param='pair/target')\n"
        "assert len(table) == 2 and 'ray' not in sys.modules, sorted(table)"
    )
    subprocess.run([sys.executable, "-c", read], check=True, timeout=120)
    assert not (tmp_path / "exploded").exists()


def test_a_state_that_is_being_written_is_waited_for(results: ResultGrid, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    shutil.copytree(results.experiment_path, folder)
    (state,) = folder.glob("experiment_state-*.json")
    content = state.read_text()
    state.write_text(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is cut short: Ray Tune is writing it or was killed"):
        transfers_from_results(folder, metric="scores/f1", mode="max", **PAIR)
    writer = threading.Timer(0.5, state.write_text, [content])
    writer.start()
    table = transfers_from_results(folder, metric="scores/f1", mode="max", **PAIR)
    writer.join()
    assert len(table) == 2


def test_what_is_missing_is_named(results: ResultGrid, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no Ray Tune experiment: give the folder"):
        transfers_from_results(tmp_path, metric="f1", mode="max")
    with pytest.raises(ValueError, match="metric is not known from a folder"):
        transfers_from_results(results.experiment_path)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min' but got 'up'"):
        transfers_from_results(results, mode="up")
    with pytest.raises(ValueError, match="of 0 trials with a source"):
        transfers_from_results(results, metric="scores/f2", **PAIR)
    rule = EliminationRule({}, {})
    with pytest.raises(ValueError, match="results must be what Tuner"):
        records_from_results(rule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule must be an EliminationRule"):
        records_from_results(rule, results)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule must be an EliminationRule"):
        records_from_results(results, "rule/")  # type: ignore[arg-type]
    for read in (transfers_from_results, records_from_results):
        with pytest.raises(ValueError, match="mode of the metric 'scores/f1' is not known"):
            read(results.experiment_path, metric="scores/f1")


def test_parameters_of_other_names_are_told(results: ResultGrid) -> None:
    told = "there are: pair/source, pair/target, width. Name them with source_param="
    with pytest.raises(ValueError, match=told):
        transfers_from_results(results)
    with pytest.warns(TransferPrunerWarning, match=told) as caught:
        assert records_from_results(results) == []
    assert len(caught) == 1


def test_records_know_which_way_is_better(results: ResultGrid) -> None:
    folder = results.experiment_path
    for mode in ("max", "min"):
        records = records_from_results(folder, metric="scores/f1", mode=mode, **PAIR)
        assert {record.maximize for record in records} == {mode == "max"}
    assert {record.maximize for record in records_from_results(results, **PAIR)} == {True}


def test_the_command_line_harvests_it(results: ResultGrid, tmp_path: Path) -> None:
    command = [
        *("harvest", "--ray", results.experiment_path, "--metric", "scores/f1", "--mode", "max"),
        *("--source-param", "pair/source", "--target-param", "pair/target"),
        *("--out", str(tmp_path / "transfers.csv")),
    ]
    harvested = CliRunner().invoke(main, command)
    assert harvested.output == (
        f"2 measured transfers of 2 pairs written to {tmp_path / 'transfers.csv'}. "
        "Other trials: 1 failed, 2 baseline.\n"
    )
    unnamed = CliRunner().invoke(main, ["harvest", "--ray", "x", "--out", "y"])
    assert "--ray needs --metric, a metric that its trials report." in unnamed.output
    no_mode = CliRunner().invoke(
        main, ["harvest", "--ray", "x", "--metric", "f1", "--out", "y.csv"]
    )
    assert "--ray needs --mode: max if a higher metric is better, else min." in no_mode.output
    both = CliRunner().invoke(main, ["harvest", "--out", "y"])
    assert "give --storage and --study, or --ray." in both.output
