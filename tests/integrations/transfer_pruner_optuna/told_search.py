"""A search whose every trial is known beforehand: what the figures of a study are tried on."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_optuna import gate, records_from_study

SPACE = {
    "source": CategoricalDistribution([None, "a", "b", "c", "u"]),
    "target": CategoricalDistribution(["t", "u"]),
    "lr": CategoricalDistribution([0.1, 0.01]),
}
SCORES = {
    ("a", "t"): 0.3,
    ("b", "t"): 0.2,
    ("c", "t"): 0.1,
    ("u", "t"): -0.3,
    ("a", "u"): -0.1,
    ("b", "u"): 0.5,
    ("c", "u"): 0.0,
}
KEPT = {("a", "t"), ("b", "t"), ("b", "u")}
TRIALS: list[tuple[str | None, str, float, float | None]] = [
    (None, "t", 0.1, 0.5),
    (None, "t", 0.01, 0.4),
    ("u", "u", 0.1, 0.6),
    ("a", "t", 0.1, 0.6),
    ("a", "t", 0.01, 0.6),
    ("b", "t", 0.1, None),  # fails
    ("u", "t", 0.1, None),  # eliminated
    ("c", "t", 0.1, 0.45),  # eliminated, drawn for an audit
    ("b", "u", 0.1, 0.7),
    ("c", "u", 0.1, None),  # eliminated
    ("a", "u", 0.1, None),  # eliminated
    ("c", "u", 0.01, 0.5),  # eliminated, drawn for an audit; the baseline is of another lr
    ("c", "t", 0.1, None),  # eliminated
]
ELIMINATED, AUDITED = [6, 9, 10, 12], [7, 11]
PAIR_OF = PairParams()


def told_rule() -> EliminationRule:
    return EliminationRule(
        {pair: Decision(pair not in KEPT, score, 0.5, "told so") for pair, score in SCORES.items()},
        {},
    )


def search(rule: EliminationRule | None, **study_arguments: object) -> optuna.Study:
    """Run TRIALS as a search, behind the gate if there is a rule."""

    def objective(trial: optuna.Trial) -> float | tuple[float, float]:
        for name, distribution in SPACE.items():
            trial.suggest_categorical(name, distribution.choices)
        value = TRIALS[trial.number][3]
        if value is None:
            raise RuntimeError("out of memory")
        return (trial.number, value) if "directions" in study_arguments else value

    # Audits are drawn by the study's name: this one draws AUDITED.
    study = optuna.create_study(
        study_name="told 33", **(study_arguments or {"direction": "maximize"})
    )
    for source, target, lr, _ in TRIALS:
        study.enqueue_trial({"source": source, "target": target, "lr": lr})
    gated = gate(objective, rule, search_space=SPACE, audit_fraction=0.4) if rule else objective
    study.optimize(gated, n_trials=len(TRIALS), catch=RuntimeError)
    return study


def told_study() -> optuna.Study:
    """Run TRIALS behind the gate, and see that they are what they are said to be."""
    study = search(told_rule())
    records = records_from_study(study)
    assert [r.number for r in records if r.outcome == "eliminated"] == ELIMINATED
    assert [r.number for r in records if r.audit] == AUDITED
    assert [r.number for r in records if r.outcome == "failed"] == [5]
    return study


def retold(study: optuna.Study, times: list[tuple[float, float]]) -> optuna.Study:
    """Copy a study with other times of start and end, in seconds."""
    day = datetime(2026, 1, 1)
    copy = optuna.create_study(directions=study.directions)
    for trial, (start, end) in zip(study.get_trials(), times, strict=True):
        trial.datetime_start = day + timedelta(seconds=start)
        trial.datetime_complete = day + timedelta(seconds=end)
        copy.add_trial(trial)
    return copy


def one_after_the_other(study: optuna.Study) -> optuna.Study:
    """Ten seconds for each trial that ran, one for each that was eliminated."""
    seconds = [1 if number in ELIMINATED else 10 for number in range(len(TRIALS))]
    ends = np.cumsum(seconds).tolist()
    return retold(study, [(e - s, e) for s, e in zip(seconds, ends, strict=True)])
