"""From an Optuna study to plain records and transfers tables; the study's storage is the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.pairs import is_baseline
from transfer_pruner.rule import Decision, EliminationRule
from transfer_pruner.savings import Outcome, TrialRecord

ELIMINATED = "transfer_pruner.eliminated"
SCORE = "transfer_pruner.score"
REASON = "transfer_pruner.reason"
RULE = "transfer_pruner.rule"


@dataclass(frozen=True)
class PairOfTrial:
    """Where the pair stands among a trial's parameters.

    Parameters
    ----------
    source_param, target_param : str
    target : str, optional
        The target task of a study that searches over sources only.
    """

    source_param: str = "source"
    target_param: str = "target"
    target: str | None = None

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the parameters that make the pair."""
        if self.target is not None:
            return (self.source_param,)
        return (self.source_param, self.target_param)

    def is_in(self, params: Mapping[str, Any]) -> bool:
        """Whether the parameters hold the pair."""
        return all(name in params for name in self.params)

    def __call__(self, params: Mapping[str, Any]) -> tuple[Any, Any]:
        """Take (source, target) from a trial's parameters."""
        target = self.target if self.target is not None else params[self.target_param]
        return params[self.source_param], target

    def hyperparameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Take everything but the pair."""
        return {name: value for name, value in params.items() if name not in self.params}


def plain_source(source: Any, target: str) -> str | None:
    """None for the single-task baseline, else the source task."""
    return None if is_baseline(source, target) else source


def decision_attributes(decision: Decision) -> dict[str, Any]:
    """Make the user attributes that mark a trial: numbers, which dataframes and dashboards sort.

    As few as will do: on a database each one costs more than deciding.
    """
    attributes: dict[str, Any] = {ELIMINATED: int(decision.eliminated)}
    if not math.isnan(decision.score):
        attributes[SCORE] = decision.score
    if decision.eliminated:
        attributes[REASON] = decision.reason
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
    source_param: str = "source",
    target_param: str = "target",
    target: str | None = None,
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

    Returns
    -------
    list of TrialRecord
        One for each finished trial that has the pair, in order of trial numbers. Running and
        waiting trials are left out.
    """
    pair_of = PairOfTrial(source_param, target_param, target)
    return [
        _record(trial, pair_of, rule)
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and pair_of.is_in(trial.params)
    ]


def transfers_from_study(
    study: optuna.Study,
    *,
    source_param: str = "source",
    target_param: str = "target",
    target: str | None = None,
) -> pd.DataFrame:
    """Read a study as a table of measured transfers, training data for `TransferPredictor`.

    The gain of a trial is its value minus the single-task baseline: the mean of the target's
    baseline trials (no source, or the target itself as source) with the same hyperparameters, else
    of all its baseline trials. In a study that minimizes, scores are negated, so that a positive
    gain is always an improvement.

    Parameters
    ----------
    study : optuna.Study
        Single-objective.
    source_param, target_param, target
        As for `gate`.

    Returns
    -------
    DataFrame
        One row for each complete trial with a source: source, target, gain, score, baseline,
        seconds and the hyperparameters.

    Raises
    ------
    ValueError
        If the study has several objectives, or no complete trial with a source whose target has a
        baseline trial.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return transfers_from_trials(study, trials, PairOfTrial(source_param, target_param, target))


def check_one_objective(study: optuna.Study) -> None:
    """Refuse a study with several objectives: a gain is the difference of two numbers."""
    if len(study.directions) != 1:
        raise ValueError(
            f"study must have one objective but {study.study_name!r} has {len(study.directions)}."
        )


def transfers_from_trials(
    study: optuna.Study, trials: Iterable[FrozenTrial], pair_of: PairOfTrial
) -> pd.DataFrame:
    """Do what `transfers_from_study` does with some of the study's complete trials."""
    check_one_objective(study)
    sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
    rows = []
    for trial in trials:
        if pair_of.is_in(trial.params):
            record = _record(trial, pair_of, None)
            rows.append(
                {
                    "source": record.source,
                    "target": record.target,
                    "score": sign * record.value,
                    "seconds": record.seconds,
                    **record.hyperparameters,
                }
            )
    columns = ["source", "target", "gain", "score", "baseline", "seconds"]
    table = pd.DataFrame(rows, columns=columns if not rows else None)
    baseline_rows = table["source"].isna()
    if not len(table[~baseline_rows]) or not baseline_rows.any():
        raise ValueError(
            f"study {study.study_name!r} has {int((~baseline_rows).sum())} complete trials with a "
            f"source and {int(baseline_rows.sum())} without: a gain needs both. Run baseline "
            "trials (source None, or the target itself as source) for its targets."
        )
    settings = [name for name in table.columns if name not in columns]
    baselines, transfers = table[baseline_rows], table[~baseline_rows].copy()
    alike = baselines.groupby(["target", *settings], dropna=False)["score"].mean()
    overall = baselines.groupby("target")["score"].mean()
    keys = transfers[["target", *settings]].itertuples(index=False, name=None)
    matched = [alike.get(key if settings else key[0], np.nan) for key in keys]
    transfers["baseline"] = pd.Series(matched, index=transfers.index, dtype=float).fillna(
        transfers["target"].map(overall)
    )
    transfers["gain"] = transfers["score"] - transfers["baseline"]
    return transfers[[*columns, *settings]].dropna(subset="gain").reset_index(drop=True)


def _record(trial: FrozenTrial, pair_of: PairOfTrial, rule: EliminationRule | None) -> TrialRecord:
    source, target = pair_of(trial.params)
    attributes = trial.user_attrs
    decision = Decision(False, math.nan, math.nan, "")
    if rule is not None and ELIMINATED in attributes:
        decision = rule.decide(source, target)
    outcome: Outcome = "failed" if trial.state == TrialState.FAIL else "trained"
    if attributes.get(ELIMINATED) == 1 and trial.state == TrialState.PRUNED:
        outcome = "eliminated"
    single = trial.values is not None and len(trial.values) == 1
    duration = trial.duration
    return TrialRecord(
        number=trial.number,
        source=plain_source(source, target),
        target=target,
        outcome=outcome,
        seconds=duration.total_seconds() if duration is not None else 0.0,
        value=trial.values[0] if single else math.nan,
        score=attributes.get(SCORE, decision.score),
        probability=decision.probability,
        reason=attributes.get(REASON, decision.reason),
        hyperparameters=pair_of.hyperparameters(trial.params),
    )
