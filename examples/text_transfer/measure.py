"""Measure transfer between all tasks of a CSV: what the benchmark's table comes from.

    python examples/text_transfer/measure.py --train train.csv --test test.csv --out trec-is-4

For every seed: a single-task model for each task as a source, the single-task baseline of each task
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
from dataclasses import dataclass
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
from torch import nn

WAYS = ("sequential", "joint")
SPLITS = ("dev", "test", "shifted")
NO_SOURCE = "(none)"


@dataclass(frozen=True)
class Regime:
    """Sizes and budgets, chosen on a pilot with a split of its own (README.md)."""

    source_positives: int = 375
    source_epochs: int = 3
    source_lr: float = 3e-4
    source_batch: int = 32
    target_positives: int = 16
    target_epochs: int = 6
    target_batch: int = 16
    dev_positives: int = 60
    test_positives: int = 120


class Bench:
    """Everything that a worker needs, made once a process."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.regime = Regime(
            target_positives=options.target_positives, target_epochs=options.target_epochs
        )
        self.out: Path = options.out
        self.lrs: list[float] = options.lr
        self.half: bool = options.half
        self.n_trainable: int = options.trainable
        self.tasks = read(options)
        self.names = options.tasks or self.tasks.names
        self.activations = encoder.cached_activations(self.tasks.texts, self.out, self.n_trainable)
        self.base = encoder.new_top(self.n_trainable, seed=0)
        positives = dict.fromkeys(SPLITS, self.regime.test_positives)
        positives["dev"] = self.regime.dev_positives
        self.scored = {
            (task, split): self.tasks.sample(task, split, positives[split])
            for task in self.names
            for split in SPLITS
        }

    def unit(self, way: str, seed: int, source: str) -> None:
        """Measure one source with all targets, unless that is done."""
        file = self.out / "units" / f"{way}-{seed}-{source}.csv"
        if file.exists():
            return
        top = self.source_model(source, seed) if source != NO_SOURCE else None
        rows = []
        for target, lr in product(self.names, self.lrs):
            if target == source:
                continue
            started = time.process_time()
            if way == "joint":
                model, losses = self.train_jointly(source, target, lr, seed)
            else:
                model, losses = self.train_target(top, target, lr, seed)
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
        top = copy.deepcopy(self.base)
        if not file.exists():
            rows = self.tasks.sample(source, "pool", self.regime.source_positives, 100 + seed)
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

    def train_target(
        self, source: Top | None, target: str, lr: float, seed: int
    ) -> tuple[Top, list[float]]:
        """Fine-tune on the target's few texts: from the source with its head, or from neither."""
        top = copy.deepcopy(self.base if source is None else source)
        if source is None:
            top.head = encoder.new_head(top.head.in_features, seed)
        rows = self.tasks.sample(target, "pool", self.regime.target_positives, seed)
        losses = train(
            top,
            self.activations,
            rows,
            self.labels(target, rows),
            lr=lr,
            epochs=self.regime.target_epochs,
            batch=self.regime.target_batch,
            seed=seed,
            half=self.half,
        )
        return top, losses

    def train_jointly(
        self, source: str, target: str, lr: float, seed: int
    ) -> tuple[Top, list[float]]:
        """Train the encoder on both with a head each: as many fresh source as target texts."""
        top = copy.deepcopy(self.base)
        top.head = encoder.new_head(top.head.in_features, seed)
        other = copy.deepcopy(top)
        other.blocks = top.blocks
        rows = self.tasks.sample(target, "pool", self.regime.target_positives, seed)
        pool = self.tasks.sample(source, "pool", self.regime.source_positives, 100 + seed)
        repeats = -(-len(rows) * self.regime.target_epochs // len(pool))
        source_rows = np.concatenate([pool] * repeats)
        losses = train(
            top,
            self.activations,
            rows,
            self.labels(target, rows),
            lr=lr,
            epochs=self.regime.target_epochs,
            batch=self.regime.target_batch,
            seed=seed,
            half=self.half,
            beside=(other, source_rows, self.labels(source, source_rows)),
        )
        return top, losses

    def labels(self, task: str, rows: Rows) -> torch.Tensor:
        """1 for a positive of the task, else 0, as the loss takes them."""
        return torch.from_numpy(self.tasks.positive(task, rows).astype(np.float32))

    def logits(self, top: Top, target: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Which of a target's texts in a split are positive, and the model's logits of them."""
        rows = self.scored[target, split]
        with encoder.half_precision(self.half):
            return self.tasks.positive(target, rows), encoder.logits(top, self.activations, rows)

    def scores(self, top: Top, target: str) -> tuple[dict[str, float], float]:
        """F1 of the positive class, the threshold chosen on dev, and average precision.

        Beside them the seconds of the scoring on dev, which a search by dev has to pay too.
        """
        scores = {}
        threshold, on_dev, started = 0.0, 0.0, time.process_time()
        for split in SPLITS:
            truth, logits = self.logits(top, target, split)
            if split == "dev":
                threshold = best_threshold(truth, logits)
                on_dev = time.process_time() - started
            scores[f"{split}_f1"] = float(f1_score(truth, logits >= threshold))
            scores[f"{split}_f1_at_half"] = float(f1_score(truth, logits >= 0, zero_division=0.0))
            scores[f"{split}_ap"] = float(average_precision_score(truth, logits))
        return scores, on_dev


def train(
    top: Top,
    activations: Activations,
    rows: Rows,
    labels: torch.Tensor,
    *,
    lr: float,
    epochs: int,
    batch: int,
    seed: int,
    half: bool = False,
    beside: tuple[Top, Rows, torch.Tensor] | None = None,
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


def _loss(top: Top, activations: Activations, rows: Rows, labels: torch.Tensor) -> torch.Tensor:
    logits = top(*activations.batch(rows)).float()
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def best_threshold(truth: np.ndarray, logits: np.ndarray) -> float:
    precision, recall, thresholds = precision_recall_curve(truth, logits)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[f1[:-1].argmax()])


def read(options: argparse.Namespace) -> Tasks:
    return tasks_module.read_tasks(
        options.train,
        options.test,
        options.text_column,
        options.labels_column,
        options.separator,
        options.split_seed,
    )


_bench: Bench


def _start(options: argparse.Namespace) -> None:
    global _bench
    os.nice(15)
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
    parser.add_argument("--train", type=Path, required=True, help="CSV of the pool, dev and test")
    parser.add_argument("--test", type=Path, required=True, help="CSV of the shifted test split")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is finished")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--labels-column", default="labels")
    parser.add_argument("--separator", default="|", help="between a text's labels")
    parser.add_argument("--tasks", nargs="+", help="only these labels")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--trainable", type=int, default=encoder.N_TRAINABLE, help="encoder blocks")
    parser.add_argument("--target-positives", type=int, default=Regime.target_positives)
    parser.add_argument("--target-epochs", type=int, default=Regime.target_epochs)
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
