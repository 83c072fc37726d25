"""Task embeddings and transfers that several test modules tell their stories with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from transfer_pruner import TaskEmbedding
from transfer_pruner.pairs import ordered_pairs

MakeEmbedding = Callable[..., TaskEmbedding]


@pytest.fixture
def make_embedding() -> MakeEmbedding:
    """Make an embedding from example-wise attributions of one layer or more."""

    def make(name: str, probe: str = "shared", **layers: np.ndarray) -> TaskEmbedding:
        return TaskEmbedding(
            name=name,
            vectors={layer: np.mean(values, axis=0) for layer, values in layers.items()},
            signals={f"examples/{layer}": values for layer, values in layers.items()},
            provenance={"probe": probe},
        )

    return make


@pytest.fixture
def embeddings(make_embedding: MakeEmbedding) -> dict[str, TaskEmbedding]:
    """Six tasks that were attributed on the same 20 probe examples."""
    rng = np.random.default_rng(0)
    return {
        name: make_embedding(name, hidden=rng.normal(size=(20, 8)), last=rng.normal(size=(20, 4)))
        for name in ("news", "advice", "weather", "rescue", "donations", "rumour")
    }


@pytest.fixture
def transfers(embeddings: dict[str, TaskEmbedding]) -> pd.DataFrame:
    """Every ordered pair with a gain: some sources are better than others, with noise."""
    rng = np.random.default_rng(1)
    pairs = ordered_pairs(sorted(embeddings))
    quality = dict(zip(sorted(embeddings), np.linspace(-0.1, 0.1, len(embeddings)), strict=True))
    pairs["gain"] = pairs["source"].map(quality) + rng.normal(0, 0.01, len(pairs))
    return pairs
