"""The figure of what elimination trades: seconds saved against attainable gain kept.

It needs an exhaustive search, so everything but the seconds of trials that were not timed is
measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transfer_pruner.pairs import pair_columns
from transfer_pruner.plotting.style import (
    LINES,
    NEUTRAL,
    bare,
    check_columns,
    new_figure,
    say_why_empty,
    written,
)
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.ranking import Predictor, ranked, task_columns
from transfer_pruner.savings import regret
from transfer_pruner.tables import PAIR
from transfer_pruner.tasks import FloatArray, is_baseline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Scores = Predictor | EliminationRule | pd.DataFrame

MOST_ROWS = 200_000
_BAND = ((0.05, "_low"), (0.95, "_high"))


def savings_regret_curve(
    trials: pd.DataFrame,
    scores: Scores | Mapping[str, Scores] | None = None,
    *,
    chosen_by: str = "dev",
    reported: str = "test",
    attribution_seconds: float = 0.0,
    random_repeats: int = 50,
    seed: int = 0,
) -> Figure:
    """Draw what keeping 0 to all sources of every target saves against what it loses.

    Parameters
    ----------
    trials : DataFrame
        Of an exhaustive search; or, with `scores` left out, what `savings_regret_curve_data` made
        of it.
    scores, chosen_by, reported, attribution_seconds, random_repeats, seed
        As for `savings_regret_curve_data`.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.plotting import savings_regret_curve
    >>> trials = pd.DataFrame({"source": [None, "advice", "weather"], "target": "news"})
    >>> trials = trials.assign(dev=[0.61, 0.66, 0.58], test=[0.60, 0.64, 0.59], seconds=60.0)
    >>> scores = pd.DataFrame({"source": ["advice", "weather"], "target": "news", "score": [2, 1]})
    >>> figure = savings_regret_curve(trials, scores)
    >>> figure.savefig("curve.png")
    """
    data = trials
    if scores is not None:
        data = savings_regret_curve_data(
            trials,
            scores,
            chosen_by=chosen_by,
            reported=reported,
            attribution_seconds=attribution_seconds,
            random_repeats=random_repeats,
            seed=seed,
        )
    columns = ("way", "sources_kept", "share_of_seconds_saved", "regret", "share_of_gain_kept")
    check_columns(data, columns, "savings_regret_curve_data")
    figure = new_figure(6)
    axes = figure.subplots()
    if data.empty:
        return say_why_empty(figure, axes, "There is no pair.")
    bare(axes)
    # Where transfer has nothing to offer there is no share of it: regret alone.
    by_share = bool(data["share_of_gain_kept"].notna().all())
    what = "share_of_gain_kept" if by_share else "regret"
    _draw_ways(axes, data, what)
    axes.xaxis.set_major_formatter("{x:.0%}")
    estimated = "measured" if data["seconds_measured"].all() else "estimated: trials last alike"
    axes.set_xlabel(f"share of the exhaustive search's seconds saved ({estimated})", fontsize=12)
    axes.set_title("What keeping fewer sources saves, and what it loses", loc="left")
    if by_share:
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_ylabel("share of attainable gain kept (measured)", fontsize=12)
        none_kept = data.loc[data["sources_kept"] == 0, "regret"]
        attainable = float(none_kept.max()) if len(none_kept) else 0.0
        if attainable > 0:
            beside = axes.secondary_yaxis(
                "right",
                functions=_between_share_and_regret(attainable),
            )
            beside.set_ylabel("regret (measured), in units of the score", fontsize=12)
    else:
        axes.set_ylabel("regret (measured), in units of the score", fontsize=12)
    axes.margins(x=0.07)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


def savings_regret_curve_data(
    trials: pd.DataFrame,
    scores: Scores | Mapping[str, Scores],
    *,
    chosen_by: str = "dev",
    reported: str = "test",
    attribution_seconds: float = 0.0,
    random_repeats: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure on an exhaustive search what keeping k sources of every target saves and loses.

    Parameters
    ----------
    trials : DataFrame
        As for `regret`. With a column ``seconds`` the seconds saved are measured; without, every
        trial is taken to last alike, and ``seconds_measured`` is false.
    scores : EliminationRule, TransferPredictor, DataFrame (source, target, score), or mapping
        What ranks the sources of a target, or several such by name. Pairs without a score are kept.
        A predictor that learnt from these targets flatters itself: pass scores of each target
        that were predicted without it.
    chosen_by, reported : str
        As for `regret`.
    attribution_seconds : float
        Seconds of embedding the tasks, paid by all ways but the random one; needs the column
        ``seconds``.
    random_repeats, seed : int
        Of the draws of k sources at random.

    Returns
    -------
    DataFrame
        way, sources_kept, share_of_seconds_saved, regret, share_of_gain_kept, seconds_measured. The
        rows of the way "random" are means, with the 5% and 95% quantiles of the draws in
        regret_low, regret_high, share_of_gain_kept_low and _high. A rule has one more row, what it
        keeps as decided, with NaN sources_kept.

    Raises
    ------
    ValueError
        If a column is missing, a target has no baseline trial, or `attribution_seconds` is given
        without ``seconds``.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner.plotting import savings_regret_curve_data
    >>> trials = pd.DataFrame({"source": [None, "advice", "weather"], "target": "news"})
    >>> trials = trials.assign(dev=[0.61, 0.66, 0.58], test=[0.60, 0.64, 0.59], seconds=60.0)
    >>> scores = pd.DataFrame({"source": ["advice", "weather"], "target": "news", "score": [2, 1]})
    >>> curve = savings_regret_curve_data(trials, {"ours": scores})
    >>> ours = curve[curve["way"] == "ours"]
    >>> ours[["sources_kept", "share_of_seconds_saved", "share_of_gain_kept"]].round(2)
       sources_kept  share_of_seconds_saved  share_of_gain_kept
    0             0                    0.67                 0.0
    1             1                    0.33                 1.0
    2             2                    0.00                 1.0
    """
    search = _Search(trials, chosen_by, reported, attribution_seconds)
    ways = scores if isinstance(scores, Mapping) else {_name_of(scores): scores}
    rows: list[tuple[Any, ...]] = []
    for way, chosen in ways.items():
        ranks = search.ranks(search.scores(chosen))
        counts: list[float] = list(range(search.most + 1))
        kept = [ranks <= k for k in counts]
        if isinstance(chosen, EliminationRule):
            decisions = [chosen.decide(*pair) for pair in search.pair_keys]
            kept.append(np.array([not decision.eliminated for decision in decisions], dtype=bool))
            counts.append(np.nan)
        rows += [(way, k, *x) for k, x in zip(counts, search.keep(kept), strict=True)]
    names = ["way", "sources_kept", "share_of_seconds_saved", "regret", "share_of_gain_kept"]
    table = pd.DataFrame(rows, columns=names)
    rng = np.random.default_rng(seed)
    drawn = [search.ranks(rng.random(len(search.pairs))) for _ in range(random_repeats)]
    kept = [ranks <= k for ranks in drawn for k in range(search.most + 1)]
    if kept:
        found = search.keep(kept, overhead=0.0)
        k_of = list(range(search.most + 1)) * len(drawn)
        rows = [("random", k, *x) for k, x in zip(k_of, found, strict=True)]
        random = pd.DataFrame(rows, columns=names).groupby(["way", "sources_kept"])
        measures = ["regret", "share_of_gain_kept"]
        low, high = (random[measures].quantile(q).add_suffix(s) for q, s in _BAND)
        table = pd.concat([table, random.mean().join([low, high]).reset_index()])
    return table.assign(seconds_measured=search.seconds_measured).reset_index(drop=True)


