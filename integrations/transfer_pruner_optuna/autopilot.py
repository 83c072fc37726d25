"""From single-task models and dev sets to a study and a report, in one call.

What it must satisfy: it only puts together what users call themselves, each part of it can be given
instead, and the same call goes on where it was stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from transfer_pruner.embedding import TaskEmbedding, load_embeddings, save_embeddings
from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.records import Recorder
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import by_task
from transfer_pruner.transferability.datasets import Pool, read_datasets
from transfer_pruner_optuna.answer import record_answer
from transfer_pruner_optuna.ending import ending_from_study
from transfer_pruner_optuna.records import records_from_study
from transfer_pruner_optuna.sampler import TransferSampler
from transfer_pruner_optuna.stopping import StopWhenSettled

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

Callback = Callable[[optuna.Study, FrozenTrial], None]
STUDY, REPORT = "study.log", "report.html"
N_PROBE = 64


def autopilot(
    models: Mapping[Any, Any],
    datasets: Mapping[Any, Any],
    objective: Callable[[optuna.Trial], float],
    *,
    n_trials: int | None = None,
    folder: str | os.PathLike[str] = "autopilot",
    target: str | None = None,
    study: optuna.Study | None = None,
    probe: Any = None,
    embeddings: Mapping[str, TaskEmbedding] | None = None,
    scores: pd.DataFrame | None = None,
    rule: LearningRule | None = None,
    callbacks: Iterable[Callback] | None = None,
    tracker: Recorder | None = None,
) -> optuna.Study:
    """Search for the best source and hyperparameters of every target; write a report.

    It embeds the models, scores every source on every target's dev set (`score_pairs`), makes a
    `LearningRule` of both, and runs the objective with a `TransferSampler` until no pair is worth
    another trial (`StopWhenSettled`) or `n_trials` have finished. Ours.

    Parameters
    ----------
    models : mapping of str to model
        Source task -> its single-task model, as for `transfer_pruner.score_pairs`. A target has
        one too, which its attributions come from; one without is ranked by proxy scores alone.
    datasets : mapping of str to dev set
        Target task -> dev set, as for `transfer_pruner.score_pairs`. The objective scores on the
        same examples: report what is found on others.
    objective : callable of optuna.Trial to float
        As for any study: it suggests ``source`` (the target itself, or None, is the single-task
        baseline), ``target`` and hyperparameters, trains, and returns the score on dev.
    n_trials : int, optional
        Finished trials in all, those of before included. Left out, the search goes on until it is
        settled.
    folder : path
        Where embeddings, the outputs of the models, the study and ``report.html`` are kept: the
        same call goes on where it was stopped.
    target : str, optional
        The target task, where the objective suggests a source only.
    study : optuna.Study, optional
        One of your own, with the storage, name, direction and pruner that you like; its sampler
        becomes the `TransferSampler`'s base sampler. Left out, a journal in `folder`, maximized.
    probe : tensor or sequence of str, optional
        Probe examples, the same for all tasks. Left out, 64 inputs of the dev sets; of their labels
        attributions see nothing.
    embeddings : mapping of str to TaskEmbedding, optional
        In place of embedding the models.
    scores : DataFrame, optional
        In place of `transfer_pruner.score_pairs`, whose columns it has.
    rule : LearningRule, optional
        In place of the one that embeddings and scores make; neither is computed then.
    callbacks : iterable of callable, optional
        In place of ``[StopWhenSettled(rule)]``.
    tracker : SavingsTracker, optional
        As for `TransferSampler`.

    Returns
    -------
    optuna.Study

    Raises
    ------
    ValueError
        If a parameter is bad, or there is no pair to search.

    Examples
    --------
    >>> import torch
    >>> from transfer_pruner_optuna import autopilot
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> models = {
    ...     task: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    ...     for task in scores
    ... }
    >>> datasets = {"news": (torch.rand(40, 4), [0, 1] * 20)}
    >>> def objective(trial):
    ...     return scores[trial.suggest_categorical("source", list(scores))]
    >>> study = autopilot(models, datasets, objective, n_trials=3, target="news")
    >>> study.best_params
    {'source': 'advice'}
    """
    folder = Path(folder)
    if n_trials is not None and n_trials < 1:
        raise ValueError(f"n_trials must be a whole number from 1 but got {n_trials}.")
    if target is not None and str(target) not in by_task(datasets, "datasets"):
        raise ValueError(
            f"target is {target!r}, of which datasets has no dev set; it has: "
            f"{', '.join(map(str, datasets))}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    pool = read_datasets(by_task(datasets, "datasets"), "text", "label")
    if rule is None:
        if embeddings is None:
            probe = _drawn(pool) if probe is None else probe
            embeddings = _embeddings(models, probe, folder / "embeddings")
        if scores is None:
            from transfer_pruner.transferability import score_pairs

            scores = score_pairs(models, datasets, cache=folder / "seen")
        rule = learning_rule(embeddings, scores)
    if study is None:
        study = optuna.create_study(
            study_name="autopilot",
            storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
            direction="maximize",
            load_if_exists=True,
        )
    base = study.sampler
    if not isinstance(base, TransferSampler):
        study.sampler = TransferSampler(rule, base, target=target, tracker=tracker)
    stop = StopWhenSettled(rule, target=target)
    _run(study, objective, n_trials, [stop] if callbacks is None else list(callbacks), stop)
    sizes = {task: len(dev.labels) for task, dev in pool.of_target.items()}
    record_answer(study, target=target, dev_sizes=sizes)
    _report(study, folder / REPORT, rule, embeddings, target, sizes)
    return study


def learning_rule(embeddings: Mapping[str, TaskEmbedding], scores: pd.DataFrame) -> LearningRule:
    """Make the rule of what was found out about the pairs of a table of proxy scores."""
    from transfer_pruner.predictor import TransferPredictor

    predictor = TransferPredictor(dict(embeddings))
    return LearningRule(predictor, pairs=scores[["source", "target"]]).refine(scores)


def _run(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    n_trials: int | None,
    callbacks: Sequence[Callback],
    stop: StopWhenSettled,
) -> None:
    """Run what is left of the search."""
    if stop in callbacks and stop.settled(study) is not None:
        return
    left = n_trials
    if n_trials is not None:
        trials = study.get_trials(deepcopy=False)
        left = max(0, n_trials - sum(trial.state.is_finished() for trial in trials))
    if left != 0:
        study.optimize(objective, n_trials=left, callbacks=[*callbacks])


def _report(
    study: optuna.Study,
    path: Path,
    rule: LearningRule,
    embeddings: Mapping[str, TaskEmbedding] | None,
    target: str | None,
    dev_sizes: Mapping[str, int],
) -> None:
    records = records_from_study(study, target=target)
    if not records:
        return
    took = [one.provenance.get("seconds", 0.0) for one in (embeddings or {}).values()]
    try:
        from transfer_pruner.report import write_report

        write_report(
            records,
            path,
            rule=rule,
            title=f"What {study.study_name} found",
            attribution_seconds=float(sum(took)),
            embeddings=embeddings,
            dev_sizes=dev_sizes,
            **ending_from_study(study, target=target),
        )
    except ImportError as error:
        warnings.warn(
            f"the report is left out ({error}): pip install 'transfer-pruner[plot]'.",
            TransferPrunerWarning,
            stacklevel=3,
        )


def _embeddings(models: Mapping[Any, Any], probe: Any, folder: Path) -> dict[str, TaskEmbedding]:
    """Embed the models, those that are not there already."""
    models = by_task(models, "models")
    if len(probe) and isinstance(probe[0], str):
        from transfer_pruner.text import embed_many

        embed_many(models, list(probe), folder)
        found = load_embeddings(folder)
        return {task: found[task] for task in models}
    return _of_modules(models, probe, folder)


def _of_modules(
    models: Mapping[str, nn.Module], probe: Any, folder: Path
) -> dict[str, TaskEmbedding]:
    import torch

    from transfer_pruner.attribution import embed
    from transfer_pruner.attribution.fingerprints import fingerprint, fingerprint_model

    inputs = torch.as_tensor(probe)
    known = load_embeddings(folder) if folder.is_dir() and any(folder.iterdir()) else {}
    for task, model in models.items():
        of = {"model": fingerprint_model(model), "probe": fingerprint(inputs)}
        old = known.get(task)
        if old is None or any(old.provenance.get(name) != value for name, value in of.items()):
            known[task] = embed(model, inputs, name=task, target=_target(model, inputs[:2]))
            save_embeddings([known[task]], folder)
    return {task: known[task] for task in models}


def _target(model: nn.Module, inputs: Tensor) -> int | str | None:
    """Choose the output to attribute as of a transformers classifier: of two classes the second."""
    import torch

    from transfer_pruner.attribution.outputs import PREDICTED
    from transfer_pruner.attribution.structures import first_tensor
    from transfer_pruner.attribution.wrappers import evaluating

    with torch.no_grad(), evaluating(model):
        shape = first_tensor(model(inputs)).shape
    if len(shape) == 1:
        return None
    return min(shape[1] - 1, 1) if shape[1] <= 2 else PREDICTED


def _drawn(pool: Pool) -> Any:
    """Draw examples by what they hold, so that another order of the dev sets draws alike."""
    rows = sorted(range(len(pool.keys)), key=pool.keys.__getitem__)[:N_PROBE]
    chosen: list[Any] = [pool.examples[row] for row in rows]
    return chosen if pool.is_text else np.stack(chosen)
