"""Ranks of torch.distributed that share a trial: the pruner works, a gate refuses on each."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WORKER = textwrap.dedent("""
    import json, os, sys
    import optuna
    import torch.distributed as dist
    from optuna_integration import TorchDistributedTrial
    from transfer_pruner import Decision, EliminationRule
    from transfer_pruner_optuna import TransferPruner, gate

    rank, adapter = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=sys.argv[3])
    rule = EliminationRule({(s, "t"): Decision(s != "a", 0.1, 0.5, "") for s in "abc"}, {})
    trained = []

    def objective(single):
        trial = TorchDistributedTrial(single)
        source = trial.suggest_categorical("source", ["a", "b", "c"])
        trial.suggest_categorical("target", ["t"])
        if adapter == "pruner" and trial.should_prune():
            raise optuna.TrialPruned
        trained.append(source)
        return 1.0

    searched = gate(objective, rule) if adapter == "gate" else objective
    refused = ""
    try:
        if rank == 0:
            sampler = optuna.samplers.GridSampler({"source": ["a", "b", "c"], "target": ["t"]})
            study = optuna.create_study(sampler=sampler, pruner=TransferPruner(rule))
            study.optimize(searched, n_trials=3)
        else:
            for _ in range(3):
                try:
                    searched(None)
                except optuna.TrialPruned:
                    pass
    except ValueError as error:
        refused = str(error)
    print(json.dumps({"trained": trained, "refused": refused}))
""")


def ranks(adapter: str, tmp_path: Path) -> list[dict[str, object]]:
    """Run two ranks to their end, and read what they printed."""
    pytest.importorskip("optuna_integration")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), adapter, address],
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )
        for rank in range(2)
    ]
    return [json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers]


def test_the_pruner_stops_an_eliminated_pair_on_every_rank(tmp_path: Path) -> None:
    assert ranks("pruner", tmp_path) == [{"trained": ["a"], "refused": ""}] * 2


def test_a_gate_refuses_on_every_rank_and_none_waits_for_another(tmp_path: Path) -> None:
    for rank in ranks("gate", tmp_path):
        assert rank["trained"] == []
        assert "use TransferPruner, and should_prune()" in str(rank["refused"])
