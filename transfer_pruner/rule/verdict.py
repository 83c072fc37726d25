"""From a trial's parameters to a verdict: decided, audited and marked, the same in every host.

What it must satisfy: whatever fails, the trial trains; a draw is the same on every worker and after
every restart, and another one in another search; and only a mark makes a trial an audit.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams, Source, task_name


def check_fraction(fraction: float) -> float:
    """Refuse an audit fraction that is no share.

    Raises
    ------
    ValueError
        If it is not from 0 to 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"audit_fraction must be from 0 to 1 but got {fraction}.")
    return float(fraction)


def is_audited(fraction: float, search: str, trial: str | int, source: Source, target: str) -> bool:
    """Draw whether an eliminated trial runs all the same: with probability `fraction`.

    The draw is a hash, so every worker, restart and replay of a search draws alike, and another
    search draws anew.

    Parameters
    ----------
    fraction : float in [0, 1]
    search : str
        The search's own name: a study's, an experiment's.
    trial : str or int
        What the host calls the trial; of one that is run again after it died, the first try.
    source, target
        As `transfer_pruner.PairParams` takes them from its parameters.
    """
    if fraction <= 0:
        return False
    digest = hashlib.sha256(repr((search, trial, source, target)).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@dataclass(frozen=True)
class Verdict:
    """What becomes of a trial.

    Attributes
    ----------
    source : str, tuple of str or None
    target : str
    decision : Decision
        What the rule says of the pair.
    audit : bool
        The rule eliminates the pair and the trial runs all the same.
    rule : str
        Fingerprint of the rule that decided.
    scoring_seconds : float
        What that rule's proxy scores took.
    """

    source: Source
    target: str
    decision: Decision
    audit: bool = False
    rule: str = ""
    scoring_seconds: float = 0.0

    @property
    def eliminated(self) -> bool:
        """Whether the trial does not train."""
        return self.decision.eliminated and not self.audit

    def marks(self, prefix: str) -> dict[str, Any]:
        """Name what a host writes on its trial; numbers, which tables and dashboards sort.

        ``eliminated`` (0 or 1: what the rule says), ``score``, ``probability``, ``priority`` and
        ``rule``; of an eliminated pair the ``reason``; of an audit trial ``audit``, 1; of a rule
        with proxy scores ``scoring_seconds``. What is NaN is left out.
        """
        decision = self.decision
        marks: dict[str, Any] = {"eliminated": int(decision.eliminated), "rule": self.rule}
        numbers = {name: getattr(decision, name) for name in ("score", "probability", "priority")}
        marks |= {name: value for name, value in numbers.items() if not math.isnan(value)}
        if decision.eliminated:
            marks["reason"] = decision.reason
        if self.audit:
            marks["audit"] = 1
        if self.scoring_seconds:
            marks["scoring_seconds"] = self.scoring_seconds
        return {prefix + name: value for name, value in marks.items()}


class Decider:
    """Finds the verdict on each trial of a search.

    Parameters
    ----------
    pair_of : PairParams
    audit_fraction : float in [0, 1]
        Share of the eliminated trials that run all the same.

    Raises
    ------
    ValueError
        If `audit_fraction` is no share.
    """

    def __init__(self, pair_of: PairParams, audit_fraction: float = 0.0) -> None:
        self.pair_of = pair_of
        self.audit_fraction = check_fraction(audit_fraction)
        self._warned: set[str] = set()
        # The rule that was last seen to keep something: not asked again at every trial.
        self._keeps: EliminationRule | None = None

    def __call__(
        self,
        rule: EliminationRule,
        params: Mapping[str, Any],
        *,
        search: str,
        trial: str | int,
        fingerprint: str | None = None,
        audit: bool = True,
    ) -> Verdict | None:
        """Decide on a trial; None if its parameters hold no pair, which is not warned about here.

        Parameters
        ----------
        rule : EliminationRule
        params : mapping of str to value
            The trial's parameters, nested names flattened.
        search, trial
            As for `is_audited`.
        fingerprint : str, optional
            Of the rule that the user gave, where `rule` is what it has learnt so far.
        audit : bool
            Whether the audit draws; not where only what the rule says is asked for.
        """
        try:
            if not self.pair_of.is_in(params):
                return None
            source, target = self.pair_of(params)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            self.warn("pair", f"source_param failed and the trial is kept: {failure}")
            return None
        try:
            fingerprint = rule.fingerprint if fingerprint is None else fingerprint
            decision = rule.decide(source, target)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            self.warn("decide", f"the rule failed and the trial is kept: {failure}")
            decision = Decision(False, math.nan, math.nan, f"the rule failed: kept; {failure}")
        self._say_if_nothing_survives(rule)
        fraction = self.audit_fraction if audit and decision.eliminated else 0.0
        audited = is_audited(fraction, search, trial, source, target)
        seconds = getattr(rule, "scoring_seconds", 0.0)
        return Verdict(source, target, decision, audited, fingerprint or "", seconds)

    def names_a_task(self, rule: EliminationRule, params: Mapping[str, Any]) -> bool:
        """Whether a parameter that is not the pair's holds a task of the rule."""
        tasks = rule.sources | rule.targets
        others = self.pair_of.hyperparameters(params).values()
        return any(isinstance(value, str) and task_name(value) in tasks for value in others)

    def warn_without_pair(self, params: Mapping[str, Any]) -> None:
        """Warn once that a trial is kept whose parameters hold no pair, naming those it has."""
        self.warn("no pair", f"a trial is kept and not decided on: {self.pair_of.lacking(params)}")

    def warn(self, kind: str, message: str) -> None:
        """Warn once of a kind; a host whose callbacks must not raise overrides it."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, TransferPrunerWarning, stacklevel=4)

    def _say_if_nothing_survives(self, rule: EliminationRule) -> None:
        if "nothing" in self._warned or rule is self._keeps:
            return
        if rule.keeps_any(self.pair_of.target):
            self._keeps = rule
            return
        of = "" if self.pair_of.target is None else f" of target {self.pair_of.target!r}"
        self.warn(
            "nothing",
            f"the rule eliminates every pair{of} that it knows: nothing is left to train but "
            "single-task baselines, audit trials and pairs that it does not know. Keep more, for "
            "example with a larger k.",
        )
