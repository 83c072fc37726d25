"""On a cluster of two nodes: the same scores as here, from folders and from modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

import transfer_pruner
import transfer_pruner_ray
from transfer_pruner import TransferPrunerWarning

TEXTS = ["flood in the city", "we need water and food", "help", "road closed"]
DATASETS = {"news": (TEXTS, [1, 0, 0, 1]), "advice": (TEXTS[:3], [0, 1, 1])}


def test_the_call_is_the_same_and_so_are_the_scores(
    cluster: Cluster, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = {name: save_model(name, seed=seed) for seed, name in enumerate(["a", "b", "news"])}
    here = transfer_pruner.score_pairs(models, DATASETS, progress=False)
    cache = tmp_path / "cache"
    there = transfer_pruner_ray.score_pairs(models, DATASETS, cache=cache, progress=False)
    assert there["score"].tolist() == pytest.approx(here["score"].tolist())
    assert there["source"].tolist() == here["source"].tolist()
    # What the cluster gave, this machine leaves alone.
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    transfer_pruner.score_pairs(models, DATASETS, "logme", cache=cache, progress=False)
    assert before == {file: file.stat().st_mtime_ns for file in cache.iterdir()}


def test_a_model_that_fails_costs_only_itself(
    cluster: Cluster, save_model: Callable[..., Path]
) -> None:
    broken = save_model("broken")
    (broken / "model.safetensors").write_bytes(b"half")
    models = {"broken": broken, "good": save_model("good")}
    with pytest.warns(TransferPrunerWarning, match="2 of 4 pairs have no zero_shot score"):
        table = transfer_pruner_ray.score_pairs(models, DATASETS, progress=False)
    assert table["score"].isna().tolist() == [True, True, False, False]


def test_a_module_is_sent(cluster: Cluster) -> None:
    torch.manual_seed(0)
    x, module = torch.randn(20, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    data = {"t": (x, (x[:, 0] > 0).long())}
    here = transfer_pruner.score_pairs({"s": module}, data, "h_score", progress=False)
    there = transfer_pruner_ray.score_pairs({"s": module}, data, "h_score", progress=False)
    assert there["score"].tolist() == pytest.approx(here["score"].tolist(), rel=1e-4)
