"""The user's trial as the gate shows it to the objective, and what the adapters ask of trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from transfer_pruner.rule.verdict import Verdict


class PairEliminated(BaseException):
    """Leaves the user's objective from inside a suggestion.

    No Exception, so that a broad ``except Exception`` around the training cannot swallow it.
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class WatchedTrial(Trial):
    """The user's trial itself, which tells of its suggestions: it shares the trial's state.

    Parameters
    ----------
    trial : optuna.Trial
    before : callable of (trial, name, choices)
        Told before a categorical parameter is suggested.
    after : callable of trial to bool
        Told after each suggestion, until it says that the pair is decided.
    """

    __slots__ = ("_after", "_before", "_decided")

    def __init__(
        self,
        trial: Trial,
        before: Callable[[Trial, str, Sequence[Any]], None],
        after: Callable[[Trial], bool],
    ) -> None:
        self.__dict__ = trial.__dict__
        self._before = before
        self._after = after
        self._decided = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets the plain trial: what decides stays in this one.
        return _plain_trial, (self.__dict__,)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Suggest, and tell before and after."""
        self._before(self, name, choices)
        return self._told(super().suggest_categorical(name, choices))

    def suggest_float(self, *args: Any, **kwargs: Any) -> float:
        """Suggest, and tell after."""
        value: float = self._told(super().suggest_float(*args, **kwargs))
        return value

    def suggest_int(self, *args: Any, **kwargs: Any) -> int:
        """Suggest, and tell after."""
        value: int = self._told(super().suggest_int(*args, **kwargs))
        return value

    def _told(self, value: Any) -> Any:
        if not self._decided:
            self._decided = self._after(self)
        return value


def as_json(value: Any) -> Any:
    """Take a choice, or choices, as a storage that writes JSON gives them back."""
    return [as_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def _plain_trial(state: dict[str, Any]) -> Trial:
    trial = Trial.__new__(Trial)
    trial.__dict__.update(state)
    return trial


def suggest(
    trial: Trial, name: str, distribution: BaseDistribution, choices: Sequence[Any] | None = None
) -> None:
    """Suggest a parameter by its distribution; one that was suggested before stays as it is.

    `choices` are the objective's own, where they are known: from a storage that writes JSON, tuples
    come back as lists, which Optuna takes for other choices.
    """
    if isinstance(distribution, CategoricalDistribution):
        own = choices is not None and as_json(choices) == as_json(distribution.choices)
        taken: Any = choices if own else distribution.choices
        trial.suggest_categorical(name, taken)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    else:
        raise ValueError(f"{name!r} must have a distribution but has {distribution!r}.")
