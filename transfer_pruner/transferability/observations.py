"""What each source's model gives on the pooled dev examples, kept in a folder.

What it must satisfy: a model is run on an example once, also by calls that were stopped or have
further targets; and a file of another model, or half a file, is never taken for its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from transfer_pruner.files import write_atomically
from transfer_pruner.transferability.datasets import Pool

# Raised whenever a model gives other outputs or features for the same examples and settings.
_NUMBERS = 1
_ARRAYS = ("keys", "outputs", "features", "seconds")


@dataclass(frozen=True)
class Settings:
    """How models are run, as for `score_pairs`."""

    batch_size: int
    max_length: int
    device: str | None
    dtype: str


@dataclass(frozen=True)
class Observations:
    """What a source's model gave for examples.

    Attributes
    ----------
    keys : list of bytes
        Of the examples.
    outputs, features : array of shape (n, n_outputs), (n, width)
    seconds : array of shape (n,)
        What each example took, with its share of loading the model.
    names : list of str
        What the outputs stand for; empty where that is not known.
    """

    keys: list[bytes]
    outputs: NDArray[np.float32]
    features: NDArray[np.float32]
    seconds: NDArray[np.float64]
    names: list[str]

    def places(self, keys: Sequence[bytes]) -> NDArray[np.intp]:
        """Say where each example is; beyond the end if it is not there."""
        known = {key: place for place, key in enumerate(self.keys)}
        return np.array([known.get(key, len(known)) for key in keys], dtype=np.intp)

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        keys = np.frombuffer(b"".join(self.keys), dtype=np.uint8).reshape(len(self.keys), -1)
        tensors: dict[str, NDArray[Any]] = {
            "keys": keys,
            "outputs": np.ascontiguousarray(self.outputs),
            "features": np.ascontiguousarray(self.features),
            "seconds": self.seconds,
        }
        write_atomically(path, save(tensors, {"names": json.dumps(self.names)}))

    @classmethod
    def load(cls, path: Path) -> Observations | None:
        """Read a file; None if there is none, or it is not whole."""
        try:
            with safe_open(path, "numpy") as file:
                values = {name: file.get_tensor(name) for name in _ARRAYS}
                names = json.loads((file.metadata() or {})["names"])
            keys = [row.tobytes() for row in values.pop("keys")]
            return cls(keys, names=names, **values)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def with_more(self, other: Observations) -> Observations:
        """Add what the same model gave for other examples."""
        return Observations(
            self.keys + other.keys,
            np.concatenate([self.outputs, other.outputs]),
            np.concatenate([self.features, other.features]),
            np.concatenate([self.seconds, other.seconds]),
            other.names,
        )


class Source:
    """A source task's model, in memory or not, and the file of what it gave."""

    def __init__(self, task: str, model: Any, settings: Settings) -> None:
        if isinstance(model, (str, os.PathLike)):
            # A folder is named so that it is found from elsewhere too.
            model = str(Path(model).absolute()) if Path(model).is_dir() else os.fspath(model)
        self.task, self.model, self.settings = task, model, settings

    @property
    def what(self) -> str:
        """What errors call the model."""
        return f"models[{self.task!r}]"

    @property
    def reads_text(self) -> bool:
        """Whether the model takes texts.

        Raises
        ------
        ValueError
            If it is neither a module nor a checkpoint.
        """
        if isinstance(self.model, str) or (isinstance(self.model, tuple) and len(self.model) == 2):
            return True
        from transfer_pruner.attribution.features import is_module

        if not is_module(self.model):
            raise ValueError(
                f"{self.what} must be a torch module, a folder or hub id of a transformers "
                f"classifier, or a pair (model, tokenizer) but got {type(self.model).__name__}."
            )
        return False

    def key(self) -> str:
        """SHA-256 of everything that the model's answers depend on but the examples.

        Raises
        ------
        FileNotFoundError
            If there is no such checkpoint, or it is not saved as safetensors.
        """
        digest = hashlib.sha256(f"{_NUMBERS}\0{self.task}".encode())
        if self.reads_text:
            from transfer_pruner.text.checkpoints import digests

            digest.update(f"\0{self.settings.dtype}\0{self.settings.max_length}".encode())
            parts = digests(self.model, self.what)
        else:
            from transfer_pruner.attribution.features import digests_of_module

            parts = digests_of_module(self.model)
        for part in parts:
            digest.update(f"\0{part}".encode())
        return digest.hexdigest()

    def batches(self, examples: Sequence[Any]) -> Generator[Any, None, None]:
        """Load the model and run it: first what its outputs stand for, then batch by batch."""
        settings = self.settings
        if not self.reads_text:
            from transfer_pruner.attribution.features import see_arrays

            yield []
            yield from see_arrays(self.model, examples, settings.batch_size)
            return
        from transfer_pruner.text.checkpoints import load_model
        from transfer_pruner.text.features import label_names, see_texts

        model, tokenizer = load_model(
            self.model, device=settings.device, dtype=settings.dtype, what=self.what
        )
        yield label_names(model)
        yield from see_texts(model, tokenizer, examples, settings.batch_size, settings.max_length)


