"""What elimination saved and what it cost, from plain records of trials.

Seconds that a trial took are measured. Seconds that an eliminated trial would have taken, or one
that was never started, are an estimate, from a cost model over the trials that did train; every
name of such a figure says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.avoided import AvoidedSeconds, distinct_trials
from transfer_pruner.equality import SameValues
from transfer_pruner.pairs import named_pairs, pair_columns
from transfer_pruner.records import TrialRecord
from transfer_pruner.tasks import Source, is_baseline


@dataclass(frozen=True, eq=False)
class Savings(SameValues):
    """Seconds spent and saved by a search with elimination; all in wall-clock seconds.

    Attributes
    ----------
    seconds_spent : float
        Measured: single-task training, attribution, proxy scores and every trial.
    training_seconds, single_task_seconds, attribution_seconds, scoring_seconds : float
        Measured: its parts. Training includes failed and audit trials.
    deciding_seconds : float
        Measured: the part that eliminated trials took.
    audit_seconds : float
        Measured: the part of training that audit trials took.
    estimated_exhaustive_seconds : float
        Single-task training and the trials that ran, both measured, and the eliminated trials, and
        those that were never started, as estimated.
    estimated_seconds_saved : float
        Exhaustive minus spent: attribution, proxy scores and deciding are paid for here. Negative
        if they cost more than they saved.
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
    exhaustive_trials : int or None
        How many trials the exhaustive search has, as it was told; None if it was not.
    trials_never_started : int or None
        Of these, the ones that were neither started nor eliminated; None where the former is.
    estimated_never_started_seconds : float
        What they would have taken, a part of what is saved; NaN where nothing is claimed.
    estimated_never_started_seconds_interval : tuple of two floats
        Its interval at `confidence`.
    stopped : str or None
        Why the search ended, as it was told.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, estimate_savings
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> savings = estimate_savings(records)
    >>> savings.pairs_trained, savings.pairs_eliminated
    (1, 1)
    >>> savings.training_seconds, savings.estimated_exhaustive_seconds
    (124.0, 186.0)
    """

    seconds_spent: float
    training_seconds: float
    single_task_seconds: float
    attribution_seconds: float
    scoring_seconds: float
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
    exhaustive_trials: int | None = None
    trials_never_started: int | None = None
    estimated_never_started_seconds: float = math.nan
    estimated_never_started_seconds_interval: tuple[float, float] = (math.nan, math.nan)
    stopped: str | None = None

    def headline(self) -> str:
        """Say in one line what was saved, of what, and what of it is an estimate."""
        pairs = self.pairs_trained + self.pairs_eliminated
        trials = self.trials_trained + self.trials_eliminated + self.trials_failed
        share = (
            f"{self.trials_eliminated} of {trials} trials and {self.pairs_eliminated} of {pairs} "
            "pairs eliminated before training"
        )
        if self.trials_never_started:
            share += (
                f", {self.trials_never_started} of the exhaustive search's "
                f"{self.exhaustive_trials} never started"
            )
        if math.isnan(self.estimated_fraction_saved):
            why = "no trial trained yet"
            if self.trials_trained:
                why = "the exhaustive search would take no time"
            return f"{share}; {why}, so nothing can be said of the seconds saved."
        low, high = self.estimated_seconds_saved_interval
        never = ""
        if self.trials_never_started:
            never = f", {self.estimated_never_started_seconds:.1f} s of them never started"
        return (
            f"{share}: {self.seconds_spent:.1f} s spent (measured), an estimated "
            f"{self.estimated_seconds_saved:.1f} s ({self.estimated_fraction_saved:.0%}) saved"
            f"{never}, {self.confidence:.0%} interval {low:.1f} to {high:.1f} s."
        )

    def metrics(self) -> dict[str, float]:
        """Name every finite number as a tracker's metric, ``savings/...``."""
        values = asdict(self)
        for name in ("estimated_seconds_saved", "estimated_never_started_seconds"):
            values[f"{name}_low"], values[f"{name}_high"] = values.pop(f"{name}_interval")
        return {
            f"savings/{name}": float(x)
            for name, x in values.items()
            if isinstance(x, (int, float)) and math.isfinite(x)
        }


