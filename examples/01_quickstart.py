"""Search pairs of tasks in Optuna by the recipe that measures best: the best pair comes next."""

import optuna

import digits
from transfer_pruner import LearningRule, TransferPredictor, embed, score_pairs
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import StopWhenSettled, TransferSampler, answer_from_study

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
dev_sets = {task: (digits.IMAGES[digits.DEV], digits.TASKS[task][digits.DEV]) for task in TASKS}
# What attributions say of every pair, and what the sources' features say on the targets' dev sets.
scores = score_pairs(models, dev_sets, "h_score", progress=False)
rule = LearningRule(TransferPredictor(embeddings)).refine(scores)

with SavingsTracker(experiment="quickstart", rule=rule, maximize=True) as tracker:
    study = optuna.create_study(
        direction="maximize", sampler=TransferSampler(rule, seed=0, tracker=tracker)
    )
    study.optimize(objective, n_trials=40, callbacks=[StopWhenSettled(rule)])
print(tracker.savings().headline())
print(answer_from_study(study).headline())
