"""Why a pair was eliminated or kept, in terms of what the two tasks' models attribute.

What it must satisfy: every number is that of the rule, the features and the predictor themselves;
whatever cannot be said of a pair is said to be missing, and why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from transfer_pruner.correspondence import copies_of_one_encoder
from transfer_pruner.embedding import TOKENS, TaskEmbedding
from transfer_pruner.exceptions import not_found
from transfer_pruner.explain.explanation import (
    Contribution,
    Explanation,
    LayerComparison,
    MeasuredPair,
    Standing,
    TokenAttribution,
)
from transfer_pruner.pairs import pair_features, source_popularity
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.ranking import ranked
from transfer_pruner.tasks import FloatArray, is_baseline

if TYPE_CHECKING:
    from transfer_pruner.predictor import TransferPredictor

POPULARITY = "source_popularity"
_STANDINGS = ("cka", "cosine", "example_cosine", "containment", "source_rank")


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
    alike, rich = (
        [column for column in columns if column.startswith(f"{feature}[")]
        for feature in ("cka", "source_rank")
    )
    of_cka, of_rank = (features[names].to_numpy(dtype=float) for names in (alike, rich))
    changes = features[["change_correlation"]].to_numpy(dtype=float)
    layers = [column[len("cka[") : -1] for column in alike]
    copies = np.array(
        [copies_of_one_encoder(layer, embeddings, of_target or None) for layer in layers]
    )
    # A layer counts where both of its terms are there.
    there = ~np.isnan(of_cka + of_rank)
    share = there / np.maximum(there.sum(axis=1, keepdims=True), 1)
    values = np.hstack([of_cka, of_rank, changes])
    weights = np.hstack([share, share * (1 - copies), share @ copies[:, None]])
    terms = np.hstack([of_cka, np.log(of_rank), np.nan_to_num(changes)])
    names = [*alike, *(f"log {column}" for column in rich), "change_correlation"]
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
