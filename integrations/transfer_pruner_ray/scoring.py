"""Score pairs on a Ray cluster: the call of `transfer_pruner.score_pairs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import transfer_pruner
from transfer_pruner.transferability.observations import Job, Observations
from transfer_pruner_ray.cluster import on_cluster

if TYPE_CHECKING:
    import pandas as pd


def score_pairs(
    models: Mapping[Any, Any],
    datasets: Mapping[Any, Any],
    method: str | None = None,
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_retries: int = 3,
    **settings: Any,
) -> pd.DataFrame:
    """Score how well each source's model answers a target's dev set, the models run on a cluster.

    One Ray task for each model; this process alone writes to the cache, as results come in, and
    computes the scores. The cluster is the one that ``ray.init`` connected to; without it Ray
    starts one on this machine.

    Parameters
    ----------
    models : mapping of str to model
        As for `transfer_pruner.score_pairs`; a folder must be there on every node, a hub id is
        fetched by each, a model in memory is sent.
    datasets, method, **settings
        As for `transfer_pruner.score_pairs`.
    num_cpus, num_gpus : float
        What one model takes: torch uses as many threads as CPUs, and a fraction of a GPU lets
        several models share it.
    max_retries : int
        How often a model is given to another worker after one died on it; -1 for no limit.

    Returns
    -------
    DataFrame
        As from `transfer_pruner.score_pairs`.

    Raises
    ------
    ValueError
        If a parameter is bad, or no pair can be scored.

    Examples
    --------
    >>> import torch
    >>> from transfer_pruner_ray import score_pairs
    >>> inputs = torch.linspace(-1, 1, 20)[:, None]
    >>> models = {"news": torch.nn.Linear(1, 2), "advice": torch.nn.Linear(1, 2)}
    >>> datasets = {"news": (inputs, [0, 1] * 10)}
    >>> scores = score_pairs(models, datasets, "zero_shot", progress=False)
    >>> scores[["source", "target"]]
       source target
    0  advice   news
    """

    def runner(jobs: Sequence[Job]) -> Iterator[tuple[Job, Exception | None]]:
        results = on_cluster(jobs, num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries)
        for job, result in results:
            if isinstance(result, Observations):
                job.add(result)
                yield job, None
            else:
                assert isinstance(result, Exception)
                yield job, result

    return transfer_pruner.score_pairs(models, datasets, method, runner=runner, **settings)