def estimate_savings(
    records: Iterable[TrialRecord],
    *,
    single_task_seconds: float = 0.0,
    attribution_seconds: float = 0.0,
    scoring_seconds: float = 0.0,
    exhaustive_trials: int | None = None,
    stopped: str | None = None,
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

    A search that ended early never started some trials of the exhaustive one. They are counted if
    `exhaustive_trials` says how many that has: what neither ran nor was eliminated, each at the
    mean of the trained trials that have a source. Then a setting of a pair that was eliminated
    several times counts once, and where more trials ran than the exhaustive search has, the surplus
    is a loss.

    Parameters
    ----------
    records : iterable of TrialRecord
    single_task_seconds : float
        Seconds of training the single-task models; spent with and without elimination.
    attribution_seconds : float
        Seconds of embedding the tasks; spent for elimination only.
    scoring_seconds : float
        Seconds of proxy scores that the records do not know of: what the rule re-ranked by, they
        tell, and the higher of the two is counted. Spent for elimination only.
    exhaustive_trials : int, optional
        How many trials the same search has without elimination and to its end: pairs and baselines,
        times hyperparameter settings. Of a search that still runs it is too early to say. Left out,
        of trials that were never started nothing is claimed.
    stopped : str, optional
        Why the search ended, which `Savings.stopped` hands on.
    confidence : float in (0, 1)
        Level of the interval.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Savings
        Its estimates are NaN if trials were eliminated, or not started, and none trained.

    Raises
    ------
    ValueError
        If `confidence` is out of range, or `exhaustive_trials` no whole number from 0.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, estimate_savings
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> savings = estimate_savings(records)
    >>> savings.seconds_spent, savings.estimated_seconds_saved
    (124.0, 62.0)
    >>> print(savings.headline())
    1 of 3 trials and 1 of 2 pairs eliminated before training: 124.0 s spent (measured), an
    estimated 62.0 s (33%) saved, 90% interval 56.7 to 67.1 s.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 but got {confidence}.")
    if exhaustive_trials is not None and not (
        exhaustive_trials >= 0 and exhaustive_trials == int(exhaustive_trials)
    ):
        raise ValueError(
            f"exhaustive_trials must be a whole number from 0 but got {exhaustive_trials!r}."
        )
    records = list(records)
    trained = [record for record in records if record.outcome == "trained"]
    eliminated = [record for record in records if record.outcome == "eliminated"]
    failed = [record for record in records if record.outcome == "failed"]
    training_seconds = sum(record.seconds for record in [*trained, *failed])
    deciding_seconds = sum(record.seconds for record in eliminated)
    scoring_seconds = scoring_seconds_of(records, scoring_seconds)
    before = single_task_seconds + attribution_seconds + scoring_seconds
    spent = before + training_seconds + deciding_seconds
    gone, never = eliminated, 0
    if exhaustive_trials is not None:
        left = exhaustive_trials - len(trained) - len(failed)
        gone = distinct_trials(eliminated, but=trained)[: max(0, left)]
        never = left - len(gone)
    costs = AvoidedSeconds(trained, n_resamples, seed)
    mean, draws = costs.of_eliminated(gone)
    never_mean, never_draws = costs.of_any(never)
    exhaustive = single_task_seconds + training_seconds + mean + never_mean
    overhead = attribution_seconds + scoring_seconds + deciding_seconds
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(draws + never_draws, tails) - overhead
    claimed: dict[str, Any] = {}
    if exhaustive_trials is not None:
        # Where more ran than the exhaustive search has, the surplus is a loss, and no such trial.
        of_never = np.maximum(np.quantile(never_draws, tails), 0.0)
        claimed = {
            "exhaustive_trials": int(exhaustive_trials),
            "trials_never_started": max(0, never),
            "estimated_never_started_seconds": float(np.maximum(never_mean, 0.0)),
            "estimated_never_started_seconds_interval": (float(of_never[0]), float(of_never[1])),
        }
    return Savings(
        seconds_spent=spent,
        training_seconds=training_seconds,
        single_task_seconds=single_task_seconds,
        attribution_seconds=attribution_seconds,
        scoring_seconds=scoring_seconds,
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
        stopped=stopped,
        **claimed,
    )


def scoring_seconds_of(records: Iterable[TrialRecord], known: float = 0.0) -> float:
    """Tell what the proxy scores of a search took, from its records and from who knows it.

    Trials of one search tell of the same scores, and one that went on with scores that were
    computed again tells of about the same seconds: so the most that is told counts, not a sum.
    """
    return max([known, *(record.scoring_seconds for record in records)])


@dataclass(frozen=True, eq=False)
class Regret(SameValues):
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

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import regret
    >>> trials = pd.DataFrame({"source": [None, "advice"], "target": "news", "dev": [0.61, 0.66]})
    >>> nothing_kept = regret(trials, kept=[], reported="dev")
    >>> nothing_kept.by_target.round(2)
    target
    news    0.05
    Name: dev, dtype: float64
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
    to the trial that comes first.

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

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import regret
    >>> trials = pd.DataFrame(
    ...     {
    ...         "source": [None, "advice", "weather"],
    ...         "target": "news",
    ...         "dev": [0.61, 0.66, 0.58],
    ...         "test": [0.60, 0.64, 0.59],
    ...     }
    ... )
    >>> lost = regret(trials, kept=[("weather", "news")])
    >>> round(lost.regret, 2), lost.share_kept
    (0.04, 0.0)
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


def _pairs(records: Iterable[TrialRecord]) -> set[tuple[Source, str]]:
    return {(r.source, r.target) for r in records if not is_baseline(r.source, r.target)}
