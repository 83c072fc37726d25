"""Measured scores to search in, one surface for each target: TREC-IS, and the digits.

A search looks up what was measured, so that it takes no training. Each surface brings the rules
that a user would have before it: one that keeps some of the sources, and a `LearningRule`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, IntDistribution

from bench_order import World, learning_rule
from transfer_pruner import EliminationRule, LearningRule, TransferPredictor

HERE = Path(__file__).parent / "text_transfer"
sys.path.append(str(HERE))  # its files are scripts that import each other, not a package
from scores import all_scores  # noqa: E402
from table import LOOKED  # noqa: E402
from table import load as load_table  # noqa: E402

ENOUGH = 0.95
"""Share of the attainable gain at which a search has found what there is."""


@dataclass(frozen=True)
class Surface:
    """One target's measured dev scores: a row for every source, the last for none.

    Attributes
    ----------
    name : str
        Of the search: the target, and what else tells it from others.
    target : str
    sources : list of str or None
    scores : array of shape (n_sources + 1, n_settings)
    rule : EliminationRule
        Keeps some of the sources.
    learning : callable
        From a number of sources that are re-ranked to a `LearningRule`.
    """

    name: str
    target: str
    sources: list[str | None]
    scores: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    rule: EliminationRule
    learning: Callable[[int], LearningRule]

    @property
    def alone(self) -> float:
        """The single-task baseline's best score."""
        return float(self.scores[-1].max())

    @property
    def best(self) -> float:
        """The best score of all settings."""
        return float(self.scores.max())

    @property
    def enough(self) -> float:
        """The score with `ENOUGH` of the attainable gain."""
        return self.alone + ENOUGH * (self.best - self.alone)

    @property
    def space(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The parameters; the setting is a number, for samplers that know no categories."""
        return {
            "source": CategoricalDistribution(self.sources),
            "setting": IntDistribution(0, self.scores.shape[1] - 1),
        }

    def objective(self, trial: optuna.Trial) -> float:
        """Look up what a user would train for."""
        source = trial.suggest_categorical("source", self.sources)
        setting = trial.suggest_int("setting", 0, self.scores.shape[1] - 1)
        return float(self.scores[self.sources.index(source), setting])

    def best_kept(self) -> float:
        """Find the best score that the rule leaves: what no search can exceed."""
        kept = [not self.rule.decide(source, self.target).eliminated for source in self.sources]
        return float(self.scores[kept].max())


class Predictions:
    """Predictions that were made before, as what a rule is made from."""

    def __init__(self, table: pd.Series) -> None:
        self._table = table

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return sorted(self._table.index.unique("target"))

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        """Look the predicted gains up."""
        index = pd.MultiIndex.from_frame(pairs[["source", "target"]])
        return self._table.reindex(index).to_numpy()

    def predict_proba(self, pairs: pd.DataFrame) -> np.ndarray:
        """Say nothing of probabilities."""
        return np.full(len(pairs), np.nan)


def trec_is(transfer: str, metric: str, by: str, k: int) -> list[Surface]:
    """Arrange the dev scores of TREC-IS; the rule predicts every target from the others."""
    transfers, features = (
        pd.read_csv(HERE / f"{name}.csv") for name in ("transfers-4", "features-4")
    )
    data = load_table(transfers, features, transfer, metric, "test")
    scores = all_scores(data, "target", LOOKED)[by].mean(axis=0)
    table = pd.DataFrame(scores, data.tasks, data.tasks).stack()
    table.index.names = ["target", "source"]
    rule = EliminationRule.top_k(Predictions(table.reorder_levels(["source", "target"])), k=k)
    world = World.read(transfer, metric)

    def surface(t: int, target: str) -> Surface:
        others = [task for task in data.tasks if task != target]
        rows = [data.dev[:, t, data.tasks.index(task)].mean(axis=0) for task in others]
        measured = np.array([*rows, data.dev_baseline[:, t].mean(axis=0)])

        def learning(looked: int) -> LearningRule:
            return learning_rule(world, world.candidates(target), looked)

        return Surface(target, target, [*others, None], measured, rule, learning)

    return [surface(t, target) for t, target in enumerate(data.tasks)]


def digits(splits: Iterable[int], k: int) -> list[Surface]:
    """Arrange the dev scores of the digits, of several splits; the rule knows attributions only."""
    # It trains what has not been measured yet, with torch.
    from demo import PROXY
    from splits import measured

    surfaces = []
    for split in splits:
        trials, predictor, proxies = measured(split)
        looks = proxies[proxies["method"] == PROXY]
        rule = EliminationRule.top_k(predictor, k=k)
        for target, of in trials.groupby("target"):
            table = of.set_index(["source", "lr", "epochs"])["dev"].unstack(["lr", "epochs"])
            others = [task for task in table.index if task != target]
            name, scores = f"{target}, split {split}", table.loc[[*others, target]].to_numpy()
            learning = _of_digits(predictor, str(target), others, looks)
            surfaces.append(Surface(name, str(target), [*others, None], scores, rule, learning))
    return surfaces


def _of_digits(
    predictor: TransferPredictor, target: str, sources: list[str], looks: pd.DataFrame
) -> Callable[[int], LearningRule]:
    pairs = pd.DataFrame({"source": sources, "target": target})

    @cache
    def learning(looked: int) -> LearningRule:
        rule = LearningRule(predictor, pairs=pairs)
        if not looked:
            return rule
        best = pairs.assign(score=predictor.predict(pairs)).nlargest(looked, "score")
        return rule.refine(looks.merge(best[["source", "target"]]))

    return learning
