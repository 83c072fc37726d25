"""Energy and CO2 of a search, measured by codecarbon without a network."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytest.importorskip("codecarbon")

from transfer_pruner import TrialRecord
from transfer_pruner_mlflow import SavingsTracker


def work(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_the_run_shows_what_the_search_used_and_an_estimate_of_what_it_did_not(
    uri: str, tmp_path: Path, records: list[TrialRecord], told: Callable[[], list[str]]
) -> None:
    with SavingsTracker(
        "trec-is", tracking_uri=uri, energy="DEU", single_task_seconds=100, attribution_seconds=9
    ) as tracker:
        for record in records:
            tracker.record(record)
        work(1.0)
    assert told() == []
    metrics = MlflowClient(uri).get_run(str(tracker.run_id)).data.metrics
    assert metrics["energy/kwh"] > 0
    # Grams for a kWh: Germany's are neither none nor more than coal's.
    assert 0.05 < metrics["energy/co2_kg"] / metrics["energy/kwh"] < 1
    # 14 s were trained and 0.04 s took deciding; four eliminated trials at 2 s never ran. What
    # came before the search was not measured and is no part of it.
    assert metrics["energy/estimated_fraction_saved"] == pytest.approx(1 - 14.04 / 22)
    ratio = (22 - 14.04) / 14.04
    for unit in ("kwh", "co2_kg"):
        saved = metrics[f"energy/estimated_{unit}_saved"]
        assert saved == pytest.approx(metrics[f"energy/{unit}"] * ratio)
    assert [file.name for file in tmp_path.iterdir() if "emissions" in file.name] == []


def test_without_trials_it_says_what_was_used_and_estimates_nothing(uri: str) -> None:
    with SavingsTracker("trec-is", tracking_uri=uri, energy="FRA") as tracker:
        work(0.2)
    metrics = MlflowClient(uri).get_run(str(tracker.run_id)).data.metrics
    assert set(metrics) == {"energy/kwh", "energy/co2_kg"}


@pytest.mark.parametrize("country", ["", "Germany", "XYZ", True])
def test_a_country_that_is_none_is_said_at_once(uri: str, country: str) -> None:
    with pytest.raises(ValueError, match=f"energy must be the three-letter .* got {country!r}"):
        SavingsTracker(tracking_uri=uri, energy=country)


def test_without_codecarbon_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['codecarbon'] = None\n"
        "from transfer_pruner_mlflow import SavingsTracker\n"
        "try: SavingsTracker(tracking_uri='sqlite:///x.db', energy='DEU')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'transfer-pruner[energy]'" in done.stdout
