"""Four processes of four threads, one order of pairs; killed and resumed, the same order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from tests.integrations.postgres import find_postgres, postgresql
from tests.integrations.transfer_pruner_optuna.storages import open_storage
from transfer_pruner import LearningRule, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import TransferSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TASKS = ["a", "b", "c", "d", "e", "f"]
N_PROCESSES, N_THREADS = 4, 4
WORKER = """
import sys
import optuna
from tests.integrations.transfer_pruner_optuna import test_workers as here

kind, where, n_trials, seconds = sys.argv[1:]
study = here.load(kind, where)
study.optimize(
    here.Training(float(seconds)), n_trials=int(n_trials), n_jobs=here.N_THREADS
)
"""
ROOT = Path(__file__).parents[3]


class Training:
    """An objective with two settings of every pair, that takes a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        layers = trial.suggest_int("layers", 1, 2)
        time.sleep(self._seconds)
        if source == target:
            return 0.5
        # So noisy that no pair is ever worth nothing.
        noise = random.Random(f"{source} {target} {layers}").gauss(0.0, 0.01)
        return 0.5 + 0.002 * (TASKS.index(source) - 2) + noise


def learning_rule() -> LearningRule:
    """It keeps everything, so that whoever repeats a setting has passed others over."""
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(TASKS.index).astype(float)
    predictor = TransferPredictor(feature_columns=["attribution_score"])
    return LearningRule(predictor, pairs=pairs, start=0.0, min_probability=0.0)


def load(kind: str, where: str) -> optuna.Study:
    sampler = TransferSampler(learning_rule(), RandomSampler(seed=0))
    return optuna.load_study(study_name="s", storage=open_storage(kind, where), sampler=sampler)


def start(kind: str, where: str, n_trials: int, seconds: float) -> subprocess.Popen[bytes]:
    script = ["-W", "ignore", "-c", textwrap.dedent(WORKER)]
    command = [sys.executable, *script, kind, where, str(n_trials), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ})


def pair(trial: FrozenTrial) -> tuple[Any, str]:
    return trial.params["source"], trial.params["target"]


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    if request.param == "sqlite":
        yield "sqlite", f"sqlite:///{tmp_path}/study.db"
        return
    programs = find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL server: initdb is neither on the path nor in /usr/lib")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install psycopg[binary]")
    with postgresql(programs) as url:
        yield "postgresql", url


@pytest.mark.slow
def test_no_pair_is_trained_twice_at_the_same_settings_while_others_wait(
    storage: tuple[str, str],
) -> None:
    kind, where = storage
    optuna.create_study(study_name="s", storage=open_storage(kind, where), direction="maximize")
    workers = [start(kind, where, 12, 0.05) for _ in range(N_PROCESSES)]
    assert [worker.wait(timeout=280) for worker in workers] == [0] * N_PROCESSES
    trials = load(kind, where).trials
    assert len(trials) == 48
    seen = Counter((*pair(t), t.params["layers"]) for t in trials)
    assert {setting: count for setting, count in seen.items() if count > 1} == {}
    baselines = [t.params["target"] for t in trials if len({*pair(t)}) == 1]
    assert sorted(baselines) == TASKS, "one each, before any pair that is worth less"
    assert all(len({*pair(t)}) == 2 for t in trials[24:])


@pytest.mark.slow
def test_killed_and_resumed_the_order_is_that_of_a_search_that_was_not(
    storage: tuple[str, str],
) -> None:
    kind, where = storage
    optuna.create_study(study_name="s", storage=open_storage(kind, where), direction="maximize")
    workers = [start(kind, where, 100, 0.3) for _ in range(N_PROCESSES)]
    study = load(kind, where)
    until = time.monotonic() + 250
    while sum(t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False)) < 14:
        assert time.monotonic() < until
        time.sleep(0.2)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
    running = study.get_trials(states=(TrialState.RUNNING,))
    assert running, "some died while they trained"
    for trial in running:
        study.tell(trial.number, state=TrialState.FAIL)
    # The same finished trials, told to a study that nobody was killed in.
    unbroken = optuna.create_study(
        direction="maximize", sampler=TransferSampler(learning_rule(), RandomSampler(seed=0))
    )
    unbroken.add_trials(study.get_trials())
    begun = len(study.trials)
    for resumed in (study, unbroken):
        resumed.optimize(Training(0.0), n_trials=8)
    assert [pair(t) for t in study.trials[begun:]] == [pair(t) for t in unbroken.trials[begun:]]