class Job:
    """The examples that a source's model is still to be run on, and the file that they go to."""

    def __init__(self, source: Source, pool: Pool, rows: Sequence[int], path: Path) -> None:
        known = Observations.load(path)
        seen = set(known.keys) if known is not None else set()
        missing = [row for row in rows if pool.keys[row] not in seen]
        self.source, self.path = source, path
        self.keys = [pool.keys[row] for row in missing]
        self.examples = [pool.examples[row] for row in missing]

    def run(self) -> Observations:
        """Load the model and run it on all of the examples."""
        run = _Run(self.keys)
        run.go(self.source, self.examples)
        return run.result()

    def run_into_file(self) -> None:
        """Run the model, and add what it gave to the file: as far as it came, if it is stopped."""
        run = _Run(self.keys)
        try:
            run.go(self.source, self.examples)
        finally:
            if run.rows:
                self.add(run.result())

    def add(self, new: Observations) -> None:
        """Add what the model gave to the file."""
        known = Observations.load(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        (known.with_more(new) if known is not None else new).save(self.path)


Runner = Callable[[Sequence[Job]], Iterable[tuple[Job, Exception | None]]]
"""Runs jobs into their files, and tells of each as soon as it is done, with its error if any."""


def run_here(jobs: Sequence[Job]) -> Iterator[tuple[Job, Exception | None]]:
    """Run one model after another, in this process."""
    for job in jobs:
        error = None
        try:
            job.run_into_file()
        except Exception as failed:
            error = failed
        yield job, error


class _Run:
    """A model on its way through examples: what it gave so far."""

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = keys
        self.names: list[str] = []
        self.rows: list[int] = []
        self.outputs: list[NDArray[np.float32]] = []
        self.features: list[NDArray[np.float32]] = []
        self.seconds = np.zeros(len(keys))

    def go(self, source: Source, examples: Sequence[Any]) -> None:
        started = time.perf_counter()
        # Closed, so that a model in memory is left in the mode that it was in.
        with closing(source.batches(examples)) as batches:
            self.names = next(batches)
            loading = time.perf_counter() - started
            started = time.perf_counter()
            for rows, outputs, features in batches:
                self.rows += rows
                self.outputs.append(outputs)
                self.features.append(features)
                self.seconds[rows] = (time.perf_counter() - started) / len(rows)
                started = time.perf_counter()
        self.seconds += loading / len(self.seconds)

    def result(self) -> Observations:
        return Observations(
            [self.keys[row] for row in self.rows],
            np.concatenate(self.outputs),
            np.concatenate(self.features),
            self.seconds[self.rows],
            self.names,
        )
