"""Why a pair was eliminated or kept, in terms of what the two tasks' models attribute.

What it must satisfy: every number is that of the rule, the features and the predictor themselves;
whatever cannot be said of a pair is said to be missing, and why.
"""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.decisions import Decision
from transfer_pruner.embedding import TOKENS, TaskEmbedding
from transfer_pruner.pairs import (
    FloatArray,
    correspondence,
    is_baseline,
    pair_features,
    source_popularity,
)
from transfer_pruner.ranking import ranked
from transfer_pruner.rule import EliminationRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transfer_pruner.predictor import TransferPredictor

POPULARITY = "source_popularity"
_ALIKE = ("cka", "cosine")
_STANDINGS = (*_ALIKE, "example_cosine", "containment", "source_rank")


@dataclass(frozen=True)
class Standing:
    """Where a pair stands in one feature among all sources of its target.

    Attributes
    ----------
    value : float
    rank : int
        1 for the highest value; of `n`.
    n : int
        Sources of the target that have the feature, this one included.
    low, median, high : float
        Of the other sources; NaN if there is none.
    """

    value: float
    rank: int
    n: int
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class LayerComparison:
    """How alike source and target are in one layer.

    Attributes
    ----------
    layer : str
    standings : mapping of str to Standing
        By feature of `pairs.pair_features`; those that cannot be computed are left out.
    """

    layer: str
    standings: Mapping[str, Standing]

    @property
    def agreement(self) -> str | None:
        """The feature that tells how alike the layer is: linear CKA, else the cosine."""
        return next((feature for feature in _ALIKE if feature in self.standings), None)


@dataclass(frozen=True)
class TokenAttribution:
    """A token with its mean attribution in the source's and the target's model; NaN for none."""

    token: str
    source: float
    target: float


@dataclass(frozen=True)
class Contribution:
    """What one feature adds to the score.

    Attributes
    ----------
    feature : str
    value : float
    contribution : float
        In units of the score; all of them and `Explanation.base` add up to it.
    others : float
        Mean contribution of the feature for the target's other sources; NaN if there is none.
    """

    feature: str
    value: float
    contribution: float
    others: float


@dataclass(frozen=True)
class MeasuredPair:
    """A measured pair that the predictor takes for a similar one.

    Attributes
    ----------
    source, target : str
    gain : float
        Mean measured gain.
    distance : float
        Root mean square over the standardised features.
    """

    source: str
    target: str
    gain: float
    distance: float


