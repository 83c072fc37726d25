"""Several processes on one study: each has its own gate, and all learn from what any has measured.

They share nothing but the study's storage. The rule starts from attributions and learns from the
study's finished trials: processes that see the same trials decide alike, and one that dies or joins
late needs nothing more. Expect a line for each process, what the rule has learnt by the end, and
what all of them saved together; its seconds are added up over the processes.
"""

import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import digits
from transfer_pruner import LearningRule, TransferPredictor, embed, estimate_savings
from transfer_pruner_optuna import gate, records_from_study, transfers_from_study

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
PROCESSES, TRIALS = 3, 30
optuna.logging.set_verbosity(optuna.logging.WARNING)
torch.set_num_threads(1)


def open_study(path: str, seed: int) -> optuna.Study:
    return optuna.create_study(
        study_name="pairs",
        storage=JournalStorage(JournalFileBackend(path)),
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=seed),
        load_if_exists=True,
    )


def work(seed: int, path: str, rule: LearningRule, models: dict[str, digits.Network]) -> str:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        lr = trial.suggest_float("lr", 3e-3, 2e-2, log=True)
        model = None if source == target else models[source]
        return digits.transfer_scores(model, target, lr, epochs=30)[0]

    states: Counter[str] = Counter()
    count = [lambda _, trial: states.update([trial.state.name])]
    open_study(path, seed).optimize(gate(objective, rule), TRIALS, callbacks=count)
    return f"process {os.getpid()}: {states['COMPLETE']} trained, {states['PRUNED']} eliminated"


def main() -> None:
    models = {task: digits.source_model(task) for task in TASKS}
    started = time.perf_counter()
    embeddings = {t: embed(model, digits.PROBE, name=t, target=1) for t, model in models.items()}
    attribution_seconds = time.perf_counter() - started
    rule = LearningRule(TransferPredictor(embeddings), min_probability=0.25)

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/study.log"
        study = open_study(path, seed=0)
        for task in TASKS:  # a gain is measured against its target's single-task baseline
            study.enqueue_trial({"source": task, "target": task})
        with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
            runs = [pool.submit(work, i, path, rule, models) for i in range(PROCESSES)]
            for run in runs:
                print(run.result())
        # From the storage alone: any process could have asked, at any time.
        print(rule.refitted(transfers_from_study(study)))
        records = records_from_study(study)
    print(estimate_savings(records, attribution_seconds=attribution_seconds).headline())


if __name__ == "__main__":
    main()
