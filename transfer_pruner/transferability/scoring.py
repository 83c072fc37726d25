"""From single-task models and dev sets to a table of proxy scores: `score_pairs`."""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.files import one_line
from transfer_pruner.pairs import pair_columns
from transfer_pruner.tasks import by_task
from transfer_pruner.transferability.datasets import Pool, read_datasets
from transfer_pruner.transferability.observations import (
    Job,
    Observations,
    Runner,
    Settings,
    Source,
    run_here,
)
from transfer_pruner.transferability.proxies import METHODS, check_head, check_labels, proxy_score

Pairs = list[tuple[str, str]]


def score_pairs(
    models: Mapping[Any, Any],
    datasets: Mapping[Any, Any],
    method: str | None = None,
    *,
    pairs: pd.DataFrame | None = None,
    text_column: str = "text",
    label_column: str = "label",
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    max_length: int = 128,
    device: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    progress: bool = True,
    runner: Runner = run_here,
) -> pd.DataFrame:
    """Score how well each source's model answers a target's dev set, without training the pair.

    For `EliminationRule.refine`, or as a feature of a `TransferPredictor`. Higher is better, among
    the sources of one target. A model sees every example once, whatever the number of targets, and
    one model that is read from a folder is in memory at a time. The dev set chooses here: report
    what is found on other examples.

    Parameters
    ----------
    models : mapping of str to model
        Source task -> its single-task model: a torch module, or a transformers classifier by
        folder, hub id or PEFT adapter, or in memory as (model, tokenizer), as for
        `transfer_pruner.embed_many`.
    datasets : mapping of str to dev set
        Target task -> (inputs, labels), with texts or a tensor (n, ...) as inputs; a DataFrame with
        a column of texts and one of labels; or a torch DataLoader that gives (inputs, labels).
        Whole numbers and texts are classes; other numbers make a regression. Rows without a label
        are left out.
    method : str, optional
        ``"zero_shot"``: the source's own head on the target's labels; average precision of the
        positive class where there are two, macro F1 where there are more. ``"logme"``,
        ``"h_score"``: `logme` and `h_score` of the head's features, less what shuffled labels score
        (`null_corrected`). ``"linear_probe"``: a linear model of those features, cross-validated;
        average precision, macro F1, or R² of a regression. Left out or ``"auto"``: zero-shot where
        every head fits every target, else LogME, or linear probes where a target's labels are
        continuous; one for all pairs alike.
    pairs : DataFrame, optional
        Columns source and target: the pairs to score, such as those that a rule keeps. All ordered
        pairs if left out. A pair of a task with itself is the single-task baseline, and left out.
    text_column, label_column : str
        Of data frames.
    cache : path, optional
        Folder of the outputs of the models. With it the same call goes on where it was stopped, and
        only new models, changed ones and new examples are run. A torch module is recognised by
        its class, its parts and its weights.
    batch_size : int
        Examples at once, those of one length or shape.
    max_length : int
        Tokens after which a text is cut, special tokens included.
    device, dtype : str
        As for `transfer_pruner.embed_many`. A model in memory stays as it is.
    seed : int
        Of the linear probe's folds, and of the labels that are shuffled.
    progress : bool
        Whether to show progress bars on stderr.
    runner : callable
        Runs the models: one after another in this process. `transfer_pruner_ray.score_pairs` has
        its own.

    Returns
    -------
    DataFrame
        Columns source, target, score, method and seconds. The seconds of a pair are its part of
        running the source's model, those of a cached run too, and of the score: their sum is what
        the table costs. A pair that cannot be scored has NaN, and is counted in one warning.

    Raises
    ------
    ValueError
        If a parameter is bad, or no pair can be scored.

    Examples
    --------
    >>> import torch
    >>> from transfer_pruner import score_pairs
    >>> inputs = torch.linspace(-1, 1, 20)[:, None]
    >>> models = {"news": torch.nn.Linear(1, 2), "advice": torch.nn.Linear(1, 2)}
    >>> datasets = {"news": (inputs, [0, 1] * 10), "advice": (inputs, [0] * 10 + [1] * 10)}
    >>> scores = score_pairs(models, datasets, "zero_shot", progress=False)
    >>> scores[["source", "target"]]
       source  target
    0    news  advice
    1  advice    news
    """
    chosen = None if method == "auto" else method
    if chosen is not None and chosen not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)} or auto but got {method!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 but got {batch_size}.")
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16' but got {dtype!r}.")
    if cache is not None and Path(cache).exists() and not Path(cache).is_dir():
        raise ValueError(f"cache must be a folder but {os.fspath(cache)!r} is a file.")
    settings = Settings(batch_size, max_length, device, dtype)
    sources = {
        task: Source(task, model, settings) for task, model in _given(models, "models").items()
    }
    pool = read_datasets(_given(datasets, "datasets"), text_column, label_column)
    _check_kinds(sources, pool)
    wanted = _wanted(sources, pool, pairs)
    with ExitStack() as stack:
        # Without a cache too, so that one model's features are in memory at a time.
        folder = cache or stack.enter_context(tempfile.TemporaryDirectory())
        scorer = _Scorer(sources, pool, wanted, seed, progress)
        scorer.observe(Path(folder), cache is not None, runner)
        return scorer.score(chosen or scorer.best_method())


class _Scorer:
    """One call: which pairs, what the models gave for them, and why some have no score."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        pool: Pool,
        pairs: Pairs,
        seed: int,
        progress: bool,
    ) -> None:
        self.sources, self.pool, self.pairs = sources, pool, pairs
        self.seed, self.progress = seed, progress
        self.targets: dict[str, list[str]] = {}
        for source, target in pairs:
            if source in sources and target in pool.of_target:
                self.targets.setdefault(source, []).append(target)
        self.files: dict[str, Path] = {}
        self.failures: dict[str, Exception] = {}

    def observe(self, folder: Path, keyed: bool, runner: Runner) -> None:
        """Run every model on the examples of its targets, into a file each.

        Parameters
        ----------
        folder : Path
        keyed : bool
            Whether to call files by what the models are, for other calls.
        runner : callable
        """
        jobs = []
        with self._bar(len(self.targets), "model") as bar:
            for n, (task, targets) in enumerate(self.targets.items()):
                source = self.sources[task]
                rows = np.concatenate([self.pool.of_target[target].rows for target in targets])
                try:
                    name = source.key() if keyed else str(n)
                    path = self.files[task] = folder / f"{name}.safetensors"
                    jobs.append(Job(source, self.pool, np.unique(rows).tolist(), path))
                except Exception as error:
                    # Fail open, as everywhere: a model that cannot be run costs only itself.
                    self.failures[task] = error
            pending = [job for job in jobs if job.keys]
            bar.update(len(self.targets) - len(pending))
            for job, failed in runner(pending):
                bar.set_postfix_str(job.source.task)
                if failed is not None:
                    self.failures[job.source.task] = failed
                bar.update()

    def best_method(self) -> str:
        """Zero-shot if every head fits every target, so that all scores are of one kind."""
        method = "zero_shot"
        for source, targets in self.targets.items():
            seen = self._seen(source)
            if seen is None:
                continue
            for target in targets:
                labels = self.pool.of_target[target].labels
                try:
                    check_labels(labels)
                except ValueError:
                    continue
                if labels.dtype.kind == "f":
                    return "linear_probe"
                try:
                    check_head(seen.outputs.shape[1], labels)
                except ValueError:
                    method = "logme"
        return method

    def score(self, method: str) -> pd.DataFrame:
        """Score the pairs, a source's one after another, in the order in which they are wanted."""
        scores: dict[tuple[str, str], tuple[float, float]] = {}
        reasons: dict[tuple[str, str], str] = {}
        with self._bar(len(self.pairs), "pair") as bar:
            for source, targets in self.targets.items():
                seen = self._seen(source)
                running = self._seconds(targets, seen)
                for target in targets:
                    pair, started, score = (source, target), time.perf_counter(), math.nan
                    try:
                        score = self._scored(method, pair, seen)
                    except Exception as error:
                        reasons[pair] = one_line(error)
                    seconds = running[target] + time.perf_counter() - started
                    scores[pair] = score, seconds
                    bar.update()
        for source, target in self.pairs:
            if (source, target) not in scores:
                missing = ("models", source) if source not in self.sources else ("datasets", target)
                reasons[source, target] = f"{missing[0]} holds no task {missing[1]!r}"
        self._tell(reasons, method)
        found = pd.DataFrame(self.pairs, columns=["source", "target"], dtype=object)
        values = np.array([scores.get(pair, (math.nan, 0.0)) for pair in self.pairs])
        return found.assign(score=values[:, 0], method=method, seconds=values[:, 1])

    def _seen(self, source: str) -> Observations | None:
        """Read what a model gave; None if it failed, even if it gave a part."""
        return None if source in self.failures else Observations.load(self.files[source])

    def _scored(self, method: str, pair: tuple[str, str], seen: Observations | None) -> float:
        source, target = pair
        dev = self.pool.of_target[target]
        check_labels(dev.labels)
        if source in self.failures:
            error = self.failures[source]
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"{kind}{one_line(error)}") from error
        assert seen is not None
        rows = seen.places(self.pool.keys)[dev.rows]
        return proxy_score(
            method, seen.outputs[rows], seen.features[rows], dev.labels, seen.names, self.seed
        )

    def _seconds(self, targets: list[str], seen: Observations | None) -> dict[str, float]:
        """Share what running the model took: an example's among the targets that have it."""
        if seen is None:
            return dict.fromkeys(targets, 0.0)
        rows = {target: np.unique(self.pool.of_target[target].rows) for target in targets}
        n_targets = np.bincount(np.concatenate(list(rows.values())), minlength=1)
        places = seen.places(self.pool.keys)
        return {
            target: float((seen.seconds[places[its]] / n_targets[its]).sum())
            for target, its in rows.items()
        }

    def _tell(self, reasons: Mapping[tuple[str, str], str], method: str) -> None:
        if not reasons:
            return
        first: dict[str, tuple[str, str]] = {}
        for pair, reason in reasons.items():
            first.setdefault(reason, pair)
        counted = Counter(reasons.values()).most_common(3)
        why = "; ".join(
            f"{n} since {reason} (first {first[reason][0]!r} -> {first[reason][1]!r})"
            for reason, n in counted
        )
        if len(reasons) == len(self.pairs):
            raise ValueError(f"no pair can be scored by {method}: {why}.")
        more = f"; and {len(first) - 3} more reasons" if len(first) > 3 else ""
        warnings.warn(
            f"{len(reasons)} of {len(self.pairs)} pairs have no {method} score and keep their "
            f"place with NaN: {why}{more}.",
            TransferPrunerWarning,
            stacklevel=4,
        )

    def _bar(self, total: int, unit: str) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=total, unit=unit, disable=not self.progress)


