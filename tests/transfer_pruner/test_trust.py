"""What the first transfers say of the ranking: little at first, and no more than is so."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from transfer_pruner import (
    EliminationRule,
    LearningRule,
    TaskEmbedding,
    TransferPredictor,
    TrialRecord,
    ranking_trust,
)
from transfer_pruner.pairs import attribution_score
from transfer_pruner.trust import trust_of_search


def one_target(scores: list[float], gains: list[float], target: str = "t") -> pd.DataFrame:
    rows = [(f"s{n}", target, s, g) for n, (s, g) in enumerate(zip(scores, gains, strict=True))]
    return pd.DataFrame(rows, columns=["source", "target", "score", "gain"])


def test_of_one_target_it_is_spearmans_correlation() -> None:
    rng = np.random.default_rng(0)
    table = one_target(list(rng.normal(size=12)), list(rng.normal(size=12)))
    trust = ranking_trust(table, table)
    assert trust.correlation == pytest.approx(spearmanr(table["score"], table["gain"]).statistic)
    assert trust.low < trust.correlation < trust.high
    assert (trust.n_pairs, trust.n_targets) == (12, 1)


def test_how_hard_a_target_is_does_not_count() -> None:
    """Scores and gains that differ between targets, and agree within none, are no agreement."""
    easy, hard = (
        one_target([9, 8, 7], [0.1, 0.2, 0.3], "a"),
        one_target([3, 2, 1], [0, 0.01, 0.02], "b"),
    )
    both = pd.concat([easy, hard])
    assert ranking_trust(both, both).correlation == pytest.approx(-1)


def test_gains_of_one_pair_count_once_and_what_was_not_predicted_not_at_all() -> None:
    table = one_target([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])
    repeated = pd.concat([table, table.assign(gain=table["gain"] + 0.001)])
    unknown = pd.DataFrame({"source": ["new", "s1"], "target": ["t", "alone"], "gain": [9.0, 9.0]})
    missing = one_target([1], [math.nan]).assign(source="s9")
    trust = ranking_trust(table, pd.concat([repeated, unknown, missing]))
    assert trust == ranking_trust(table, table)
    assert trust.n_pairs == 5


@pytest.mark.parametrize("gains", [[], [0.3], [0.1, 0.2], [0.1, 0.2, 0.3]])
def test_with_next_to_nothing_measured_nothing_is_said(gains: list[float]) -> None:
    table = one_target(list(range(len(gains))), gains)
    trust = ranking_trust(table, table)
    assert (trust.low, trust.high) == (-1, 1)
    assert "too few" in str(trust) if len(gains) > 1 else "nothing is known" in str(trust)


def test_scores_that_are_all_alike_say_nothing() -> None:
    table = one_target([1] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    trust = ranking_trust(table, table)
    assert math.isnan(trust.correlation)
    assert (trust.low, trust.high) == (-1, 1)
    assert "alike" in str(trust)


@pytest.mark.parametrize(("sign", "verdict"), [(1, "holds here"), (-1, "misleads here")])
def test_it_says_when_the_ranking_holds_and_when_it_misleads(sign: int, verdict: str) -> None:
    values = [float(n) for n in range(10)]
    table = one_target(values, [sign * value + (value % 3) for value in values])
    assert verdict in str(ranking_trust(table, table))


@pytest.mark.parametrize(("n_targets", "n_sources"), [(1, 8), (5, 4)])
@pytest.mark.parametrize("r", [0.0, 0.6])
def test_its_interval_covers_as_often_as_it_says(n_targets: int, n_sources: int, r: float) -> None:
    rng = np.random.default_rng(1)
    # What Spearman's correlation of so few normal variables is on average (Moran 1948).
    asins = math.asin(r) + (n_sources - 2) * math.asin(r / 2)
    truth = 6 / (math.pi * (n_sources + 1)) * asins
    covered = []
    for _ in range(100):
        scores = rng.normal(size=(n_targets, n_sources))
        gains = r * scores + math.sqrt(1 - r * r) * rng.normal(size=scores.shape)
        tables = [
            one_target(list(s), list(g), f"t{n}")
            for n, (s, g) in enumerate(zip(scores, gains, strict=True))
        ]
        table = pd.concat(tables)
        trust = ranking_trust(table, table, level=0.9)
        covered.append(trust.low <= truth <= trust.high)
    assert 0.82 <= np.mean(covered) <= 0.98


def test_embeddings_are_ranked_by_their_attributions() -> None:
    rng = np.random.default_rng(2)
    embeddings = {
        name: TaskEmbedding(name, {"layer": rng.normal(size=6).astype(np.float32)}, {}, {})
        for name in "abcde"
    }
    pairs = pd.DataFrame(list(permutations("abcde", 2)), columns=["source", "target"])
    gains = attribution_score(pairs, embeddings)
    trust = ranking_trust(embeddings, pairs.assign(gain=gains))
    assert trust.correlation == pytest.approx(1)
    assert trust.n_targets == 5


def test_what_is_missing_is_named() -> None:
    table = one_target([1, 2], [1, 2])
    with pytest.raises(ValueError, match="transfers must have the column 'gain'"):
        ranking_trust(table, table.drop(columns="gain"))
    with pytest.raises(ValueError, match="predicted must have the column 'score'"):
        ranking_trust(table.drop(columns="score"), table)
    with pytest.raises(ValueError, match="level must be above 0 and below 1 but got 95"):
        ranking_trust(table, table, level=95)


@pytest.mark.parametrize("maximize", [True, False])
def test_a_searchs_trials_are_held_against_what_ranked_before_them(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame, maximize: bool
) -> None:
    sign = 1 if maximize else -1
    records = [
        TrialRecord(n, None, t, "trained", 1.0, 0.5, maximize=maximize)
        for n, t in enumerate(embeddings)
    ]
    records += [
        TrialRecord(n, s, t, "trained", 1.0, 0.5 + sign * gain, maximize=maximize)
        for n, (s, t, gain) in enumerate(transfers.to_numpy().tolist(), 10)
    ]
    wanted = ranking_trust(embeddings, transfers)
    predictor = TransferPredictor(embeddings)
    learning = LearningRule(predictor)
    for rule in (embeddings, learning, EliminationRule.top_k(predictor, k=2)):
        found = trust_of_search(records, rule)
        assert found is not None
        assert found.correlation == pytest.approx(wanted.correlation)
        assert found.n_pairs == len(transfers)
    # What has learnt from these trials is no prediction of them, and some rules rank nothing.
    assert trust_of_search(records, learning.refitted(transfers)) is None
    pairs = transfers[["source", "target"]]
    assert trust_of_search(records, LearningRule(TransferPredictor(), pairs=pairs)) is None
    nothing = trust_of_search([], embeddings)
    assert nothing is None or nothing.n_pairs == 0
