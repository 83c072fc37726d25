"""From an Optuna study to plain records and transfers tables; the study's storage is the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.records import Outcome, TrialRecord
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.verdict import Verdict
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner.transfers import transfers_from_records

PREFIX = "transfer_pruner."
ELIMINATED = PREFIX + "eliminated"
SCORE = PREFIX + "score"
PROBABILITY = PREFIX + "probability"
PRIORITY = PREFIX + "priority"
AUDIT = PREFIX + "audit"
REASON = PREFIX + "reason"
SCORING = PREFIX + "scoring_seconds"
RULE = PREFIX + "rule"
REDIRECTED = PREFIX + "redirected"
PROPOSED = PREFIX + "proposed"
SETTLED = PREFIX + "settled"


def marks_of(verdict: Verdict, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Name what is to be written on a trial that bears these attributes already.

    A trial that is queued again brings the marks of another rule or another draw along: what no
    longer holds is emptied, since Optuna deletes no attribute.
    """
    marks = verdict.marks(PREFIX)
    stale = (SCORE, PROBABILITY, PRIORITY, REASON, AUDIT, SCORING)
    emptied = {key: None for key in stale if attributes.get(key) is not None and key not in marks}
    return marks | emptied


def record_study(study: optuna.Study, rule: EliminationRule) -> None:
    """Write the rule's settings and fingerprint into the study's user attributes."""
    note = {"fingerprint": rule.fingerprint, **rule.settings}
    if study.user_attrs.get(RULE) != note:
        study.set_user_attr(RULE, note)


def records_from_study(
    study: optuna.Study,
    rule: EliminationRule | None = None,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
) -> list[TrialRecord]:
    """Read a study's finished trials as records for `transfer_pruner.estimate_savings`.

    Parameters
    ----------
    study : optuna.Study
        With or without trials that our adapters marked.
    rule : EliminationRule, optional
        The rule that decided; it fills in what the trials' user attributes do not hold (the
        reason of a kept pair, the seconds of proxy scores).
    source_param, target_param, target
        As for `gate`.
    objective_index : int or str, optional
        Which of several objectives is the records' value, by its number or its metric name. Left
        out, the records of a multi-objective study have none.

    Returns
    -------
    list of TrialRecord
        One for each finished trial that has the pair, in order of trial numbers; of a trial whose
        first proposal a `TransferSampler` redirected two: the proposal, eliminated in no time, and
        the trial. Running and waiting trials are left out. A trial that a pruner stopped has no
        value, since its last one is of fewer steps. Seconds are what Optuna measured; of a failed
        trial at most those of the longest that completed, since of a worker that died Optuna knows
        only when it was found.

    Raises
    ------
    ValueError
        If the study has no such objective, or `target` is given and the trials have a target too.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import records_from_study
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> records = records_from_study(study, target="news")
    >>> sorted((str(record.source), record.value) for record in records)
    [('None', 0.61), ('advice', 0.66), ('weather', 0.58)]
    """
    pair_of = PairParams(source_param, target_param, target)
    trials = study.get_trials(deepcopy=False)
    return records_from_trials(study, trials, pair_of, rule, objective_index)


