"""Task embeddings: what attributions say of one single-task model, in memory and on disk.

This module must load without torch, and nothing that it reads can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transfer_pruner.exceptions import TransferPrunerWarning as TransferPrunerWarning  # as in 0.1
from transfer_pruner.files import write_atomically
from transfer_pruner.tasks import task_name

FORMAT = 1
EXAMPLES = "examples/"
"""Prefix of the signals that hold one attribution vector for each probe example."""
ABSOLUTE = "absolute/"
"""Prefix of the signals that hold the mean absolute attribution of each neuron."""
STANDARD_ERROR = "standard_error/"
"""Prefix of the signals that say how uncertain each number of a vector is."""
CHANGES = "output_changes"
"""The signal that holds what each probe example changes the output by, from the baseline input."""
TOKENS = "tokens"
"""The signal that holds the attributions of the tokens that ``provenance["tokens"]`` names."""
GAPS = "gaps"
"""In the provenance: the share of the output's changes that each layer leaves unexplained."""
WHOLE = "whole"
"""In the provenance: the layers that everything passes through, where a gap is an error."""
LARGEST_GAP = 0.8
"""The gap from which on a layer that everything passes through is warned about."""

_SUFFIX = ".safetensors"
# What file systems take for the name of a file, in bytes.
_LONGEST = 255
_APPLE_DOUBLE = b"\0\5\x16\7"


@dataclass(frozen=True, eq=False)
class TaskEmbedding:
    """The vectors that attributions of one single-task model give, a layer at a time.

    Immutable: its arrays are read-only, and copies (``copy.deepcopy``, ``sklearn.base.clone``)
    share them.

    Parameters
    ----------
    name : str
        The task. Pairs refer to it by this name. A number is taken by its digits.
    vectors : mapping of str to array of shape (width,)
        Layer name -> signed attribution of each neuron, summed over positions and averaged over
        the probe examples. Stored as float32. With layer conductance the sum of a vector is the
        mean change of the model's output from the baseline input to the input.
    signals : mapping of str to array, optional
        Further measurements by name, stored as float32. ``"examples/<layer>"``, of shape
        (n_probe, width), holds the attributions of each probe example before averaging;
        ``"absolute/<layer>"``, of shape (width,), the mean absolute attribution, no two positions
        or examples cancelling; ``"standard_error/<layer>"``, of shape (width,), the standard error
        of the vector over probe examples; ``"output_changes"``, of shape (n_probe,), the change of
        the output that the attributions of each probe example add up to; ``"tokens"``, of shape
        (k,), for a text task, the mean attribution of each token of ``provenance["tokens"]``.
    provenance : mapping of str to JSON values, optional
        Where the embedding comes from: fingerprints of model and probe, method, layers, steps,
        library versions, seconds.

    Raises
    ------
    ValueError
        If the name is empty, there is no vector, a vector is not one-dimensional, or a value is
        NaN or infinite.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> embedding = TaskEmbedding("news", {"encoder.0": [0.5, -0.2, 0.1]})
    >>> embedding.layers
    ('encoder.0',)
    >>> embedding.vectors["encoder.0"]
    array([ 0.5, -0.2,  0.1], dtype=float32)
    """

    name: str
    vectors: Mapping[str, NDArray[np.float32]]
    signals: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_name = isinstance(self.name, (str, int, float, np.generic, Enum))
        name = task_name(self.name) if is_name else None
        if name is None:
            raise ValueError(f"name must be a non-empty string but got {self.name!r}.")
        object.__setattr__(self, "name", name)
        if not self.vectors:
            raise ValueError(f"vectors of task {self.name!r} must hold at least one layer.")
        for layer, vector in self.vectors.items():
            if np.ndim(vector) != 1:
                raise ValueError(
                    f"vectors[{layer!r}] of task {self.name!r} must be one-dimensional but has "
                    f"shape {np.shape(vector)}."
                )
        object.__setattr__(self, "vectors", self._frozen("vectors", self.vectors))
        object.__setattr__(self, "signals", self._frozen("signals", self.signals))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def _frozen(
        self, what: str, arrays: Mapping[str, ArrayLike]
    ) -> Mapping[str, NDArray[np.float32]]:
        frozen = {}
        for key, values in arrays.items():
            array = np.array(values, dtype=np.float32, order="C")
            bad = int(array.size - np.isfinite(array).sum())
            if bad:
                raise ValueError(
                    f"{what}[{key!r}] of task {self.name!r} has {bad} NaN or infinite values of "
                    f"{array.size}: check that the model's outputs are finite on the probe "
                    "examples and on the baseline input."
                )
            array.flags.writeable = False
            frozen[key] = array
        return MappingProxyType(frozen)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order in which they were attributed."""
        return tuple(self.vectors)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the name, the vectors and the signals: equal for equal inputs and seed."""
        digest = hashlib.sha256(self.name.encode())
        for what in (self.vectors, self.signals):
            for key in sorted(what):
                digest.update(f"\0{key}\0{what[key].shape}\0".encode())
                digest.update(what[key].tobytes())
        return digest.hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskEmbedding:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy does not travel between processes; the dicts behind it do.
        parts = (dict(self.vectors), dict(self.signals), dict(self.provenance))
        return (TaskEmbedding, (self.name, *parts))

    def __repr__(self) -> str:
        widths = ", ".join(f"{layer}: {len(vector)}" for layer, vector in self.vectors.items())
        return f"TaskEmbedding({self.name!r}, {{{widths}}})"


