"""A Gaussian-process search without a wasted trial: eliminated proposals are redirected."""

import optuna

import digits
from transfer_pruner import EliminationRule, TransferPredictor, embed
from transfer_pruner_optuna import TransferSampler

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
models = {task: digits.source_model(task) for task in TASKS}


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    epochs = trial.suggest_int("epochs", 10, 30)
    model = None if source == "digit-8" else models[source]
    return digits.transfer_scores(model, "digit-8", lr, epochs)[0]


embeddings = {
    task: embed(model, digits.PROBE, name=task, target=1) for task, model in models.items()
}
rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)
print(f"kept for digit-8: {', '.join(rule.kept('digit-8'))}")

# GPSampler takes no notice of pruned trials: with a gate it would come back to the same pairs.
sampler = TransferSampler(
    rule, base_sampler=optuna.samplers.GPSampler(seed=0), target="digit-8", seed=0
)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(objective, n_trials=25)

redirected = sum("transfer_pruner.redirected" in trial.user_attrs for trial in study.trials)
print(f"{len(study.trials)} trials trained, {redirected} of them redirected from eliminated pairs")
print(f"best: {study.best_params}, F1 {study.best_value:.3f}")
