"""Which pairs survive among what a trial's parameters can be, and which is nearest to a proposal.

What it must satisfy: what can survive is found, and as little of a proposal as possible is changed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.verdict import Decider

Params = dict[str, Any]
_UNKNOWN = object()


class Survivors:
    """Finds surviving pairs, for one sampler.

    Parameters
    ----------
    decide : Decider
    rng : random.Random
        Chooses among pairs that survive alike.
    """

    def __init__(self, decide: Decider, rng: random.Random) -> None:
        self._decide = decide
        self._pair_of = decide.pair_of
        self._rng = rng

    def includes(
        self, rule: EliminationRule, proposed: Params, choices: Mapping[str, Sequence[Any]]
    ) -> bool:
        """Whether a pair is kept; of a part of one, whether it can be completed to such."""
        if self._pair_of.is_in(proposed):
            return self._is_kept(rule, proposed)
        fixed = {name: [value] for name, value in proposed.items()}
        return self.nearest(rule, proposed, {**choices, **fixed}) is not None

    def nearest(
        self, rule: EliminationRule, proposed: Params, choices: Mapping[str, Sequence[Any]]
    ) -> Params | None:
        """Change as little of a pair as makes it survive: first sources, then the target.

        None if nothing survives. A joint pair survives if each of its sources does.
        """
        of = self._pair_of
        alone = dict.fromkeys(of.source_params)

        def with_target(target: Any) -> Params:
            return {} if of.target is not None else {of.target_param: target}

        def is_kept(name: str, value: Any, target: Any) -> bool:
            return self._is_kept(rule, alone | with_target(target) | {name: value})

        def changed(target: Any) -> int:
            return sum(
                name not in proposed or not is_kept(name, proposed[name], target)
                for name in of.source_params
            )

        def completed(target: Any) -> Params | None:
            """Keep the proposed sources that survive, and choose among what does for the others."""
            found = with_target(target)
            for name in of.source_params:
                own = proposed.get(name, _UNKNOWN)
                if own in choices[name] and is_kept(name, own, target):
                    found[name] = own
                    continue
                kept = [value for value in choices[name] if is_kept(name, value, target)]
                if not kept:
                    return None
                found[name] = self._rng.choice(kept)
            return found

        own = of.target if of.target is not None else proposed.get(of.target_param, _UNKNOWN)
        if own is not _UNKNOWN:
            found = completed(own)
            if found is not None or of.target is not None:
                return found
        others = [target for target in choices[of.target_param] if target != own]
        others = self._rng.sample(others, len(others))
        # One after the other, so that a search over many tasks does not try every pair.
        results = (completed(target) for target in sorted(others, key=changed))
        return next((found for found in results if found is not None), None)

    def _is_kept(self, rule: EliminationRule, params: Mapping[str, Any]) -> bool:
        verdict = self._decide(rule, params, search="", trial="", fingerprint="", audit=False)
        return verdict is None or not verdict.eliminated
