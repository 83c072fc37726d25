"""The answer as numbers, as words and as a table.

What it must satisfy: training alone is an answer as any other, and what one trial cannot tell is
not told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from transfer_pruner.equality import SameValues
from transfer_pruner.tasks import Source, source_name

ALONE = "training alone"
SHOWN = (
    *("target", "source", "score", "gain", "second", "behind", "trials", "hyperparameters"),
    "how sure",
)
"""Columns of `Answer.shown`; those of `SHOWN_NUMBERS` are numbers."""
SHOWN_NUMBERS = ("score", "gain", "behind", "trials")
_COLUMNS = {
    **dict.fromkeys(("target", "source", "hyperparameters", "second_source", "certainty"), object),
    **dict.fromkeys(("value", "baseline_value", "gain", "second_value", "margin", "spread"), float),
    **dict.fromkeys(("trials", "seeds", "configurations", "trials_finished"), int),
    "dev_size": float,
}
_ORDER = [
    *("target", "source", "hyperparameters", "value", "baseline_value", "gain", "second_source"),
    *("second_value", "margin", "trials", "seeds", "spread", "configurations", "trials_finished"),
    *("dev_size", "certainty"),
]


@dataclass(frozen=True, eq=False)
class Configuration(SameValues):
    """A source with hyperparameters, and what its finished trials came to.

    Attributes
    ----------
    source : str, tuple of str or None
        Several for joint transfer; None for training alone.
    hyperparameters : mapping of str to value
        Without the seed.
    value : float
        Mean of the objective's values over its trials.
    trials : int
        How many finished with a value.
    seeds : int
        How many different seeds they had; 0 if no hyperparameter is the seed.
    spread : float
        Standard deviation of the values; NaN of one trial.
    number : int
        The host's number of its first trial.
    audit : bool
        Whether audit trials alone ran it: the rule had eliminated the pair.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, find_answer
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> find_answer(records).targets[0].best
    Configuration(source='advice', hyperparameters={}, value=0.66, trials=1, seeds=0,
    spread=nan, number=1, audit=False)
    """

    source: Source
    hyperparameters: Mapping[str, Any]
    value: float
    trials: int
    seeds: int
    spread: float
    number: int
    audit: bool

    @property
    def source_name(self) -> str:
        """The source, or several, as text; `ALONE` for training alone."""
        return source_name(self.source) or ALONE

    @property
    def settings(self) -> str:
        """The hyperparameters as text."""
        return ", ".join(f"{name}={_short(x)}" for name, x in self.hyperparameters.items())

    def __str__(self) -> str:
        return f"{self.source_name} with {self.settings}" if self.settings else self.source_name


@dataclass(frozen=True, eq=False)
class TargetAnswer(SameValues):
    """What a search found for one target.

    Attributes
    ----------
    target : str
    best : Configuration or None
        The one of the best value; None if no trial finished with one.
    baseline : Configuration or None
        The best one that trains alone.
    second : Configuration or None
        The best one of another source than `best`; training alone counts as one.
    configurations : int
        How many finished: what is best of many is on average less good than it seems.
    trials_finished : int
        Their trials.
    dev_size : int or None
        Examples that the value was measured on, if that is known.
    maximize : bool

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, find_answer
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> (news,) = find_answer(records).targets
    >>> news.best.source, round(news.gain, 2)
    ('advice', 0.05)
    """

    target: str
    best: Configuration | None
    baseline: Configuration | None
    second: Configuration | None
    configurations: int
    trials_finished: int
    dev_size: int | None
    maximize: bool

    @property
    def gain(self) -> float:
        """What is gained over the best of training alone; 0 if that is best, NaN if not known."""
        return self._ahead_of(self.baseline)

    @property
    def margin(self) -> float:
        """By how much the second is behind; NaN if there is none."""
        return self._ahead_of(self.second)

    @property
    def transfers(self) -> bool:
        """Whether the answer is a transfer; false for training alone and for no answer."""
        return self.best is not None and self.best.source is not None

    def _ahead_of(self, other: Configuration | None) -> float:
        if self.best is None or other is None:
            return math.nan
        ahead = self.best.value - other.value
        return ahead + 0.0 if self.maximize else 0.0 - ahead

    @property
    def certainty(self) -> str:
        """Say what is known of how sure the answer is, and what is not."""
        best = self.best
        if best is None:
            return "nothing is known"
        said = []
        if best.trials == 1:
            said.append("one trial: what another seed changes is not known")
        elif best.spread == 0:
            said.append(f"{best.trials} trials of one value: they tell nothing of another seed")
        else:
            seeds = f" with {best.seeds} seeds" if best.seeds > 1 else ""
            said.append(
                f"mean of {best.trials} trials{seeds}, standard deviation {best.spread:.2g}"
            )
            if self.margin <= best.spread:
                said.append("the second is within that")
        if self.dev_size is not None:
            known = f"{self.dev_size} dev examples"
            if 0 <= best.value <= 1:
                error = math.sqrt(best.value * (1 - best.value) / self.dev_size)
                known += f", standard error {error:.2g} if the score is an accuracy"
            said.append(known)
        if best.audit:
            said.append("found by an audit: the rule had eliminated the pair")
        return "; ".join(said)

    def headline(self) -> str:
        """Say it in one line."""
        return " ".join(f"{self.target}: {self._found()}".split())

    def _found(self) -> str:
        best = self.best
        if best is None:
            return "no finished trial has a score."
        form = _form(best.value)
        said = f"{best} scores {best.value:{form}}"
        if not self.transfers:
            said += "; no transfer " + ("was tried" if self.second is None else "does better")
        elif self.baseline is None:
            said += "; no single-task baseline finished, so the gain is not known"
        else:
            said += f", {self.gain:+{form}} over the single-task baseline"
        if self.second is not None:
            said += f"; second is {self.second.source_name}, {self.margin:{form}} behind"
        return f"{said} ({self.certainty})."


@dataclass(frozen=True, eq=False)
class Answer(SameValues):
    """What a search found for every target.

    Attributes
    ----------
    targets : tuple of TargetAnswer
        By name; every target that has a record.
    maximize : bool
        Whether a higher value is better.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord, find_answer
    >>> records = [
    ...     TrialRecord(0, None, "news", "trained", 60.0, value=0.61),
    ...     TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66),
    ...     TrialRecord(2, "weather", "news", "eliminated", 0.0),
    ... ]
    >>> answer = find_answer(records)
    >>> print(answer.headline())
    news: advice scores 0.6600, +0.0500 over the single-task baseline; second is training alone,
    0.0500 behind (one trial: what another seed changes is not known).
    >>> answer.metrics()["answer/targets_with_transfer"]
    1.0
    """

    targets: tuple[TargetAnswer, ...]
    maximize: bool

    def headline(self) -> str:
        """Say in one line of how many targets transfer is the answer, and what it gains."""
        if len(self.targets) == 1:
            return self.targets[0].headline()
        found = [answer for answer in self.targets if answer.best is not None]
        gains = [answer.gain for answer in found if not math.isnan(answer.gain)]
        said = (
            f"Transfer is best for {sum(answer.transfers for answer in found)} of "
            f"{len(self.targets)} targets"
        )
        if gains:
            said += (
                f"; mean gain over the single-task baseline {fmean(gains):+.4g} (measured, over "
                f"{len(gains)} targets)"
            )
        without = len(self.targets) - len(found)
        return said + (f"; {without} without a finished trial." if without else ".")

    def metrics(self) -> dict[str, float]:
        """Name what is known as a tracker's metrics, ``answer/...``."""
        gains = [answer.gain for answer in self.targets if not math.isnan(answer.gain)]
        counts = {
            "answer/targets": len(self.targets),
            "answer/targets_answered": sum(answer.best is not None for answer in self.targets),
            "answer/targets_with_transfer": sum(answer.transfers for answer in self.targets),
        }
        known = {"answer/mean_gain": fmean(gains)} if gains else {}
        return {name: float(x) for name, x in counts.items()} | known

    def table(self) -> pd.DataFrame:
        """Tabulate it, one row a target.

        Returns
        -------
        DataFrame
            target, source (empty for training alone), hyperparameters (as text), value,
            baseline_value, gain, second_source, second_value, margin, trials, seeds and spread (of
            the best configuration), configurations and trials_finished (of the target), dev_size,
            certainty. What is not known is NaN, or an empty text.
        """
        rows = [_row(answer) for answer in self.targets]
        return pd.DataFrame(rows, columns=_ORDER).astype(_COLUMNS)

    def shown(self) -> list[dict[str, str]]:
        """Write the table as people read it: by the columns of `SHOWN`, what is not known empty."""
        return [_shown(answer) for answer in self.targets]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Write it by target for JSON: what a study's attributes or a file hold."""
        return {answer.target: _told(answer) for answer in self.targets}


