"""A rule that is asked: decisions that were made once, kept with how they were made.

What it must satisfy: it fails open, it decides the same on every worker and after every restart,
and it needs no model to decide.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.rule import storage
from transfer_pruner.rule.decision import Decision, Decisions
from transfer_pruner.tasks import is_baseline, task_name

_BASELINE = Decision(False, math.nan, math.nan, "single-task baseline: never eliminated")


class DecidedPairs:
    """Decisions on ordered pairs: asked, listed, saved and loaded. `EliminationRule` makes them."""

    def __init__(
        self,
        decisions: Mapping[tuple[str, str], Decision],
        settings: Mapping[str, Any],
        *,
        scoring_seconds: float = 0.0,
    ) -> None:
        if not isinstance(decisions, Mapping):
            raise ValueError(
                f"decisions must be a mapping of (source, target) to Decision but got "
                f"{decisions!r}; EliminationRule.top_k(predictor, k=3) makes a rule of a predictor."
            )
        self._decisions = Decisions.of(decisions)
        self._settings = storage.settings_text(settings)
        self.unknown_pairs: set[tuple[Hashable, Hashable]] = set()
        # What has finished since a LearningRule made it: `CurrentRule` keeps count.
        self.not_learnt: Counter[tuple[Any, str]] = Counter()
        # Beside the settings: they tell rules apart, and equal scores take other seconds each time.
        self.scoring_seconds = float(scoring_seconds)

    @property
    def decisions(self) -> Mapping[tuple[str, str], Decision]:
        """Every decision by (source, target), each made when it is looked up."""
        return self._decisions

    @property
    def settings(self) -> dict[str, Any]:
        """How the decisions were made; a copy, since a rule does not change."""
        settings: dict[str, Any] = json.loads(self._settings)
        return settings

    def with_settings(
        self,
        settings: Mapping[str, Any],
        *,
        unknown_pairs: set[tuple[Hashable, Hashable]] | None = None,
    ) -> Self:
        """Make a rule of the same decisions, which are shared, with other settings.

        Parameters
        ----------
        settings : mapping of str to JSON values
        unknown_pairs : set of (source, target), optional
            Shared with other rules, so that the first unknown pair of all of them warns. A new
            set if left out.
        """
        rule = type(self)(self._decisions, settings, scoring_seconds=self.scoring_seconds)
        if unknown_pairs is not None:
            rule.unknown_pairs = unknown_pairs
        return rule

    def decide(self, source: str | Sequence[str] | None, target: str) -> Decision:
        """Say whether s -> t is eliminated.

        Parameters
        ----------
        source : str, sequence of str or None
            None, NaN, an empty string or the target itself is the single-task baseline. Several
            sources, of joint transfer, are eliminated if one of them is.
        target : str

        Returns
        -------
        Decision
            An unknown pair is kept; the first one warns. Of several sources it is that of the
            first eliminated one, else that of the lowest-scored.
        """
        if isinstance(source, (tuple, list)):
            return self._decide_jointly(source, target)
        name, to = task_name(source), str(task_name(target))
        if name is None or name == to:
            return _BASELINE
        row = self._decisions.row(name, to)
        if row is not None:
            return self._decisions.at(row)
        if not self.unknown_pairs:
            warnings.warn(
                f"the rule does not know the pair {name!r} -> {to!r} and keeps it; further "
                "unknown pairs are kept too and counted in rule.unknown_pairs.",
                TransferPrunerWarning,
                stacklevel=2,
            )
        self.unknown_pairs.add((name, to))
        return Decision(False, math.nan, math.nan, "unknown pair: kept")

    def _decide_jointly(self, sources: Sequence[str], target: str) -> Decision:
        decisions = {s: self.decide(s, target) for s in sources if not is_baseline(s, target)}
        if not decisions:
            return _BASELINE

        def first(source: str) -> tuple[bool, float]:
            score = decisions[source].score
            return not decisions[source].eliminated, math.inf if math.isnan(score) else score

        worst = min(decisions, key=first)
        if len(decisions) == 1:
            return decisions[worst]
        return replace(decisions[worst], reason=f"{worst}: {decisions[worst].reason}")

    @cached_property
    def sources(self) -> frozenset[str]:
        """Names of the source tasks that it knows."""
        return self._named("source")

    @cached_property
    def targets(self) -> frozenset[str]:
        """Names of the target tasks that it knows."""
        return self._named("target")

    def _named(self, side: str) -> frozenset[str]:
        codes = np.unique(self._decisions.columns[side]).tolist()
        return frozenset(self._decisions.tasks[code] for code in codes)

    def keeps_any(self, target: str | None = None, *, source: str | None = None) -> bool:
        """Whether some pair is kept, of the target or source that is named; or none is known."""
        rows, columns = self._rows_of(target), self._decisions.columns
        eliminated = columns["eliminated"][rows]
        if source is not None:
            tasks = self._decisions.tasks
            own = [code for code, task in enumerate(tasks) if task == str(task_name(source))]
            eliminated = eliminated[np.isin(columns["source"][rows], own)]
        return not len(eliminated) or not bool(eliminated.all())

    def kept(self, target: str) -> list[str]:
        """Name the sources that are kept for a target, the best-scored first."""
        columns, tasks = self._decisions.columns, self._decisions.tasks
        order = self._decisions.best_first(self._rows_of(target))
        kept = order[~columns["eliminated"][order]]
        return [tasks[source] for source in columns["source"][kept].tolist()]

    def _rows_of(self, target: str | None) -> slice:
        return self._decisions.rows_of(None if target is None else str(task_name(target)))

    def table(self) -> pd.DataFrame:
        """Every decision: source, target, eliminated, score, probability, reason, priority.

        By target, the best-scored first.
        """
        return self._decisions.frame()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the decisions and settings: equal rules decide equally."""
        return storage.fingerprint(self._decisions, self._settings)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the rule into a directory as JSON; a rule that is there is replaced whole."""
        told = {"fingerprint": self.fingerprint, "scoring_seconds": self.scoring_seconds}
        storage.save(Path(directory), self._decisions, self._settings, told)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read a rule that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If the directory holds no rule.
        ValueError
            If the file is damaged or of another format.
        """
        decisions, settings, scoring_seconds = storage.load(Path(directory))
        return cls(decisions, settings, scoring_seconds=scoring_seconds)

    def __len__(self) -> int:
        return len(self._decisions)

    def __repr__(self) -> str:
        eliminated = int(self._decisions.columns["eliminated"].sum())
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"EliminationRule({settings}: {eliminated} of {len(self)} pairs eliminated)"
