"""Tune's own grid and random search, passing over trials that a rule eliminates.

What it must satisfy: the trials that are left are those that Tune would have made, with the same
ids; a trial that is passed over takes no slot, and a restored experiment passes over the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator
from ray.tune.utils import flatten_dict

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_ray.space import Pair, PairSieve


class TransferVariantGenerator(BasicVariantGenerator):
    """Make the variants of a search space, without those whose pair is eliminated.

    For ``TuneConfig(search_alg=TransferVariantGenerator(rule))`` with any param_space, also one
    that `filter_param_space` refuses. Every variant of the whole space is made and looked at, which
    takes about 0.3 ms each. With ``num_samples`` N the space is gone through N times; an eliminated
    variant is not replaced by another one.

    A source or target from ``tune.sample_from`` is not known yet when a variant is made, so such a
    trial is kept, with a warning: use `TransferScheduler`.

    Parameters
    ----------
    rule : EliminationRule
    source_param, target_param, target, audit_fraction
        As for `filter_param_space`.
    points_to_evaluate, max_concurrent, constant_grid_search, random_state
        As for BasicVariantGenerator. Tune ignores ``TuneConfig(max_concurrent_trials=)`` where a
        generator is passed: say it here.

    Raises
    ------
    ValueError
        If `rule` is a LearningRule, or `audit_fraction` is no share.
    """

    def __init__(
        self,
        rule: EliminationRule,
        *,
        source_param: str | Sequence[str] = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        max_concurrent: int = 0,
        constant_grid_search: bool = False,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(points_to_evaluate, max_concurrent, constant_grid_search, random_state)
        pair_of = PairParams(source_param, target_param, target)
        self._sieve = PairSieve(rule, pair_of, audit_fraction)

    @property
    def eliminated_pairs(self) -> dict[Pair, int]:
        """How many variants of each eliminated pair were passed over so far."""
        return dict(self._sieve.eliminated)

    def next_trial(self) -> Trial | None:
        """Make the next trial that is kept; None if there is none, or no slot for it."""
        while True:
            trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
            if trial is None or not self._sieve.rejected(flatten_dict(trial.config)):
                return trial
            super().on_trial_complete(trial.trial_id)

    def get_state(self) -> Any:
        """Take what Tune saves: all but the rule, which it has saved with the Tuner."""
        state = super().get_state()  # type: ignore[no-untyped-call]
        if state:
            state["_sieve"] = self._sieve.get_state()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `get_state` gave."""
        sieve = self._sieve
        super().set_state(state)  # type: ignore[no-untyped-call]
        self._sieve = sieve
        self._sieve.set_state(state["_sieve"])
