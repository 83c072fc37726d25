"""When a search ends by itself: no pair is expected to improve a target any more.

What it must satisfy: the same finished trials settle a search in every host; and where that cannot
be told, the search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.order import PairOrder
from transfer_pruner.rule.tried import TriedPairs
from transfer_pruner.tasks import PairParams


def settled(
    rule: EliminationRule,
    tried: TriedPairs,
    sources: Collection[str],
    targets: Collection[str],
    tolerance: float,
) -> dict[str, Any] | None:
    r"""Say why a search is settled; None if it is not.

    It is if every target has a baseline with a result, the rule has learnt from a transfer, and

    .. math:: \max_{s, t} E[\max(g(s, t) - b(t), 0)] \le \tau

    over the surviving pairs that have a next trial.

    Parameters
    ----------
    rule : EliminationRule
        What a LearningRule has learnt so far.
    tried : TriedPairs
    sources, targets : collection of str
        What is searched, by name.
    tolerance : float
        :math:`\tau`, in units of the score.

    Returns
    -------
    dict or None
        ``reason``, ``priority`` (the highest; left out where no pair has a next trial) and
        ``tolerance``.
    """
    learnt = rule.settings.get("transfers")
    if not learnt or not targets or not all(map(tried.has_baseline, targets)):
        return None
    done = {pair for pair in tried.done if isinstance(pair[0], str)}
    highest = PairOrder(rule).highest(sources, targets, done)
    if highest is None or highest > tolerance:
        return None
    told: dict[str, Any] = {"tolerance": tolerance}
    if math.isfinite(highest):
        told["priority"] = highest
        why = (
            f"of no pair the next trial is expected to improve its target by more than "
            f"{tolerance:g}; the most is {highest:.2g}"
        )
    else:
        why = "every surviving pair has been tried at every setting"
    told["reason"] = f"{why}; learnt from {learnt} transfers to {len(targets)} targets."
    return told


def check_stopping(rule: LearningRule, tolerance: float, pair_of: PairParams) -> float:
    """Refuse what cannot tell when a search is settled.

    Raises
    ------
    ValueError
        If `rule` is no LearningRule, `tolerance` is negative or no number, or the source is not one
        parameter by name.
    """
    if not isinstance(rule, LearningRule):
        raise ValueError(
            f"rule must be a LearningRule but got {rule!r}: only what learns from the search "
            "expects less and less of it."
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more but got {tolerance!r}.")
    if not pair_of.is_named or len(pair_of.source_params) != 1:
        raise ValueError(
            f"source_param must name one parameter here but got {pair_of.source_param!r}: of joint "
            "transfer, and of parameters that depend on the trial, no order is told."
        )
    return float(tolerance)