def _row(answer: TargetAnswer) -> dict[str, Any]:
    best, second, baseline = answer.best, answer.second, answer.baseline
    return {
        "target": answer.target,
        "source": source_name(best.source) if best else "",
        "hyperparameters": best.settings if best else "",
        "value": best.value if best else math.nan,
        "baseline_value": baseline.value if baseline else math.nan,
        "gain": answer.gain,
        "second_source": source_name(second.source) if second else "",
        "second_value": second.value if second else math.nan,
        "margin": answer.margin,
        "trials": best.trials if best else 0,
        "seeds": best.seeds if best else 0,
        "spread": best.spread if best else math.nan,
        "configurations": answer.configurations,
        "trials_finished": answer.trials_finished,
        "dev_size": math.nan if answer.dev_size is None else answer.dev_size,
        "certainty": answer.certainty,
    }


def _shown(answer: TargetAnswer) -> dict[str, str]:
    best, second = answer.best, answer.second
    form = _form(best.value) if best else ""
    cells = (
        answer.target,
        best.source_name if best else "no score",
        f"{best.value:{form}}" if best else "",
        "" if math.isnan(answer.gain) else f"{answer.gain:+{form}}",
        second.source_name if second else "",
        f"{answer.margin:{form}}" if second else "",
        str(best.trials) if best else "",
        best.settings if best else "",
        answer.certainty,
    )
    return dict(zip(SHOWN, cells, strict=True))


def _told(answer: TargetAnswer) -> dict[str, Any]:
    best = answer.best
    told = _row(answer)
    if best is not None:
        source = list(best.source) if isinstance(best.source, tuple) else best.source
        told |= {"source": source, "hyperparameters": dict(best.hyperparameters)}
        told |= {"number": best.number}
    del told["target"]
    return {name: _plain(value) for name, value in told.items()}


def _plain(value: Any) -> Any:
    """Turn a value into what JSON knows; None for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _form(value: float) -> str:
    """Show a score to four digits, and what differs from it to as many decimals."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return ".4g"
    return f".{4 if value == 0 else max(3 - math.floor(math.log10(abs(value))), 0)}f"


def _short(value: Any) -> str:
    """Write a hyperparameter: a float with the digits that people read."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return str(value)
