"""Read and audit what a search has saved, from its storage alone and at any later time.

A quarter of the trials that the rule eliminates run all the same, drawn at random: they tell what
elimination misses. Expect two headlines (seconds saved, an estimate; false eliminations, a sample
with an exact interval), the bound that the second one gives, and where the report lies: one HTML
file that needs no network, its numbers beside it as CSV.
"""

import tempfile
import time
from pathlib import Path

import optuna
import torch
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import digits
from transfer_pruner import (
    EliminationRule,
    TransferPredictor,
    embed,
    estimate_audit,
    estimate_savings,
    write_report,
)
from transfer_pruner_optuna import gate, records_from_study

TASKS = ["digit-3", "digit-5", "digit-8", "even", "prime", "closed-loop"]
SPACE = {"source": TASKS, "target": TASKS, "lr": [3e-3, 1e-2]}
DISTRIBUTIONS = {name: CategoricalDistribution(choices) for name, choices in SPACE.items()}
REPORT = Path(__file__).parents[1] / "demo-output" / "savings.html"
optuna.logging.set_verbosity(optuna.logging.WARNING)
torch.set_num_threads(1)

started = time.perf_counter()
models = {task: digits.source_model(task) for task in TASKS}
trained = time.perf_counter()
embeddings = {t: embed(model, digits.PROBE, name=t, target=1) for t, model in models.items()}
costs = {
    "single_task_seconds": trained - started,
    "attribution_seconds": time.perf_counter() - trained,
}
rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", TASKS)
    target = trial.suggest_categorical("target", TASKS)
    lr = trial.suggest_categorical("lr", SPACE["lr"])
    model = None if source == target else models[source]
    return digits.transfer_scores(model, target, lr, epochs=60)[0]


with tempfile.TemporaryDirectory() as folder:
    storage = JournalStorage(JournalFileBackend(f"{folder}/study.log"))
    study = optuna.create_study(
        study_name="pairs",
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.GridSampler(SPACE, seed=0),
    )
    study.optimize(gate(objective, rule, search_space=DISTRIBUTIONS, audit_fraction=0.25))

    # What follows needs the storage only. The rule adds the reasons of the pairs that were kept.
    records = records_from_study(optuna.load_study(study_name="pairs", storage=storage), rule)
print(estimate_savings(records, **costs).headline())
audit = estimate_audit(records)
print(audit.headline())
print(
    f"so at most {audit.false_elimination_rate_interval[1]:.0%} of what was eliminated would "
    f"have beaten all that was kept, for {audit.audit_seconds:.1f} s of audit trials"
)
write_report(records, REPORT, rule=rule, embeddings=embeddings, **costs)
print(f"the report: {REPORT}")
