"""How many steps and how many probe texts an embedding needs: what the defaults were chosen by.

    python examples/text_transfer/convergence.py --train train.csv --test test.csv --out trec-is-4

For the source models that measure.py left in the folder: how the similarities of all pairs, with
few steps or few probe texts, rank against those with many (Spearman, over pairs, and the largest
change of a vector relative to its length, both averaged over layers).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import encoder
import measure
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from transformers import AutoTokenizer

from transfer_pruner import TaskEmbedding, load_embeddings, pair_features, save_embeddings
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.text import embed_text

STEPS, MANY_STEPS, FEW_TEXTS = (1, 2, 3, 5, 8, 12, 20), 40, 48
PROBES, MANY_TEXTS, FEW_STEPS = (8, 16, 32, 64, 128), 256, 5
FEATURES = ("cosine", "containment", "example_cosine", "cka", "source_rank")


def embedded(
    options: argparse.Namespace, texts: list[str], n_steps: int
) -> dict[str, TaskEmbedding]:
    """Embed the first tasks of seed 0, unless the folder holds that already."""
    folder = options.out / "convergence" / f"{len(texts)}-texts-{n_steps}-steps"
    files = sorted((options.out / "models").glob("source-0-*.pt"))[: options.models]
    if not files:
        raise SystemExit(f"{options.out}/models holds no source model: run measure.py first.")
    done = load_embeddings(folder) if folder.exists() else {}
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    for file in files:
        name = file.stem.removeprefix("source-0-")
        if name in done:
            continue
        top = encoder.new_top(options.trainable)
        state = torch.load(file, weights_only=True)
        state.pop("seconds")
        top.load_state_dict(state)
        embedding = embed_text(
            encoder.WholeModel(top), tokenizer, texts, name=name, n_steps=n_steps, top_tokens=0
        )
        save_embeddings([embedding], folder)
    return load_embeddings(folder)


def first_texts(embeddings: dict[str, TaskEmbedding], n: int) -> dict[str, TaskEmbedding]:
    """Take what the embeddings would be, had the probe been its first n texts."""
    few = {}
    for name, embedding in embeddings.items():
        examples = {key: x[:n] for key, x in embedding.signals.items() if "examples/" in key}
        vectors = {layer: examples[f"examples/{layer}"].mean(axis=0) for layer in embedding.layers}
        few[name] = TaskEmbedding(name, vectors, examples, embedding.provenance)
    return few


def agreement(few: dict[str, TaskEmbedding], many: dict[str, TaskEmbedding]) -> list[str]:
    """Spearman of each feature over pairs, and the change of the vectors."""
    pairs = ordered_pairs(sorted(many))
    mine, theirs = pair_features(pairs, few), pair_features(pairs, many)
    cells = []
    for feature in FEATURES:
        columns = [column for column in theirs if column.startswith(f"{feature}[")]
        ranks = [spearmanr(mine[column], theirs[column]).statistic for column in columns]
        cells.append(f"{np.mean(ranks):.3f}")
    changes = [
        np.linalg.norm(few[name].vectors[layer] - vector) / np.linalg.norm(vector)
        for name, embedding in many.items()
        for layer, vector in embedding.vectors.items()
    ]
    return [*cells, f"{np.mean(changes):.3f}"]


def main() -> None:
    parser = measure.arguments()
    parser.add_argument("--models", type=int, default=8, help="how many source models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = measure.read(options)
    report = {}
    many = embedded(options, tasks.probe(FEW_TEXTS), MANY_STEPS)
    for n_steps in STEPS:
        few = embedded(options, tasks.probe(FEW_TEXTS), n_steps)
        report[f"{n_steps} of {MANY_STEPS} steps, {FEW_TEXTS} texts"] = agreement(few, many)
    many = embedded(options, tasks.probe(MANY_TEXTS), FEW_STEPS)
    for n_texts in PROBES:
        few = first_texts(many, n_texts)
        report[f"{n_texts} of {MANY_TEXTS} texts, {FEW_STEPS} steps"] = agreement(few, many)
    columns = [*FEATURES, "change of vectors"]
    table = Table("probe", *columns, title=f"{len(many)} tasks: agreement with the finest")
    for name, cells in report.items():
        table.add_row(name, *cells)
    Console().print(table)
    frame = pd.DataFrame(report, index=columns).T
    frame.to_csv(Path(options.out) / "convergence.csv", index_label="probe")


if __name__ == "__main__":
    main()
