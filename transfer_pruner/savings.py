"""What elimination saved and what it cost, from plain records of trials.

Seconds that a trial took are measured. Seconds that an eliminated trial would have taken are an
estimate, from a cost model over the trials that did train; every name of such a figure says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.autologging import unlogged
from transfer_pruner.pairs import named_pairs, pair_columns
from transfer_pruner.records import TrialRecord
from transfer_pruner.tasks import FloatArray, Source, is_baseline


@dataclass(frozen=True)
class Savings:
    """Seconds spent and saved by a search with elimination; all in wall-clock seconds.

    Attributes
    ----------
    seconds_spent : float
        Measured: single-task training, attribution and every trial.
    training_seconds, single_task_seconds, attribution_seconds, deciding_seconds : float
        Measured: its parts. Training includes failed and audit trials; deciding is what eliminated
        trials took.
    audit_seconds : float
        Measured: the part of training that audit trials took.
    estimated_exhaustive_seconds : float
        Single-task training and the trials that ran, both measured, and the eliminated trials as
        estimated.
    estimated_seconds_saved : float
        Exhaustive minus spent: attribution and deciding are paid for here. Negative if they cost
        more than they saved.
    estimated_seconds_saved_interval : tuple of two floats
        Interval at `confidence`, of the trials that did not run and of the machine's unsteadiness:
        see `estimate_savings`.
    estimated_fraction_saved : float
        Of the exhaustive seconds; NaN if nothing was searched.
    confidence : float
    pairs_trained, pairs_eliminated : int
        Distinct ordered pairs, the eliminated ones without those that trained in another trial; the
        single-task baseline is not a pair.
    trials_trained, trials_eliminated, trials_failed : int
    trials_audited : int
        Of the trained ones, those that the rule had eliminated.
    """

    seconds_spent: float
    training_seconds: float
    single_task_seconds: float
    attribution_seconds: float
    deciding_seconds: float
    audit_seconds: float
    estimated_exhaustive_seconds: float
    estimated_seconds_saved: float
    estimated_seconds_saved_interval: tuple[float, float]
    estimated_fraction_saved: float
    confidence: float
    pairs_trained: int
    pairs_eliminated: int
    trials_trained: int
    trials_eliminated: int
    trials_failed: int
    trials_audited: int

    def headline(self) -> str:
        """Say in one line what was saved, of what, and what of it is an estimate."""
        pairs = self.pairs_trained + self.pairs_eliminated
        trials = self.trials_trained + self.trials_eliminated + self.trials_failed
        share = (
            f"{self.trials_eliminated} of {trials} trials and {self.pairs_eliminated} of {pairs} "
            "pairs eliminated before training"
        )
        if math.isnan(self.estimated_fraction_saved):
            return f"{share}; no trial trained yet, so nothing can be said of the seconds saved."
        low, high = self.estimated_seconds_saved_interval
        return (
            f"{share}: {self.seconds_spent:.1f} s spent (measured), an estimated "
            f"{self.estimated_seconds_saved:.1f} s ({self.estimated_fraction_saved:.0%}) saved, "
            f"{self.confidence:.0%} interval {low:.1f} to {high:.1f} s."
        )

    def metrics(self) -> dict[str, float]:
        """Name every finite number as a tracker's metric, ``savings/...``."""
        values = asdict(self)
        low, high = values.pop("estimated_seconds_saved_interval")
        values |= {"estimated_seconds_saved_low": low, "estimated_seconds_saved_high": high}
        return {f"savings/{name}": float(x) for name, x in values.items() if math.isfinite(x)}


