"""A rule in the model registry: pairs in, decisions out, no pickle inside and no torch needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from transfer_pruner import EliminationRule
from transfer_pruner_mlflow import log_rule

LOAD = """
import json, sys
sys.modules["torch"] = None  # importing it is an error now
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
pairs = pd.DataFrame({"source": ["b", "a", None, "unheard-of"], "target": ["a", "b", "a", "a"]})
print("decided:", model.predict(pairs).to_json(orient="records"))
"""


def test_a_rule_is_registered_and_decides_where_torch_is_missing(
    current_uri: str, rule: EliminationRule, tmp_path: Path
) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    info = log_rule(rule, registered_model_name="pairs", run_id=run_id)
    assert mlflow.active_run() is None
    assert info.registered_model_version == 1
    assert MlflowClient().get_run(run_id).info.status == "RUNNING"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "models:/pairs/1"],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    decided = pd.DataFrame(json.loads(done.stdout.partition("decided:")[2]))
    assert list(decided.columns) == ["eliminated", "score", "probability", "reason"]
    assert list(decided["eliminated"]) == [True, False, False, False]
    assert list(decided["reason"])[::3] == ["told so", "unknown pair: kept"]
    assert decided["score"][0] == 0.1


def test_the_model_folder_holds_a_script_and_json_only(
    current_uri: str, rule: EliminationRule, tmp_path: Path
) -> None:
    info = log_rule(rule)
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(tmp_path / "m")))
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"rule_model.py", "rule.json", "MLmodel"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".pt"))]
    loaded = EliminationRule.load(next(folder.rglob("rule.json")).parent)
    assert loaded.fingerprint == rule.fingerprint
    assert info.metadata == {"transfer_pruner.rule_fingerprint": rule.fingerprint}
    assert "torch" not in (folder / "requirements.txt").read_text()
    assert "source" in (folder / "input_example.json").read_text()
    model = mlflow.pyfunc.load_model(info.model_uri)
    expected = rule.table()
    found = model.predict(expected[["source", "target"]])
    pd.testing.assert_frame_equal(found, expected[list(found.columns)])
    # A search over the target's own single-task model only.
    assert list(model.predict(pd.DataFrame({"target": ["a"]}))["eliminated"]) == [False]


def test_what_is_no_rule_is_refused(rule: EliminationRule) -> None:
    with pytest.raises(ValueError, match="must be an EliminationRule with decisions but got 3"):
        log_rule(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pass rule\.refitted"):
        log_rule(EliminationRule({}, {}))
