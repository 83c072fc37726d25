"""What the figures of a study show, as tables: `visualization` only draws them.

What they must satisfy: what is called measured was measured, and an estimate is what
`transfer_pruner.estimate_savings` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.savings import estimate_savings
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.learning import RuleOfNow
from transfer_pruner_optuna.records import (
    check_objective,
    records_from_trials,
    transfers_from_trials,
)

PAIR = ["source", "target"]
_CHECKPOINTS = 50

Horizontal = Literal["trial", "seconds"]


def gains_table(
    study: optuna.Study,
    rule: EliminationRule | LearningRule | None,
    pair_of: PairParams,
    objective_index: int | None,
) -> tuple[pd.DataFrame, str]:
    """One row for each trial with a measured gain; and why there is none, if so.

    Columns number, source, target, predicted, gain, audit, hyperparameters.
    """
    objective = check_objective(study, objective_index)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    columns = ["number", *PAIR, "predicted", "gain", "audit", "hyperparameters"]
    try:
        transfers = transfers_from_trials(study, trials, pair_of, objective)
    except ValueError as error:
        return pd.DataFrame(columns=columns), str(error)
    known = set(transfers["target"])
    measured = [
        record
        for record in _single_source(records_from_trials(study, trials, pair_of, None, objective))
        if math.isfinite(record.value) and record.target in known
    ]
    predicted = _predicted(study, measured, rule, pair_of, objective_index)
    rows = [
        (r.number, str(r.source), str(r.target), score, gain, r.audit, r.hyperparameters)
        for r, score, gain in zip(measured, predicted, transfers["gain"], strict=True)
    ]
    return pd.DataFrame(rows, columns=columns), ""


def _single_source(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Leave out the baselines, and joint trials: they are no pairs."""
    return [r for r in records if r.source is not None and not isinstance(r.source, tuple)]


def _predicted(
    study: optuna.Study,
    records: Sequence[TrialRecord],
    rule: EliminationRule | LearningRule | None,
    pair_of: PairParams,
    objective_index: int | None,
) -> list[float]:
    """Find what each trial was marked with, else what the rule says of its pair now."""
    if rule is None:
        return [record.score for record in records]
    now = RuleOfNow(rule, pair_of, objective_index)(study)
    return [
        now.decide(record.source, record.target).score if math.isnan(record.score) else record.score
        for record in records
    ]


def pair_means(gains: pd.DataFrame) -> pd.DataFrame:
    """One row for each pair, audit trials apart: means of predicted score and gain, and trials."""
    return gains.groupby([*PAIR, "audit"], as_index=False).agg(
        predicted=("predicted", "mean"), gain=("gain", "mean"), trials=("gain", "size")
    )


def finished_steps(
    study: optuna.Study, pair_of: PairParams, x: Horizontal
) -> list[tuple[float, TrialRecord]]:
    """List the finished trials with the pair in order, each with where it stands on the x axis."""
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and pair_of.is_in(trial.params)
    ]
    if x == "trial":
        at: list[float] = [trial.number for trial in trials]
    else:
        start = min(
            (t.datetime_start for t in trials if t.datetime_start is not None), default=None
        )

        def since_start(trial: FrozenTrial) -> float:
            if start is None or trial.datetime_complete is None:
                return 0.0
            return (trial.datetime_complete - start).total_seconds()

        trials.sort(key=lambda trial: (since_start(trial), trial.number))
        at = [since_start(trial) for trial in trials]
    return list(zip(at, records_from_trials(study, trials, pair_of, None, None), strict=True))


def savings_table(
    steps: Sequence[tuple[float, TrialRecord]],
    *,
    single_task_seconds: float,
    attribution_seconds: float,
    confidence: float,
) -> pd.DataFrame:
    """One row for each checkpoint of the search, the last of them its end.

    Columns x, trials, seconds_spent, estimated_seconds_saved, estimated_low, estimated_high; the
    estimates are NaN as long as trials were eliminated and none trained.
    """
    records = [record for _, record in steps]
    rows = []
    for count in np.unique(np.linspace(1, len(records), _CHECKPOINTS).round().astype(int)):
        savings = estimate_savings(
            records[:count],
            single_task_seconds=single_task_seconds,
            attribution_seconds=attribution_seconds,
            confidence=confidence,
        )
        rows.append(
            {
                "x": steps[count - 1][0],
                "trials": int(count),
                "seconds_spent": savings.seconds_spent,
                "estimated_seconds_saved": savings.estimated_seconds_saved,
                "estimated_low": savings.estimated_seconds_saved_interval[0],
                "estimated_high": savings.estimated_seconds_saved_interval[1],
            }
        )
    return pd.DataFrame(rows)


def pairs_table(
    study: optuna.Study,
    rule: EliminationRule | LearningRule | None,
    pair_of: PairParams,
    objective_index: int | None,
) -> pd.DataFrame:
    """One row for each pair that was proposed.

    Columns source, target, predicted (mean over its trials), trials, eliminated and audited (how
    many of them), gain (mean over those that have one).
    """
    objective = check_objective(study, objective_index)
    trials = study.get_trials(deepcopy=False)
    records = _single_source(records_from_trials(study, trials, pair_of, None, objective))
    rows = [
        (str(r.source), str(r.target), score, r.outcome == "eliminated", r.audit)
        for r, score in zip(
            records, _predicted(study, records, rule, pair_of, objective_index), strict=True
        )
    ]
    proposed = pd.DataFrame(rows, columns=[*PAIR, "predicted", "eliminated", "audit"])
    pairs = proposed.groupby(PAIR, as_index=False).agg(
        predicted=("predicted", "mean"),
        trials=("eliminated", "size"),
        eliminated=("eliminated", "sum"),
        audited=("audit", "sum"),
    )
    gains, _ = gains_table(study, None, pair_of, objective_index)
    means = gains.astype({"gain": float}).groupby(PAIR)["gain"].mean()
    return pairs.join(means, on=PAIR)