def _given(mapping: Any, parameter: str) -> dict[str, Any]:
    if not isinstance(mapping, Mapping) or not mapping:
        raise ValueError(
            f"{parameter} must be a mapping of task to "
            f"{'model' if parameter == 'models' else 'dev set'} with one or more but got "
            f"{'an empty one' if isinstance(mapping, Mapping) else type(mapping).__name__}."
        )
    return by_task(mapping, parameter)


def _check_kinds(sources: Mapping[str, Source], pool: Pool) -> None:
    if pool.is_text is None:
        raise ValueError(
            "datasets must hold labelled examples but every dev set is empty: give "
            f"{', '.join(map(repr, list(pool.of_target)[:3]))} some."
        )
    for source in sources.values():
        if source.reads_text and not pool.is_text:
            raise ValueError(
                f"{source.what} takes texts but datasets hold arrays: give it as a torch module, "
                "or give texts."
            )
        if pool.is_text and not source.reads_text:
            raise ValueError(
                f"{source.what} is a torch module but datasets hold texts: give the pair (model, "
                "tokenizer)."
            )


def _wanted(sources: Mapping[str, Source], pool: Pool, pairs: pd.DataFrame | None) -> Pairs:
    if pairs is None:
        wanted = [(s, t) for s in sources for t in pool.of_target if s != t]
    else:
        named = zip(*(column.tolist() for column in pair_columns(pairs)), strict=True)
        wanted = [(s, t) for s, t in dict.fromkeys(named) if s and t and s != t]
    if not wanted:
        raise ValueError(
            "there is no pair to score: models and datasets hold one task, or pairs has no row "
            "with a source that is not its target."
        )
    return wanted
