"""Embed many text tasks from saved models, one model in memory at a time, resumable."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transfer_pruner.embedding import (
    TaskEmbedding,
    embedding_file,
    read_provenance,
    save_embeddings,
)
from transfer_pruner.text import embed_text

try:
    import torch
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
except ImportError as error:
    raise ImportError(
        "embedding text tasks needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

# Raised whenever embed_text gives other numbers for the same model, probe and settings.
_NUMBERS = 1
# What a classifier and its tokenizer are loaded from; not the optimizer's state or a model card.
_MODEL_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json"),
    *("added_tokens.json", "adapter_config.json"),
)


def embed_many(
    models: Mapping[str, str | os.PathLike[str]],
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    directory: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str = "float32",
    progress: bool = True,
    **settings: Any,
) -> dict[str, Path]:
    """Embed text tasks from saved models into a directory, those that are not there already.

    A task is computed again if its model's or tokenizer's files, its texts or a setting changed,
    and left alone otherwise; so a call that was stopped is resumed by giving it again. One model
    and one embedding are in memory at a time.

    Parameters
    ----------
    models : mapping of str to path or str
        Task -> folder that ``save_pretrained`` wrote model and tokenizer to, with safetensors, or
        the id of such a model on the Hugging Face hub.
    texts : sequence of str, or mapping of str to sequence of str
        The probe examples, the same for all tasks (which example-wise comparison needs) or for
        each task its own.
    directory : path
        Where the embeddings go, for `load_embeddings`. Made if it does not exist.
    device : str, optional
        As for torch; ``"cuda"`` where there is one, if left out.
    dtype : str
        What the models compute in: ``"float32"``, ``"bfloat16"``, ``"float16"``.
    progress : bool
        Whether to show a progress bar on stderr.
    **settings
        Further parameters of `transfer_pruner.text.embed_text`.

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
    """
    jobs = make_jobs(models, texts, device=device, dtype=dtype, settings=settings)

    def results(pending: Sequence[Job]) -> Iterator[tuple[Job, TaskEmbedding | Exception]]:
        for job in pending:
            try:
                yield job, job.run()
            except Exception as error:
                yield job, error

    return run_jobs(jobs, directory, results, progress=progress)


@dataclass(frozen=True)
class Job:
    """One task to embed: all that a worker needs to know.

    Attributes
    ----------
    name, model, texts, device, dtype
        As for `embed_many`, of this task.
    settings : dict
        All parameters of `embed_text`, defaults included.
    """

    name: str
    model: str
    texts: tuple[str, ...]
    device: str | None
    dtype: str
    settings: dict[str, Any]

    def key(self) -> str:
        """SHA-256 of everything that the embedding depends on: files, texts, settings.

        Raises
        ------
        FileNotFoundError
            If there is no such model, or it is not saved as safetensors.
        """
        digest = hashlib.sha256(f"{_NUMBERS}\0{self.name}\0{self.dtype}\0".encode())
        settings = {key: _described(value) for key, value in self.settings.items()}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        digest.update(json.dumps(self.texts).encode())
        for file in self._files():
            with file.open("rb") as content:
                of_file = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"\0{file.name}\0{of_file}".encode())
        return digest.hexdigest()

    def run(self) -> TaskEmbedding:
        """Load the model and embed the task."""
        key = self.key()
        folder = self._folder()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Safetensors alone: what is unpickled could run code.
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, self.dtype), use_safetensors=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        embedding = embed_text(
            model.to(device), tokenizer, self.texts, name=self.name, **self.settings
        )
        return replace(embedding, provenance={**embedding.provenance, "key": key})

    def is_done(self, directory: Path) -> bool:
        """Whether the directory holds this task's embedding, of the same key."""
        try:
            provenance = read_provenance(embedding_file(directory, self.name))
        except (FileNotFoundError, ValueError):
            return False
        return provenance.get("key") == self.key()

    def _folder(self) -> Path:
        if Path(self.model).is_dir():
            return Path(self.model)
        try:
            return Path(snapshot_download(self.model, allow_patterns=list(_MODEL_FILES)))
        except Exception as error:
            raise FileNotFoundError(
                f"models[{self.name!r}] is {self.model!r}, which is no folder here and could not "
                f"be had from the Hugging Face hub: {error}"
            ) from error

    def _files(self) -> list[Path]:
        folder = self._folder()
        files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})
        if not any(file.suffix == ".safetensors" for file in files):
            raise FileNotFoundError(
                f"models[{self.name!r}] is {str(folder)!r}, which holds no .safetensors file: save "
                "the model with save_pretrained()."
            )
        return files


Results = Callable[[Sequence[Job]], Iterable[tuple[Job, "TaskEmbedding | Exception"]]]


def make_jobs(
    models: Mapping[str, str | os.PathLike[str]],
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    device: str | None,
    dtype: str,
    settings: Mapping[str, Any],
) -> list[Job]:
    """Check the parameters of `embed_many` and make one job for each task."""
    if isinstance(texts, str):
        raise ValueError(f"texts must be a sequence of strings but got the string {texts[:40]!r}.")
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16' but got {dtype!r}.")
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(embed_text).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for setting in settings:
        if setting not in known:
            raise ValueError(
                f"settings holds {setting!r}, which embed_text does not have; it has: "
                f"{', '.join(known)}."
            )
    jobs = []
    for name, model in models.items():
        own = texts if not isinstance(texts, Mapping) else texts.get(name)
        if own is None:
            raise ValueError(f"texts holds none for the task {name!r}.")
        where = str(Path(model).absolute()) if Path(model).is_dir() else os.fspath(model)
        jobs.append(Job(name, where, tuple(own), device, dtype, {**known, **settings}))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    directory: str | os.PathLike[str],
    results: Results,
    *,
    progress: bool,
) -> dict[str, Path]:
    """Save what `results` gives for the jobs that are not done, each as soon as it is there."""
    directory = Path(directory)
    failures: list[Exception] = []
    pending = []
    for job in jobs:
        try:
            if not job.is_done(directory):
                pending.append(job)
        except FileNotFoundError as error:
            failures.append(error)
    with tqdm(total=len(jobs), unit="task", disable=not progress) as bar:
        bar.update(len(jobs) - len(pending))
        for job, result in results(pending):
            bar.set_postfix_str(job.name)
            if isinstance(result, TaskEmbedding):
                save_embeddings([result], directory)
            else:
                result.add_note(f"while embedding the task {job.name!r}")
                failures.append(result)
            bar.update()
    if failures:
        raise ExceptionGroup(
            f"{len(failures)} of {len(jobs)} tasks could not be embedded; the others were", failures
        )
    return {job.name: embedding_file(directory, job.name) for job in jobs}


def _described(value: Any) -> Any:
    """Write a setting as JSON: a Captum class by its name."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return list(value) if isinstance(value, (tuple, list)) else value
