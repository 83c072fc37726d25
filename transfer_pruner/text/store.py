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
from transfer_pruner.tasks import by_task
from transfer_pruner.text._embed import embed_text
from transfer_pruner.text.checkpoints import Checkpoint, digests, load_model

try:
    from tqdm.auto import tqdm
except ImportError as error:
    raise ImportError(
        "embedding text tasks needs transformers: pip install 'transfer-pruner[text]'."
    ) from error

# Raised whenever embed_text gives other numbers for the same model, probe and settings.
_NUMBERS = 3


def embed_many(
    models: Mapping[str, Checkpoint],
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    directory: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str = "float32",
    progress: bool = True,
    **settings: Any,
) -> dict[str, Path]:
    r"""Embed text tasks from saved models into a directory, those that are not there already.

    A task is computed again if its model's or tokenizer's files, its texts or a setting changed,
    and left alone otherwise; so the same call goes on where it was stopped. One model
    and one embedding are in memory at a time.

    Parameters
    ----------
    models : mapping of str to path, str or (model, tokenizer)
        Task -> folder that ``save_pretrained`` wrote model and tokenizer to, with safetensors, or
        the id of such a model on the Hugging Face hub; either may hold a PEFT adapter instead,
        whose base model is loaded with it, once for each task. A model in memory is given with its
        tokenizer; it stays on its device and in its dtype.
    texts : sequence of str, or mapping of str to sequence of str
        The probe examples, the same for all tasks (which example-wise comparison needs) or for
        each task its own. `transfer_pruner.probe_texts` reads them from files and data sets.
    directory : path
        Where the embeddings go, for `load_embeddings`. Made if it does not exist.
    device : str, optional
        As for torch; ``"cuda"`` where there is one, if left out.
    dtype : str
        What the models compute in: ``"float32"``, ``"bfloat16"``, ``"float16"``.
    progress : bool
        Whether to show a progress bar on stderr.
    **settings
        Further parameters of `transfer_pruner.text.embed_text`. `target` may be a mapping of task
        to target; a task that it leaves out gets the default of its model.

    Returns
    -------
    dict of str to Path
        Task -> file of its embedding.

    Raises
    ------
    ValueError
        If a parameter is bad; nothing is computed then.
    NotEmbeddedError
        If tasks could not be embedded: after all the others were. An ExceptionGroup of one error
        for each, by task in its ``of_task``.

    Examples
    --------
    >>> from pathlib import Path
    >>> from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
    >>> from transfer_pruner import embed_many, load_embeddings
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "flood", "help", "storm"]
    >>> _ = Path("vocab.txt").write_text("\n".join(words))
    >>> tokenizer = BertTokenizer("vocab.txt")
    >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=1)
    >>> tasks = ("news", "advice")
    >>> models = {task: (BertForSequenceClassification(config), tokenizer) for task in tasks}
    >>> files = embed_many(models, ["flood help", "storm"], "embeddings", progress=False)
    >>> sorted(load_embeddings("embeddings"))
    ['advice', 'news']
    """
    jobs = make_jobs(models, texts, device=device, dtype=dtype, settings=settings)

    def results(pending: Sequence[Job]) -> Iterator[tuple[Job, TaskEmbedding | Exception]]:
        for job in pending:
            try:
                yield job, job.run()
            except Exception as error:
                yield job, error

    return run_jobs(jobs, directory, results, progress=progress)


