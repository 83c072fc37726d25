"""From the records of a search to the best of every target.

What it must satisfy: it follows from the records alone, so that every process and every restart
finds the same, in whatever order they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

import numpy as np

from transfer_pruner.answer.found import Answer, Configuration, TargetAnswer
from transfer_pruner.records import TrialRecord, is_maximizing
from transfer_pruner.tasks import Source, by_task, is_baseline
from transfer_pruner.transfers import settings_key


def find_answer(
    records: Iterable[TrialRecord],
    *,
    maximize: bool | None = None,
    seed_param: str = "seed",
    dev_sizes: int | Mapping[str, int] | None = None,
) -> Answer:
    """Find the best source and hyperparameters of every target.

    Trials of one source and the same hyperparameters are one configuration, whatever their seed;
    its value is their mean. Ties go to training alone, then to the configuration with more trials,
    then to the one that was tried first. Failed and eliminated trials, and those without a finite
    value, such as trials that a pruner stopped, do not count.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.
    seed_param : str
        The hyperparameter that is the seed.
    dev_sizes : int or mapping of target to int, optional
        How many examples a target's values were measured on.

    Raises
    ------
    ValueError
        If some records maximize and some minimize, or a dev size is below 1.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, find_answer
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> answer = find_answer(records)
    >>> print(answer.headline())
    news: advice scores 0.6600, +0.0500 over the single-task baseline; second is training alone,
    0.0500 behind (one trial: what another seed changes is not known).
    >>> answer.table()[["target", "source", "value", "gain"]].round(2)
      target  source  value  gain
    0   news  advice   0.66  0.05
    """
    records = list(records)
    better = is_maximizing(records, maximize)
    targets = sorted({record.target for record in records})
    sizes = _checked(dev_sizes, targets)
    found = _configurations(records, seed_param)

    def order(one: Configuration) -> tuple[Any, ...]:
        value = -one.value if better else one.value
        return value, one.source is not None, -one.trials, one.number, one.source_name

    answers = []
    for target in targets:
        ranked = sorted(found.get(target, ()), key=order)
        best = ranked[0] if ranked else None
        answers.append(
            TargetAnswer(
                target=target,
                best=best,
                baseline=next((one for one in ranked if one.source is None), None),
                second=next((one for one in ranked if one.source != ranked[0].source), None),
                configurations=len(ranked),
                trials_finished=sum(one.trials for one in ranked),
                dev_size=sizes.get(target),
                maximize=better,
            )
        )
    return Answer(tuple(answers), better)


def _configurations(
    records: Iterable[TrialRecord], seed_param: str
) -> dict[str, list[Configuration]]:
    """Put the finished trials of each target together by source and hyperparameters."""
    groups: dict[tuple[str, Source, str], list[TrialRecord]] = {}
    for record in sorted(records, key=lambda record: record.number):
        if record.outcome == "trained" and math.isfinite(record.value):
            settings = _without(record.hyperparameters, seed_param)
            key = record.target, record.source, settings_key(settings)
            groups.setdefault(key, []).append(record)
    found: dict[str, list[Configuration]] = {}
    for (target, source, _), trials in groups.items():
        values = [float(trial.value) for trial in trials]
        seeds = {
            settings_key({seed_param: trial.hyperparameters[seed_param]})
            for trial in trials
            if seed_param in trial.hyperparameters
        }
        found.setdefault(target, []).append(
            Configuration(
                source=source,
                hyperparameters=_without(trials[0].hyperparameters, seed_param),
                value=fmean(values),
                trials=len(trials),
                seeds=len(seeds),
                spread=stdev(values) if len(values) > 1 else math.nan,
                number=trials[0].number,
                audit=not is_baseline(source, target) and all(trial.audit for trial in trials),
            )
        )
    return found


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _checked(sizes: int | Mapping[str, int] | None, targets: list[str]) -> dict[str, int]:
    if sizes is None:
        return {}
    by_target = by_task(sizes, "dev_sizes") if isinstance(sizes, Mapping) else {}
    if not isinstance(sizes, Mapping):
        by_target = dict.fromkeys(targets, sizes)
    for target, size in by_target.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(
                f"dev_sizes must be whole numbers from 1 but has {size!r} for {target!r}."
            )
    return {target: int(size) for target, size in by_target.items()}