def _draw_ways(axes: Axes, data: pd.DataFrame, what: str) -> None:
    random = data[data["way"] == "random"].sort_values("sources_kept")
    x = "share_of_seconds_saved"
    if len(random):
        low, high = random[f"{what}_low"], random[f"{what}_high"]
        band = "random: 90% of draws, and their mean"
        axes.fill_between(random[x], low, high, color="0.8", lw=0, label=band)
        axes.plot(random[x], random[what], ":", color=NEUTRAL, lw=2)
    ways = [way for way in dict.fromkeys(data["way"]) if way != "random"]
    for at, way in enumerate(ways):
        rows, colour = data[data["way"] == way], LINES[at % len(LINES)]
        curve = rows.dropna(subset="sources_kept").sort_values("sources_kept")
        marker = "os^Dv*"[at % 6]
        label = f"{written(way, 48)}, k sources kept".replace("$", r"\$")
        axes.plot(curve[x], curve[what], marker + "-", color=colour, lw=1.8, label=label)
        for row in curve.to_dict("records") if at == 0 else ():
            if row["sources_kept"] in (0, 1, 2, 3, 5, 8, curve["sources_kept"].max()):
                axes.annotate(
                    f"k = {row['sources_kept']:.0f}",
                    (row[x], row[what]),
                    (6, 7),
                    textcoords="offset points",
                    fontsize=10,
                )
        decided = rows[rows["sources_kept"].isna()]
        if len(decided):
            axes.scatter(
                decided[x],
                decided[what],
                s=330,
                marker="*",
                color=colour,
                edgecolors="black",
                zorder=5,
                label="the rule as it decides",
            )


def _name_of(scores: Scores) -> str:
    if isinstance(scores, EliminationRule):
        return "the rule's scores"
    return "scores" if isinstance(scores, pd.DataFrame) else "the predictor"


