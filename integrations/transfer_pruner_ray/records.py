"""From a Ray Tune experiment to plain records and transfers tables; its folder is the truth."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.records import Outcome, TrialRecord
from transfer_pruner.rule.current import CurrentRule
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner.transfers import transfers_from_records
from transfer_pruner_ray._private import metric_and_mode
from transfer_pruner_ray.experiment import TuneTrial, read_settled, read_trials
from transfer_pruner_ray.marks import (
    ELIMINATED,
    PRIORITY,
    PROBABILITY,
    REASON,
    SCORE,
    SCORING,
    Pair,
)

if TYPE_CHECKING:
    from ray.tune import ResultGrid


def records_from_results(
    results: ResultGrid | str | os.PathLike[str],
    rule: EliminationRule | None = None,
    *,
    metric: str | None = None,
    mode: str | None = None,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    min_iterations: int = 0,
    passed_over: Mapping[Pair, int] | None = None,
) -> list[TrialRecord]:
    """Read an experiment's finished trials as records for `transfer_pruner.estimate_savings`.

    Parameters
    ----------
    results : ResultGrid, path or URI
        What ``Tuner.fit`` returned, or the experiment's folder, of a run that may have been killed.
        Reading it needs no Ray cluster.
    rule : EliminationRule, optional
        The rule that decided; it fills in the scores of trials that ran, and the seconds of proxy
        scores, which only trials that it eliminated tell. Which were audits, their marks tell.
    metric : str, optional
        The reported metric that is the records' value, as last reported; nested ones as ``a/b``.
        Left out, it is the one that the Tuner of a ResultGrid had; else records have no value.
    mode : {"max", "min"}, optional
        Whether a higher metric is better. Left out, it is that of a ResultGrid's Tuner.
    source_param, target_param, target
        As for `TransferScheduler`; nested parameters as ``a/b``.
    min_iterations : int
        Trials with fewer training iterations were stopped early by the scheduler: they keep their
        seconds and have no value.
    passed_over : mapping of (source, target) to int, optional
        What left no trace in the experiment, each a record of an eliminated trial: a generator's
        ``eliminated_pairs``, a searcher's ``redirected_pairs``; of a filter `eliminated_pairs`,
        times the settings that each pair would have had.

    Returns
    -------
    list of TrialRecord
        One for each trial that finished, was eliminated or failed and has the pair, in order of
        trial ids. Its seconds are Tune's ``time_total_s``, without the start of the worker. If
        there are trials and none has the pair, a warning names the parameters that they have.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.
    ValueError
        If there is a metric and its mode is not known, `results` is no experiment or `rule` no
        rule.

    Examples
    --------
    >>> from ray import tune
    >>> from transfer_pruner_ray import records_from_results
    >>> def train_pair(config):
    ...     tune.report({"f1": {"news": 0.61, "advice": 0.66}[config["source"]]})
    >>> tuner = tune.Tuner(
    ...     train_pair,
    ...     param_space={"source": tune.grid_search(["news", "advice"])},
    ...     tune_config=tune.TuneConfig(metric="f1", mode="max"),
    ...     run_config=tune.RunConfig(verbose=0),
    ... )
    >>> results = tuner.fit()
    >>> records = records_from_results(results, target="news")
    >>> sorted((str(record.source), record.value) for record in records)
    [('None', 0.61), ('advice', 0.66)]
    """
    metric, mode = _metric_and_mode(results, metric, mode)
    pair_of = PairParams(source_param, target_param, target)
    # Refuses what is no rule.
    rule = None if rule is None else CurrentRule(rule).first
    trials = read_trials(results, metric)
    records = _records(trials, rule, pair_of, metric, mode != "min", min_iterations)
    lacking = _lacking(trials, pair_of)
    if lacking:
        warnings.warn(
            f"none of {len(trials)} trials is read: {lacking}", TransferPrunerWarning, stacklevel=2
        )
    return records + passed_over_records(passed_over or {}, len(trials), maximize=mode != "min")


def transfers_from_results(
    results: ResultGrid | str | os.PathLike[str],
    *,
    metric: str | None = None,
    mode: str | None = None,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    min_iterations: int = 0,
) -> pd.DataFrame:
    """Read an experiment as a table of measured transfers, training data for `TransferPredictor`.

    The gain of a trial is its value minus the single-task baseline, as
    `transfer_pruner.transfers_from_records` says.

    Parameters
    ----------
    results, metric, mode, source_param, target_param, target, min_iterations
        As for `records_from_results`.

    Returns
    -------
    DataFrame
        One row for each trial with one source and a value: source, target, gain, score, baseline,
        seconds and the hyperparameters. ``table.attrs["left_out"]`` counts the others.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.
    ValueError
        If no metric or mode is known, no trial has the pair, or no trial with a source has a
        target with a baseline trial.

    Examples
    --------
    >>> from ray import tune
    >>> from transfer_pruner_ray import transfers_from_results
    >>> def train_pair(config):
    ...     tune.report({"f1": {"news": 0.61, "advice": 0.66}[config["source"]]})
    >>> tuner = tune.Tuner(
    ...     train_pair,
    ...     param_space={"source": tune.grid_search(["news", "advice"])},
    ...     tune_config=tune.TuneConfig(metric="f1", mode="max"),
    ...     run_config=tune.RunConfig(verbose=0),
    ... )
    >>> results = tuner.fit()
    >>> transfers = transfers_from_results(results, target="news").sort_values("source")
    >>> transfers[["source", "target", "gain"]].round(2)
       source target  gain
    0  advice   news  0.05
    """
    metric, mode = _metric_and_mode(results, metric, mode)
    if metric is None:
        raise ValueError("metric is not known from a folder: pass the name that trials report.")
    pair_of = PairParams(source_param, target_param, target)
    trials = read_trials(results, metric)
    maximize = mode != "min"
    records = _records(trials, None, pair_of, metric, maximize, min_iterations)
    lacking = _lacking(trials, pair_of)
    if lacking:
        raise ValueError(f"none of {len(trials)} trials is read: {lacking}")
    table = transfers_from_records(records, maximize=maximize)
    others = {
        "unfinished": sum(not trial.ended for trial in trials),
        "without the pair": sum(trial.ended for trial in trials) - len(records),
    }
    table.attrs["left_out"] |= {why: count for why, count in others.items() if count}
    return table


class Ending(TypedDict):
    """What `transfer_pruner.estimate_savings` takes beside an experiment's records."""

    exhaustive_trials: int | None
    stopped: str | None