def estimate_savings(
    records: Iterable[TrialRecord],
    *,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    confidence: float = 0.9,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Savings:
    """Estimate what a search with elimination saved over the same search without.

    Each eliminated trial is taken to cost what trained trials like it cost: a regression tree over
    the hyperparameters groups trials of similar duration, and the mean of its group stands in. The
    interval is of what the eliminated trials would take if they ran now: a bootstrap over the
    trained ones, widened by how much stretches of the search differ from each other beyond that, as
    they do on a shared machine. examples/bench_savings.py runs them and counts. Ours.

    Parameters
    ----------
    records : iterable of TrialRecord
    single_task_seconds : float
        Seconds of training the single-task models; spent with and without elimination.
    attribution_seconds : float
        Seconds of embedding the tasks; spent for elimination only.
    confidence : float in (0, 1)
        Level of the interval.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Savings
        Its estimates are NaN if trials were eliminated and none trained.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 but got {confidence}.")
    records = list(records)
    trained = [record for record in records if record.outcome == "trained"]
    eliminated = [record for record in records if record.outcome == "eliminated"]
    failed = [record for record in records if record.outcome == "failed"]
    training_seconds = sum(record.seconds for record in [*trained, *failed])
    deciding_seconds = sum(record.seconds for record in eliminated)
    spent = single_task_seconds + attribution_seconds + training_seconds + deciding_seconds
    mean, draws = _avoided_seconds(trained, eliminated, n_resamples, seed)
    exhaustive = single_task_seconds + training_seconds + mean
    overhead = attribution_seconds + deciding_seconds
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) - overhead
    return Savings(
        seconds_spent=spent,
        training_seconds=training_seconds,
        single_task_seconds=single_task_seconds,
        attribution_seconds=attribution_seconds,
        deciding_seconds=deciding_seconds,
        audit_seconds=sum(record.seconds for record in trained if record.audit),
        estimated_exhaustive_seconds=exhaustive,
        estimated_seconds_saved=exhaustive - spent,
        estimated_seconds_saved_interval=(float(low), float(high)),
        estimated_fraction_saved=(exhaustive - spent) / exhaustive if exhaustive > 0 else math.nan,
        confidence=confidence,
        pairs_trained=len(_pairs(trained)),
        pairs_eliminated=len(_pairs(eliminated) - _pairs(trained)),
        trials_trained=len(trained),
        trials_eliminated=len(eliminated),
        trials_failed=len(failed),
        trials_audited=sum(record.audit for record in trained),
    )


@dataclass(frozen=True)
class Regret:
    """What keeping only some pairs loses, in units of the reported score.

    Attributes
    ----------
    regret : float
        Mean over targets of (score of the best of all pairs and the baseline) - (score of the best
        of the kept pairs and the baseline).
    attainable : float
        The regret of keeping no pair at all: what transfer has to offer on these targets.
    share_kept : float
        1 - regret / attainable, the share of the attainable gain that is kept; NaN if transfer has
        nothing to offer.
    by_target : Series
        The regret of each target.
    """

    regret: float
    attainable: float
    share_kept: float
    by_target: pd.Series


class Decides(Protocol):
    """Anything that decides on pairs, such as an `EliminationRule`."""

    def decide(self, source: Any, target: str) -> Any:
        """Return what has an attribute ``eliminated``."""


def regret(
    trials: pd.DataFrame,
    kept: Decides | Iterable[tuple[str, str]],
    *,
    chosen_by: str = "dev",
    reported: str = "test",
) -> Regret:
    """Measure what elimination lost, from an exhaustive search's trials.

    For each target the best trial is chosen on one split and its score reported on another; ties go
    to the trial that stands first.

    Parameters
    ----------
    trials : DataFrame
        Columns source, target and the two scores; one row a trial, hyperparameters and all. Every
        target needs a baseline trial (source None, or the target itself).
    kept : rule or iterable of (source, target)
        What decides on pairs, or the pairs that are not eliminated.
    chosen_by, reported : str
        Columns: the score that trials are chosen by and the score that is reported. Higher is
        better.

    Raises
    ------
    ValueError
        If a column is missing, or a target has no baseline trial.
    """
    sources, targets = pair_columns(trials, "source", "target")
    for parameter, column in (("chosen_by", chosen_by), ("reported", reported)):
        if column not in trials.columns:
            raise ValueError(f"{parameter} is {column!r}, which is no column of trials.")
    trials = trials.assign(target=targets)
    pairs = list(zip(sources, targets, strict=True))
    baseline = np.array([is_baseline(*pair) for pair in pairs], dtype=bool)
    lacking = sorted(set(targets) - set(targets[baseline]))
    if lacking:
        raise ValueError(
            f"trials have no single-task baseline (source None) for the target {lacking[0]!r}."
        )
    if hasattr(kept, "decide"):
        surviving = [not kept.decide(*pair).eliminated for pair in pairs]
    else:
        named = named_pairs(kept)
        surviving = [pair in named for pair in pairs]

    def best(rows: NDArray[np.bool_]) -> pd.Series:
        candidates = trials[rows]
        winners = candidates.groupby("target")[chosen_by].idxmax()
        return candidates.loc[winners].set_index("target")[reported]

    everything = best(np.ones(len(trials), dtype=bool))
    by_target = everything - best(baseline | np.array(surviving, dtype=bool))
    attainable = float((everything - best(baseline)).mean())
    mean = float(by_target.mean())
    return Regret(
        regret=mean,
        attainable=attainable,
        share_kept=1 - mean / attainable if attainable > 0 else math.nan,
        by_target=by_target,
    )


def _avoided_seconds(
    trained: Sequence[TrialRecord], eliminated: Sequence[TrialRecord], n_resamples: int, seed: int
) -> tuple[float, FloatArray]:
    """Estimate the seconds that the eliminated trials would have taken: mean and resamples."""
    if not eliminated:
        return 0.0, np.zeros(1)
    if not trained:
        return math.nan, np.full(1, math.nan)
    from sklearn.tree import DecisionTreeRegressor

    settings = pd.DataFrame([dict(record.hyperparameters) for record in [*trained, *eliminated]])
    encoded = np.zeros((len(settings), 1))
    if len(settings.columns):
        encoded = np.column_stack([_encoded(settings[name]) for name in settings])
    seconds = np.array([record.seconds for record in trained])
    # Five trials are enough to average over and few enough to tell the settings apart.
    tree = DecisionTreeRegressor(min_samples_leaf=5, random_state=seed)
    with unlogged():
        groups = tree.fit(encoded[: len(trained)], seconds).apply(encoded)
    rng = np.random.default_rng(seed)
    mean, draws = 0.0, np.zeros(n_resamples)
    for group, count in zip(*np.unique(groups[len(trained) :], return_counts=True), strict=True):
        alike = seconds[groups[: len(trained)] == group]
        mean += count * alike.mean()
        # Uncertain twice over: of the group's mean, and of the trials that did not run.
        means = rng.choice(alike, (n_resamples, len(alike))).mean(axis=1)
        spread = alike.std(ddof=1) if len(alike) > 1 else 0.0
        draws += count * means + rng.normal(0.0, spread * math.sqrt(count), n_resamples)
    means = pd.Series(seconds).groupby(groups[: len(trained)]).transform("mean").to_numpy()
    order = np.argsort([record.number for record in trained], kind="stable")
    # Trials that took no time at all cannot tell how unsteady the machine is.
    order = order[means[order] > 0]
    relative = seconds[order] / means[order]
    return float(mean), draws * _another_time(relative, n_resamples, rng)


def _another_time(relative: FloatArray, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """Draw by what factor the machine of another time differs from the one that was measured.

    `relative` are seconds by the mean of trials alike, in order. Stretches of a search that differ
    by more than their trials' spread explains tell how unsteady the machine is; the eliminated
    trials are one stretch more.
    """
    n = min(5, len(relative) // 5)
    if n < 2:
        return np.ones(n_resamples)
    stretches = np.array_split(relative, n)
    means = np.array([stretch.mean() for stretch in stretches])
    by_chance = np.mean([stretch.var(ddof=1) / len(stretch) for stretch in stretches])
    unsteady = math.sqrt(max(0.0, means.var(ddof=1) - by_chance))
    factor = 1 + unsteady * math.sqrt(1 + 1 / n) * rng.standard_t(n - 1, n_resamples)
    return np.maximum(factor, 0.0)


def _encoded(values: pd.Series) -> FloatArray:
    """Numbers as they are, anything else by the order of its text; missing ones below all."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    if numbers.isna().equals(values.isna()):
        below = numbers.min() - 1 if numbers.notna().any() else 0.0
        return np.asarray(numbers.fillna(below), dtype=np.float64)
    return pd.factorize(values.astype(str), sort=True)[0].astype(float)


def _pairs(records: Iterable[TrialRecord]) -> set[tuple[Source, str]]:
    return {(r.source, r.target) for r in records if not is_baseline(r.source, r.target)}
