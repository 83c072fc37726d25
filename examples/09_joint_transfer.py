"""Joint transfer: one network trains on a target and up to two sources, scored on the target.

The search is over two auxiliary sources of digit-9, each of them a task or None. A trial is
eliminated if one of its sources is. Expect the kept sources, what the rule says of three trials,
the best sources beside no source at all, and what was saved. A pair is a combination here: some
sources and the target.
"""

import copy

import numpy as np
import optuna
import torch
from torch import nn

import digits
from transfer_pruner import EliminationRule, TransferPredictor, embed, estimate_savings
from transfer_pruner_optuna import gate, records_from_study

TARGET = "digit-9"
SOURCES = ["digit-4", "digit-7", "even", "prime", "at-least-five", "closed-loop"]
LABELS = {task: torch.tensor(positive.astype(np.int64)) for task, positive in digits.TASKS.items()}
optuna.logging.set_verbosity(optuna.logging.WARNING)
torch.set_num_threads(1)


def joint_score(sources: set[str], lr: float, draw: int, steps: int = 150) -> float:
    """Train one network, a head for each task, on the sum of the tasks' losses; score it on dev."""
    model = digits.new_network(draw)
    heads = nn.ModuleDict({task: copy.deepcopy(model.head) for task in [*sorted(sources), TARGET]})
    rows = dict.fromkeys(heads, digits.SOURCE) | {TARGET: digits.few_shot_rows(TARGET, draw)}
    optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], lr=lr, fused=True)
    rng = np.random.default_rng(draw)
    for _ in range(steps):
        optimizer.zero_grad()
        for task, model.head in heads.items():
            chosen = rng.choice(rows[task], 30, replace=False)
            logits = model(digits.IMAGES[chosen])
            nn.functional.cross_entropy(logits, LABELS[task][chosen]).backward()
        optimizer.step()
    return digits.f1(model, TARGET, digits.DEV)  # the target's head is the last


def objective(trial: optuna.Trial) -> float:
    aux = {trial.suggest_categorical(name, [None, *SOURCES]) for name in ("aux1", "aux2")}
    lr = trial.suggest_float("lr", 3e-3, 2e-2, log=True)
    return float(np.mean([joint_score(aux - {None}, lr, draw) for draw in (0, 1)]))


embeddings = {
    task: embed(digits.source_model(task), digits.PROBE, name=task, target=1)
    for task in [TARGET, *SOURCES]
}
rule = EliminationRule.top_k(TransferPredictor(embeddings), k=3)
kept = rule.kept(TARGET)
print(f"kept for {TARGET}: {', '.join(kept)}")
eliminated = next(source for source in SOURCES if source not in kept)
for sources in ([None, None], kept[:2], [kept[0], eliminated]):
    decision = rule.decide(sources, TARGET)
    print(f"{sources}: {'eliminated' if decision.eliminated else 'kept'}; {decision.reason}")

several = {"source_param": ["aux1", "aux2"], "target": TARGET}
sampler = optuna.samplers.RandomSampler(seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.enqueue_trial({"aux1": None, "aux2": None})
study.optimize(gate(objective, rule, **several), n_trials=50)

best = study.best_params
print(f"no source: F1 {study.trials[0].value:.3f}")
print(f"best: {best['aux1']} and {best['aux2']}, F1 {study.best_value:.3f}")
print(estimate_savings(records_from_study(study, rule, **several)).headline())