def ending_from_results(results: ResultGrid | str | os.PathLike[str]) -> Ending:
    """Tell how a search ended, for ``estimate_savings(records, **ending_from_results(results))``.

    Parameters
    ----------
    results : ResultGrid, path or URI
        As for `records_from_results`.

    Returns
    -------
    dict
        ``stopped``: the reason of `StopWhenSettled`; None if it did not stop the search.
        ``exhaustive_trials``: the pairs and baselines of the search space, times hyperparameter
        settings. None, so that nothing is claimed, where a parameter is continuous, or nothing
        stopped the search, since its folder does not tell the space: then say yourself how many
        there are.

    Raises
    ------
    FileNotFoundError
        If there is no experiment in the folder.

    Examples
    --------
    >>> from ray import tune
    >>> from transfer_pruner_ray import ending_from_results
    >>> def train_pair(config):
    ...     tune.report({"f1": {"news": 0.61, "advice": 0.66}[config["source"]]})
    >>> tuner = tune.Tuner(
    ...     train_pair,
    ...     param_space={"source": tune.grid_search(["news", "advice"])},
    ...     tune_config=tune.TuneConfig(metric="f1", mode="max"),
    ...     run_config=tune.RunConfig(verbose=0),
    ... )
    >>> results = tuner.fit()
    >>> ending_from_results(results)
    {'exhaustive_trials': None, 'stopped': None}
    """
    told = read_settled(results)
    return {"exhaustive_trials": told.get("exhaustive_trials"), "stopped": told.get("reason")}