class _Search:
    """An exhaustive search's trials, ready to be asked what keeping some pairs would have meant."""

    def __init__(
        self, trials: pd.DataFrame, chosen_by: str, reported: str, attribution_seconds: float
    ) -> None:
        self.seconds_measured = "seconds" in trials
        if attribution_seconds and not self.seconds_measured:
            raise ValueError(
                f"attribution_seconds is {attribution_seconds} but trials has no column 'seconds' "
                "to set it against: add the seconds of each trial, or leave it out."
            )
        for parameter, column in (("chosen_by", chosen_by), ("reported", reported)):
            if column not in trials.columns:
                raise ValueError(f"{parameter} is {column!r}, which is no column of trials.")
        self.scored_by = {"chosen_by": chosen_by, "reported": reported}
        sources, targets = pair_columns(trials, *PAIR)
        alone = np.array([is_baseline(*p) for p in zip(sources, targets, strict=True)], dtype=bool)
        trials = trials.assign(source=np.where(alone, targets, sources), target=targets)
        trials = trials.reset_index(drop=True)
        seconds = trials["seconds"] if self.seconds_measured else pd.Series(1.0, trials.index)
        self.total, self.overhead = float(seconds.sum()), attribution_seconds
        pairs = trials[~alone].assign(_seconds=seconds[~alone])
        cost = pairs.groupby(PAIR, sort=False)["_seconds"].sum()
        self.pairs = pairs.drop_duplicates(PAIR, ignore_index=True)
        self.pair_keys = list(zip(self.pairs["source"], self.pairs["target"], strict=True))
        self.cost = cost.loc[self.pair_keys].to_numpy(dtype=float) if len(pairs) else np.zeros(0)
        by_target = self.pairs.groupby("target").size()
        self.most = int(by_target.max()) if len(by_target) else 0
        # Which setting of a pair is chosen depends on no other pair. Sorted, for ties go to the
        # trial that stands first.
        valued = trials[trials[chosen_by].notna()]
        best = trials.loc[sorted(valued.groupby(PAIR)[chosen_by].idxmax())]
        self.best = best[list(dict.fromkeys([*PAIR, chosen_by, reported]))]
        self.attainable = regret(self.best, (), **self.scored_by).attainable

    def scores(self, chosen: Scores) -> FloatArray:
        """Score the pairs; NaN where there is no score."""
        if not isinstance(chosen, (EliminationRule, pd.DataFrame)):
            columns = dict(zip(PAIR, task_columns(chosen), strict=True))
            return np.asarray(chosen.predict(self.pairs.rename(columns=columns)), dtype=float)
        table = chosen.table() if isinstance(chosen, EliminationRule) else chosen
        check_columns(table, (*PAIR, "score"), "EliminationRule.table")
        known = dict(
            zip(zip(*pair_columns(table, *PAIR), strict=True), table["score"], strict=True)
        )
        return np.array([known.get(pair, np.nan) for pair in self.pair_keys], dtype=float)

    def ranks(self, scores: FloatArray) -> FloatArray:
        """Rank the pairs within their target; 0, which is always kept, without a score."""
        table = ranked(self.pairs[PAIR].assign(score=scores))
        table.loc[table["score"].isna(), "rank"] = 0
        ranks = table.set_index(PAIR)["rank"]
        return ranks.loc[self.pair_keys].to_numpy(dtype=float) if len(ranks) else np.zeros(0)

    def keep(
        self, ways: Sequence[NDArray[np.bool_]], overhead: float | None = None
    ) -> Iterator[tuple[float, float, float]]:
        """Say of each set of pairs: share of seconds saved, regret, share of attainable gain kept.

        `regret` is asked once for many sets, the targets of each taken for targets of their own:
        ten times as fast as once for each.
        """
        paid = self.overhead if overhead is None else overhead
        sources = self.best["source"].to_numpy(dtype=object, copy=True)
        sources[self.best["source"] == self.best["target"]] = None
        targets = self.best["target"].to_numpy(dtype=object)
        at_once = max(1, MOST_ROWS // len(self.best))
        for start in range(0, len(ways), at_once):
            some = ways[start : start + at_once]
            many = self.best.iloc[np.tile(np.arange(len(self.best)), len(some))].assign(
                source=np.tile(sources, len(some)),
                target=[f"{way} {target}" for way in range(len(some)) for target in targets],
            )
            kept = {
                (source, f"{way} {target}")
                for way, chosen in enumerate(some)
                for (source, target), keeps in zip(self.pair_keys, chosen, strict=True)
                if keeps
            }
            lost = regret(many.reset_index(drop=True), kept, **self.scored_by).by_target
            way_of = [int(name.partition(" ")[0]) for name in lost.index]
            mean = lost.groupby(way_of).mean().to_numpy(dtype=float)
            for chosen, value in zip(some, mean, strict=True):
                saved = (float(self.cost[~chosen].sum()) - paid) / self.total
                share = 1 - value / self.attainable if self.attainable > 0 else np.nan
                yield saved, float(value), float(share)


def _between_share_and_regret(attainable: float) -> tuple[Any, Any]:
    return lambda share: (1 - share) * attainable, lambda lost: 1 - lost / attainable
