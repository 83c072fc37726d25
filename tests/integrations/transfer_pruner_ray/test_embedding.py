"""On a cluster of several nodes: the same embeddings, whichever worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

import transfer_pruner
import transfer_pruner_ray
from transfer_pruner import load_embeddings

TEXTS = ["flood in the city", "we need water and food", "help"]


def workers() -> list[int]:
    """Process ids of workers that are embedding a model."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, arguments in lines if arguments.startswith("ray::_work")]


def test_the_call_is_the_same_and_so_are_the_embeddings(
    cluster: Cluster, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = {f"task-{i}": save_model(str(i), seed=i) for i in range(4)}
    transfer_pruner.embed_many(models, TEXTS, tmp_path / "here", n_steps=5)
    files = transfer_pruner_ray.embed_many(models, TEXTS, tmp_path / "there", n_steps=5)
    here, there = load_embeddings(tmp_path / "here"), load_embeddings(tmp_path / "there")
    assert list(files) == list(models)
    for name, embedding in here.items():
        for layer, vector in embedding.vectors.items():
            np.testing.assert_allclose(there[name].vectors[layer], vector, rtol=1e-4, atol=1e-8)
    # What one of them finished, the other leaves alone.
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    again = transfer_pruner.embed_many(models, TEXTS, tmp_path / "there", n_steps=5)
    assert before == {name: file.stat().st_mtime_ns for name, file in again.items()}


def test_a_killed_worker_loses_nothing_that_was_finished(
    cluster: Cluster, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = {f"task-{i}": save_model(str(i), seed=i) for i in range(6)}
    out = tmp_path / "out"
    seen: dict[str, int] = {}
    killed = []

    def kill() -> None:
        while len(list(out.glob("*.safetensors"))) < 2:
            time.sleep(0.01)
        seen.update((file.stem, file.stat().st_mtime_ns) for file in out.glob("*.safetensors"))
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    transfer_pruner_ray.embed_many(models, TEXTS, out, n_steps=200)
    killer.join(timeout=30)
    assert killed
    assert 2 <= len(seen) < 6
    assert list(load_embeddings(out)) == list(models)
    assert all((out / f"{name}.safetensors").stat().st_mtime_ns == at for name, at in seen.items())


def test_a_bad_model_does_not_cost_the_others(
    cluster: Cluster, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    broken = save_model("broken", seed=3)
    (broken / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ExceptionGroup, match="1 of 2 tasks could not be embedded"):
        transfer_pruner_ray.embed_many(
            {"broken": broken, "good": save_model("good")}, TEXTS, tmp_path / "out"
        )
    assert list(load_embeddings(tmp_path / "out")) == ["good"]
