"""Why a pair was eliminated or kept, in terms of what the two tasks' models attribute.

What it must satisfy: every number is that of the rule, the features and the predictor themselves;
whatever cannot be said of a pair is said to be missing, and why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from transfer_pruner.embedding import TaskEmbedding
from transfer_pruner.exceptions import not_found
from transfer_pruner.explain.comparison import compare_layers, compare_tokens
from transfer_pruner.explain.explanation import Explanation
from transfer_pruner.explain.score import contributions_to_score, nearest_measured
from transfer_pruner.pairs import pair_columns, pair_features
from transfer_pruner.predictor import TransferPredictor
from transfer_pruner.rule.decision import Decision
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.ranking import ranked
from transfer_pruner.tasks import is_baseline, task_name
from transfer_pruner.trust import ranking_trust


def explain_pair(
    source: str,
    target: str,
    *,
    rule: EliminationRule | None = None,
    predictor: TransferPredictor | None = None,
    pairs: pd.DataFrame | None = None,
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
    predictor : TransferPredictor, optional
        What scores the pair, fitted or not: its score is taken apart as it is, whatever its
        regressor. Left out, a default one stands in: of `embeddings` and `target_embeddings`, and
        fitted on `transfers` unless the rule's score is that of attributions alone.
    pairs : DataFrame, optional
        Pairs with the predictor's `feature_columns`, as they were given to the rule.
    embeddings, target_embeddings : mapping of str to TaskEmbedding, optional
        As for `TransferPredictor`: what layers, tokens and features are compared by. Those of the
        `predictor`, if there is one.
    transfers : DataFrame, optional
        Measured transfers, columns source, target and gain. Left out, those that the `predictor`
        learnt from.
    n_nearest : int
        How many measured pairs to name.

    Raises
    ------
    ValueError
        If there is nothing to explain the pair by, a task is known to none of it, the two are the
        same, or both a predictor and embeddings are given.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.explain import explain_pair
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> explanation = explain_pair("advice", "news", embeddings=embeddings)
    >>> round(explanation.score, 2), explanation.layers[0].layer
    (0.95, 'last')
    """
    if predictor is not None and (embeddings or target_embeddings):
        raise ValueError(
            "predictor has embeddings of its own: pass it, or embeddings and target_embeddings."
        )
    if rule is None and predictor is None and not embeddings and transfers is None:
        raise ValueError(
            "a pair is explained by a rule, a predictor, embeddings or transfers: pass one of them."
        )
    if is_baseline(source, target):
        raise ValueError(
            f"source is {source!r} and target {target!r}: that is the single-task baseline, which "
            "is never eliminated. Name two tasks."
        )
    source, target = str(task_name(source)), str(task_name(target))
    if predictor is not None:
        embeddings, target_embeddings = predictor.embeddings, predictor.target_embeddings
    embeddings, of_target = embeddings or {}, target_embeddings or embeddings or {}
    if transfers is not None:
        sources, targets = pair_columns(transfers, "source", "target")
        transfers = transfers.assign(source=sources, target=targets)
    elif predictor is not None:
        transfers = getattr(predictor, "measured_", None)
    decided = ranked(rule.table()) if rule is not None else None
    _check_known(source, target, decided, embeddings, of_target, transfers)
    candidates = _sources_of(source, target, decided, embeddings, transfers)
    features = pair_features(candidates, embeddings, of_target)
    explanation: dict[str, Any] = {"source": source, "target": target}
    notes: list[str] = []
    if rule is not None and decided is not None:
        explanation |= _decided(source, target, rule, decided)
    if not embeddings:
        notes.append("no embeddings were given: they tell which layers and tokens agree.")
    for task, known in ((source, embeddings), (target, of_target)):
        if embeddings and task not in known:
            notes.append(f"{task} has no embedding, so its layers and tokens are not compared.")
    explanation["layers"] = compare_layers(features)
    if source in embeddings and target in of_target:
        if not explanation["layers"]:
            notes.append(f"the embeddings of {source} and {target} have no layer in common.")
        explanation |= compare_tokens(embeddings[source], of_target[target])
    if transfers is None:
        notes.append("no transfers were given: they tell the gains of similar measured pairs.")
    else:
        if embeddings:
            explanation["trust"] = ranking_trust(
                embeddings, transfers, target_embeddings=target_embeddings
            )
        own = (transfers["source"] == source) & (transfers["target"] == target)
        explanation["measured_gain"] = float(transfers.loc[own, "gain"].mean())
    decision = explanation.get("decision")
    of_rule = math.nan if decision is None else decision.score
    if predictor is None:
        scoring = _default_predictor(candidates, of_rule, embeddings, target_embeddings, transfers)
    else:
        scoring = predictor
    score = math.nan
    if scoring is not None:
        asked = _with_facts(candidates, scoring, [pairs, transfers])
        score, base, parts = contributions_to_score(scoring, asked)
        explanation |= {"score": score, "base": base, "contributions": parts}
        if transfers is not None:
            measured = transfers[~own].groupby(["source", "target"], as_index=False)["gain"].mean()
            measured = measured[measured["source"] != measured["target"]]
            alike = _with_facts(measured, scoring, [transfers, pairs]).assign(gain=measured["gain"])
            explanation["nearest"] = nearest_measured(scoring, asked.iloc[:1], alike, n_nearest)
    if not (math.isnan(score + of_rule) or math.isclose(of_rule, score, rel_tol=1e-6)):
        learnt = decision is not None and not math.isnan(decision.probability)
        if learnt and transfers is None:
            why = (
                "it learnt from transfers, and the score taken apart here is that of attributions "
                "alone."
            )
        elif predictor is None:
            why = "these files do not give again what it was made from."
        else:
            why = "the predictor does not give it: it was made by another."
        notes.append(f"the rule's score is {of_rule:.4f}: {why}")
    return Explanation(**explanation, notes=tuple(notes))