@dataclass(frozen=True)
class Explanation:
    """Why a pair was eliminated or kept.

    Attributes
    ----------
    source, target : str
    decision : Decision or None
        None without a rule.
    rank, candidates : int or None
        The pair's rank among this many sources of the target.
    settings : mapping
        How the rule was made.
    layers : tuple of LayerComparison
    tokens_shared, tokens_opposed : tuple of TokenAttribution
        Tokens that both attribute, in the same and in opposite directions; the largest first.
    tokens_source_only, tokens_target_only : tuple of TokenAttribution
        Tokens among the largest of one of the two alone.
    contributions : tuple of Contribution
        Those that set the pair most apart from the target's other sources come first.
    base : float
        What the score is before any contribution.
    score : float
        Base and contributions, rebuilt from embeddings and transfers; NaN if that cannot be done.
    measured_gain : float
        Mean over the pair's own measured transfers; NaN if there is none.
    nearest : tuple of MeasuredPair
    notes : tuple of str
        What could not be said, and what it takes.
    """

    source: str
    target: str
    decision: Decision | None = None
    rank: int | None = None
    candidates: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[LayerComparison, ...] = ()
    tokens_shared: tuple[TokenAttribution, ...] = ()
    tokens_opposed: tuple[TokenAttribution, ...] = ()
    tokens_source_only: tuple[TokenAttribution, ...] = ()
    tokens_target_only: tuple[TokenAttribution, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    base: float = math.nan
    score: float = math.nan
    measured_gain: float = math.nan
    nearest: tuple[MeasuredPair, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Turn it into dicts, lists and numbers; NaN stands for what is not known."""
        return asdict(self)

    def lines(self, top: int = 8) -> list[str]:
        """Write it for a person, at most `top` rows of each kind."""
        parts = (
            self._on_decision(),
            self._on_layers(),
            self._on_tokens(top),
            self._on_contributions(top),
            self._on_nearest(top),
            [line for note in self.notes for line in _wrapped(f"note: {note}")],
        )
        return [line for part in parts if part for line in ("", *part)][1:]

    def _on_decision(self) -> list[str]:
        pair = f"{self.source} -> {self.target}"
        measured = (
            []
            if math.isnan(self.measured_gain)
            else [f"  measured: mean gain {self.measured_gain:+.4f}"]
        )
        if self.decision is None:
            return [f"{pair}: no rule was given, so nothing was decided", *measured]
        decision = self.decision
        numbers = []
        if not math.isnan(decision.score):
            numbers.append(f"score {decision.score:.4f}")
        if not math.isnan(decision.probability):
            numbers.append(f"probability of a positive gain {decision.probability:.2f}")
        lines = [f"{pair}: {'eliminated' if decision.eliminated else 'kept'}"]
        lines += _wrapped(decision.reason, "  ")
        if numbers:
            lines.append(f"  {', '.join(numbers)}")
        if "risk" in self.settings:
            lines += _wrapped(self._on_risk(), "  ")
        return lines + measured

    def _on_risk(self) -> str:
        about = "about " if self.settings.get("leave_target_out") else ""
        tolerance = self.settings.get("tolerance", 0.0)
        return (
            f"risk: a target like the {self.settings.get('n_targets', '?')} that the rule was "
            f"calibrated on loses its best source{f' by more than {tolerance:g}' * bool(tolerance)}"
            f" with probability {about}{self.settings['risk']:g} at most"
        )

    def _on_layers(self) -> list[str]:
        alike = [(layer, layer.agreement) for layer in self.layers]
        known = [(layer, layer.standings[name], name) for layer, name in alike if name]
        if not known:
            return []
        names = {"cka": "CKA", "cosine": "cosine", "source_rank": "directions"}
        rows = [["layer", *[text for name in names for text in (names[name], "rank")]]]
        for layer in self.layers:
            row = [layer.layer]
            for name in names:
                at = layer.standings.get(name)
                row += ["", ""] if at is None else [f"{at.value:.3f}", f"{at.rank}/{at.n}"]
            rows.append(row)
        lines = [
            *_wrapped(
                f"layers: {self.source} among the sources of {self.target}; rank 1 is the most "
                "alike; directions: in how many the source's attributions vary"
            ),
            *_columns(rows),
        ]
        agreeing = sorted(known, key=lambda x: (x[1].rank / x[1].n, -x[1].value))
        for what, chosen in (
            ("agree", [x for x in agreeing if 2 * x[1].rank <= x[1].n]),
            ("differ", [x for x in reversed(agreeing) if 2 * x[1].rank > x[1].n]),
        ):
            named = ", ".join(f"{x[0].layer} ({names[x[2]]} {x[1].value:.3f})" for x in chosen[:3])
            more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
            lines.append(f"  {what}: {named or 'none'}{more}")
        return lines

    def _on_tokens(self, top: int) -> list[str]:
        both = [
            (what, ", ".join(f"{x.token}\xa0{x.source:+.2g}/{x.target:+.2g}" for x in tokens[:top]))
            for what, tokens in (
                ("both", self.tokens_shared),
                ("both, in opposite directions", self.tokens_opposed),
            )
        ]
        one = [
            (f"only {self.source}", _listed(self.tokens_source_only[:top], "source")),
            (f"only {self.target}", _listed(self.tokens_target_only[:top], "target")),
        ]
        if not any(text for _, text in both + one):
            return []
        return [
            f"tokens with the largest attributions ({self.source}/{self.target}):",
            *[
                line
                for what, text in both + one
                for line in _wrapped(f"{what}: {text or 'none'}", "  ")
            ],
        ]

    def _on_contributions(self, top: int) -> list[str]:
        if not self.contributions:
            return []
        rows = [["feature", "value", "adds", "others"]]
        for part in self.contributions[:top]:
            others = "" if math.isnan(part.others) else f"{part.others:+.4f}"
            value = "" if math.isnan(part.value) else f"{part.value:.4f}"
            rows.append([part.feature, value, f"{part.contribution:+.4f}", others])
        more = len(self.contributions) - top
        return [
            *_wrapped(
                f"score {self.score:.4f} = {self.base:.4f} + what each feature adds; others: the "
                f"mean of {self.target}'s other sources; what sets the pair apart comes first"
            ),
            *_columns(rows),
            *([f"  and {more} more"] if more > 0 else []),
        ]

    def _on_nearest(self, top: int) -> list[str]:
        if not self.nearest:
            return []
        rows = [["pair", "gain", "distance"]]
        for pair in self.nearest[:top]:
            name = f"{pair.source} -> {pair.target}"
            rows.append([name, f"{pair.gain:+.4f}", f"{pair.distance:.2f}"])
        return ["measured pairs with the most similar features:", *_columns(rows)]


def explain_pair(
    source: str,
    target: str,
    *,
    rule: EliminationRule | None = None,
    embeddings: Mapping[str, TaskEmbedding] | None = None,
    target_embeddings: Mapping[str, TaskEmbedding] | None = None,
    transfers: pd.DataFrame | None = None,
    n_nearest: int = 5,
) -> Explanation:
    """Explain why a pair was eliminated or kept.

    Parameters
    ----------
    source, target : str
    rule : EliminationRule, optional
        It decided; the target's other sources are those that it decided on.
    embeddings, target_embeddings : mapping of str to TaskEmbedding, optional
        As for `TransferPredictor`: what layers, tokens and features are compared by.
    transfers : DataFrame, optional
        Measured transfers, columns source, target and gain: the default `TransferPredictor` is
        fitted on them again. If the rule's score is that of attributions alone, that one is
        explained.
    n_nearest : int
        How many measured pairs to name.

    Raises
    ------
    ValueError
        If there is nothing to explain the pair by, a task is known to none of it, or the two are
        the same.
    """
    if rule is None and not embeddings and transfers is None:
        raise ValueError(
            "a pair is explained by a rule, embeddings or transfers: pass one of them."
        )
    if is_baseline(source, target):
        raise ValueError(
            f"source is {source!r} and target {target!r}: that is the single-task baseline, which "
            "is never eliminated. Name two tasks."
        )
    embeddings, of_target = embeddings or {}, target_embeddings or embeddings or {}
    decided = ranked(rule.table()) if rule is not None else None
    _check_known(source, target, decided, embeddings, of_target, transfers)
    pairs = _sources_of(source, target, decided, embeddings, transfers)
    features = pair_features(pairs, embeddings, of_target)
    explanation: dict[str, Any] = {"source": source, "target": target}
    notes: list[str] = []
    if rule is not None and decided is not None:
        explanation |= _decided(source, target, rule, decided)
    if not embeddings:
        notes.append("no embeddings were given: they tell which layers and tokens agree.")
    for task, known in ((source, embeddings), (target, of_target)):
        if embeddings and task not in known:
            notes.append(f"{task} has no embedding, so its layers and tokens are not compared.")
    explanation["layers"] = _layers(features)
    if not explanation["layers"] and source in embeddings and target in of_target:
        notes.append(f"the embeddings of {source} and {target} have no layer in common.")
    if source in embeddings and target in of_target:
        tokens = _tokens(embeddings[source], of_target[target])
        explanation |= tokens
    decision = explanation.get("decision")
    score, parts, more = _score_parts(
        pairs, features, embeddings, of_target, transfers, decision, n_nearest
    )
    explanation |= {"score": score, **parts}
    notes += more
    if transfers is not None:
        own = transfers[(transfers["source"] == source) & (transfers["target"] == target)]
        explanation["measured_gain"] = float(own["gain"].mean())
    return Explanation(**explanation, notes=tuple(notes))


def layer_figure(explanation: Explanation) -> Figure:
    """Draw how alike the layers are: a bar each, over the range of the target's other sources.

    Parameters
    ----------
    explanation : Explanation
        Of a pair whose two tasks are embedded.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    from transfer_pruner.plotting_style import (
        KEPT,
        NEUTRAL,
        bare,
        new_figure,
        say_why_empty,
        written,
    )

    named = [(layer.layer, layer.agreement, layer) for layer in explanation.layers]
    drawn = [(name, layer.standings[how]) for name, how, layer in named if how is not None]
    figure = new_figure(height=1.8 + 0.4 * len(drawn))
    axes = figure.subplots()
    title = f"{written(explanation.source)} -> {written(explanation.target)}"
    if not drawn:
        return say_why_empty(figure, axes, f"{title}: no layer of the two tasks can be compared")
    places = np.arange(len(drawn))[::-1]
    standings = [at for _, at in drawn]
    low, high = np.array([[at.low, at.high] for at in standings]).T
    others = "the target's other sources, lowest to highest"
    axes.barh(places, high - low, left=low, height=0.8, color="0.85", label=others)
    axes.barh(places, [at.value for at in standings], color=KEPT, height=0.35, label="this pair")
    medians = [at.median for at in standings]
    axes.plot(medians, places, "|", color=NEUTRAL, ms=24, mew=2, label="their median", zorder=3)
    axes.set_yticks(places, [written(name) for name, _ in drawn], parse_math=False)
    measures = " or ".join(dict.fromkeys(str(how) for _, how, _ in named if how))
    axes.set_xlabel(f"agreement of attributions ({measures.replace('cka', 'linear CKA')})")
    decision = explanation.decision
    said = "" if decision is None else f": {'eliminated' if decision.eliminated else 'kept'}"
    axes.set_title(f"{title}{said}", parse_math=False, loc="left")
    bare(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def not_found(what: str, name: str, where: str, known: Iterable[str], longest: int = 12) -> str:
    """Say that a name is not there, which one may be meant, and which there are."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    there = ", ".join(names[:longest]) or "none"
    return f"{what} {name!r} is not in {where}; it has: {there}{more}.{meant}"


def _check_known(
    source: str,
    target: str,
    decided: pd.DataFrame | None,
    embeddings: Mapping[str, TaskEmbedding],
    of_target: Mapping[str, TaskEmbedding],
    transfers: pd.DataFrame | None,
) -> None:
    tables = [table for table in (decided, transfers) if table is not None]
    given = {
        "rule": decided is not None,
        "embeddings": bool(embeddings),
        "transfers": transfers is not None,
    }
    where = f"what was given ({', '.join(what for what, is_there in given.items() if is_there)})"
    for name, task, embedded in (("source", source, embeddings), ("target", target, of_target)):
        known = {*embedded, *(x for t in tables for side in ("source", "target") for x in t[side])}
        if task not in known:
            raise ValueError(not_found(name, task, where, known))


def _sources_of(
    source: str,
    target: str,
    decided: pd.DataFrame | None,
    embeddings: Mapping[str, TaskEmbedding],
    transfers: pd.DataFrame | None,
) -> pd.DataFrame:
    """List the pair first and then the target's other sources."""
    if decided is not None and (decided["target"] == target).any():
        others = decided.loc[decided["target"] == target, "source"]
    elif embeddings:
        others = pd.Series(sorted(embeddings), dtype=object)
    elif transfers is not None:
        others = transfers.loc[transfers["target"] == target, "source"]
    else:
        others = pd.Series(dtype=object)
    names = [source, *(x for x in dict.fromkeys(others) if not is_baseline(x, target))]
    return pd.DataFrame({"source": list(dict.fromkeys(names)), "target": target}, dtype=object)


def _decided(
    source: str, target: str, rule: EliminationRule, decided: pd.DataFrame
) -> dict[str, Any]:
    row = decided[(decided["source"] == source) & (decided["target"] == target)]
    if row.empty:
        # Asked without the rule, which would warn of what is said here anyway.
        unknown = Decision(False, math.nan, math.nan, "the rule does not know the pair: kept")
        return {"decision": unknown, "settings": rule.settings}
    return {
        "decision": rule.decide(source, target),
        "rank": int(row["rank"].iloc[0]),
        "candidates": int(row["candidates"].iloc[0]),
        "settings": rule.settings,
    }


def _layers(features: pd.DataFrame) -> tuple[LayerComparison, ...]:
    layers: dict[str, dict[str, Standing]] = {}
    for column in features.columns:
        name, bracket, layer = str(column).partition("[")
        values = features[column].to_numpy(dtype=float)
        if not bracket or name not in _STANDINGS or math.isnan(values[0]):
            continue
        others = values[1:][~np.isnan(values[1:])]
        spread = np.quantile(others, [0, 0.5, 1]) if len(others) else np.full(3, np.nan)
        layers.setdefault(layer[:-1], {})[name] = Standing(
            float(values[0]),
            1 + int((others > values[0]).sum()),
            1 + len(others),
            *map(float, spread),
        )
    return tuple(LayerComparison(layer, standings) for layer, standings in layers.items())


def _tokens(
    source: TaskEmbedding, target: TaskEmbedding
) -> dict[str, tuple[TokenAttribution, ...]]:
    of_source, of_target = _token_attributions(source), _token_attributions(target)
    tokens = [
        TokenAttribution(token, of_source.get(token, math.nan), of_target.get(token, math.nan))
        for token in {**of_source, **of_target}
    ]

    def chosen(
        by: Sequence[TokenAttribution],
        size: Any = lambda x: np.nanmax(np.abs([x.source, x.target])),
    ) -> tuple[TokenAttribution, ...]:
        return tuple(sorted(by, key=lambda x: (-float(size(x)), x.token)))

    def smaller(x: TokenAttribution) -> float:
        return min(abs(x.source), abs(x.target))

    return {
        "tokens_shared": chosen([x for x in tokens if x.source * x.target > 0], smaller),
        "tokens_opposed": chosen([x for x in tokens if x.source * x.target < 0], smaller),
        "tokens_source_only": chosen([x for x in tokens if math.isnan(x.target)]),
        "tokens_target_only": chosen([x for x in tokens if math.isnan(x.source)]),
    }


def _token_attributions(embedding: TaskEmbedding) -> dict[str, float]:
    tokens: Sequence[str] = embedding.provenance.get("tokens", ())
    values = embedding.signals.get(TOKENS, np.zeros(0))
    return dict(zip(tokens, values.tolist(), strict=False))


def _score_parts(
    pairs: pd.DataFrame,
    features: pd.DataFrame,
    embeddings: Mapping[str, TaskEmbedding],
    of_target: Mapping[str, TaskEmbedding],
    transfers: pd.DataFrame | None,
    decision: Decision | None,
    n_nearest: int,
) -> tuple[float, dict[str, Any], list[str]]:
    """Take apart the score that the rule decided by, or else the best that can be rebuilt."""
    notes: list[str] = []
    by_attribution = _attribution_parts(features, embeddings, of_target)
    score, parts = float(features["attribution_score"].iloc[0]), by_attribution
    of_rule = math.nan if decision is None else decision.score
    base = 0.0
    nearest: tuple[MeasuredPair, ...] = ()
    if transfers is None:
        notes.append("no transfers were given: they tell the gains of similar measured pairs.")
    else:
        from transfer_pruner.predictor import TransferPredictor

        predictor = TransferPredictor(embeddings or None, target_embeddings=of_target or None)
        predictor.fit(transfers, transfers["gain"])
        x, scaled = _standardised(predictor, pairs, features)
        nearest = _nearest(predictor, embeddings, of_target, pairs, scaled[0], n_nearest)
        if not math.isclose(of_rule, score, rel_tol=1e-6):
            weighted = scaled * predictor.regressor_[-1].coef_
            score = float(predictor.predict(pairs.iloc[:1])[0])
            base = score - float(weighted[0].sum())
            names = [*(features.columns if embeddings else ()), POPULARITY]
            parts = _contributions(names, x, weighted)
    if math.isnan(score):
        parts, base = (), math.nan
    if not (math.isnan(score + of_rule) or math.isclose(of_rule, score, rel_tol=1e-6)):
        learnt = decision is not None and not math.isnan(decision.probability)
        notes.append(
            f"the rule's score is {of_rule:.4f}: it learnt from transfers, and the score taken "
            "apart here is that of attributions alone."
            if learnt and transfers is None
            else f"the rule's score is {of_rule:.4f}, which these files do not give again: it was "
            "made from others."
        )
    return score, {"contributions": parts, "base": base, "nearest": nearest}, notes


def _attribution_parts(
    features: pd.DataFrame,
    embeddings: Mapping[str, TaskEmbedding],
    of_target: Mapping[str, TaskEmbedding],
) -> tuple[Contribution, ...]:
    """Split `pairs.attribution_score`, a mean over layers, into its terms."""
    columns = [str(column) for column in features.columns]
    alike, rich, along = (
        [column for column in columns if column.startswith(f"{feature}[")]
        for feature in ("cka", "source_rank", "example_cosine")
    )
    values = features[alike + rich + along].to_numpy(dtype=float)
    of_cka, of_rank, of_cosine = np.split(values, 3, axis=1)
    weight = [
        max(correspondence(column[len("cka[") : -1], embeddings, of_target or None), 0.0)
        for column in alike
    ]
    terms = np.hstack([of_cka, np.log(of_rank), np.nan_to_num(of_cosine) * weight])
    # A layer counts where the first two of its terms are there.
    there = ~np.isnan(of_cka + of_rank)
    names = [*alike, *(f"log {column}" for column in rich), *along]
    weights = np.hstack([there] * 3) / np.maximum(there.sum(axis=1, keepdims=True), 1)
    total = np.nansum(terms * weights, axis=1)
    if not len(alike) or not np.isclose(total[0], features["attribution_score"].iloc[0]):
        # Tasks of different probes: then the score is the mean cosine.
        names = [column for column in columns if column.startswith("cosine[")]
        values = terms = features[names].to_numpy(dtype=float)
        there = ~np.isnan(terms)
        weights = there / np.maximum(there.sum(axis=1, keepdims=True), 1)
    return _contributions(names, values, np.nan_to_num(terms) * weights)


def _contributions(
    names: Sequence[str], values: FloatArray, weighted: FloatArray
) -> tuple[Contribution, ...]:
    others = weighted[1:].mean(axis=0) if len(weighted) > 1 else np.full(len(names), np.nan)
    parts = [
        Contribution(name, float(value), float(adds), float(other))
        for name, value, adds, other in zip(names, values[0], weighted[0], others, strict=True)
    ]

    def apart(part: Contribution) -> float:
        return abs(part.contribution - (0.0 if math.isnan(part.others) else part.others))

    return tuple(sorted(parts, key=lambda part: (-apart(part), part.feature)))


def _standardised(
    predictor: TransferPredictor, pairs: pd.DataFrame, features: pd.DataFrame
) -> tuple[FloatArray, FloatArray]:
    """Compute the features as the ridge takes them: raw, and imputed and standardised."""
    popularity = source_popularity(
        pairs["source"].to_numpy(), pairs["target"].to_numpy(), predictor.measured_
    )
    known = features.to_numpy(dtype=float) if predictor.embeddings else np.empty((len(pairs), 0))
    x = np.column_stack([known, popularity])
    return x, np.asarray(predictor.regressor_[:-1].transform(x), dtype=float)


def _nearest(
    predictor: TransferPredictor,
    embeddings: Mapping[str, TaskEmbedding],
    of_target: Mapping[str, TaskEmbedding],
    pairs: pd.DataFrame,
    scaled: FloatArray,
    n: int,
) -> tuple[MeasuredPair, ...]:
    measured = predictor.measured_.groupby(["source", "target"], as_index=False)["gain"].mean()
    source, target = pairs.iloc[0]
    measured = measured[(measured["source"] != source) | (measured["target"] != target)]
    if measured.empty:
        return ()
    features = pair_features(measured, embeddings, of_target)
    _, theirs = _standardised(predictor, measured, features)
    distances = np.sqrt(((theirs - scaled) ** 2).mean(axis=1))
    nearest = measured.assign(distance=distances).sort_values(["distance", "source", "target"])
    rows = nearest.head(n).itertuples(index=False, name=None)
    return tuple(MeasuredPair(s, t, float(gain), float(far)) for s, t, gain, far in rows)


def _listed(tokens: Sequence[TokenAttribution], side: str) -> str:
    return ", ".join(f"{x.token}\xa0{getattr(x, side):+.2g}" for x in tokens)


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Break a line for a terminal of 100 columns, but no word, and none from its number."""
    lines = textwrap.wrap(
        text,
        98,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align a table: its first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