def record_of(
    number: int,
    trial: TuneTrial,
    pair_of: PairParams,
    *,
    rule: EliminationRule | None = None,
    metric: str | None = None,
    maximize: bool | None = True,
    min_iterations: int = 0,
) -> TrialRecord | None:
    """Read one trial as a record; None if its configuration holds no pair."""
    pair = _pair(trial, pair_of)
    if pair is None:
        return None
    source, target = pair
    last = trial.result
    outcome: Outcome = "failed" if trial.status == "ERROR" else "trained"
    if last.get(ELIMINATED):
        outcome = "eliminated"
    whole = last.get("training_iteration", 0) >= min_iterations
    said = {"score": last.get(SCORE), "probability": last.get(PROBABILITY)}
    said |= {"priority": last.get(PRIORITY), "reason": last.get(REASON)}
    audit = trial.audit or {}
    decision = vars(rule.decide(source, target)) if rule is not None else {}
    for name in said:
        said[name] = next(
            (x for x in (said[name], audit.get(name), decision.get(name)) if x is not None), None
        )
    return TrialRecord(
        number=number,
        source=source,
        target=target,
        outcome=outcome,
        seconds=_number(last.get("time_total_s"), 0.0),
        value=_number(last.get(metric)) if metric and whole and outcome == "trained" else math.nan,
        score=_number(said["score"]),
        probability=_number(said["probability"]),
        priority=_number(said["priority"]),
        reason=str(said["reason"] or ""),
        hyperparameters=pair_of.hyperparameters(trial.config),
        audit=outcome == "trained" and trial.audit is not None,
        maximize=maximize,
        scoring_seconds=_number(
            last.get(SCORING, audit.get("scoring_seconds")), getattr(rule, "scoring_seconds", 0.0)
        ),
    )


def passed_over_records(
    passed_over: Mapping[Pair, int], start: int, *, maximize: bool = True
) -> list[TrialRecord]:
    """Make records of trials that never were, numbered from `start` on."""
    pairs = [pair for pair, count in passed_over.items() for _ in range(count)]
    return [
        TrialRecord(number, source, target, "eliminated", seconds=0.0, maximize=maximize)
        for number, (source, target) in enumerate(pairs, start)
    ]


def _records(
    trials: Iterable[TuneTrial],
    rule: EliminationRule | None,
    pair_of: PairParams,
    metric: str | None,
    maximize: bool,
    min_iterations: int,
) -> list[TrialRecord]:
    records = [
        record_of(
            number,
            trial,
            pair_of,
            rule=rule,
            metric=metric,
            maximize=maximize,
            min_iterations=min_iterations,
        )
        for number, trial in enumerate(trials)
        if trial.ended
    ]
    return [record for record in records if record is not None]


def _pair(trial: TuneTrial, pair_of: PairParams) -> tuple[Any, Any] | None:
    if not pair_of.is_in(trial.config):
        return trial.pair
    return trial.pair or pair_of(trial.config)


def _lacking(trials: Sequence[TuneTrial], pair_of: PairParams) -> str:
    """Say what the trials have instead of a pair; nothing if one has it, or none has ended."""
    ended = [trial for trial in trials if trial.ended]
    if not ended or any(_pair(trial, pair_of) for trial in ended):
        return ""
    return pair_of.lacking(ended[0].config)


def _number(value: Any, otherwise: float = math.nan) -> float:
    return float(value) if isinstance(value, Real) else otherwise


def _metric_and_mode(
    results: object, metric: str | None, mode: str | None
) -> tuple[str | None, str | None]:
    """Complete what the user says by what a ResultGrid knows.

    Raises
    ------
    ValueError
        If the mode is no mode, or not known of a metric.
    """
    if mode not in (None, "max", "min"):
        raise ValueError(f"mode must be 'max' or 'min' but got {mode!r}.")
    known_metric, known_mode = metric_and_mode(results)
    metric, mode = metric or known_metric, mode or known_mode
    if metric is not None and mode is None:
        raise ValueError(
            f"mode of the metric {metric!r} is not known: pass mode='max' if a higher one is "
            "better, else mode='min'."
        )
    return metric, mode
