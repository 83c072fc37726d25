"""Ray Tune, a grid with ASHA and a search that learns: the same script on a laptop and a cluster.

python examples/04_ray_tune.py                      starts Ray on this machine
RAY_ADDRESS=auto python examples/04_ray_tune.py     goes to the cluster that runs here
"""

import os
from pathlib import Path

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

import digits
from transfer_pruner import (
    EliminationRule,
    LearningRule,
    TransferPredictor,
    embed,
    estimate_savings,
)
from transfer_pruner_ray import (
    StopWhenSettled,
    TransferScheduler,
    TransferSearcher,
    ending_from_results,
    records_from_results,
)

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
TARGETS = ["digit-3", "digit-8", "prime"]


def train_pair(config: dict, models: dict[str, digits.Network]) -> None:
    torch.set_num_threads(1)
    source, target = config["source"], config["target"]
    start = None if source == target else models[source]
    model = digits.target_model(target, config["lr"], epochs=5, source=start)
    for _ in range(4):
        tune.report({"f1": digits.f1(model, target, digits.DEV)})
        rows = digits.few_shot_rows(target, draw=0)
        digits.train(model, target, rows, config["lr"], epochs=5, batch=30, seed=0)


def main() -> None:
    # Workers import digits.py too, wherever they run.
    here = {"working_dir": str(Path(__file__).parent), "excludes": ["text_transfer"]}
    ray.init(runtime_env=here, log_to_driver=False)
    models = {task: digits.source_model(task) for task in TASKS}
    embeddings = {
        task: embed(model, digits.PROBE, name=task, target=1) for task, model in models.items()
    }
    # Models go to the object store once, not into every trial; a GPU is shared by four trials.
    gpus = 0.25 if ray.cluster_resources().get("GPU") else 0
    trainable = tune.with_resources(
        tune.with_parameters(train_pair, models=models), {"cpu": 1, "gpu": gpus}
    )

    # A grid: the worst pairs are eliminated, and of the others the best start first.
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)
    results = tune.Tuner(
        trainable,
        param_space={
            "source": tune.grid_search(TASKS),
            "target": tune.grid_search(TARGETS),
            "lr": tune.loguniform(1e-3, 1e-2),
        },
        tune_config=tune.TuneConfig(
            metric="f1",
            mode="max",
            scheduler=TransferScheduler(rule, base_scheduler=ASHAScheduler(max_t=4)),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="grid", storage_path=os.path.abspath("ray-output"), verbose=0
        ),
    ).fit()
    print(estimate_savings(records_from_results(results, rule)).headline())

    # A search: the rule learns, chooses each trial's pair, and ends it when it expects no more.
    learning = LearningRule(TransferPredictor(embeddings))
    stop = StopWhenSettled(learning, tolerance=0.005)
    results = tune.Tuner(
        trainable,
        param_space={
            "source": tune.choice(TASKS),
            "target": tune.choice(TARGETS),
            "lr": tune.choice([2e-3, 5e-3, 1e-2]),
        },
        tune_config=tune.TuneConfig(
            metric="f1",
            mode="max",
            num_samples=30,
            search_alg=TransferSearcher(OptunaSearch(seed=0), learning),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=os.path.abspath("ray-output"),
            verbose=0,
            stop=stop,
            callbacks=[stop],
        ),
    ).fit()
    ending = ending_from_results(results)
    print(estimate_savings(records_from_results(results), **ending).headline())
    print(ending["stopped"] or "The search has run all of its trials.")
    best = results.get_best_result()
    print(f"best: {best.config['source']} -> {best.config['target']}, F1 {best.metrics['f1']:.3f}")


if __name__ == "__main__":
    main()
