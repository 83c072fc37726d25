"""A study that has a history: its finished trials teach the rule, and the search goes on gated.

A fifth of what is eliminated runs all the same, to measure what elimination misses.
"""

import tempfile

import optuna

import digits
from transfer_pruner import EliminationRule, TransferPredictor, estimate_audit, estimate_savings
from transfer_pruner_optuna import gate, records_from_study, transfers_from_study

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
models = {task: digits.source_model(task) for task in TASKS}


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    model = None if source == target else models[source]
    return digits.transfer_scores(model, target, lr, epochs=20)[0]


with tempfile.TemporaryDirectory() as folder:
    study = optuna.create_study(
        study_name="pairs",
        storage=f"sqlite:///{folder}/study.db",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    # The history: nothing of ours has run yet. Every target was tried without transfer too.
    for task in TASKS:
        study.enqueue_trial({"source": task, "target": task})
    study.optimize(objective, n_trials=60)

    transfers = transfers_from_study(study)
    print(f"{len(transfers)} measured transfers; other trials: {transfers.attrs['left_out']}")
    predictor = TransferPredictor().fit(transfers, transfers["gain"])
    rule = EliminationRule.fraction(predictor, 0.6)

    study.optimize(gate(objective, rule, audit_fraction=0.2), n_trials=60)

    # From the storage alone, in any process and at any later time.
    records = records_from_study(study, rule)
print(estimate_savings(records).headline())
print(estimate_audit(records).headline())