def _default_predictor(
    pairs: pd.DataFrame,
    of_rule: float,
    embeddings: Mapping[str, TaskEmbedding],
    target_embeddings: Mapping[str, TaskEmbedding] | None,
    transfers: pd.DataFrame | None,
) -> TransferPredictor | None:
    """Make the predictor that a rule was made with, if it was a default one."""
    predictor = TransferPredictor(embeddings or None, target_embeddings=target_embeddings)
    if embeddings:
        by_attribution = float(predictor.predict(pairs.iloc[:1])[0])
        if transfers is None or math.isclose(of_rule, by_attribution, rel_tol=1e-6):
            return predictor
    return None if transfers is None else predictor.fit(transfers, transfers["gain"])


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


def _with_facts(
    pairs: pd.DataFrame, predictor: TransferPredictor, tables: Iterable[pd.DataFrame | None]
) -> pd.DataFrame:
    """Name the columns as a predictor does, and add those that it was given of each pair."""
    names = {"source": predictor.source_column, "target": predictor.target_column}
    asked = pairs[["source", "target"]].rename(columns=names).reset_index(drop=True)
    facts = list(predictor.feature_columns)
    if not facts:
        return asked
    known = []
    for table in tables:
        if table is None or not {*facts} <= {*table}:
            continue
        columns = names.values() if {*names.values()} <= {*table} else names
        tasks = pair_columns(table, *columns)
        known.append(table[facts].set_axis(pd.MultiIndex.from_arrays(tasks)))
    if not known:
        raise ValueError(
            f"pairs must have the predictor's feature_columns {', '.join(map(repr, facts))}: pass "
            "the table of pairs that the rule was made of."
        )
    found = pd.concat(known)
    found = found[~found.index.duplicated()]
    wanted = pd.MultiIndex.from_frame(asked)
    return pd.concat([asked, found.reindex(wanted).reset_index(drop=True)], axis=1)


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
