"""What the figures of a study need and only Optuna knows; `transfer_pruner.tables` does the rest.

What it must satisfy: what a trial was marked with counts, and not what a rule says of it later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import optuna
from optuna.trial import FrozenTrial

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.records import check_objective, records_from_trials

Horizontal = Literal["trial", "seconds"]


def scored_records(
    study: optuna.Study,
    rule: EliminationRule | LearningRule | None,
    pair_of: PairParams,
    objective_index: int | str | None,
) -> list[TrialRecord]:
    """Read the finished trials, without joint ones; the rule scores what bears no score.

    Raises
    ------
    ValueError
        If the study has several objectives and none is chosen.
    """
    objective = check_objective(study, objective_index)
    trials = study.get_trials(deepcopy=False)
    records = [
        record
        for record in records_from_trials(study, trials, pair_of, None, objective)
        if not isinstance(record.source, tuple)
    ]
    if rule is None:
        return records
    now = Evidence(rule, pair_of, objective_index).rule(study)
    return [
        replace(r, score=now.decide(r.source, r.target).score)
        if r.source is not None and math.isnan(r.score)
        else r
        for r in records
    ]


def places(trials: Iterable[FrozenTrial], pair_of: PairParams, x: Horizontal) -> dict[int, float]:
    """Say where each finished trial with a pair stands on the horizontal axis, by its number."""
    finished = [t for t in trials if t.state.is_finished() and pair_of.is_in(t.params)]
    if x == "trial":
        return {trial.number: trial.number for trial in finished}
    starts = [trial.datetime_start for trial in finished if trial.datetime_start is not None]

    def since_start(trial: FrozenTrial) -> float:
        if not starts or trial.datetime_complete is None:
            return 0.0
        return (trial.datetime_complete - min(starts)).total_seconds()

    return {trial.number: since_start(trial) for trial in finished}


def why_no_pair(study: optuna.Study, pair_of: PairParams) -> str:
    """Say why there is nothing to show of a study: mostly, its parameters have other names."""
    finished = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    if finished and not any(pair_of.is_in(trial.params) for trial in finished):
        return f"The study's trials have {pair_of.lacking(finished[0].params)}"
    return "The study has no finished trials with a source and a target."
