"""Measure transfer between text tasks, all ordered pairs: what the benchmarks' tables come from.

    python examples/text_transfer/measure.py --train train.csv --test test.csv --out trec-is-4
    python examples/text_transfer/measure.py --folder mixed --out mixed

The tasks are the labels of a CSV of texts with several labels each, or the CSVs of a folder. For
every seed: a single-task model for each task as a source, the single-task baseline of each task
as a target with few labels, and every ordered pair, at every learning rate, by sequential and by
joint transfer. A unit of work is one source with all targets; what is finished stays, so the
command can be stopped and given again. Seconds are seconds of CPU.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import encoder
import numpy as np
import pandas as pd
import tasks as tasks_module
import torch
from encoder import Activations, Top
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve
from tasks import Rows, Tasks
from torch import Tensor, nn

WAYS = ("sequential", "joint")
NO_SOURCE = "(none)"


@dataclass(frozen=True)
class Regime:
    """Sizes and budgets, chosen on pilots with splits of their own (README.md).

    Sizes are what the tasks say: positives of a label; or texts, of a target those of each class.
    """

    source_size: int
    target_size: int
    target_epochs: int
    most_steps: int
    dev_size: int
    test_size: int
    source_epochs: int = 3
    source_lr: float = 3e-4
    source_batch: int = 32
    target_batch: int = 16

    def epochs(self, n_rows: int) -> int:
        """Epochs over a target's texts, fewer than it should be where that takes too many steps."""
        steps = -(-n_rows // self.target_batch)
        return min(self.target_epochs, max(1, self.most_steps // steps))


OF_LABELS = Regime(375, 16, 6, 10_000, 60, 120)
OF_FILES = Regime(1000, 4, 15, 30, 160, 320, source_epochs=2)
MOST_TEXTS = 160
"""Of a target with many classes."""


class Bench:
    """Everything that a worker needs, made once a process."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.regime = regime(options)
        self.out: Path = options.out
        self.lrs: list[float] = options.lr
        self.half: bool = options.half
        self.n_trainable: int = options.trainable
        self.tasks = read(options)
        self.names = options.tasks or self.tasks.names
        self.targets = options.targets or self.names
        self.activations = encoder.cached_activations(self.tasks.texts, self.out, self.n_trainable)
        self.base = encoder.new_top(self.n_trainable)
        sizes = {"dev": self.regime.dev_size}
        self.scored = {
            (task, split): self.tasks.scored_rows(
                task, split, sizes.get(split, self.regime.test_size)
            )
            for task in self.names
            for split in self.tasks.splits
        }

    def unit(self, way: str, seed: int, source: str) -> None:
        """Measure one source with all targets, unless that is done."""
        file = self.out / "units" / f"{way}-{seed}-{source}.csv"
        if file.exists():
            return
        top = self.source_model(source, seed) if source != NO_SOURCE else None
        rows = []
        for target, lr in product(self.targets, self.lrs):
            if target == source:
                continue
            started = time.process_time()
            if way == "joint":
                model, losses = self.train_jointly(source, target, lr, seed)
            else:
                model, losses = self.train_target(top, source, target, lr, seed)
            training = time.process_time() - started
            scores, scoring = self.scores(model, target)
            rows.append(
                {"way": way, "source": source, "target": target, "seed": seed, "lr": lr}
                | scores
                | {"loss_first": losses[0], "loss_last": losses[-1], "seconds": training}
                | {"dev_seconds": scoring}
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        pd.DataFrame(rows).round(4).to_csv(partial, index=False)
        partial.rename(file)

    def source_model(self, source: str, seed: int) -> Top:
        """Train the single-task model of a source, or take it from the folder."""
        file = self.out / "models" / f"source-{seed}-{source}.pt"
        top = self.new_top(source, 0)
        if not file.exists():
            rows = self.tasks.source_rows(source, self.regime.source_size, seed)
            regime, started = self.regime, time.process_time()
            train(
                top,
                self.activations,
                rows,
                self.labels(source, rows),
                lr=regime.source_lr,
                epochs=regime.source_epochs,
                batch=regime.source_batch,
                seed=seed,
                half=self.half,
            )
            seconds = torch.tensor(time.process_time() - started)
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.partial")
            torch.save(top.state_dict() | {"seconds": seconds}, partial)
            partial.rename(file)
        state = torch.load(file, weights_only=True)
        state.pop("seconds")
        top.load_state_dict(state)
        return top

    def new_top(self, task: str, seed: int) -> Top:
        """Take the pretrained encoder with a new head for a task."""
        top = copy.deepcopy(self.base)
        top.head = encoder.new_head(top.head.in_features, self.tasks.n_outputs(task), seed)
        return top

    def start(self, source: Top | None, name: str, target: str, seed: int) -> Top:
        """From the source, with its head if that has the target's labels; or from neither."""
        if source is None:
            return self.new_top(target, seed)
        top = copy.deepcopy(source)
        if not self.tasks.same_labels(name, target):
            top.head = self.new_top(target, seed).head
        return top

    def train_target(
        self, source: Top | None, name: str, target: str, lr: float, seed: int
    ) -> tuple[Top, list[float]]:
        """Fine-tune on the target's few texts, from a source of this name or from the encoder."""
        top = self.start(source, name, target, seed)
        rows = self.tasks.target_rows(target, self.regime.target_size, seed)
        losses = train(
            top,
            self.activations,
            rows,
            self.labels(target, rows),
            lr=lr,
            epochs=self.regime.epochs(len(rows)),
            batch=self.regime.target_batch,
            seed=seed,
            half=self.half,
        )
        return top, losses

    def train_jointly(
        self, source: str, target: str, lr: float, seed: int
    ) -> tuple[Top, list[float]]:
        """Train the encoder on both with a head each: as many fresh source as target texts."""
        top, other = self.new_top(target, seed), self.new_top(source, seed)
        other.blocks = top.blocks
        rows = self.tasks.target_rows(target, self.regime.target_size, seed)
        pool = self.tasks.source_rows(source, self.regime.source_size, seed)
        epochs = self.regime.epochs(len(rows))
        repeats = -(-len(rows) * epochs // len(pool))
        source_rows = np.concatenate([pool] * repeats)
        losses = train(
            top,
            self.activations,
            rows,
            self.labels(target, rows),
            lr=lr,
            epochs=epochs,
            batch=self.regime.target_batch,
            seed=seed,
            half=self.half,
            beside=(other, source_rows, self.labels(source, source_rows)),
        )
        return top, losses

    def labels(self, task: str, rows: Rows) -> Tensor:
        """Give the class of each row."""
        return torch.from_numpy(self.tasks.truth(task, rows))

    def logits(self, top: Top, target: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Give the classes of a target's texts in a split, and the model's logits of them."""
        rows = self.scored[target, split]
        with encoder.half_precision(self.half):
            return self.tasks.truth(target, rows), encoder.logits(top, self.activations, rows)

    def scores(
        self, top: Top, target: str, splits: Sequence[str] | None = None
    ) -> tuple[dict[str, float], float]:
        """Score a model on every split of a target, or on dev and those that are named.

        Of a label: F1 of the positive class, the threshold chosen on dev, and average precision. Of
        classes: macro F1 and accuracy. Beside them the seconds of the scoring on dev, which a
        search by dev has to pay too.
        """
        scores = {}
        threshold, on_dev, started = 0.0, 0.0, time.process_time()
        for split in splits or self.tasks.splits:
            truth, logits = self.logits(top, target, split)
            if logits.shape[1] == 1:
                logits = logits[:, 0]
                threshold = best_threshold(truth, logits) if split == "dev" else threshold
                of_split = of_label(truth, logits, threshold)
            else:
                of_split = of_classes(truth, logits)
            if split == "dev":
                on_dev = time.process_time() - started
            scores |= {f"{split}_{name}": float(value) for name, value in of_split.items()}
        return scores, on_dev


def of_label(truth: np.ndarray, logits: np.ndarray, threshold: float) -> dict[str, float]:
    return {
        "f1": f1_score(truth, logits >= threshold),
        "f1_at_half": f1_score(truth, logits >= 0, zero_division=0.0),
        "ap": average_precision_score(truth, logits),
    }


def of_classes(truth: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    said = logits.argmax(axis=1)
    return {"f1": f1_score(truth, said, average="macro"), "accuracy": np.mean(truth == said)}


def train(
    top: Top,
    activations: Activations,
    rows: Rows,
    labels: Tensor,
    *,
    lr: float,
    epochs: int,
    batch: int,
    seed: int,
    half: bool = False,
    beside: tuple[Top, Rows, Tensor] | None = None,
) -> list[float]:
    """Train in place, learning rate falling to 0; return each epoch's mean loss on `rows`.

    Without dropout: with a few dozen texts it is the larger part of the noise between seeds.
    """
    top.eval()
    heads = [top.head] if beside is None else [top.head, beside[0].head]
    parameters = [*top.blocks.parameters(), *(p for head in heads for p in head.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    order = np.random.default_rng(seed)
    n_steps = epochs * -(-len(rows) // batch)
    step, losses = 0, []
    for _ in range(epochs):
        total = 0.0
        shuffled = order.permutation(len(rows))
        for start in range(0, len(rows), batch):
            chosen = shuffled[start : start + batch]
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / n_steps)
            with encoder.half_precision(half):
                loss = _loss(top, activations, rows[chosen], labels[chosen])
                total += loss.item() * len(chosen)
                if beside is not None:
                    other, other_rows, other_labels = beside
                    place = np.arange(step * batch, step * batch + len(chosen)) % len(other_rows)
                    loss = loss + _loss(other, activations, other_rows[place], other_labels[place])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        losses.append(total / len(rows))
    return losses


def _loss(top: Top, activations: Activations, rows: Rows, labels: Tensor) -> Tensor:
    logits = top(*activations.batch(rows)).float()
    if logits.shape[1] > 1:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())


def best_threshold(truth: np.ndarray, logits: np.ndarray) -> float:
    precision, recall, thresholds = precision_recall_curve(truth, logits)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[f1[:-1].argmax()])


def read(options: argparse.Namespace) -> Tasks:
    if options.folder is not None:
        return tasks_module.read_folder(
            options.folder,
            options.text_column,
            options.label_column,
            options.split_column,
            MOST_TEXTS,
            options.split_seed,
        )
    if options.train is None or options.test is None:
        raise SystemExit("give --folder, or --train and --test.")
    return tasks_module.read_many_labels(
        options.train,
        options.test,
        options.text_column,
        options.labels_column,
        options.separator,
        None if options.in_order else options.split_seed,
    )


def regime(options: argparse.Namespace) -> Regime:
    usual = OF_LABELS if options.folder is None else OF_FILES
    given = {
        name: getattr(options, name)
        for name in ("target_size", "target_epochs", "most_steps")
        if getattr(options, name) is not None
    }
    return replace(usual, **given)


_bench: Bench


def _start(options: argparse.Namespace) -> None:
    global _bench
    _bench = Bench(options)


def _unit(unit: tuple[str, int, str]) -> tuple[str, int, str]:
    _bench.unit(*unit)
    return unit


def restore(table: Path, out: Path) -> None:
    """Take the units of a table that was kept for finished, so that only the others are run."""
    for (way, seed, source), rows in pd.read_csv(table).groupby(["way", "seed", "source"]):
        file = out / "units" / f"{way}-{seed}-{source}.csv"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            rows.to_csv(file, index=False)


def collect(out: Path) -> pd.DataFrame:
    """Put the finished units together, sorted, as one table."""
    table = pd.concat([pd.read_csv(file) for file in sorted((out / "units").glob("*.csv"))])
    return table.sort_values(["way", "seed", "lr", "target", "source"], ignore_index=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of one CSV a task: text, label, split")
    parser.add_argument("--train", type=Path, help="CSV of the pool, dev and test")
    parser.add_argument("--test", type=Path, help="CSV of the shifted test split")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is finished")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label", help="in the CSVs of --folder")
    parser.add_argument("--split-column", default="split", help="in the CSVs of --folder")
    parser.add_argument("--labels-column", default="labels", help="in --train and --test")
    parser.add_argument("--separator", default="|", help="between a text's labels")
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument(
        "--in-order", action="store_true", help="deal --train out in its order, not at random"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--trainable", type=int, default=encoder.N_TRAINABLE, help="encoder blocks")
    parser.add_argument("--targets", nargs="+", help="only these as targets")
    parser.add_argument(
        "--target-size",
        "--target-positives",
        type=int,
        help="labelled positives of a target, or texts of each class; 0: its whole train split",
    )
    parser.add_argument("--target-epochs", type=int)
    parser.add_argument("--most-steps", type=int, help="of a target: fewer epochs if it has many")
    parser.add_argument("--half", action="store_true", help="multiply in bfloat16: faster")
    parser.add_argument("--table", type=Path, help="CSV of an earlier run of this command: go on")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser


def main() -> None:
    options = arguments().parse_args()
    tasks = read(options)
    if options.table:
        restore(options.table, options.out)
    encoder.cached_activations(tasks.texts, options.out, options.trainable)
    names = options.tasks or tasks.names
    units = [("sequential", seed, NO_SOURCE) for seed in options.seeds]
    units += [(way, seed, name) for way in options.ways for seed in options.seeds for name in names]
    with multiprocessing.get_context("spawn").Pool(options.workers, _start, (options,)) as pool:
        for number, unit in enumerate(pool.imap_unordered(_unit, units), 1):
            print(f"{time.strftime('%H:%M:%S')} {number}/{len(units)}", *unit, flush=True)
    collect(options.out).to_csv(options.out / "transfers.csv", index=False)


if __name__ == "__main__":
    main()