def save_embeddings(embeddings: Iterable[TaskEmbedding], directory: str | os.PathLike[str]) -> None:
    """Write one safetensors file for each task into a directory.

    A file is written beside its place and renamed, so a reader never sees half of one. A task that
    is already there is replaced; other files are left alone.

    Parameters
    ----------
    embeddings : iterable of TaskEmbedding
    directory : path
        Made if it does not exist.

    Raises
    ------
    ValueError
        If two embeddings have the same name; nothing is written then.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding, save_embeddings
    >>> embeddings = [TaskEmbedding(task, {"last": [0.5, -0.2]}) for task in ("news", "advice")]
    >>> save_embeddings(embeddings, "embeddings")
    """
    embeddings = list(embeddings)
    names = [embedding.name for embedding in embeddings]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"embeddings hold the same task more than once: {', '.join(repeated)}.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for embedding in embeddings:
        write_atomically(embedding_file(directory, embedding.name), _encode(embedding))


def load_embeddings(directory: str | os.PathLike[str]) -> dict[str, TaskEmbedding]:
    """Read every task embedding of a directory.

    Parameters
    ----------
    directory : path
        What `save_embeddings` wrote.

    Returns
    -------
    dict of str to TaskEmbedding
        Task name -> embedding, sorted by file name.

    Raises
    ------
    FileNotFoundError
        If the directory does not exist or holds no embedding.
    ValueError
        If a file is truncated or is not a task embedding, the message names it; or if two files
        hold the same task and neither has the name that `save_embeddings` gave it.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding, load_embeddings, save_embeddings
    >>> save_embeddings([TaskEmbedding("news", {"last": [0.5, -0.2]})], "embeddings")
    >>> load_embeddings("embeddings")["news"].vectors["last"]
    array([ 0.5, -0.2], dtype=float32)
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"directory {str(directory)!r} does not exist.")
    files = [file for file in sorted(directory.glob("*" + _SUFFIX)) if not _is_litter(file)]
    if not files:
        raise FileNotFoundError(
            f"directory {str(directory)!r} holds no {_SUFFIX} file: write some with "
            "save_embeddings()."
        )
    found: dict[str, dict[Path, TaskEmbedding]] = {}
    for file in files:
        embedding = _decode(file)
        found.setdefault(embedding.name, {})[file] = embedding
    return {name: _current(directory, name, held) for name, held in found.items()}


def _current(directory: Path, name: str, held: Mapping[Path, TaskEmbedding]) -> TaskEmbedding:
    """Choose, of the files that hold one task, the one that `save_embeddings` writes."""
    if len(held) == 1:
        return next(iter(held.values()))
    own = embedding_file(directory, name)
    others = ", ".join(repr(file.name) for file in held if file != own)
    if own not in held:
        raise ValueError(
            f"{str(directory)!r} holds the task {name!r} in {others}: leave one of them there."
        )
    warnings.warn(
        f"{others} in {str(directory)!r} is left out, as {own.name!r} holds the task {name!r} too.",
        TransferPrunerWarning,
        stacklevel=3,
    )
    return held[own]


def embedding_file(directory: Path, name: str) -> Path:
    """Where the embedding of a task is kept."""
    stem = quote(name, safe="")
    if len(stem) + len(_SUFFIX) > _LONGEST:
        # A letter of Chinese takes nine characters.
        digest = "-" + hashlib.sha256(name.encode()).hexdigest()
        stem = stem[: _LONGEST - len(_SUFFIX) - len(digest)] + digest
    return directory / (stem + _SUFFIX)


def read_provenance(file: Path) -> dict[str, Any]:
    """Read where an embedding comes from, without its arrays.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated or is not a task embedding.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as content:
            header = json.loads((content.metadata() or {})["transfer_pruner"])
            provenance: dict[str, Any] = header["provenance"]
            return provenance
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is not a whole task embedding ({error}).") from error


def _encode(embedding: TaskEmbedding) -> bytes:
    from safetensors.numpy import save

    tensors = {f"vectors/{key}": value for key, value in embedding.vectors.items()}
    tensors |= {f"signals/{key}": value for key, value in embedding.signals.items()}
    header = {
        "format": FORMAT,
        "name": embedding.name,
        "layers": embedding.layers,
        "signals": list(embedding.signals),
        "provenance": dict(embedding.provenance),
    }
    encoded: bytes = save(tensors, metadata={"transfer_pruner": json.dumps(header)})
    return encoded


def _decode(path: Path) -> TaskEmbedding:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if "transfer_pruner" not in about:
                raise _ForeignFileError
            header = json.loads(about["transfer_pruner"])
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']}, this version reads {FORMAT}")
            # safetensors orders tensors by size: the header keeps the model's order of layers.
            return TaskEmbedding(
                name=header["name"],
                vectors={key: file.get_tensor(f"vectors/{key}") for key in header["layers"]},
                signals={key: file.get_tensor(f"signals/{key}") for key in header["signals"]},
                provenance=header["provenance"],
            )
    except _ForeignFileError:
        raise ValueError(
            f"{str(path)!r} is no task embedding but a file of something else, such as a model: "
            "leave it there, and name the folder that the task embeddings were written to."
        ) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole task embedding ({error}): embed its task again."
        ) from error


def _is_litter(file: Path) -> bool:
    """Whether a file is what macOS writes beside another one."""
    if not file.name.startswith("._"):
        return False
    with file.open("rb") as content:
        return content.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE


class _ForeignFileError(Exception):
    """A file that is whole and none of ours."""
