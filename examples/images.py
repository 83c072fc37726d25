"""Measure transfer between the digits' tasks, with models of three kinds.

    python examples/images.py
    python examples/text_transfer/compare.py --setting images-copies

The models are trained from scratch, or they are copies of one network that was pretrained on the
images without their labels (how far was each image turned?), fine-tuned a lot or a little. Every
ordered pair by sequential transfer on several splits of the images, which take the place of seeds;
attributions and proxy scores of every pair. The tables are those of text_transfer. Seconds are
seconds of CPU. What is finished is not run again.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import digits
from digits import DEV, DRAWS, IMAGES, POOL, PROBE, SOURCE, TASKS, TEST, Network
from transfer_pruner import embed, pair_features
from transfer_pruner.correspondence import correspondence
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.transferability import score_pairs

HERE = Path(__file__).parent
OUT = Path("demo-output/images")
SPLITS = (2, 3, 4, 6, 7, 8)
"""Anything is chosen on the first three; compare.py reports the others."""
FINE_TUNING = {"scratch": (5e-3, 20), "copies": (5e-3, 20), "close-copies": (1e-3, 10)}
"""Of sources: learning rate and epochs."""
LRS = (3e-3, 1e-2)
EPOCHS = 40
PROXIES = ("zero_shot", "logme", "h_score", "linear_probe")
NO_SOURCE = "(none)"


def pretrained() -> Network:
    """Learn to tell by how many quarters an image was turned; no label is looked at."""
    torch.manual_seed(0)
    model = Network()
    model.head = nn.Linear(model.head.in_features, 4)
    images = IMAGES[np.concatenate([SOURCE, POOL])]
    turned = torch.cat([torch.rot90(images, quarters, (2, 3)) for quarters in range(4)])
    quarters = torch.arange(4).repeat_interleave(len(images))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        for rows in torch.randperm(len(turned)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(turned[rows]), quarters[rows]).backward()
            optimizer.step()
    return model


def with_new_head(model: Network | None, seed: int) -> Network:
    """Copy a model, or make one, with a new head of two outputs."""
    fresh = digits.new_network(seed)
    if model is None:
        return fresh
    copied = copy.deepcopy(model)
    copied.head = fresh.head
    return copied


def target_model(model: Network | None, task: str, lr: float, draw: int) -> Network:
    """Fine-tune on the target's few labelled images."""
    start = with_new_head(model, 100 + draw)
    rows = digits.few_shot_rows(task, draw)
    return digits.train(start, task, rows, lr, EPOCHS, batch=30, seed=draw)


def scores(model: Network | None, task: str, lr: float) -> dict[str, float]:
    """Positive-class F1 on dev and test, means over draws of the labelled images."""
    started = time.process_time()
    models = [target_model(model, task, lr, draw) for draw in range(DRAWS)]
    seconds = time.process_time() - started
    found = {
        f"{split}_f1": float(np.mean([digits.f1(x, task, rows) for x in models]))
        for split, rows in (("dev", DEV), ("test", TEST))
    }
    return found | {"seconds": seconds}


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[what] = time.process_time() - started


def measure(kind: str, folder: Path) -> None:
    """Train every task and every pair, on this process's split."""
    torch.set_num_threads(1)
    base = None if kind == "scratch" else pretrained()
    lr, epochs = FINE_TUNING[kind]
    models = {
        task: digits.train(with_new_head(base, 0), task, SOURCE, lr, epochs, batch=50, seed=0)
        for task in TASKS
    }
    alone = {task: target_model(base, task, LRS[-1], 0) for task in TASKS}
    pairs = ordered_pairs(TASKS)
    seconds: dict[str, float] = {"seed": digits.SPLIT}
    with timed(seconds, "attributions"):
        sources, targets = (
            {task: embed(model, PROBE, name=task, target=1) for task, model in found.items()}
            for found in (models, alone)
        )
        features = pairs.assign(seed=digits.SPLIT).join(pair_features(pairs, sources, targets))
    dev = {task: (IMAGES[DEV], TASKS[task][DEV].astype(int)) for task in TASKS}
    for method in PROXIES:
        with timed(seconds, method):
            found = score_pairs(models, dev, method, progress=False)
        features = features.merge(
            found[["source", "target", "score"]].rename(columns={"score": method})
        )
    features["look"] = features["zero_shot"]
    seconds["running"] = 0.0
    seconds["look"] = seconds["zero_shot"]
    seconds["looked_at_again"] = seconds["zero_shot"] * 4 / 13
    for layer in sources["even"].vectors:
        seconds[f"correspondence[{layer}]"] = correspondence(layer, sources, targets)
    rows = []
    for target, rate in product(TASKS, LRS):
        for source in (NO_SOURCE, *(task for task in TASKS if task != target)):
            model = base if source == NO_SOURCE else models[source]
            row = {"way": "sequential", "source": source, "target": target, "lr": rate}
            rows.append(row | {"seed": digits.SPLIT} | scores(model, target, rate))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).round(4).to_csv(folder / "transfers.csv", index=False)
    pd.DataFrame([seconds]).round(4).to_csv(folder / "overhead.csv", index=False)
    features.round(5).to_csv(folder / "features.csv", index=False)


def main() -> None:
    for kind in FINE_TUNING:
        for split in SPLITS:
            folder = OUT / kind / str(split)
            if not (folder / "features.csv").exists():
                print(f"measuring {kind}, split {split}", flush=True)
                environment = {**os.environ, "DIGITS_SPLIT": str(split)}
                command = [sys.executable, __file__, kind, str(folder)]
                subprocess.run(command, env=environment, check=True)
        for name in ("transfers", "features", "overhead"):
            parts = [pd.read_csv(OUT / kind / str(split) / f"{name}.csv") for split in SPLITS]
            pd.concat(parts).to_csv(HERE / "tables" / f"images-{kind}-{name}.csv", index=False)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
