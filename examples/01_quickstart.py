"""Gate an Optuna study over pairs of tasks: bad pairs are pruned before they train."""

import optuna

import digits
from transfer_pruner import EliminationRule, TransferPredictor, embed
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import gate

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
models = {task: digits.source_model(task) for task in TASKS}


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    model = None if source == target else models[source]
    return digits.transfer_scores(model, target, lr, epochs=30)[0]


embeddings = {
    task: embed(model, digits.PROBE, name=task, target=1) for task, model in models.items()
}
rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)
print(rule.decide("closed-loop", "digit-8"))

study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
with SavingsTracker(experiment="quickstart") as tracker:
    study.optimize(gate(objective, rule, tracker=tracker), n_trials=40)
print(tracker.savings().headline())
