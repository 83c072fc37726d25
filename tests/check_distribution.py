"""Try the built wheel in an empty virtual environment, and look into the sdist.

Usage: python tests/check_distribution.py DIST_FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

CORE = """
import sys
import transfer_pruner, transfer_pruner_mlflow
from transfer_pruner import EliminationRule, TransferPredictor
import pandas as pd
pairs = pd.DataFrame({"source": ["a", "b", "c", "a"], "target": ["b", "c", "a", "c"]})
rule = EliminationRule.top_k(TransferPredictor().fit(pairs, [0.1, -0.1, 0.2, 0.0]), k=1)
rule.save("rule")
assert EliminationRule.load("rule").fingerprint == rule.fingerprint
for missing, use in (("attribution", "transfer_pruner.embed"),
                     ("mlflow", "transfer_pruner_mlflow.SavingsTracker()")):
    try:
        eval(use)
    except ImportError as error:
        assert f"transfer-pruner[{missing}]" in str(error), error
    else:
        raise AssertionError(use)
print("the wheel works without any extra")
"""
GATE = """
import optuna
from transfer_pruner import EliminationRule
from transfer_pruner_optuna import gate
def objective(trial):
    trial.suggest_categorical("source", ["a", "b", "c"])
    return float(trial.suggest_categorical("target", ["a", "b", "c"]) == "c")
study = optuna.create_study()
study.optimize(gate(objective, EliminationRule.load("rule")), n_trials=10)
print("the wheel gates a study with the extra 'optuna'")
"""


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("mlflow/MLproject", "examples/demo.py", "examples/01_quickstart.py", "LICENSE"):
        assert wanted in names, f"the sdist lacks {wanted}"
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(temporary) / "venv"
        venv.create(environment, with_pip=True)

        def run(*arguments: str) -> None:
            subprocess.run([str(environment / "bin" / arguments[0]), *arguments[1:]],
                           cwd=temporary, check=True)  # fmt: skip

        run("pip", "install", "--quiet", str(wheel.resolve()))
        run("python", "-c", CORE)
        run("pip", "install", "--quiet", f"{wheel.resolve()}[optuna,cli]")
        run("python", "-c", GATE)
        run("transfer-pruner", "rank", "--rule", "rule", "--target", "c")
    print(f"{wheel.name} and {sdist.name} are whole")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
