r"""How many sources to keep, so that few targets lose their best source: calibration by target.

What is calibrated are the rules that keep the k best-ranked sources of every target. They are
nested, so each target has a depth: the smallest k at which it still has a source as good as its
best. Pairs that share a task are not exchangeable, targets can be; so one depth a target is all
that is counted, however many pairs were measured.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from transfer_pruner.autologging import unlogged
from transfer_pruner.equality import SameValues
from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.pairs import named_pairs, pair_columns
from transfer_pruner.rule.decided import DecidedPairs
from transfer_pruner.rule.ranking import (
    Predictor,
    candidate_pairs,
    check_number,
    finite_or_nan,
    ranked,
    task_columns,
)
from transfer_pruner.tasks import FloatArray, is_baseline, task_name

if TYPE_CHECKING:
    pass

# The products of counts and decimal fractions that must be whole numbers, such as 10 * (1 - 0.7),
# are so only up to rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Calibration(SameValues):
    """What calibration found.

    Attributes
    ----------
    n_targets : int
        Targets whose depth was counted.
    k : int
        Sources to keep of every target.
    leave_target_out : bool
        Whether some target was scored by a predictor fitted anew without it.
    """

    n_targets: int
    k: int
    leave_target_out: bool


def calibrate(
    predictor: Predictor,
    pairs: pd.DataFrame,
    gains: ArrayLike,
    risk: float,
    tolerance: float,
    candidates: pd.DataFrame | None,
) -> Calibration:
    """Choose how many sources to keep; `EliminationRule.calibrate` says of what and why."""
    risk, tolerance = check_number("risk", risk), check_number("tolerance", tolerance)
    if not 0 < risk < 1:
        raise ValueError(
            f"risk must be between 0 and 1 but got {risk}; 0.1 lets one target in ten lose its "
            "best source."
        )
    _check_tolerance(tolerance)
    source, target = task_columns(predictor)
    pairs = candidate_pairs(predictor, pairs)
    measured = _mean_gains(pairs, gains, source, target, stacklevel=4)
    pairs = _candidates_of(
        measured["target"].unique(), pairs, candidate_pairs(predictor, candidates), source, target
    )
    # No failing open here: a bound cannot rest on scores that are not there.
    scores = finite_or_nan(predictor.predict(pairs))
    scored = pairs[target].isin(pairs.loc[~np.isnan(scores), target]).to_numpy()
    n_silent = pairs.loc[~scored, target].nunique()
    if n_silent:
        # Their sources are all kept, unscored. Were they counted, with depth 0, they would make
        # room for losses among the targets that are ranked.
        warnings.warn(
            f"{n_silent} of {pairs[target].nunique()} calibration targets have no scored pair and "
            "are left out.",
            TransferPrunerWarning,
            stacklevel=3,
        )
        pairs, scores = pairs[scored], scores[scored]
    n_targets = pairs[target].nunique()
    position = conformal_position(n_targets, risk)
    honest, left_out = _honest_scores(predictor, pairs, scores, source, target)
    table = pd.DataFrame({"source": pairs[source], "target": pairs[target], "score": honest})
    table["kept"] = np.isnan(scores)
    table = ranked(table)
    # A pair without a score is kept by every rule and takes up no place.
    table["rank"] = table["rank"].where(~table["kept"], 0)
    depths = target_depths(measured.merge(table, on=["source", "target"]), tolerance)
    return Calibration(n_targets, int(np.sort(depths)[position - 1]), left_out)


def conformal_position(n_targets: int, risk: float) -> int:
    r"""Position of the calibrated depth among the sorted depths, 1 the smallest.

    :math:`\lceil (n + 1)(1 - r) \rceil` of n exchangeable targets, in [1, n]. Whatever the depths'
    distribution, that of a further target is larger with probability at most the risk r: conformal
    risk control (Angelopoulos et al. 2022) of a loss that is 0 or 1, which is split conformal
    prediction.

    Raises
    ------
    ValueError
        If it would be beyond n: too few targets say nothing of a risk so small.

    Examples
    --------
    >>> from transfer_pruner.rule.calibration import conformal_position
    >>> conformal_position(25, risk=0.1)
    24
    """
    position = math.ceil((n_targets + 1) * (1 - risk) - _ROUNDING)
    if position > n_targets:
        needed = math.ceil(1 / risk - _ROUNDING) - 1
        # Rounded up, so that what is advised is enough.
        least = math.ceil(1e4 / (n_targets + 1) - _ROUNDING) / 1e4
        otherwise = f", or accept a risk of {least:g}" if n_targets else ""
        raise ValueError(
            f"risk {risk:g} needs at least {needed} calibration targets but pairs has {n_targets} "
            f"with finite gains and scores: measure transfers to more targets{otherwise}."
        )
    return position


def target_depths(table: pd.DataFrame, tolerance: float = 0.0) -> pd.Series:
    r"""How many of its best-ranked sources a target needs so that it keeps its best one.

    :math:`\min \{\mathrm{rank}(s, t) : g(s, t) \ge \max_{s'} g(s', t) - \tau\}`, a whole number of
    0 or more; high for a predictor that ranks badly. The single-task baseline is a source too, with
    gain 0 and rank 0, since it is never eliminated: so the depth is 0 where no gain exceeds the
    tolerance, and there is nothing to lose.

    Parameters
    ----------
    table : DataFrame
        Columns source, target, gain and rank; one row a pair.
    tolerance : float
        :math:`\tau`, in units of the score.

    Returns
    -------
    Series of int
        One depth for each target.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.rule.calibration import target_depths
    >>> table = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> target_depths(table.assign(gain=[0.01, 0.05], rank=[1, 2])).to_dict()
    {'news': 2}
    """
    best = table.groupby("target")["gain"].transform("max").clip(lower=0.0)
    depth = (
        table["rank"].where(table["gain"] >= best - tolerance, np.inf).where(best > tolerance, 0)
    )
    return depth.groupby(table["target"]).min().astype(int)


def loses_best(
    kept: DecidedPairs | Iterable[tuple[str, str]],
    pairs: pd.DataFrame,
    gains: ArrayLike,
    *,
    tolerance: float = 0.0,
) -> pd.Series:
    """Tell which targets lost their best source: what `EliminationRule.calibrate` bounds.

    A target has lost it if every source whose gain is within the tolerance of its best gain is
    eliminated. Where no gain exceeds the tolerance there is nothing to lose.

    Parameters
    ----------
    kept : EliminationRule or iterable of (source, target)
        The pairs that are not eliminated.
    pairs : DataFrame
        Columns source and target.
    gains : array of shape (n_pairs,)
        Measured gains; the mean of a pair that occurs more than once.
    tolerance : float
        In units of the score.

    Returns
    -------
    Series of bool
        One for each target with a finite gain; its mean is the achieved risk.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.rule.calibration import loses_best
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> loses_best([("advice", "news")], pairs, [0.01, 0.05]).to_dict()
    {'news': True}
    """
    _check_tolerance(tolerance)
    measured = _mean_gains(pairs, gains, "source", "target", stacklevel=3)
    keys = zip(measured["source"], measured["target"], strict=True)
    if isinstance(kept, Iterable):
        surviving = named_pairs(kept)
        eliminated = [key not in surviving for key in keys]
    else:
        eliminated = [kept.decide(*key).eliminated for key in keys]
    # Kept sources at rank 0 and the others at rank 1: a target whose depth is 1 has lost.
    return target_depths(measured.assign(rank=np.array(eliminated, dtype=int)), tolerance) > 0


def _check_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < math.inf:
        raise ValueError(
            f"tolerance must be a finite number, 0 or more, but got {tolerance}; it is in units of "
            "the score."
        )


def _mean_gains(
    pairs: pd.DataFrame, gains: ArrayLike, source: str, target: str, *, stacklevel: int
) -> pd.DataFrame:
    """Average the gains of each pair: source, target, gain, without baselines and NaN gains."""
    sources, targets = pair_columns(pairs, source, target)
    values = np.asarray(gains, dtype=float)
    if values.shape != (len(pairs),):
        raise ValueError(
            f"gains must have one value for each of the {len(pairs)} pairs but has shape "
            f"{values.shape}."
        )
    finite = np.isfinite(values)
    if not finite.all():
        warnings.warn(
            f"gains has {int((~finite).sum())} NaN or infinite values of {len(values)}: those "
            "pairs are left out.",
            TransferPrunerWarning,
            stacklevel=stacklevel,
        )
    usable = finite & [not is_baseline(*pair) for pair in zip(sources, targets, strict=True)]
    table = pd.DataFrame({"source": sources, "target": targets, "gain": values})[usable]
    means: pd.DataFrame = table.groupby(["source", "target"], as_index=False)["gain"].mean()
    return means


def _candidates_of(
    targets: Iterable[str],
    pairs: pd.DataFrame,
    candidates: pd.DataFrame,
    source: str,
    target: str,
) -> pd.DataFrame:
    """List what the calibration targets' sources are ranked among: their pairs and candidates.

    Targets measured with a few sources only would else have flattering ranks: third of five is not
    third of thirteen. A target that is no candidate takes every source that is one.
    """
    sources_of = candidates.groupby(target)[source].unique()
    everywhere = candidates[source].unique()
    more = [(s, t) for t in targets for s in sources_of.get(t, everywhere) if not is_baseline(s, t)]
    pairs = pairs[pairs[target].isin(targets)]
    if more:
        pairs = pd.concat([pairs, pd.DataFrame(more, columns=[source, target], dtype=object)])
    return pairs.drop_duplicates([source, target], ignore_index=True)


def _honest_scores(
    predictor: Predictor, pairs: pd.DataFrame, scores: FloatArray, source: str, target: str
) -> tuple[FloatArray, bool]:
    """Score each target by a predictor that did not learn from it; tell if that took a new one."""
    measured: pd.DataFrame | None = getattr(predictor, "measured_", None)
    if measured is None:
        return scores, False
    learnt_from = measured["target"].map(task_name)
    seen = set(learnt_from) & set(pairs[target])
    from sklearn.base import clone

    honest = scores.copy()
    for name in sorted(seen):
        rest = measured[learnt_from != name]
        if rest.empty:
            raise ValueError(
                f"predictor learnt from the calibration target {name!r} alone, so nothing is left "
                "to score that target with: measure transfers to more targets, or pass a predictor "
                "that is not fitted."
            )
        columns = {"source": source, "target": target}
        known = rest[list(columns)].rename(columns=columns)
        with unlogged():
            without = clone(predictor).fit(known, rest["gain"])
        own = (pairs[target] == name).to_numpy()
        honest[own] = finite_or_nan(without.predict(pairs[own]))
    return honest, bool(seen)
