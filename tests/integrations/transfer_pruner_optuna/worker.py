"""One worker of a search that several processes share; it also logs what it does, past Optuna.

Run as ``python -m tests.integrations.transfer_pruner_optuna.worker JOB``, a `Job` as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tests.integrations.transfer_pruner_optuna.storages import open_storage
from transfer_pruner import EliminationRule, LearningRule, PairParams, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import TransferPruner, gate
from transfer_pruner_optuna.evidence import Evidence

TASKS = ["a", "b", "c", "d", "e", "f"]
SPACE: dict[str, BaseDistribution] = {
    "source": CategoricalDistribution(TASKS),
    "target": CategoricalDistribution(TASKS),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "layers": IntDistribution(1, 4),
}


@dataclass(frozen=True)
class Job:
    """What one worker is asked for.

    Attributes
    ----------
    folder : str
        Where the rule is, and the workers' logs; with no rule there, they learn.
    adapter : {"gate", "gate, space given", "pruner"}
    seconds : float
        What a training takes.
    dies_in : int
        Which of its trainings it does not survive; 0 for none.
    """

    kind: str
    where: str
    study: str
    folder: str
    adapter: str
    n_trials: int
    n_jobs: int = 1
    seed: int = 0
    seconds: float = 0.0
    heartbeat: int = 0
    audit_fraction: float = 0.0
    dies_in: int = 0

    def start(self) -> str:
        return json.dumps(asdict(self))


class Log:
    """What workers did, a file for each process: each line reaches the disk's cache at once."""

    def __init__(self, folder: str | Path) -> None:
        file = Path(folder) / f"worker-{os.getpid()}.log"
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str, **what: Any) -> None:
        os.write(self._file, (json.dumps({"event": event, **what}) + "\n").encode())

    @staticmethod
    def read(folder: str | Path, event: str) -> list[dict[str, Any]]:
        lines = [
            json.loads(line)
            for file in Path(folder).glob("worker-*.log")
            for line in file.read_text().splitlines()
        ]
        return [line for line in lines if line["event"] == event]


def learning_rule() -> LearningRule:
    return LearningRule(TransferPredictor(), refit_every=10, pairs=ordered_pairs(TASKS))


def rule_of(folder: str | Path) -> EliminationRule | LearningRule:
    saved = Path(folder) / "rule"
    return EliminationRule.load(saved) if saved.exists() else learning_rule()


def value_of(params: dict[str, Any]) -> float:
    """Gains are the source's alone, from -0.3 to 0.3; the learning rate hardly matters."""
    same = params["source"] == params["target"]
    gain = 0.0 if same else 0.12 * (TASKS.index(params["source"]) - 2.5)
    return float(0.5 + gain + 0.02 * params["lr"])


class Training:
    """The objective: logs that it begins to train and that it has."""

    def __init__(
        self, log: Log, asks_pruner: bool, seconds: float, dies_in: int, beats: bool
    ) -> None:
        self._log = log
        self._asks_pruner = asks_pruner
        self._seconds = seconds
        self._dies_in = dies_in
        self._beats = beats
        self._begun = 0
        self._lock = threading.Lock()

    def __call__(self, trial: optuna.Trial) -> float:
        trial.suggest_categorical("source", TASKS)
        trial.suggest_categorical("target", TASKS)
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        trial.suggest_int("layers", 1, 4)
        if self._asks_pruner and trial.should_prune():
            raise optuna.TrialPruned
        with self._lock:
            self._begun += 1
            last = self._begun == self._dies_in
        self._log.write("begin", number=trial.number, params=trial.params)
        if last:
            if self._beats:
                wait_for_heartbeat(trial)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._seconds)
        value = value_of(trial.params)
        self._log.write("end", number=trial.number, value=value)
        return value


def wait_for_heartbeat(trial: optuna.Trial) -> None:
    """Wait until the storage has seen the trial alive: Optuna never misses one that it has not."""
    engine = trial.study._storage._backend.engine  # type: ignore[attr-defined]
    seen = sqlalchemy.text("SELECT 1 FROM trial_heartbeats WHERE trial_id = :trial")
    while True:
        with engine.connect() as connection:
            if connection.execute(seen, {"trial": trial._trial_id}).first():
                return
        time.sleep(0.05)


def work(job: Job, study: optuna.Study) -> None:
    """Do the job's trials in this process."""
    log, rule = Log(job.folder), rule_of(job.folder)
    objective = Training(log, job.adapter == "pruner", job.seconds, job.dies_in, job.heartbeat > 0)
    run: Any = objective
    if job.adapter == "pruner":
        study.pruner = TransferPruner(rule, audit_fraction=job.audit_fraction)
    else:
        space = SPACE if job.adapter == "gate, space given" else None
        run = gate(objective, rule, search_space=space, audit_fraction=job.audit_fraction)
    now = Evidence(rule, PairParams()).rule(study)
    log.write("start", pid=os.getpid(), fingerprint=now.fingerprint)

    def told(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        log.write("told", number=trial.number, state=trial.state.name, value=trial.value)

    study.optimize(run, n_trials=job.n_trials, n_jobs=job.n_jobs, callbacks=[told])
    log.write(
        "stop", pid=os.getpid(), fingerprint=Evidence(rule, PairParams()).rule(study).fingerprint
    )


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    job = Job(**json.loads(sys.argv[1]))
    study = optuna.load_study(
        study_name=job.study,
        storage=open_storage(job.kind, job.where, job.heartbeat),
        sampler=optuna.samplers.RandomSampler(seed=job.seed),
    )
    work(job, study)


if __name__ == "__main__":
    main()
