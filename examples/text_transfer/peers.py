"""The peers' own packages on the pairs that were measured: what compare.py puts beside ours.

    python examples/text_transfer/peers.py --folder mixed --out mixed-output --half --seeds 0
    python -m venv selector && selector/bin/pip install torch hf-dataset-selector==0.2.1
    python -m venv ranker && ranker/bin/pip install torch transformer-ranker==0.2.0
    selector/bin/python examples/text_transfer/peers_alone.py dataset_selector mixed-output/peers
    ranker/bin/python examples/text_transfer/peers_alone.py transformer_ranker mixed-output/peers
    python examples/text_transfer/peers.py --folder mixed --out mixed-output --half --seeds 0

The first call writes what the packages take, saved models and texts with labels, and scores the
pairs by gradient embeddings and by the proxy scores of `score_pairs` on the same dev texts. The
packages run in environments of their own: they need other versions of numpy and datasets than
each other. The last call puts the numbers together, as peers.csv and peers-overhead.csv.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import encoder
import measure
import numpy as np
import pandas as pd
import torch
from encoder import Top, WholeModel
from features import Tops, baselines, look
from measure import Bench
from tasks import ManyLabels, Rows
from torch import nn
from transformers import AutoModel, AutoTokenizer

from transfer_pruner.pairs import ordered_pairs

# hf-dataset-selector pools tokens by their mean, as these models do, where a path says this.
MODELS = Path("sentence-transformers")
PROXIES = ("dev_logme", "dev_h_score", "dev_linear_probe")
"""Of labels, whose features.csv has them on the target's few texts; of classes it has these."""
GRADIENT_TEXTS = 128
PAIR = ["source", "target", "seed"]


def export(bench: Bench, seed: int, folder: Path) -> None:
    """Write models as folders and texts as CSVs, once."""
    done = folder / "exported"
    if done.exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    base = AutoModel.from_pretrained(encoder.pretrained(), local_files_only=True)
    (folder / "dev").mkdir(parents=True, exist_ok=True)
    (folder / "train").mkdir(exist_ok=True)
    for name in ("base", *bench.names):
        tuned = None if name == "base" else WholeModel(bench.source_model(name, seed)).bert
        (base if tuned is None else tuned).save_pretrained(folder / MODELS / name)
        tokenizer.save_pretrained(folder / MODELS / name)
    for name in bench.names:
        of_source = bench.tasks.source_rows(name, bench.regime.source_size, seed)
        for split, rows in (("dev", bench.scored[name, "dev"]), ("train", of_source)):
            texts = [bench.tasks.texts[row] for row in rows]
            labels = bench.tasks.truth(name, rows)
            pd.DataFrame({"text": texts, "label": labels}).to_csv(
                folder / split / f"{name}.csv", index=False
            )
    done.touch()


def gradient_embedding(bench: Bench, top: Top, task: str, rows: Rows) -> dict[str, np.ndarray]:
    """Mean squared gradient of a text's log-likelihood by every parameter of the trained blocks.

    The empirical Fisher information of TaskEmb (Vu et al. 2020, arXiv 2005.00770), of a model that
    was trained on the task.
    """
    top = top.eval()
    parameters = dict(top.blocks.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    rows = rows[:GRADIENT_TEXTS]
    labels = bench.labels(task, rows)
    for place in range(len(rows)):
        logits = top(*bench.activations.batch(rows[place : place + 1])).float()
        label = labels[place : place + 1]
        if logits.shape[1] > 1:
            loss = nn.functional.cross_entropy(logits, label)
        else:
            loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], label.float())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient**2
    return {name: value.numpy().ravel() / len(rows) for name, value in total.items()}


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Mean over parameter tensors of the cosine of two gradient embeddings."""
    found = []
    for name, a in one.items():
        b = other[name]
        size = np.linalg.norm(a) * np.linalg.norm(b)
        found.append(float(a @ b / size) if size > 0 else 0.0)
    return float(np.mean(found))


def by_gradients(bench: Bench, seed: int, tops: Tops, pairs: pd.DataFrame) -> np.ndarray:
    """Score pairs by TaskEmb's cosine: the source's on its own texts, the target's on its few."""
    alone = baselines(bench, seed)
    size = bench.regime.source_size, bench.regime.target_size
    sources = {
        name: gradient_embedding(bench, top, name, bench.tasks.source_rows(name, size[0], seed))
        for name, top in tops.items()
    }
    targets = {
        name: gradient_embedding(bench, top, name, bench.tasks.target_rows(name, size[1], seed))
        for name, top in alone.items()
    }
    return np.array(
        [
            alike(sources[s], targets[t])
            for s, t in zip(pairs["source"], pairs["target"], strict=True)
        ]
    )


def ours(bench: Bench, seed: int, folder: Path) -> None:
    """Score all pairs in this environment: gradient embeddings, `score_pairs` on dev texts."""
    pairs = ordered_pairs(bench.names)
    tops = {name: bench.source_model(name, seed) for name in bench.names}
    proxies = PROXIES if isinstance(bench.tasks, ManyLabels) else ()
    for what in ("gradients", *proxies):
        file = folder / f"{what}.csv"
        if file.exists():
            continue
        started = time.process_time()
        if what == "gradients":
            values = by_gradients(bench, seed, tops, pairs)
        else:
            values = look(bench, tops, pairs, what.removeprefix("dev_"))["look"].to_numpy()
        seconds = time.process_time() - started
        pairs.assign(score=values, seconds=seconds / len(pairs)).to_csv(file, index=False)


def collect(folders: dict[int, Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put all scores together: a row a pair and seed, a column a score; and their seconds."""
    tables, seconds = [], []
    for seed, folder in folders.items():
        table = None
        spent: dict[str, float] = {"seed": seed}
        for file in sorted(folder.glob("*.csv")):
            found = pd.read_csv(file)
            spent[file.stem] = float(found["seconds"].sum())
            found = found.assign(seed=seed)[[*PAIR, "score"]].rename(columns={"score": file.stem})
            table = found if table is None else table.merge(found, on=PAIR, how="outer")
        tables.append(table)
        seconds.append(spent)
    return pd.concat(tables, ignore_index=True), pd.DataFrame(seconds)


def main() -> None:
    options: argparse.Namespace = measure.arguments().parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    folders = {seed: options.out / "peers" / str(seed) for seed in options.seeds}
    for seed, folder in folders.items():
        export(bench, seed, folder)
        ours(bench, seed, folder)
    scores, seconds = collect(folders)
    scores.round(5).to_csv(options.out / "peers.csv", index=False)
    seconds.round(3).to_csv(options.out / "peers-overhead.csv", index=False)


if __name__ == "__main__":
    main()