def transfers_from_study(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
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
    objective_index : int or str, optional
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
        whose target has a baseline trial; the message names the parameters that the trials have.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import transfers_from_study
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> transfers = transfers_from_study(study, target="news")
    >>> transfers.sort_values("source", ignore_index=True)[["source", "target", "gain"]].round(2)
        source target  gain
    0   advice   news  0.05
    1  weather   news -0.03
    """
    trials = study.get_trials(deepcopy=False)
    pair_of = PairParams(source_param, target_param, target)
    return transfers_from_trials(study, trials, pair_of, objective_index)


def check_objective(study: optuna.Study, objective_index: int | str | None) -> int:
    """Tell which objective is the score: a gain is the difference of two numbers.

    Raises
    ------
    ValueError
        If the study has no such objective, or has several and none is chosen.
    """
    count = len(study.directions)
    if objective_index is None and count == 1:
        return 0
    if isinstance(objective_index, str):
        names = study.metric_names or []
        if objective_index in names:
            return names.index(objective_index)
        raise ValueError(
            f"objective_index is {objective_index!r}, but study {study.study_name!r} has the "
            f"metric names: {', '.join(names) or 'none; set_metric_names() gives them'}."
        )
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
    objective_index: int | str | None = None,
) -> pd.DataFrame:
    """Do what `transfers_from_study` does with some of the study's trials."""
    objective = check_objective(study, objective_index)
    trials = list(trials)
    pruned = {t.number for t in trials if t.state == TrialState.PRUNED and ran(t)}
    finished = [trial for trial in trials if trial.state.is_finished()]
    without = [trial for trial in finished if not pair_of.is_in(trial.params)]
    records = records_from_trials(study, trials, pair_of, None, objective)
    try:
        table = transfers_from_records(
            (record for record in records if record.number not in pruned),
            maximize=study.directions[objective] == StudyDirection.MAXIMIZE,
        )
    except ValueError as error:
        lacking = ""
        if without and len(without) == len(finished):
            lacking = f" The trials have {pair_of.lacking(without[0].params)}"
        raise ValueError(f"study {study.study_name!r}: {error}{lacking}") from error
    others = {
        "pruned": len(pruned),
        "unfinished": len(trials) - len(finished),
        "without the pair": len(without),
    }
    table.attrs["left_out"] |= {why: count for why, count in others.items() if count}
    return table


def records_from_trials(
    study: optuna.Study,
    trials: Iterable[FrozenTrial],
    pair_of: PairParams,
    rule: EliminationRule | None,
    objective_index: int | str | None,
) -> list[TrialRecord]:
    """Do what `records_from_study` does with some of the study's trials."""
    objective = None
    if objective_index is not None or len(study.directions) == 1:
        objective = check_objective(study, objective_index)
    maximize = objective is None or study.directions[objective] == StudyDirection.MAXIMIZE
    trials = [trial for trial in trials if trial.state.is_finished()]
    complete = [_seconds(trial) for trial in trials if trial.state == TrialState.COMPLETE]
    longest = max(complete, default=math.inf)
    records = []
    for trial in trials:
        pair_of.check(trial.params)
        if not pair_of.is_in(trial.params):
            continue
        proposal = _proposal(trial, pair_of, maximize)
        records += [proposal] if proposal is not None else []
        records.append(_record(trial, pair_of, rule, objective, maximize, longest))
    return records


def ran(trial: FrozenTrial) -> bool:
    """Whether a finished trial's objective trained, as far as its marks tell."""
    marks = trial.user_attrs
    eliminated = marks.get(ELIMINATED) == 1 and marks.get(AUDIT) != 1
    return trial.state == TrialState.COMPLETE or not eliminated


def never_ran(trial: FrozenTrial) -> bool:
    """Whether a trial was eliminated before its objective trained; a function, so it is pickled."""
    return not ran(trial)


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def _proposal(trial: FrozenTrial, pair_of: PairParams, maximize: bool) -> TrialRecord | None:
    """Tell of the eliminated pair in whose place a trial trained, if there was one."""
    proposed = trial.user_attrs.get(PROPOSED)
    if trial.user_attrs.get(REDIRECTED) != 1 or not isinstance(proposed, dict):
        return None
    source = proposed.get("source")
    return TrialRecord(
        number=trial.number,
        source=tuple(source) if isinstance(source, list) else source,
        target=str(proposed.get("target")),
        outcome="eliminated",
        seconds=0.0,
        score=_number(proposed.get("score")),
        reason=f"redirected: {proposed.get('reason', '')}",
        hyperparameters=pair_of.hyperparameters(trial.params),
        maximize=maximize,
        scoring_seconds=_number(trial.user_attrs.get(SCORING), 0.0),
    )


def _record(
    trial: FrozenTrial,
    pair_of: PairParams,
    rule: EliminationRule | None,
    objective: int | None,
    maximize: bool,
    longest: float,
) -> TrialRecord:
    source, target = pair_of(trial.params)
    attributes = trial.user_attrs
    decision = Decision(False, math.nan, math.nan, "")
    if rule is not None and ELIMINATED in attributes:
        decision = rule.decide(source, target)
    scoring = rule.scoring_seconds if rule is not None else 0.0
    outcome: Outcome = "failed" if trial.state == TrialState.FAIL else "trained"
    if trial.state == TrialState.PRUNED and not ran(trial):
        outcome = "eliminated"
    has_result = trial.state == TrialState.COMPLETE and objective is not None
    return TrialRecord(
        number=trial.number,
        source=source,
        target=target,
        outcome=outcome,
        seconds=min(_seconds(trial), longest) if outcome == "failed" else _seconds(trial),
        value=trial.values[objective] if has_result else math.nan,
        score=_number(attributes.get(SCORE), decision.score),
        probability=_number(attributes.get(PROBABILITY), decision.probability),
        priority=_number(attributes.get(PRIORITY), decision.priority),
        reason=attributes.get(REASON) or decision.reason,
        hyperparameters=pair_of.hyperparameters(trial.params),
        audit=attributes.get(AUDIT) == 1,
        maximize=maximize,
        scoring_seconds=_number(attributes.get(SCORING), scoring),
    )


def _number(value: Any, otherwise: float = math.nan) -> float:
    return otherwise if value is None else float(value)
