"""What the adapters share: the verdict on a configuration of Tune's, and evidence from a result.

What it must satisfy: nothing here raises while a search runs, not even where warnings are errors:
Tune would end the search, or start a restored one over.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.records import Recorder, TrialRecord
from transfer_pruner.rule.current import CurrentRule, Finished
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import Decider, Verdict
from transfer_pruner.tasks import PairParams
from transfer_pruner_ray.marks import Pair, flat, is_placeholder, split_audit

_REMEDY = (
    "Make the tasks text, numbers or truth values, for example with str() or int(); where they "
    "come from tune.sample_from, use TransferScheduler, and pass param_space to Tuner.restore."
)

logger = logging.getLogger(__name__)


class TuneDecider(Decider):
    """Finds the verdict on each configuration of a search, and warns without raising.

    Parameters
    ----------
    pair_of, audit_fraction
        As for `Decider`.
    fingerprint : str
        Of the rule as the user gave it.
    """

    def __init__(self, pair_of: PairParams, audit_fraction: float, fingerprint: str) -> None:
        super().__init__(pair_of, audit_fraction)
        self.fingerprint = fingerprint

    def of(
        self,
        rule: EliminationRule,
        config: Mapping[str, Any],
        trial: str,
        mark: Mapping[str, Any] | None = None,
    ) -> Verdict | None:
        """Decide on a configuration, nested or flat; without a pair it is None, and warned about.

        Parameters
        ----------
        rule : EliminationRule
            That decides now.
        config : mapping
        trial : str
            The trial's id, which Tune gives in no other search.
        mark : mapping, optional
            What an adapter has written on the trial already. An audit of the same rule, by this or
            by the mark in the configuration, stays one.
        """
        given, audit_of = split_audit(flat(config))
        params = {name: value for name, value in given.items() if not is_placeholder(value)}
        verdict = self(rule, params, search="", trial=trial, fingerprint=self.fingerprint)
        drawn = audit_of or (mark or {}).get("rule")
        if verdict is not None and verdict.eliminated and drawn == self.fingerprint:
            verdict = replace(verdict, audit=True)
        if verdict is None and "pair" not in self._warned:
            hidden = [name for name in self.pair_of.params if is_placeholder(given.get(name))]
            if hidden:
                self.warn(
                    "hidden",
                    f"a trial is kept whose {hidden[0]!r} Tune has not told yet. {_REMEDY}",
                )
            else:
                self.warn_without_pair(given)
        return verdict

    def warn(self, kind: str, message: str) -> None:
        """Warn once of a kind; where warnings are errors, in the log."""
        try:
            super().warn(kind, message)
        except TransferPrunerWarning:
            logger.warning(message)


def rule_of_now(
    current: CurrentRule, finished: list[Finished], before: EliminationRule, decider: Decider
) -> EliminationRule:
    """Let the rule learn from what has finished; where that fails it stays as it was before."""
    try:
        return current("", finished)
    except Exception as error:
        decider.warn("refit", f"the rule could not learn and stays as it is: {error!r}")
        return before


def place_of(verdict: Verdict | None) -> tuple[int, float]:
    """Say when a kept pair comes in an order that does not change: the lowest place first.

    Baselines, then pairs by priority, then those of which the rule tells nothing, and audits, which
    it eliminates.
    """
    if verdict is None:
        return 2, 0.0
    if verdict.source is None:
        return 0, 0.0
    priority = verdict.decision.priority
    if verdict.audit:
        return 3, 0.0
    return (2, 0.0) if math.isnan(priority) else (1, -priority)


def fixed_rule(rule: EliminationRule) -> EliminationRule:
    """Take a rule whose decisions stay the same.

    Raises
    ------
    ValueError
        If it is a LearningRule, or no rule at all.
    """
    if isinstance(rule, LearningRule):
        raise ValueError(
            f"rule must be an EliminationRule here but got {rule!r}, whose decisions change "
            "during the search. Use TransferSearcher or TransferScheduler, or pass "
            "rule.refitted()."
        )
    return CurrentRule(rule).first


def refuse_hidden(space: Mapping[str, Any], pair_of: PairParams) -> None:
    """Refuse a space whose tasks Tune hides from search algorithms until a trial is added.

    Raises
    ------
    ValueError
        If a value of the source or target is no text or number, or comes from ``tune.sample_from``.
    """
    for name in pair_of.params:
        kinds = {str(part[0]) for part in _hidden(space, name.split("/"))}
        if kinds:
            how = "tune.sample_from" if kinds == {"__fn_ph"} else "values of other types"
            raise ValueError(
                f"{name!r} has {how} in param_space, which Tune hides from search algorithms, so "
                f"that no pair can be decided here. {_REMEDY}"
            )


class PassedOver:
    """Counts pairs that leave no trial behind, and tells a tracker of each.

    Parameters
    ----------
    pair_of : PairParams
    tracker : Recorder, optional
        It stays with the process: Tune pickles search algorithms, and threads cannot be.
    """

    def __init__(self, pair_of: PairParams, tracker: Recorder | None = None) -> None:
        self.counts: Counter[Pair] = Counter()
        self._pair_of = pair_of
        self._tracker = tracker

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tracker": None}

    def add(self, verdict: Verdict, config: Mapping[str, Any]) -> None:
        """Count a configuration that is not to train."""
        self.counts[verdict.source, verdict.target] += 1
        if self._tracker is None:
            return
        decision = verdict.decision
        record = TrialRecord(
            # From -1 down: it is no trial of Tune's, which are numbered from 0 on.
            number=-self.counts.total(),
            source=verdict.source,
            target=verdict.target,
            outcome="eliminated",
            seconds=0.0,
            score=decision.score,
            probability=decision.probability,
            priority=decision.priority,
            reason=decision.reason,
            hyperparameters=self._pair_of.hyperparameters(split_audit(flat(config))[0]),
            # As its callback says of the trials.
            maximize=getattr(self._tracker, "maximize", None),
            scoring_seconds=verdict.scoring_seconds,
        )
        self._tracker.record(record)

    def get_state(self) -> list[Any]:
        """Write the counts as plain lists."""
        return [[source, target, n] for (source, target), n in self.counts.items()]

    def set_state(self, state: list[Any]) -> None:
        """Read what `get_state` wrote, or what came back of it from JSON."""
        pairs = {(tuple(s) if isinstance(s, list) else s, target): n for s, target, n in state}
        self.counts = Counter(pairs)


def _hidden(node: Any, path: list[str]) -> list[Any]:
    """List the placeholders that stand where a path leads to, whatever grids are between."""
    options = getattr(node, "categories", None)
    if isinstance(node, dict) and set(node) == {"grid_search"}:
        options = node["grid_search"]
    if isinstance(options, (list, tuple)):
        return [part for option in options for part in _hidden(option, path)]
    if path:
        inner = node.get(path[0]) if isinstance(node, dict) else None
        return _hidden(inner, path[1:]) if inner is not None else []
    if not is_placeholder(node):
        return []
    inside = [part for inner in node for part in _hidden(inner, [])]
    return inside or [node]


def evidence_of(
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    pair_of: PairParams,
    *,
    metric: str,
    maximize: bool,
    number: int = 0,
) -> TrialRecord | None:
    """Read a trial that has finished as a record to learn from; None if it teaches nothing."""
    params, _ = split_audit(flat(config))
    told = flat(result)
    try:
        value = float(told[metric])
        source, target = pair_of(params)
        return TrialRecord(
            number=number,
            source=source,
            target=target,
            outcome="trained",
            seconds=float(told.get("time_total_s", 0.0)),
            value=value,
            hyperparameters=pair_of.hyperparameters(params),
            maximize=maximize,
        )
    except Exception as error:
        # An eliminated trial has no value; of any other one trial costs only itself.
        logger.debug("a finished trial teaches nothing: %r", error)
        return None
