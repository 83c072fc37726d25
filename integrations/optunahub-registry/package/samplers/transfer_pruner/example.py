"""Search only over pairs of made-up linear tasks that can help each other."""

from pathlib import Path

import numpy as np
import optuna
import optunahub

from transfer_pruner import EliminationRule, TaskEmbedding, TransferPredictor

# In two families of tasks different features matter; a target task has 15 labelled examples.
rng = np.random.default_rng(0)
families = [np.repeat([3.0, 0.1], 15), np.repeat([0.1, 3.0], 15)]
centers = [rng.normal(0, scale) for scale in families]
weights = {
    f"{'ab'[i]}{j}": centers[i] + 0.1 * rng.normal(0, families[i])
    for i in range(2)
    for j in range(3)
}
tasks = list(weights)
train, test, probe = (rng.normal(size=(n, 30)) for n in (15, 500, 50))

# Of a linear model, the attribution of a feature is its weight times its value.
embeddings = {
    task: TaskEmbedding(
        name=task,
        vectors={"input": (probe * w).mean(axis=0)},
        signals={"examples/input": probe * w},
        provenance={"probe": "normal"},
    )
    for task, w in weights.items()
}
rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)


def objective(trial: optuna.Trial) -> float:
    """Fit the target from few examples, beginning at the source; R2 on others."""
    source = trial.suggest_categorical("source", tasks)
    target = trial.suggest_categorical("target", tasks)
    strength = trial.suggest_float("strength", 1e-2, 1e2, log=True)
    # Ridge regression towards the source's weights; a source that is the target is no transfer.
    start = weights[source] if source != target else np.zeros(30)
    residual = train @ (weights[target] - start)
    fitted = start + np.linalg.solve(train.T @ train + strength * np.eye(30), train.T @ residual)
    missed = test @ (weights[target] - fitted)
    return float(1 - missed.var() / (test @ weights[target]).var())


# Once it is in the registry: optunahub.load_module("samplers/transfer_pruner")
module = optunahub.load_local_module(
    "samplers/transfer_pruner", registry_root=str(Path(__file__).parents[2])
)
study = optuna.create_study(
    direction="maximize",
    sampler=module.TransferSampler(rule, base_sampler=optuna.samplers.TPESampler(seed=0), seed=0),
)
study.optimize(objective, n_trials=30)
pairs = {(trial.params["source"], trial.params["target"]) for trial in study.trials}
eliminated = sum(rule.decide(*pair).eliminated for pair in pairs)
print(f"{len(study.trials)} trials of {len(pairs)} pairs, {eliminated} of them eliminated")
print(f"best: {study.best_params}, R2 {study.best_value:.3f}")
