"""From an Optuna study to plain records and transfers tables; the study's storage is the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.records import Outcome, TrialRecord
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams, plain_source
from transfer_pruner.transfers import transfers_from_records

ELIMINATED = "transfer_pruner.eliminated"
SCORE = "transfer_pruner.score"
AUDIT = "transfer_pruner.audit"
REASON = "transfer_pruner.reason"
RULE = "transfer_pruner.rule"


def decision_attributes(decision: Decision, audit: bool = False) -> dict[str, Any]:
    """Make the user attributes that mark a trial: numbers, which dataframes and dashboards sort.

    As few as will do: on a database each one costs more than deciding.
    """
    attributes: dict[str, Any] = {ELIMINATED: int(decision.eliminated)}
    if not math.isnan(decision.score):
        attributes[SCORE] = decision.score
    if decision.eliminated:
        attributes[REASON] = decision.reason
    if audit:
        attributes[AUDIT] = 1
    return attributes


def record_study(study: optuna.Study, rule: EliminationRule) -> None:
    """Write the rule's settings and fingerprint into the study's user attributes."""
    note = {"fingerprint": rule.fingerprint, **rule.settings}
    if study.user_attrs.get(RULE) != note:
        study.set_user_attr(RULE, note)


def records_from_study(
    study: optuna.Study,
    rule: EliminationRule | None = None,
    *,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | None = None,
) -> list[TrialRecord]:
    """Read a study's finished trials as records for `transfer_pruner.estimate_savings`.

    Parameters
    ----------
    study : optuna.Study
        With or without trials that our adapters marked.
    rule : EliminationRule, optional
        The rule that decided; it fills in what the trials' user attributes do not hold (the
        probability, the reason of a kept pair).
    source_param, target_param, target
        As for `gate`.
    objective_index : int, optional
        Which of several objectives is the records' value. Left out, the records of a
        multi-objective study have none.

    Returns
    -------
    list of TrialRecord
        One for each finished trial that has the pair, in order of trial numbers. Running and
        waiting trials are left out. Seconds are what Optuna measured; of a failed trial at most
        those of the longest that completed, since of a worker that died Optuna knows only when it
        was found.

    Raises
    ------
    ValueError
        If the study has no such objective.
    """
    pair_of = PairParams(source_param, target_param, target)
    trials = study.get_trials(deepcopy=False)
    return records_from_trials(study, trials, pair_of, rule, objective_index)


def transfers_from_study(
    study: optuna.Study,
    *,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | None = None,
) -> pd.DataFrame:
    """Read a study as a table of measured transfers, training data for `TransferPredictor`.

    The gain of a trial is its value minus the single-task baseline, as
    `transfer_pruner.transfers_from_records` says. In a study that minimizes, scores are negated, so
    that a positive gain is always an improvement. Only complete trials count: a pruned one stopped
    with a value of fewer steps.

    Parameters
    ----------
    study : optuna.Study
    source_param, target_param, target
        As for `gate`.
    objective_index : int, optional
        Which objective is the score, in a study with several.

    Returns
    -------
    DataFrame
        One row for each complete trial with one source: source, target, gain, score, baseline,
        seconds and the hyperparameters. ``table.attrs["left_out"]`` counts the others.

    Raises
    ------
    ValueError
        If the study has several objectives and none is chosen, or no complete trial with a source
        whose target has a baseline trial.
    """
    trials = study.get_trials(deepcopy=False)
    pair_of = PairParams(source_param, target_param, target)
    return transfers_from_trials(study, trials, pair_of, objective_index)


def check_objective(study: optuna.Study, objective_index: int | None) -> int:
    """Tell which objective is the score: a gain is the difference of two numbers.

    Raises
    ------
    ValueError
        If the study has no such objective, or has several and none is chosen.
    """
    count = len(study.directions)
    if objective_index is None and count == 1:
        return 0
    if objective_index is None or not 0 <= objective_index < count:
        raise ValueError(
            f"objective_index must be from 0 to {count - 1} but got {objective_index}: study "
            f"{study.study_name!r} has {count} objective{'s' * (count > 1)}."
        )
    return objective_index


def transfers_from_trials(
    study: optuna.Study,
    trials: Iterable[FrozenTrial],
    pair_of: PairParams,
    objective_index: int | None = None,
) -> pd.DataFrame:
    """Do what `transfers_from_study` does with some of the study's trials."""
    objective = check_objective(study, objective_index)
    trials = list(trials)
    pruned = [t for t in trials if t.state == TrialState.PRUNED and _ran(t)]
    numbers = {trial.number for trial in pruned}
    records = records_from_trials(study, trials, pair_of, None, objective)
    try:
        table = transfers_from_records(
            (record for record in records if record.number not in numbers),
            maximize=study.directions[objective] == StudyDirection.MAXIMIZE,
        )
    except ValueError as error:
        raise ValueError(f"study {study.study_name!r}: {error}") from error
    others = {
        "pruned": len(pruned),
        "unfinished": sum(not trial.state.is_finished() for trial in trials),
        "without the pair": sum(
            trial.state.is_finished() and not pair_of.is_in(trial.params) for trial in trials
        ),
    }
    table.attrs["left_out"] |= {why: count for why, count in others.items() if count}
    return table


def records_from_trials(
    study: optuna.Study,
    trials: Iterable[FrozenTrial],
    pair_of: PairParams,
    rule: EliminationRule | None,
    objective_index: int | None,
) -> list[TrialRecord]:
    """Do what `records_from_study` does with some of the study's trials."""
    objective = None
    if objective_index is not None or len(study.directions) == 1:
        objective = check_objective(study, objective_index)
    trials = list(trials)
    complete = [_seconds(trial) for trial in trials if trial.state == TrialState.COMPLETE]
    longest = max(complete, default=math.inf)
    return [
        _record(trial, pair_of, rule, objective, longest)
        for trial in trials
        if trial.state.is_finished() and pair_of.is_in(trial.params)
    ]


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def _ran(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ELIMINATED) != 1 or AUDIT in trial.user_attrs


def _record(
    trial: FrozenTrial,
    pair_of: PairParams,
    rule: EliminationRule | None,
    objective: int | None,
    longest: float,
) -> TrialRecord:
    source, target = pair_of(trial.params)
    attributes = trial.user_attrs
    decision = Decision(False, math.nan, math.nan, "")
    if rule is not None and ELIMINATED in attributes:
        decision = rule.decide(source, target)
    outcome: Outcome = "failed" if trial.state == TrialState.FAIL else "trained"
    if trial.state == TrialState.PRUNED and not _ran(trial):
        outcome = "eliminated"
    return TrialRecord(
        number=trial.number,
        source=plain_source(source, target),
        target=target,
        outcome=outcome,
        seconds=min(_seconds(trial), longest) if outcome == "failed" else _seconds(trial),
        value=math.nan if trial.values is None or objective is None else trial.values[objective],
        score=attributes.get(SCORE, decision.score),
        probability=decision.probability,
        reason=attributes.get(REASON, decision.reason),
        hyperparameters=pair_of.hyperparameters(trial.params),
        audit=AUDIT in attributes,
    )
