"""Work that is one Ray task for each model: what it gives, as it comes in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

try:
    import ray
except ImportError as error:
    raise ImportError(
        "running models on a cluster needs ray: pip install 'transfer-pruner[ray,text]'."
    ) from error


class Job(Protocol):
    """What a worker is to do: it is sent there, and run."""

    def run(self) -> Any:
        """Do it."""


AnyJob = TypeVar("AnyJob", bound=Job)


def on_cluster(
    pending: Sequence[AnyJob], *, num_cpus: float, num_gpus: float, max_retries: int
) -> Iterator[tuple[AnyJob, Any]]:
    """Run jobs on the cluster, and give each with its result, or the error that it ended with."""
    threads = max(1, math.floor(num_cpus))
    work = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries)(_work)
    waiting = list(reversed(pending))
    running: dict[ray.ObjectRef[Any], AnyJob] = {}
    while waiting or running:
        # More than the cluster can run at once would only hold results in its memory.
        resources = ray.cluster_resources() if ray.is_initialized() else {}  # type: ignore[no-untyped-call]
        at_once = resources.get("CPU", 1.0) / max(num_cpus, 0.1)
        while waiting and len(running) < 2 * max(1.0, at_once):
            job = waiting.pop()
            running[work.remote(job, threads)] = job
        (done,), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(done)
        try:
            yield job, ray.get(done)
        except Exception as error:
            yield job, error


def _work(job: Job, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return job.run()
