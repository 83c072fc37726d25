"""When a search ends by itself: no pair is expected to improve a target any more.

What it must satisfy: the same finished trials settle a search in every host; and where that cannot
be told, the search goes on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.order import PairOrder
from transfer_pruner.rule.tried import Pair, TriedPairs
from transfer_pruner.tasks import PairParams

_ENOUGH = 5
"""Transfers, and pairs beyond the first of every target, that an expectation has to rest on: from
fewer it is not known by how much gains differ, and repeats of a pair look as if by nothing."""
_MANY = 20
"""Transfers that tell so much, of however few pairs."""


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

    It is if every target has a baseline with a result, or one that keeps failing and its pairs have
    been tried, the rule has learnt from a transfer, and

    .. math:: \max_{s, t} E[\max(g(s, t) - b(t), 0)] \le \tau

    over the surviving pairs that have a next trial, which has to rest on twenty transfers, or on
    five of five pairs beyond the first of every target or of all that survive; or if that is so of
    every pair with :math:`\tau` or a share of what the search has gained per second so far, times
    the seconds of the pair's trial, whichever is more.

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
        ``tolerance``, the one of the two that was higher for that pair.
    """
    learnt = rule.settings.get("transfers")
    done = {pair for pair in tried.done if isinstance(pair[0], str)}
    order = PairOrder(rule)
    lost = {target for target in targets if tried.has_lost_baseline(target)}
    targets = {*targets} - lost
    if not learnt or not targets or not all(map(tried.has_baseline, targets)):
        return None
    if not _are_tried(order, tried, sources, lost):
        return None
    highest = order.highest(sources, targets, done)
    if highest is None:
        return None
    told: dict[str, Any] = {"tolerance": tolerance}
    if highest > tolerance:
        if not share:
            return None
        left = [*_above(order, sources, targets, done, tolerance)]
        seconds = PairSeconds(records())
        worth = share * seconds.gained_per_second
        if any(priority > worth * seconds.of(pair) for pair, priority in left):
            return None
        seconds_of_best = seconds.of(left[0][0])
        told["tolerance"] = worth * seconds_of_best
    if math.isfinite(highest):
        told_enough = _tell_spread(order, tried, sources, targets)
        if learnt < (_ENOUGH if told_enough else _MANY):
            return None
        told["priority"] = highest
        why = (
            f"of no pair the next trial is expected to improve its target by more than "
            f"{tolerance:g}; the most is {highest:.2g}"
        )
        if highest > tolerance:
            why = (
                "of no pair the next trial is expected to improve its target by more than its "
                f"seconds are worth; the most is {highest:.2g}, and {share:g} of the gain per "
                f"second so far is {told['tolerance']:.2g} in a trial of {seconds_of_best:.3g} "
                "seconds"
            )
    else:
        why = "every surviving pair has been tried at every setting"
    told["reason"] = f"{why}; learnt from {learnt} transfers to {len(targets)} targets."
    if lost:
        named = ", ".join(map(repr, sorted(lost)))
        told["reason"] += f" Left out, since their baselines keep failing: {named}."
    return told


def _tell_spread(
    order: PairOrder, tried: TriedPairs, sources: Collection[str], targets: Collection[str]
) -> bool:
    """Whether the results of enough pairs, or of all there are, tell how different gains are."""
    measured = {pair for pair in tried.measured if isinstance(pair[0], str) and pair[1] in targets}
    if len(measured) - len({target for _, target in measured}) >= _ENOUGH:
        return True
    return _are_tried(order, tried, sources, targets)


def _are_tried(
    order: PairOrder, tried: TriedPairs, sources: Collection[str], targets: Collection[str]
) -> bool:
    known = tried.measured | tried.done
    return all(pair in known for pair, _ in order.each(sources, targets))


def _above(
    order: PairOrder,
    sources: Collection[str],
    targets: Collection[str],
    done: Collection[Pair],
    tolerance: float,
) -> Iterator[tuple[Pair, float]]:
    for pair, priority in order.each(sources, targets):
        if priority <= tolerance:
            return
        if pair not in done:
            yield pair, priority


class PairSeconds:
    """What trials take, by those that trained: the seconds of any pair, and what they have gained.

    A pair takes the mean of its own trials. Another one takes as many times the seconds of its
    target's baseline as transfers do on average, by how much more than that is for its target, and
    for its source. Where no trial took any time all take one second.

    Parameters
    ----------
    records : iterable of TrialRecord
    """

    def __init__(self, records: Iterable[TrialRecord]) -> None:
        trained = [record for record in records if record.outcome == "trained"]
        known = any(record.seconds > 0 for record in trained)
        every = [(r.source, r.target, r.seconds if known else 1.0) for r in trained]
        self._pairs = _means(((source, target), seconds) for source, target, seconds in every)
        baselines = [(target, seconds) for source, target, seconds in every if source is None]
        self._baselines = {target: mean for target, mean in _means(baselines).items() if mean}
        of_all = self._baselines.values()
        self._usual = sum(of_all) / len(of_all) if of_all else 1.0
        times = [
            (source, target, seconds / self._baselines.get(target, self._usual))
            for source, target, seconds in every
            if source is not None
        ]
        self._times = _means((None, ratio) for _, _, ratio in times).get(None) or 1.0
        self._targets = _means((target, ratio / self._times) for _, target, ratio in times)
        self._sources = _means((source, ratio / self._times) for source, _, ratio in times)
        spent = sum(seconds for _, _, seconds in every)
        self.gained_per_second = _gained(trained) / spent if spent else 0.0
        """The best scores over the best baselines, summed over targets, by the seconds of all."""

    def of(self, pair: Pair) -> float:
        """Estimate the seconds of a pair's next trial."""
        source, target = pair
        if pair in self._pairs:
            return self._pairs[pair]
        times = self._times * self._targets.get(target, 1.0) * self._sources.get(source, 1.0)
        return self._baselines.get(target, self._usual) * times


def _means(values: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    several: defaultdict[Any, list[float]] = defaultdict(list)
    for key, value in values:
        several[key].append(value)
    return {key: sum(of) / len(of) for key, of in several.items()}


def _gained(trained: Iterable[TrialRecord]) -> float:
    best: dict[tuple[str, bool], float] = {}
    for record in trained:
        if math.isfinite(record.value):
            score = -record.value if record.maximize is False else record.value
            key = record.target, record.source is None
            best[key] = max(score, best.get(key, -math.inf))
    gains = [
        score - best[target, True]
        for (target, is_baseline), score in best.items()
        if not is_baseline and (target, True) in best
    ]
    return sum(gain for gain in gains if gain > 0)


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
