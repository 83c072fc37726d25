"""Re-ranking: the pairs of a rule ordered anew, by a proxy score of each pair.

What it must satisfy: a callable and a table of the same scores say the same, and a pair whose proxy
score is not known loses nothing. What an `EliminationRule` eliminates stays eliminated.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from transfer_pruner.exceptions import TransferPrunerWarning, some_of
from transfer_pruner.pairs import pair_columns
from transfer_pruner.rule.candidates import Candidates
from transfer_pruner.rule.decision import Decisions
from transfer_pruner.rule.ranking import finite_or_nan, ranked
from transfer_pruner.tasks import FloatArray

OF_RERANKED = 0.5
"""Weight of what was known of a pair beside its proxy score; chosen on the dev split of TREC-IS."""
ProxyScores = Callable[[str, str], float] | pd.DataFrame
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class ProxyScored:
    """Proxy scores that were asked for.

    Attributes
    ----------
    values : array of shape (n_pairs,)
        NaN where there is none.
    seconds : float
        What they took.
    problem : str
        What went wrong, as the end of a sentence; empty if nothing did.
    """

    values: FloatArray
    seconds: float
    problem: str = ""


def check_scores(scores: object) -> None:
    """Refuse what holds no proxy scores.

    Raises
    ------
    ValueError
        If it is neither a callable nor a DataFrame.
    """
    if not callable(scores) and not isinstance(scores, pd.DataFrame):
        raise ValueError(
            "scores must be a callable of (source, target), or a DataFrame with the columns "
            f"source, target and score, but got {scores!r}."
        )


def rerank(decisions: Decisions, scores: ProxyScores, k: int) -> tuple[Decisions, float]:
    """Keep the k best-scored of every target's kept pairs; `EliminationRule.refine` says why.

    Returns them, and the seconds that the proxy scores took.
    """
    columns, tasks = decisions.columns, decisions.tasks
    rows = np.flatnonzero(~columns["eliminated"])
    # A source's pairs one after another, since its model may be what scores them.
    rows = rows[np.lexsort((columns["target"][rows], columns["source"][rows]))]
    codes = (columns[side][rows].tolist() for side in ("source", "target"))
    kept = [(tasks[source], tasks[target]) for source, target in zip(*codes, strict=True)]
    told = proxy_scores(scores, kept, tasks)
    _warn_of_unscored(told, "kept pairs have no proxy score and stay kept")
    table = pd.DataFrame(kept, columns=["source", "target"], dtype=object)
    table = ranked(table.assign(score=told.values, row=rows))
    table = table[table["score"].notna()]
    changed = decisions.changed(
        table["row"].to_numpy(dtype=np.int64),
        f" by proxy score; the rule keeps {k}",
        eliminated=(table["rank"] > k).to_numpy(),
        score=table["score"].to_numpy(),
        rank=table["rank"].to_numpy(),
        candidates=table["candidates"].to_numpy(),
    )
    return changed, told.seconds


def look(
    scores: ProxyScores, candidates: Candidates, priorities: FloatArray, k: int | None
) -> ProxyScored:
    """Ask for the proxy scores of candidate pairs; `LearningRule.refine` says which and why.

    Raises
    ------
    ValueError
        If a table holds none of them.
    """
    rows = candidates.best(priorities, k)
    # A source's pairs one after another, since its model may be what scores them.
    rows = rows[np.lexsort((candidates.target[rows], candidates.source[rows]))]
    pairs = [*candidates.pairs.iloc[rows].itertuples(index=False, name=None)]
    told = proxy_scores(scores, pairs, candidates.tasks)
    if isinstance(scores, pd.DataFrame):
        if len(pairs) and np.isnan(told.values).all():
            raise ValueError(f"scores holds no score of any of the rule's {len(pairs)} pairs.")
    else:
        # A table need not hold every pair; a callable was asked for each of these.
        _warn_of_unscored(told, "pairs have no proxy score and keep their place")
    values = np.full(len(candidates.table), np.nan)
    values[rows] = told.values
    return replace(told, values=values)


def scored_too(candidates: Candidates, own: str, proxy: FloatArray) -> pd.Series:
    """Order candidate pairs by what is known of them and by a proxy score, within their target.

    Both are standardised within the target and added up, where there is a proxy score with half the
    weight for what was known before; such a pair has 1 more, so that those that were thought worth
    a proxy score come before others like them. NaN of a pair of which neither is known.

    Parameters
    ----------
    candidates : Candidates
        The pairs.
    own : str
        The column of what is known before; nothing is, where it is missing.
    proxy : array of shape (n_candidates,)
        NaN where there is none.
    """

    def standard(values: pd.Series) -> pd.Series:
        within = values.groupby(candidates.target)
        spread = within.transform("std", ddof=0)
        return (values - within.transform("mean")) / spread.where(spread > 0, 1.0)

    table = candidates.table
    looked = pd.Series(proxy, table.index)
    known = standard(table[own].astype(float)) if own in table else np.nan * looked
    judged = known.notna() | looked.notna()
    known = known.fillna(0.0).where(looked.isna(), OF_RERANKED * known.fillna(0.0))
    # Rounded, so that what cancels out leaves no order behind.
    return (known + (1.0 + standard(looked)).fillna(0.0)).round(9).where(judged)


def proxy_scores(scores: ProxyScores, pairs: Pairs, tasks: Sequence[str]) -> ProxyScored:
    """Look the scores of pairs up in a table, or ask a callable pair by pair, in this order."""
    if isinstance(scores, pd.DataFrame):
        return ProxyScored(_looked_up(scores, pairs, tasks), table_seconds(scores))
    started = time.perf_counter()
    values, problem = _called(scores, pairs)
    return ProxyScored(values, time.perf_counter() - started, problem)


def _warn_of_unscored(told: ProxyScored, what: str) -> None:
    unscored = int(np.isnan(told.values).sum())
    if unscored:
        warnings.warn(
            f"{unscored} of {len(told.values)} {what}{told.problem}.",
            TransferPrunerWarning,
            stacklevel=4,
        )


def table_seconds(scores: pd.DataFrame) -> float:
    """Add up what a table of proxy scores took; all of it, whatever a rule uses of it."""
    if "seconds" not in scores.columns:
        return 0.0
    seconds = scores["seconds"].to_numpy(dtype=float, na_value=np.nan)
    return float(seconds[np.isfinite(seconds) & (seconds > 0)].sum())


def _called(score: Callable[[str, str], float], pairs: Pairs) -> tuple[FloatArray, str]:
    """Score pair by pair; what failed is NaN, and is told of."""
    values, failures = np.full(len(pairs), math.nan), []
    for row, (source, target) in enumerate(pairs):
        try:
            values[row] = score(source, target)
        except Exception as error:
            # Fail open, as everywhere: one source that cannot be loaded costs only itself.
            failures.append(f"{source!r} -> {target!r}: {type(error).__name__}: {error}")
    problem = f"; scoring failed for {len(failures)}, first {failures[0]}" if failures else ""
    return finite_or_nan(values), problem


def _looked_up(table: pd.DataFrame, pairs: Pairs, tasks: Sequence[str]) -> FloatArray:
    """Take the pairs' scores out of a table; NaN for those that it lacks."""
    sources, targets = pair_columns(table, name="scores")
    if "score" not in table.columns:
        raise ValueError(
            f"scores lacks the column 'score'; it has: {', '.join(map(str, table.columns))}."
        )
    names = pd.MultiIndex.from_arrays([sources, targets])
    twice = names.duplicated()
    if twice.any():
        source, target = names[twice][0]
        raise ValueError(
            f"scores has the pair {source!r} -> {target!r} more than once: pass one score a pair."
        )
    _warn_of_unknown({*sources, *targets} - {None}, tasks)
    known = pd.Series(finite_or_nan(table["score"].to_numpy(dtype=float, na_value=np.nan)), names)
    if not pairs:
        return np.zeros(0)
    return np.asarray(known.reindex(pd.MultiIndex.from_tuples(pairs)), dtype=np.float64)


def _warn_of_unknown(named: set[str], tasks: Sequence[str]) -> None:
    unknown = named - set(tasks)
    if unknown:
        warnings.warn(
            f"scores names {len(unknown)} of {len(named)} tasks that the rule does not know: "
            f"{some_of(unknown)}.",
            TransferPrunerWarning,
            stacklevel=6,
        )
