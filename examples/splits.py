"""Does the ranking hold on other splits of the digits? Measures every pair on several of them.

Then it looks the demo's learning search up in what was measured, by each proxy score and by none.
Twelve minutes for six splits on one core; resumes. The attribution score was chosen on splits 2 to
5 (see docs/design-notes.md), the demo's proxy score on 2 and 3; splits 6 and 7 were not looked at
for that, and split 1 is the demo's.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import torch

import demo
import digits
from transfer_pruner import (
    LearningRule,
    TransferPredictor,
    embed,
    load_embeddings,
    save_embeddings,
    score_pairs,
)
from transfer_pruner_optuna import StopWhenSettled, TransferSampler

OUT = Path("demo-output/splits")
SPLITS = (2, 3, 4, 5, 6, 7)
CHOSEN_ON = (2, 3, 4, 5)
PROXIES = ("h_score", "logme", "linear_probe", "zero_shot")
N_TRIALS = 224
"""Of a search: those that train behind the demo's gate."""


def measure(folder: Path) -> None:
    """Train and embed every task, then every pair with every setting, on this process's split."""
    torch.set_num_threads(1)
    models = {task: digits.source_model(task) for task in demo.TASKS}
    sources = [embed(models[task], digits.PROBE, name=task, target=1) for task in demo.TASKS]
    few_shot = {task: digits.target_model(task, lr=1e-2, epochs=40) for task in demo.TASKS}
    targets = [embed(few_shot[task], digits.PROBE, name=task, target=1) for task in demo.TASKS]
    save_embeddings(sources, folder / "s")
    save_embeddings(targets, folder / "t")
    rows = []
    for source, target, lr, epochs in itertools.product(*demo.SPACE.values()):
        model = None if source == target else models[source]
        scores = digits.transfer_scores(model, target, lr, epochs)
        rows.append((source, target, lr, epochs, *scores))
    table = pd.DataFrame(rows, columns=["source", "target", "lr", "epochs", "dev", "test"])
    table.to_csv(folder / "trials.partial", index=False)
    (folder / "trials.partial").rename(folder / "trials.csv")


def measure_proxies(folder: Path) -> None:
    """Score every pair by every proxy score, on this process's split."""
    torch.set_num_threads(1)
    models = {task: digits.source_model(task) for task in demo.TASKS}
    dev = {task: (digits.IMAGES[digits.DEV], digits.TASKS[task][digits.DEV]) for task in models}
    tables = [score_pairs(models, dev, proxy, progress=False) for proxy in PROXIES]
    pd.concat(tables).to_csv(folder / "proxies.partial", index=False)
    (folder / "proxies.partial").rename(folder / "proxies.csv")


def found_by_learning(folder: Path, predictor: TransferPredictor, proxy: str | None) -> float:
    """Look the demo's learning search up in what was measured: the share of the gain it keeps."""
    trials = pd.read_csv(folder / "trials.csv")
    dev = trials.set_index([*demo.SPACE])["dev"]
    rule = LearningRule(predictor)
    if proxy is not None:
        proxies = pd.read_csv(folder / "proxies.csv")
        rule = rule.refine(proxies[proxies["method"] == proxy])

    def objective(trial: optuna.Trial) -> float:
        chosen = (trial.suggest_categorical(name, of) for name, of in demo.SPACE.items())
        return float(dev[tuple(chosen)])

    sampler = TransferSampler(rule, optuna.samplers.RandomSampler(seed=0), seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for task, lr, epochs in itertools.product(demo.TASKS, *list(demo.SPACE.values())[2:]):
        study.enqueue_trial({"source": task, "target": task, "lr": lr, "epochs": epochs})
    study.optimize(objective, n_trials=N_TRIALS, callbacks=[StopWhenSettled(rule)])
    tried = pd.DataFrame([trial.params for trial in study.get_trials(deepcopy=False)])
    return demo.share_kept(trials, tried).share_kept


def on_split(split: int, folder: Path, *what: str) -> None:
    environment = {**os.environ, "DIGITS_SPLIT": str(split)}
    subprocess.run([sys.executable, __file__, folder, *what], env=environment, check=True)


def measured(split: int) -> tuple[pd.DataFrame, TransferPredictor, pd.DataFrame]:
    """Measure what is missing of a split; return its trials, attributions and proxy scores."""
    folder = OUT / f"split{split}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "trials.csv").exists():
        print(f"measuring split {split}", flush=True)
        on_split(split, folder)
    if not (folder / "proxies.csv").exists():
        on_split(split, folder, "proxies")
    predictor = TransferPredictor(
        load_embeddings(folder / "s"), target_embeddings=load_embeddings(folder / "t")
    )
    return pd.read_csv(folder / "trials.csv"), predictor, pd.read_csv(folder / "proxies.csv")


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found, searched = [], []
    for split in SPLITS:
        folder = OUT / f"split{split}"
        trials, predictor, _ = measured(split)
        for proxy in (*PROXIES, None):
            share = found_by_learning(folder, predictor, proxy)
            searched.append({"split": split, "proxy": proxy or "none", "share": share})
        found.append(demo.compare(trials, predictor, random_repeats=50).assign(split=split))
    shares = pd.DataFrame(searched).pivot(index="split", columns="proxy", values="share")
    print(f"Share of attainable gain that a learning search of {N_TRIALS} trials keeps, by proxy:")
    print(shares.round(2).to_string())
    table = pd.concat(found)
    for name, chosen in (("chosen on", CHOSEN_ON), ("not looked at", set(SPLITS) - {*CHOSEN_ON})):
        shares = table[table["split"].isin(chosen)].groupby(["kept", "way"])["share"]
        print(f"\nShare of attainable gain kept, splits {sorted(chosen)} ({name}):")
        print(shares.agg(["mean", "min", "max"]).round(2).to_string())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        (measure_proxies if len(sys.argv) > 2 else measure)(Path(sys.argv[1]))
    else:
        main()