class NotEmbeddedError(ExceptionGroup[Exception]):
    """Tasks that could not be embedded, each with its error.

    Attributes
    ----------
    of_task : dict of str to Exception
    """

    of_task: dict[str, Exception]

    def __new__(cls, of_task: Mapping[str, Exception], n_tasks: int) -> NotEmbeddedError:
        """Gather the errors, by task, of a call for so many tasks."""
        for task, error in of_task.items():
            error.add_note(f"while embedding the task {task!r}")
        message = f"{len(of_task)} of {n_tasks} tasks could not be embedded; the others were"
        group = super().__new__(cls, message, list(of_task.values()))
        group.of_task = dict(of_task)
        return group

    def derive(self, errors: Sequence[Exception]) -> ExceptionGroup[Exception]:  # type: ignore[override]
        """Make the group of a part of the errors, as ``except*`` does."""
        return ExceptionGroup(self.message, errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return ExceptionGroup, (self.message, list(self.exceptions))


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
    model: Checkpoint
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
        for part in digests(self.model, self._what):
            digest.update(f"\0{part}".encode())
        return digest.hexdigest()

    def run(self) -> TaskEmbedding:
        """Load the model and embed the task."""
        key = self.key()
        model, tokenizer = load_model(
            self.model, device=self.device, dtype=self.dtype, what=self._what
        )
        embedding = embed_text(model, tokenizer, self.texts, name=self.name, **self.settings)
        return replace(embedding, provenance={**embedding.provenance, "key": key})

    def is_done(self, directory: Path) -> bool:
        """Whether the directory holds this task's embedding, of the same key."""
        try:
            provenance = read_provenance(embedding_file(directory, self.name))
        except (FileNotFoundError, ValueError):
            return False
        return provenance.get("key") == self.key()

    @property
    def _what(self) -> str:
        return f"models[{self.name!r}]"


Results = Callable[[Sequence[Job]], Iterable[tuple[Job, "TaskEmbedding | Exception"]]]


def make_jobs(
    models: Mapping[str, Checkpoint],
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    device: str | None,
    dtype: str,
    settings: Mapping[str, Any],
) -> list[Job]:
    """Check the parameters of `embed_many` and make one job for each task."""
    if isinstance(texts, str):
        raise ValueError(
            f"texts must be a sequence of strings but got the string {texts[:40]!r}: read a file "
            "with probe_texts()."
        )
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
    models = by_task(models, "models")
    texts = by_task(texts, "texts") if isinstance(texts, Mapping) else dict.fromkeys(models, texts)
    targets = settings.get("target")
    targets = targets if isinstance(targets, Mapping) else dict.fromkeys(models, targets)
    targets = by_task(targets, "target")
    strange = [task for task in targets if task not in models]
    if strange:
        raise ValueError(
            f"target holds the task {strange[0]!r}, which models does not; it has: "
            f"{', '.join(models)}."
        )
    jobs = []
    for name, model in models.items():
        if name not in texts:
            raise ValueError(f"texts holds none for the task {name!r}.")
        if isinstance(texts[name], str):
            raise ValueError(
                f"texts[{name!r}] must be a sequence of strings but got the string "
                f"{texts[name][:40]!r}: write [text]."
            )
        own_settings = {**known, **settings, "target": targets.get(name)}
        where = _located(model, f"models[{name!r}]")
        jobs.append(Job(name, where, tuple(texts[name]), device, dtype, own_settings))
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
    failures: dict[str, Exception] = {}
    pending = []
    for job in jobs:
        try:
            if not job.is_done(directory):
                pending.append(job)
        except (FileNotFoundError, ValueError) as error:
            failures[job.name] = error
    with tqdm(total=len(jobs), unit="task", disable=not progress) as bar:
        bar.update(len(jobs) - len(pending))
        for job, result in results(pending):
            bar.set_postfix_str(job.name)
            if isinstance(result, TaskEmbedding):
                save_embeddings([result], directory)
            else:
                failures[job.name] = result
            bar.update()
    if failures:
        raise NotEmbeddedError(failures, len(jobs))
    return {job.name: embedding_file(directory, job.name) for job in jobs}


def _located(model: Any, what: str) -> Checkpoint:
    """Check a checkpoint, and name its folder so that it is found from elsewhere too."""
    if isinstance(model, tuple) and len(model) == 2:
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"{what} must be a folder, a hub id or a pair (model, tokenizer) but got "
            f"{type(model).__name__}."
        )
    return str(Path(model).absolute()) if Path(model).is_dir() else os.fspath(model)


def _described(value: Any) -> Any:
    """Write a setting as JSON: a Captum class by its name."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (tuple, list)):
        return list(value)
    return value.item() if hasattr(value, "item") else value
