"""A gated study on a real MLflow server: one search is one run.

Starts `mlflow server` on a free port of this machine, its store in a temporary folder, and stops it
at the end. Expect some ten seconds until it answers, the headline, and what the server holds of the
run: metrics (what is estimated is named so) and tables that every figure can be redone from.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import DEVNULL
from urllib.request import urlopen

import optuna
import torch
from mlflow import MlflowClient

import digits
from transfer_pruner import EliminationRule, TransferPredictor, embed
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
optuna.logging.set_verbosity(optuna.logging.WARNING)
torch.set_num_threads(1)


@contextmanager
def mlflow_server(folder: str) -> Iterator[str]:
    """Run a server as long as the context lasts; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", port]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # fewer processes
    server = subprocess.Popen(command, env=environment, stdout=DEVNULL, stderr=DEVNULL)
    try:
        while server.poll() is None:
            with suppress(OSError):
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


models = {task: digits.source_model(task) for task in TASKS}


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    model = None if source == target else models[source]
    return digits.transfer_scores(model, target, trial.suggest_float("lr", 3e-3, 2e-2), 30)[0]


embeddings = {t: embed(model, digits.PROBE, name=t, target=1) for t, model in models.items()}
rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
with tempfile.TemporaryDirectory() as folder, mlflow_server(folder) as uri:
    spool = f"{folder}/spool"  # everything is written there before it is sent
    with SavingsTracker("digits", tracking_uri=uri, rule=rule, study=study, spool=spool) as tracker:
        study.optimize(gate(objective, rule, tracker=tracker), n_trials=60)
    print(tracker.savings().headline())
    client = MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    print(f"the server says of the run, {run.info.status}:")
    for metric, value in sorted(run.data.metrics.items()):
        if value:
            print(f"  {metric:40} {value:8.2f}")
    print("and has", ", ".join(x.path for x in client.list_artifacts(run.info.run_id, "savings")))
