"""Embed many text tasks on a Ray cluster: the call of `transfer_pruner.embed_many`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transfer_pruner.text.checkpoints import Checkpoint
from transfer_pruner.text.store import make_jobs, run_jobs
from transfer_pruner_ray.cluster import on_cluster


def embed_many(
    models: Mapping[str, Checkpoint],
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    directory: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str = "float32",
    progress: bool = True,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_retries: int = 3,
    **settings: Any,
) -> dict[str, Path]:
    r"""Embed text tasks from saved models on a Ray cluster, those that are not there already.

    One Ray task for each model; this process alone writes to `directory`, as results come in, so
    the workers need not share it. A worker or node that dies costs what it was working on, which
    Ray gives to another. The cluster is the one that ``ray.init`` connected to; without it Ray
    starts one on this machine.

    Parameters
    ----------
    models : mapping of str to path, str or (model, tokenizer)
        As for `transfer_pruner.embed_many`; a folder must be there on every node, a hub id is
        fetched by each.
    texts, directory, device, dtype, progress, **settings
        As for `transfer_pruner.embed_many`.
    num_cpus, num_gpus : float
        What one model takes: torch uses as many threads as CPUs, and a fraction of a GPU lets
        several models share it.
    max_retries : int
        How often a model is given to another worker after one died on it; -1 for no limit.

    Returns
    -------
    dict of str to Path
        Task -> file of its embedding.

    Raises
    ------
    ValueError
        If a parameter is bad; nothing is computed then.
    ExceptionGroup
        If tasks could not be embedded: after all the others were, one error for each.

    Examples
    --------
    >>> from pathlib import Path
    >>> from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
    >>> from transfer_pruner import load_embeddings
    >>> from transfer_pruner_ray import embed_many
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "flood", "help", "storm"]
    >>> _ = Path("vocab.txt").write_text("\n".join(words))
    >>> tokenizer = BertTokenizer("vocab.txt")
    >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=1)
    >>> models = {"news": (BertForSequenceClassification(config), tokenizer)}
    >>> files = embed_many(models, ["flood help", "storm"], "embeddings", progress=False)
    >>> sorted(load_embeddings("embeddings"))
    ['news']
    """
    jobs = make_jobs(models, texts, device=device, dtype=dtype, settings=settings)
    results = partial(on_cluster, num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries)
    return run_jobs(jobs, directory, results, progress=progress)
