"""How a study ended: what of the exhaustive search it never started, and why it stopped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import TypedDict

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna.records import SETTLED
from transfer_pruner_optuna.spaces import count_values


class Ending(TypedDict):
    """What `transfer_pruner.estimate_savings` takes beside a study's records."""

    exhaustive_trials: int | None
    stopped: str | None


def ending_from_study(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
) -> Ending:
    """Tell how a study ended, for ``estimate_savings(records, **ending_from_study(study))``.

    Parameters
    ----------
    study : optuna.Study
    source_param, target_param, target
        As for `gate`.

    Returns
    -------
    dict
        ``exhaustive_trials``: pairs and baselines among the parameters' choices, times
        hyperparameter settings. None, so that nothing is claimed, where a parameter is continuous,
        complete trials do not have the same parameters with the same choices, or trials are still
        waiting or running: then say yourself how many there are. ``stopped``: the reason of
        `StopWhenSettled`; None if it did not stop the study.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import ending_from_study
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> ending_from_study(study, target="news")
    {'exhaustive_trials': 3, 'stopped': None}
    """
    pair_of = PairParams(source_param, target_param, target)
    trials = study.get_trials(deepcopy=False)
    settled = study.user_attrs.get(SETTLED) or {}
    return {
        "exhaustive_trials": _exhaustive_trials(trials, pair_of),
        "stopped": settled.get("reason"),
    }


def _exhaustive_trials(trials: Iterable[FrozenTrial], pair_of: PairParams) -> int | None:
    space: Mapping[str, BaseDistribution] | None = None
    for trial in trials:
        if not trial.state.is_finished():
            return None
        if trial.state == TrialState.COMPLETE and pair_of.is_in(trial.params):
            if space is not None and trial.distributions != space:
                return None
            space = trial.distributions
    if space is None:
        return None
    names = pair_of.names_in(space)
    choices = [d.choices for name in names if isinstance(d := space[name], CategoricalDistribution)]
    settings = math.prod(count_values(d) for name, d in space.items() if name not in names)
    if len(choices) < len(names) or math.isinf(settings):
        return None
    # No source and the target itself are the same baseline.
    pairs = {pair_of(dict(zip(names, values, strict=True))) for values in product(*choices)}
    return len(pairs) * int(settings)
