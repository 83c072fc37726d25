"""How far the ranking of pairs can be trusted here: what the first measured transfers say of it.

What it must satisfy: what was predicted has learnt nothing from the gains that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.equality import SameValues
from transfer_pruner.pairs import attribution_score, pair_columns
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.tasks import FloatArray
from transfer_pruner.transfers import transfers_from_records


@dataclass(frozen=True, eq=False)
class RankingTrust(SameValues):
    """How the predicted order of sources and the measured one have agreed so far.

    Attributes
    ----------
    correlation : float
        Spearman's correlation within targets, in [-1, 1]; NaN if no target has two pairs.
    low, high : float
        Its interval: -1 and 1 while nothing can be said.
    level : float
        How often such intervals cover.
    n_pairs, n_targets : int
        What it rests on: measured pairs of targets that have two or more, and those targets.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import ranking_trust
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> ranking_trust(pairs.assign(score=[3, 2, 1]), pairs.assign(gain=[0.01, 0.05, -0.02]))
    RankingTrust(correlation=..., low=..., high=..., level=0.95, n_pairs=3, n_targets=1)
    """

    correlation: float
    low: float
    high: float
    level: float
    n_pairs: int
    n_targets: int

    def __str__(self) -> str:
        """Say it in a sentence."""
        if not self.n_pairs:
            return "no target has two measured pairs yet, so nothing is known of the ranking here."
        of = f"{self.n_pairs} measured pairs of {self.n_targets} target"
        if self.n_targets != 1:
            of += "s"
        interval = f"{self.level:.0%} interval {self.low:.2f} to {self.high:.2f}"
        if math.isnan(self.correlation):
            return f"{of} are all predicted or measured alike, which says nothing of the ranking."
        said = f"predicted and measured gains correlate at {self.correlation:.2f} within targets"
        if self.low > 0:
            verdict = "the ranking holds here"
        elif self.high < 0:
            verdict = "the ranking misleads here: search without it"
        else:
            verdict = "too few to tell whether the ranking holds here"
        return f"{said} ({interval}; {of}): {verdict}."


def ranking_trust(
    predicted: pd.DataFrame | Mapping[str, TaskEmbedding],
    transfers: pd.DataFrame,
    *,
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
    level: float = 0.95,
) -> RankingTrust:
    r"""Say what the first transfers of a search tell of the predicted ranking.

    Ranks within each target, divided by one more than their number, are centred and correlated over
    all targets. The interval is that of Fisher's z with Bonett and Wright's (2000) standard error,
    :math:`\sqrt{(1 + r^2 / 2) / (d - 2)}`, :math:`d = \sum_t (n_t - 1)`. It takes pairs for
    independent: those that share a source are not quite. A 90% interval covers 88% to 95% of the
    time for correlations up to 0.6, less for stronger ones of few sources.

    Parameters
    ----------
    predicted : DataFrame or mapping of str to TaskEmbedding
        Columns source, target and score, made without these transfers: of a rule its ``table()``,
        of models and dev sets what `score_pairs` gives. Or the embeddings: `attribution_score`.
    transfers : DataFrame
        Columns source, target and gain. Several gains of a pair count as their mean.
    target_embeddings : mapping of str to TaskEmbedding, optional
        Of the tasks as targets, if others; with embeddings.
    level : float
        In (0, 1).

    Raises
    ------
    ValueError
        If a column is missing or `level` is out of range.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import ranking_trust
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> trust = ranking_trust(pairs.assign(score=[3, 2, 1]), pairs.assign(gain=[0.05, 0.01, -0.02]))
    >>> round(trust.correlation, 2), trust.n_pairs
    (1.0, 3)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1 but got {level}.")
    if "gain" not in transfers:
        raise ValueError("transfers must have the column 'gain'.")
    measured = _named(transfers, "gain")
    if isinstance(predicted, pd.DataFrame):
        if "score" not in predicted:
            raise ValueError("predicted must have the column 'score'.")
        scores = _named(predicted, "score")
    else:
        score = attribution_score(measured, predicted, target_embeddings)
        scores = measured[["source", "target"]].assign(score=score)
    both = measured.merge(scores, on=["source", "target"]).dropna()
    both = both[both["source"] != both["target"]]
    both = both[both.groupby("target")["source"].transform("size") > 1]
    n_pairs, n_targets = len(both), int(both["target"].nunique())
    ranks = [_centred_ranks(both, column) for column in ("score", "gain")]
    size = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    correlation = float(ranks[0] @ ranks[1]) / size if size > 0 else math.nan
    low, high = _interval(correlation, n_pairs - n_targets, level)
    return RankingTrust(correlation, low, high, level, n_pairs, n_targets)


def trust_of_search(
    records: Iterable[TrialRecord],
    rule: EliminationRule | LearningRule | Mapping[str, TaskEmbedding],
    *,
    maximize: bool | None = None,
) -> RankingTrust | None:
    """Say what the trials of a search tell of the ranking that it began with.

    Parameters
    ----------
    records : iterable of TrialRecord
    rule : EliminationRule, LearningRule or mapping of str to TaskEmbedding
        What ranked: of a rule that learns, as it was before any trial. What an `EliminationRule`
        was made from is not known here: give none that learnt from these trials. Or embeddings.
    maximize : bool, optional
        Whether a higher value is better; left out, the records say.

    Returns
    -------
    RankingTrust or None
        None if no trial measured a gain, the rule ranks nothing, or it has learnt from a search.
    """
    try:
        transfers = transfers_from_records(records, maximize=maximize)
    except ValueError:
        return None
    if isinstance(rule, LearningRule):
        rule = rule.refitted()
    if isinstance(rule, EliminationRule):
        if "transfers" in rule.settings:
            return None
        table = rule.table()
        return None if table["score"].isna().all() else ranking_trust(table, transfers)
    return ranking_trust(rule, transfers)


def _named(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row a pair, tasks by their names."""
    sources, targets = pair_columns(table, "source", "target")
    named = pd.DataFrame({"source": sources, "target": targets, column: table[column].to_numpy()})
    named = named[np.isfinite(named[column].astype(float))]
    return named.groupby(["source", "target"], as_index=False)[[column]].mean()


def _centred_ranks(pairs: pd.DataFrame, column: str) -> FloatArray:
    grouped = pairs.groupby("target")[column]
    ranks = grouped.rank() / (grouped.transform("size") + 1)
    return (ranks - 0.5).to_numpy(dtype=float)


def _interval(correlation: float, free: int, level: float) -> tuple[float, float]:
    if math.isnan(correlation) or free <= 2:
        return -1.0, 1.0
    z = math.atanh(min(max(correlation, -0.999999), 0.999999))
    error = math.sqrt((1 + correlation**2 / 2) / (free - 2))
    away = NormalDist().inv_cdf((1 + level) / 2) * error
    return math.tanh(z - away), math.tanh(z + away)
