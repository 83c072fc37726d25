"""When a search ends by itself: no pair is expected to improve a target any more.

What it must satisfy: the same finished trials settle a search in every host; and where that cannot
be told, the search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.order import PairOrder
from transfer_pruner.rule.tried import TriedPairs
from transfer_pruner.tasks import PairParams

_ENOUGH = 5
"""Transfers that an expectation has to rest on: the scale of gains is not known from fewer."""


def settled(
    rule: EliminationRule,
    tried: TriedPairs,
    sources: Collection[str],
    targets: Collection[str],
    tolerance: float,
    share: float = 0.0,
    records: Callable[[], Iterable[TrialRecord]] = tuple,
) -> dict[str, Any] | None:
    r"""Say why a search is settled; None if it is not.

    It is if every target has a baseline with a result, the rule has learnt from a transfer, and

    .. math:: \max_{s, t} E[\max(g(s, t) - b(t), 0)] \le \tau

    over the surviving pairs that have a next trial, which has to rest on five transfers at least;
    or if per second the highest of these expectations is at most a share of what the search has
    gained per second so far.

    Parameters
    ----------
    rule : EliminationRule
        What a LearningRule has learnt so far.
    tried : TriedPairs
    sources, targets : collection of str
        What is searched, by name.
    tolerance : float
        :math:`\tau`, in units of the score.
    share : float
        0 asks for nothing.
    records : callable without parameters
        The search's trials; called where a share is asked for.

    Returns
    -------
    dict or None
        ``reason``, ``priority`` (the highest; left out where no pair has a next trial) and
        ``tolerance``, the one of the two that was higher.
    """
    learnt = rule.settings.get("transfers")
    if not learnt or not targets or not all(map(tried.has_baseline, targets)):
        return None
    done = {pair for pair in tried.done if isinstance(pair[0], str)}
    highest = PairOrder(rule).highest(sources, targets, done)
    if highest is None:
        return None
    worth = share * gained_by_a_trial(records()) if share and highest > tolerance else 0.0
    told_share = worth > tolerance
    tolerance = max(tolerance, worth)
    if highest > tolerance:
        return None
    told: dict[str, Any] = {"tolerance": tolerance}
    if math.isfinite(highest):
        if learnt < _ENOUGH:
            return None
        told["priority"] = highest
        why = (
            f"of no pair the next trial is expected to improve its target by more than "
            f"{tolerance:g}; the most is {highest:.2g}"
        )
        if told_share:
            why += f", and {share:g} of the gain per second so far is {tolerance:.2g} in a trial"
    else:
        why = "every surviving pair has been tried at every setting"
    told["reason"] = f"{why}; learnt from {learnt} transfers to {len(targets)} targets."
    return told


def gained_by_a_trial(records: Iterable[TrialRecord]) -> float:
    """Compute what a search has gained per second so far, times the mean seconds of a trial.

    The sum over targets of the best score over the best baseline, by the number of trials that
    trained: seconds cancel out. 0 without trials.
    """
    ran = [record for record in records if record.outcome == "trained"]
    best: dict[tuple[str, bool], float] = {}
    for record in ran:
        if math.isfinite(record.value):
            score = record.value if record.maximize else -record.value
            key = record.target, record.source is None
            best[key] = max(score, best.get(key, -math.inf))
    gains = [
        score - best[target, True]
        for (target, is_baseline), score in best.items()
        if not is_baseline and (target, True) in best
    ]
    return sum(gain for gain in gains if gain > 0) / len(ran) if ran else 0.0


def check_stopping(
    rule: LearningRule, tolerance: float, share: float, pair_of: PairParams
) -> tuple[float, float]:
    """Refuse what cannot tell when a search is settled.

    Raises
    ------
    ValueError
        If `rule` is no LearningRule, `tolerance` or `share` is negative or no number, or the source
        is not one parameter by name.
    """
    if not isinstance(rule, LearningRule):
        raise ValueError(
            f"rule must be a LearningRule but got {rule!r}: only what learns from the search "
            "expects less and less of it."
        )
    for name, value in (("tolerance", tolerance), ("share", share)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more but got {value!r}.")
    if not pair_of.is_named or len(pair_of.source_params) != 1:
        raise ValueError(
            f"source_param must name one parameter here but got {pair_of.source_param!r}: of joint "
            "transfer, and of parameters that depend on the trial, no order is told."
        )
    return float(tolerance), float(share)
