"""Audit trials: eliminated pairs that run all the same, and what they say of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from transfer_pruner.equality import SameValues
from transfer_pruner.records import TrialRecord, is_maximizing


@dataclass(frozen=True, eq=False)
class AuditEstimate(SameValues):
    """What elimination misses, as the audit trials show it.

    Attributes
    ----------
    trials_eliminated : int
        Trials that the rule eliminated, the audited ones included.
    trials_audited : int
        Of these, the ones that ran all the same and can be compared: their target has a trial that
        was kept.
    false_eliminations : int
        Audit trials that scored better than every kept trial of their target, the single-task
        baseline included: elimination would have changed that target's result.
    false_elimination_rate : float
        Their share of the audit trials; NaN if none was audited.
    false_elimination_rate_interval : tuple of two floats
        Clopper-Pearson, exact for any rate and any number of audit trials.
    missed_gain : float
        Mean over audit trials of how much better they scored than every kept trial, 0 for those
        that did not; in units of the score.
    missed_gain_interval : tuple of two floats
        Anderson's bounds of the mean of values from 0 to `max_gain`, with the exact one-sided
        Kolmogorov-Smirnov quantile: wide, and right for any distribution. NaN where scores have
        no known range.
    confidence : float
        Level of the intervals.
    audit_seconds : float
        Wall-clock seconds that all audit trials took, measured.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, estimate_audit
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "weather", "news", "trained", 62.0, value=0.63, audit=True),
    ...     TrialRecord(2, "rescue", "news", "eliminated", 0.0),
    ... ]
    >>> print(estimate_audit(records).headline())
    1 of 1 audit trials beat every kept trial of their target: false-elimination rate 100.0%,
    90% interval 5.0% to 100.0%; mean gain missed 0.0200.
    """

    trials_eliminated: int
    trials_audited: int
    false_eliminations: int
    false_elimination_rate: float
    false_elimination_rate_interval: tuple[float, float]
    missed_gain: float
    missed_gain_interval: tuple[float, float]
    confidence: float
    audit_seconds: float

    def headline(self) -> str:
        """Say in one line what the audit found."""
        if not self.trials_audited:
            return f"no audit trial among {self.trials_eliminated} eliminated ones."
        low, high = self.false_elimination_rate_interval
        return (
            f"{self.false_eliminations} of {self.trials_audited} audit trials beat every kept "
            f"trial of their target: false-elimination rate {self.false_elimination_rate:.1%}, "
            f"{self.confidence:.0%} interval {low:.1%} to {high:.1%}; mean gain missed "
            f"{self.missed_gain:.4f}."
        )

    def metrics(self) -> dict[str, float]:
        """Name every finite number as a tracker's metric, ``audit/...``."""
        values = asdict(self)
        for name in ("false_elimination_rate", "missed_gain"):
            values[f"{name}_low"], values[f"{name}_high"] = values.pop(f"{name}_interval")
        return {f"audit/{name}": float(x) for name, x in values.items() if math.isfinite(x)}


def estimate_audit(
    records: Iterable[TrialRecord],
    *,
    maximize: bool | None = None,
    confidence: float = 0.9,
    max_gain: float | None = None,
) -> AuditEstimate:
    """Estimate from a search's audit trials what its elimination misses.

    The intervals hold for the eliminated trials of this search, of which the audited ones are a
    random sample. A trial represents its pair with the hyperparameters that it had.

    Parameters
    ----------
    records : iterable of TrialRecord
    maximize : bool, optional
        Whether a higher value is better; what the records say if left out.
    confidence : float in (0, 1)
    max_gain : float, optional
        The largest difference of two scores that there can be. 1 if left out and all values lie
        from 0 to 1; otherwise the interval of the missed gain is not known.

    Raises
    ------
    ValueError
        If `confidence` is out of range, a missed gain exceeds `max_gain`, or the records disagree
        on whether a higher value is better.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, estimate_audit
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "weather", "news", "trained", 62.0, value=0.63, audit=True),
    ...     TrialRecord(2, "rescue", "news", "eliminated", 0.0),
    ... ]
    >>> audit = estimate_audit(records)
    >>> audit.trials_eliminated, audit.false_eliminations
    (2, 1)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 but got {confidence}.")
    records = list(records)
    valued = [r for r in records if r.outcome == "trained" and math.isfinite(r.value)]
    sign = 1.0 if is_maximizing(records, maximize) else -1.0
    best: dict[str, float] = {}
    for record in valued:
        if not record.audit:
            best[record.target] = max(sign * record.value, best.get(record.target, -math.inf))
    audits = [r for r in valued if r.audit and r.target in best]
    missed = np.array([max(0.0, sign * r.value - best[r.target]) for r in audits])
    if max_gain is None and all(0 <= record.value <= 1 for record in valued):
        max_gain = 1.0
    if max_gain is not None and len(missed) and missed.max() > max_gain:
        raise ValueError(
            f"max_gain is {max_gain} but an audit trial gained {missed.max()}: pass the largest "
            "difference of two scores that there can be."
        )
    false = int((missed > 0).sum())
    return AuditEstimate(
        trials_eliminated=sum(r.audit or r.outcome == "eliminated" for r in records),
        trials_audited=len(audits),
        false_eliminations=false,
        false_elimination_rate=false / len(audits) if audits else math.nan,
        false_elimination_rate_interval=share_interval(false, len(audits), confidence),
        missed_gain=float(missed.mean()) if audits else math.nan,
        missed_gain_interval=_mean_interval(missed, max_gain, confidence),
        confidence=confidence,
        audit_seconds=sum(r.seconds for r in records if r.audit),
    )


def share_interval(count: int, n: int, confidence: float) -> tuple[float, float]:
    """Bound a share of which `count` of `n` were seen: Clopper and Pearson 1934, two-sided."""
    if not n:
        return 0.0, 1.0
    from scipy.stats import binomtest

    found = binomtest(count, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def _mean_interval(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    highest: float | None,
    confidence: float,
) -> tuple[float, float]:
    """Bound the mean of values in [0, highest]: Anderson 1969."""
    if highest is None:
        return math.nan, math.nan
    if not len(values):
        return 0.0, highest
    from scipy.stats import ksone

    n = len(values)
    moved = float(ksone.ppf(1 - (1 - confidence) / 2, n))
    ordered = np.sort(values)
    # Within the band the distribution may have that much mass at the other end of the range.
    from_the_low = np.clip(moved - np.arange(n) / n, 0, 1 / n)
    high = float(ordered @ (1 / n - from_the_low)) + moved * highest
    low = float(ordered @ (1 / n - from_the_low[::-1]))
    return low, high
