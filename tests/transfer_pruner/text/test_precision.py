"""Half precision, and an accelerator where there is one, give the values of float32 on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from transfer_pruner import TaskEmbedding, embed, embed_many, load_embeddings, score_pairs
from transfer_pruner.pairs import cosine

TEXTS = ["flood in the city", "we need water and food", "help", "the road is closed"] * 3
cuda = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand"),
)
Save = Callable[[str, int], Path]


@pytest.fixture
def save(save_model: Callable[..., Path]) -> Save:
    """Save a classifier whose logits differ by more than half precision rounds away."""
    return functools.partial(save_model, initializer_range=0.5)


def least_cosine(one: TaskEmbedding, other: TaskEmbedding) -> float:
    return min(cosine(one.vectors[layer], other.vectors[layer]) for layer in one.vectors)


@pytest.mark.parametrize("device", ["cpu", cuda])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("bfloat16", 0.99)])
def test_attributions_of_texts_are_those_of_float32_on_the_cpu(
    device: str, dtype: str, least: float, save: Save, tmp_path: Path
) -> None:
    models = {"news": save("a", 0), "advice": save("b", 1)}
    embed_many(models, TEXTS, tmp_path / "usual", progress=False)
    embed_many(models, TEXTS, tmp_path / "out", device=device, dtype=dtype, progress=False)
    usual, found = load_embeddings(tmp_path / "usual"), load_embeddings(tmp_path / "out")
    for task in models:
        assert least_cosine(usual[task], found[task]) > least
        assert all(np.isfinite(vector).all() for vector in found[task].vectors.values())


@pytest.mark.parametrize("device", ["cpu", cuda])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.001), ("bfloat16", 0.1)])
@pytest.mark.parametrize("method", ["logme", "linear_probe"])
def test_proxy_scores_are_those_of_float32_on_the_cpu(
    device: str, dtype: str, most: float, method: str, save: Save
) -> None:
    models = {f"task-{seed}": save(f"m{seed}", seed) for seed in range(6)}
    rng = np.random.default_rng(0)
    words = ["flood", "water", "food", "help", "road", "city", "the", "we", "need", "closed"]
    texts = pd.DataFrame(
        {
            "text": [" ".join(rng.choice(words, 4)) for _ in range(40)],
            "label": rng.permutation(np.arange(40) % 2),
        }
    )
    usual = score_pairs(models, {"new": texts}, method, progress=False)
    found = score_pairs(models, {"new": texts}, method, device=device, dtype=dtype, progress=False)
    assert (found["score"] - usual["score"]).abs().max() < most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand")
def test_a_torch_module_is_embedded_where_it_lies() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    probe = torch.randn(20, 6)
    usual = embed(model, probe, name="news", target=1)
    found = embed(model.to("cuda"), probe.to("cuda"), name="news", target=1)
    assert least_cosine(usual, found) > 0.9999
