"""The top-level folder mlflow/: its entry points run, and it never stands in for the library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("mlflow")


def test_the_folder_holds_no_python_that_imports_could_find() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))
    from mlflow import MlflowClient

    assert MlflowClient.__module__.startswith("mlflow.")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("entry_point", "printed"),
    [("demo", "saved, measured"), ("trec-is", "Regret of no transfer")],
)
def test_an_entry_point_runs(entry_point: str, printed: str, tmp_path: Path) -> None:
    for folder in ("mlflow", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    here = str(Path(sys.executable).parent)
    # What other tests have set of MLflow, such as an experiment, is none of this run's.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {
        **ours,
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "integrations"))),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'runs.db'}",
    }
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "run", "mlflow"),
            *("-e", entry_point, "--env-manager", "local"),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert printed in run.stdout
