"""Is the estimate of the seconds saved right? The eliminated trials are really run, and timed.

    python examples/bench_savings.py --repeats 60

Each repeat is a gated study over the pairs of six digit tasks drawn at random. Every eliminated
trial is run too, untold to the study: right when it is eliminated, and once more when the study has
ended, in another minute of the machine. Counted is how often the estimate's interval, made from the
study alone, covers what they took.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

import digits
from transfer_pruner import EliminationRule, TransferPredictor, embed, estimate_savings
from transfer_pruner_optuna import gate, records_from_study

LR, EPOCHS = [3e-3, 1e-2], [10, 20, 40]
N_TASKS, K = 6, 2


class Search:
    """One gated study, and what its eliminated trials would have taken."""

    def __init__(self, models: dict[str, digits.Network], rule: EliminationRule, seed: int) -> None:
        self.models = models
        tasks = np.random.default_rng(seed).choice(sorted(models), N_TASKS, replace=False).tolist()
        space = {"source": tasks, "target": tasks, "lr": LR, "epochs": EPOCHS}
        sampler = optuna.samplers.GridSampler(space, seed=seed)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.space, self.eliminated, self.at_once = space, [], []
        self.study.optimize(gate(self.objective, rule), callbacks=[self.run_eliminated])
        # What is run now is run in another order.
        order = np.random.default_rng(seed).permutation(len(self.eliminated))
        self.afterwards = [self.timed(self.eliminated[row]) for row in order]

    def objective(self, trial: optuna.Trial | optuna.trial.FixedTrial) -> float:
        """Train a target from a source and score it on dev."""
        values = {name: trial.suggest_categorical(name, self.space[name]) for name in self.space}
        source, target = values["source"], values["target"]
        start = None if source == target else self.models[source]
        model = digits.target_model(target, values["lr"], values["epochs"], start)
        return digits.f1(model, target, digits.DEV)

    def run_eliminated(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Run what was eliminated a moment ago."""
        if trial.state == optuna.trial.TrialState.PRUNED:
            self.eliminated.append(trial.params)
            self.at_once.append(self.timed(trial.params))

    def timed(self, params: dict[str, object]) -> float:
        """Train with these parameters; the seconds that it took."""
        started = time.perf_counter()
        self.objective(optuna.trial.FixedTrial(params))
        return time.perf_counter() - started


def one_repeat(models: dict[str, digits.Network], rule: EliminationRule, seed: int) -> dict:
    search = Search(models, rule, seed)
    # A trial's seconds are more than its objective's, by what deciding takes from the saving.
    records = records_from_study(search.study)
    savings = estimate_savings(records, confidence=0.9)
    low, high = savings.estimated_seconds_saved_interval
    return {
        "repeat": seed,
        "estimated": savings.estimated_seconds_saved,
        "low": low,
        "high": high,
        "at once": sum(search.at_once),
        "afterwards": sum(search.afterwards),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="seed of the first repeat")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    models = {task: digits.source_model(task) for task in digits.TASKS}
    embeddings = {
        task: embed(model, digits.PROBE, name=task, target=1) for task, model in models.items()
    }
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=4)
    repeats = range(options.first, options.first + options.repeats)
    found = pd.DataFrame([one_repeat(models, rule, seed) for seed in repeats])
    printed = Table("eliminated trials run", "covered", "95% interval", "measured / estimated")
    for when in ("at once", "afterwards"):
        covered = int(found[when].between(found["low"], found["high"]).sum())
        test = binomtest(covered, len(found)).proportion_ci()
        ratio = found[when] / found["estimated"]
        printed.add_row(
            when,
            f"{covered} of {len(found)}",
            f"{test.low:.0%} to {test.high:.0%}",
            f"{ratio.mean():.3f} ± {ratio.std():.3f}",
        )
    console = Console(width=100)
    console.print(printed)
    widths = (found["high"] - found["low"]) / found["estimated"]
    console.print(f"The 90% interval is {widths.mean():.1%} of the estimate wide.")


if __name__ == "__main__":
    main()
