from __future__ import annotations

import math
import pickle
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.base import BaseEstimator, RegressorMixin

from transfer_pruner import (
    EliminationRule,
    LearningRule,
    TaskEmbedding,
    TransferPredictor,
    TransferPrunerWarning,
)
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.probability import expected_improvement, probability_to_exceed
from transfer_pruner.rule.candidates import Candidates
from transfer_pruner.rule.learnt import decisions

TASKS = [f"t{i:02d}" for i in range(12)]
PAIRS = ordered_pairs(TASKS)


class Failing(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor that cannot be fitted."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Failing:
        raise RuntimeError("out of memory")


def a_world(seed: int = 0) -> pd.DataFrame:
    """Every ordered pair of twelve tasks in random order: good and bad sources, and noise."""
    rng = np.random.default_rng(seed)
    quality = dict(zip(TASKS, rng.permutation(np.linspace(-0.1, 0.1, len(TASKS))), strict=True))
    gains = PAIRS["source"].map(quality) + rng.normal(0, 0.01, len(PAIRS))
    return PAIRS.assign(gain=gains).sample(frac=1, random_state=seed, ignore_index=True)


def n_eliminated(rule: EliminationRule) -> int:
    return int(rule.table()["eliminated"].sum())


def test_before_there_is_evidence_attributions_decide(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    rule = LearningRule(TransferPredictor(embeddings), start=0.6, refit_every=10, min_targets=3)
    by_attributions = EliminationRule.fraction(TransferPredictor(embeddings), 0.6).table()
    by_attributions = by_attributions.drop(columns="priority")
    one_target = transfers[transfers["target"] == "news"]
    few = transfers[:9]
    two_targets = transfers[transfers["target"].isin(["news", "advice"])]
    assert len(two_targets) == 10
    for measured in (None, transfers[:0], one_target, few, two_targets):
        table = rule.refitted(measured).table().drop(columns="priority")
        pd.testing.assert_frame_equal(table, by_attributions)
    assert rule.refitted(transfers).settings["transfers"] == 30


def test_without_embeddings_every_pair_is_kept_at_first() -> None:
    start = LearningRule(TransferPredictor(), pairs=PAIRS).refitted()
    assert len(start) == len(PAIRS)
    assert n_eliminated(start) == 0
    assert start.decide("t00", "t01").reason.startswith("no embeddings, and too few transfers")


@pytest.mark.parametrize("seed", range(3))
def test_more_is_eliminated_as_evidence_grows_and_the_best_stay(seed: int) -> None:
    world = a_world(seed)
    rule = LearningRule(TransferPredictor(), pairs=PAIRS)
    best = world.loc[world.groupby("target")["gain"].idxmax()]
    best_pairs = list(zip(best["source"], best["target"], strict=True))
    eliminated = []
    for n_measured in (0, 40, 60, 100, 132):
        refitted = rule.refitted(world[:n_measured])
        eliminated.append(n_eliminated(refitted))
        assert sum(refitted.decide(*pair).eliminated for pair in best_pairs) <= 1
    # A pair or two may come back as the variances are fitted anew.
    assert (np.diff(eliminated) >= -2).all()
    assert 0 == eliminated[0] < eliminated[1] < eliminated[4]
    assert eliminated[4] > 0.7 * len(PAIRS)


def test_a_pair_must_be_likely_to_exceed_what_the_target_has() -> None:
    world = a_world()
    rule = LearningRule(TransferPredictor(), pairs=PAIRS, min_probability=0.1).refitted(world)
    # Variances are fitted to the first 109 of 132, the last of the fixed counts.
    first = TransferPredictor().fit(world[:109], world["gain"][:109], candidates=PAIRS)
    predictor = TransferPredictor().fit(world, world["gain"], candidates=PAIRS, theta=first.theta_)
    best = PAIRS["target"].map(world.groupby("target")["gain"].max()).to_numpy()
    predicted, std = predictor.predict(PAIRS, return_std=True)
    likely = norm.sf(best, predicted, std) >= 0.1
    gains = PAIRS.merge(world, on=["source", "target"], how="left")["gain"].to_numpy()
    decisions = [rule.decide(*pair) for pair in PAIRS.itertuples(index=False)]
    np.testing.assert_array_equal([d.eliminated for d in decisions], ~likely & (gains != best))
    np.testing.assert_allclose([d.score for d in decisions], predicted)
    np.testing.assert_allclose([d.probability for d in decisions], predictor.predict_proba(PAIRS))
    expected = [
        quad(lambda x, m=m, s=s, b=b: (x - b) * norm.pdf(x, m, s), b, max(m, b) + 12 * s)[0]
        for m, s, b in zip(predicted[::7], std[::7], best[::7], strict=True)
    ]
    np.testing.assert_allclose([d.priority for d in decisions[::7]], expected, atol=1e-6)


def test_where_nothing_helps_the_baseline_is_what_has_to_be_exceeded() -> None:
    world = a_world()
    world["gain"] -= 0.3
    rule = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(world)
    assert n_eliminated(rule) == len(PAIRS)
    reason = rule.decide("t00", "t03").reason
    assert "exceeds the single-task baseline of t03 with probability " in reason
    assert " (below 0.05); learnt from 132 transfers" in reason


def test_a_target_that_is_not_measured_keeps_its_best_scored_source() -> None:
    world = a_world()
    world["gain"] -= 0.3
    measured = world[world["target"] != "t05"]
    rule = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(measured)
    table = rule.table().query("target == 't05'")
    assert rule.kept("t05") == [table.loc[table["score"].idxmax(), "source"]]
    assert rule.kept("t06") == []
    (kept,) = rule.kept("t05")
    assert "rank 1 of 11 for a target not measured yet: kept" in rule.decide(kept, "t05").reason


def test_the_best_measured_pair_is_kept_and_measurements_of_a_pair_are_averaged() -> None:
    world = a_world()
    target = world[world["target"] == "t05"].sort_values("gain")
    worst, best = target["source"].iloc[0], target["source"].iloc[-1]
    # Surprisingly good once and as bad as predicted twice: no more than 0.1 on average.
    lucky = pd.DataFrame({"source": worst, "target": "t05", "gain": [0.5, -0.1, -0.1]})
    world = world[(world["target"] != "t05") | (world["source"] != worst)]
    rule = LearningRule(TransferPredictor(), pairs=PAIRS)
    averaged = rule.refitted(pd.concat([world, lucky.assign(gain=[0.3, -0.1, -0.1])]))
    assert averaged.decide(worst, "t05").eliminated
    assert averaged.decide(best, "t05").reason.startswith("the best of ")
    surprising = rule.refitted(pd.concat([world, lucky[:1]]))
    assert surprising.decide(worst, "t05").reason == (
        "the best of 0.500 measured for t05: kept; learnt from 132 transfers; priority 0"
    )
    assert surprising.kept("t05") == [worst]


def test_a_decision_says_what_it_rests_on() -> None:
    world = a_world()
    best = world[world["target"] == "t03"]["gain"].max()
    rule = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(world)
    decision = next(
        decision
        for decision in (rule.decide(source, "t03") for source in TASKS)
        if decision.eliminated
    )
    assert decision.reason.startswith(
        f"predicted gain {decision.score:.3f}; exceeds the best of {best:.3f} measured for t03 with"
        " probability "
    )
    assert decision.reason.endswith(" (below 0.05); learnt from 132 transfers; priority 0")
    early = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(world[:30])
    first = max((early.decide(source, "t03") for source in TASKS), key=lambda d: d.priority)
    assert f"; priority {first.priority:.2g}" in first.reason
    assert first.priority > 1e-3


def test_equal_transfers_equal_decisions_whatever_was_asked_before(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    asked = LearningRule(TransferPredictor(embeddings))
    for n in (0, 20, 25):
        asked.refitted(transfers[:n])
    fresh = LearningRule(TransferPredictor(embeddings))
    travelled = pickle.loads(pickle.dumps(asked))  # noqa: S301
    prints = {rule.refitted(transfers).fingerprint for rule in (asked, fresh, travelled)}
    assert len(prints) == 1
    assert asked.refitted(transfers[:25]).fingerprint not in prints
    assert not hasattr(asked._predictor, "measured_")


def test_nothing_but_measured_transfers_is_learnt_from() -> None:
    world = a_world()[:60]
    further = pd.DataFrame(
        {
            "source": ["t00", "t01", "t02", None, "t03"],
            "target": ["t05", "t05", "t05", "t05", "t03"],
            "gain": [np.nan, np.inf, -np.inf, 9.0, 9.0],
        }
    )
    rule = LearningRule(TransferPredictor(), pairs=PAIRS)
    more = rule.refitted(pd.concat([world, further]))
    assert more.fingerprint == rule.refitted(world).fingerprint


def test_a_predictor_that_fails_keeps_every_pair_and_warns_once() -> None:
    rule = LearningRule(TransferPredictor(regressor=Failing()), pairs=PAIRS)
    with pytest.warns(TransferPrunerWarning, match="RuntimeError: out of memory") as warned:
        refitted = [rule.refitted(a_world()[:n]) for n in (20, 40, 60)]
    assert len(warned) == 1
    assert [n_eliminated(each) for each in refitted] == [0, 0, 0]
    assert len(refitted[0]) == len(PAIRS)
    assert "every pair is kept" in refitted[0].decide("t00", "t01").reason


def test_unknown_pairs_are_warned_about_once_in_a_search() -> None:
    rule = LearningRule(TransferPredictor(), pairs=PAIRS)
    with pytest.warns(TransferPrunerWarning, match="does not know the pair 'gossip' -> 't00'"):
        assert not rule.refitted().decide("gossip", "t00").eliminated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not rule.refitted(a_world()).decide("t00", "gossip").eliminated
    assert rule.unknown_pairs == {("gossip", "t00"), ("t00", "gossip")}


def test_facts_of_pairs_are_learnt_from() -> None:
    world = a_world()
    rng = np.random.default_rng(1)
    telling = world["gain"] + rng.normal(0, 0.001, len(world))
    pairs = world[["source", "target"]].assign(logme=telling)
    blind = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(world[:30])
    seeing = LearningRule(TransferPredictor(feature_columns=["logme"]), pairs=pairs)
    assert n_eliminated(seeing.refitted(world[:30])) > n_eliminated(blind) + 10
    # A transfers table has a column of that name by chance: the facts are those of pairs.
    by_chance = world[:60].assign(logme=0.0)
    assert seeing.refitted(by_chance).fingerprint == seeing.refitted(world[:60]).fingerprint


def test_it_predicts_what_the_predictor_would_and_is_pickled_without_embeddings(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    rule = LearningRule(TransferPredictor(embeddings), refit_every=10)
    learnt = rule.refitted(transfers).table()
    first = TransferPredictor(embeddings).fit(transfers[:22], transfers["gain"][:22])
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"], theta=first.theta_)
    np.testing.assert_allclose(learnt["score"], predictor.predict(learnt), rtol=1e-9)
    content = pickle.dumps(rule)
    assert b"TaskEmbedding" in pickle.dumps(embeddings)
    assert b"TaskEmbedding" not in content
    again = pickle.loads(content).refitted(transfers)  # noqa: S301
    assert again.fingerprint == rule.refitted(transfers).fingerprint


def test_the_predictors_own_column_names_will_do(embeddings: dict[str, TaskEmbedding]) -> None:
    world = a_world()
    named = TransferPredictor(source_column="aux", target_column="main")
    columns = {"source": "aux", "target": "main"}
    plain = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(world)
    for pairs in (PAIRS, PAIRS.rename(columns=columns)):
        rule = LearningRule(named, pairs=pairs).refitted(world)
        assert rule.fingerprint == plain.fingerprint


@given(st.floats(-1, 1), st.floats(0.01, 1), st.floats(-1, 1))
def test_probability_and_improvement_are_those_of_a_normal_gain(
    gain: float, std: float, best: float
) -> None:
    probability = probability_to_exceed([gain, np.nan], std, best)
    assert probability[0] == pytest.approx(norm.sf(best, gain, std))
    improvement = expected_improvement([gain, np.nan], std, best)
    assert improvement[0] >= max(gain - best, 0) - 1e-12
    assert improvement[0] == pytest.approx(
        (gain - best) * probability[0] + std**2 * norm.pdf(best, gain, std), abs=1e-9
    )
    assert np.isnan([probability[1], improvement[1]]).all()


def test_before_anything_was_measured_pairs_are_in_the_order_of_their_score(
    embeddings: dict[str, TaskEmbedding],
) -> None:
    table = LearningRule(TransferPredictor(embeddings)).refitted().table()
    for _, rows in table.groupby("target"):
        assert rows["score"].rank().tolist() == rows["priority"].rank().tolist()
    blind = LearningRule(TransferPredictor(), pairs=PAIRS).refitted().table()
    assert blind["priority"].nunique() == 1


def test_good_sources_of_a_target_and_little_known_pairs_come_first() -> None:
    world = a_world()
    measured = world[world["target"] != "t05"]
    rule = LearningRule(TransferPredictor(), pairs=PAIRS).refitted(measured)
    table = rule.table().set_index(["source", "target"])["priority"]
    # Nothing was measured of t05: its priorities go by what sources gained elsewhere.
    quality = measured.groupby("source")["gain"].mean().drop("t05")
    assert table[:, "t05"].corr(quality[table[:, "t05"].index], method="spearman") > 0.9
    assert table[:, "t05"].max() > 10 * table[:, "t06"].max()


def test_what_was_gained_over_a_poor_baseline_is_no_improvement() -> None:
    world = a_world()
    # Everything was gained at a setting whose baseline is far below the target's other one.
    scored = world.assign(baseline=0.5, score=world["gain"] + 0.5)
    other = pd.DataFrame([{**scored.iloc[0].to_dict(), "baseline": 0.9, "score": 0.9, "gain": 0.0}])
    target = other["target"].item()
    rule = LearningRule(TransferPredictor(), pairs=PAIRS)
    told = rule.refitted(pd.concat([scored, other], ignore_index=True)).table()
    by_gain = rule.refitted(pd.concat([world, other[["source", "target", "gain"]]])).table()
    of_target = told["target"] == target
    assert (told[of_target]["priority"] < by_gain[of_target]["priority"]).all()
    # Where a target has one baseline, its gains are what they were.
    same = rule.refitted(scored).table()
    pd.testing.assert_frame_equal(same, rule.refitted(world).table())


def test_a_worker_that_only_decides_loads_no_scikit_learn() -> None:
    code = (
        "import sys, transfer_pruner.rule.learning; print({'sklearn', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_bad_parameters_stop_early(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings)
    with pytest.raises(ValueError, match=r"start must be from 0 to below 1 but got 1\.0"):
        LearningRule(predictor, start=1.0)
    with pytest.raises(ValueError, match="min_probability must be from 0 to below 1 but got nan"):
        LearningRule(predictor, min_probability=np.nan)
    with pytest.raises(ValueError, match="refit_every must be a whole number from 1 but got 0"):
        LearningRule(predictor, refit_every=0)
    with pytest.raises(ValueError, match=r"min_targets must be a whole number .* got 2\.5"):
        LearningRule(predictor, min_targets=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least two tasks but knows 0; pass pairs="):
        LearningRule(TransferPredictor())
    with pytest.raises(ValueError, match="pairs lacks 'size', which the predictor's feature_col"):
        LearningRule(TransferPredictor(embeddings, feature_columns=["size"]))
    with pytest.raises(ValueError, match="must not be fitted but learnt from 30 transfers"):
        LearningRule(TransferPredictor(embeddings).fit(transfers, transfers["gain"]))
    with pytest.raises(ValueError, match="predictor must be a TransferPredictor, not fitted, but"):
        LearningRule(EliminationRule({}, {}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transfers lacks the column 'gain'; it has: source, targ"):
        LearningRule(predictor).refitted(transfers[["source", "target"]])
    assert repr(LearningRule(predictor)) == (
        "LearningRule(start=0.25, min_probability=0.05, refit_every=1, min_targets=1)"
    )


def test_a_proxy_score_has_twice_the_weight_of_attributions(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    rule = LearningRule(TransferPredictor(embeddings), start=0.4)
    alone = rule.refitted().table()
    # The sign turned round, so that half of what the proxy scores say is left.
    opposite = alone[["source", "target"]].assign(score=-alone["score"], seconds=0.1)
    even = rule.refine(opposite).refitted()
    both = alone.merge(even.table(), on=["source", "target"])
    for _, rows in both.groupby("target"):
        order = rows["score_x"].rank().tolist()
        assert order == rows["priority_y"].rank(ascending=False).tolist()
    agreeing = rule.refine(opposite.assign(score=alone["score"]))
    for target in sorted(embeddings):
        assert agreeing.refitted().kept(target) == rule.refitted().kept(target)
    assert rule.refine(opposite).scoring_seconds == pytest.approx(3.0)
    assert even.scoring_seconds == pytest.approx(3.0)
    assert agreeing.refitted(transfers).scoring_seconds == pytest.approx(3.0)
    assert (rule.scoring_seconds, rule.refitted().scoring_seconds) == (0, 0)
    # It is pickled to workers, and learns there as here.
    there = pickle.loads(pickle.dumps(agreeing))  # noqa: S301
    assert there.refitted(transfers).fingerprint == agreeing.refitted(transfers).fingerprint
    assert agreeing.refitted(transfers).fingerprint != rule.refitted(transfers).fingerprint


def test_pairs_that_were_looked_at_come_first_and_those_without_a_score_keep_their_place(
    embeddings: dict[str, TaskEmbedding],
) -> None:
    rule = LearningRule(TransferPredictor(embeddings), start=0.0)
    of_news = rule.refitted().kept("news")
    looked = pd.DataFrame({"source": of_news[:2], "target": "news", "score": [0.1, 0.2]})
    refined = rule.refine(looked).refitted()
    assert refined.kept("news") == [*of_news[1::-1], *of_news[2:]]
    assert refined.kept("advice") == rule.refitted().kept("advice")
    unscored = rule.refine(looked.assign(score=[math.nan, 0.2])).refitted()
    assert unscored.fingerprint == rule.refine(looked[1:]).refitted().fingerprint


def test_a_callable_says_the_same_as_a_table_of_its_scores_and_is_asked_source_by_source(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    rule = LearningRule(TransferPredictor(embeddings), start=0.4)
    pairs = ordered_pairs(sorted(embeddings))
    scores = pairs.assign(score=np.random.default_rng(0).normal(size=len(pairs)))
    known = {(s, t): score for s, t, score in scores.itertuples(index=False)}
    asked: list[tuple[str, str]] = []

    def score(source: str, target: str) -> float:
        asked.append((source, target))
        return known[source, target]

    for k in (None, 0, 1, 3, 5, 100):
        asked.clear()
        called, told = rule.refine(score, k), rule.refine(scores, k=k)
        assert asked == sorted(asked)
        assert len({*asked}) == len(asked)
        for target in embeddings:
            # Of all its sources, which `start` may have eliminated, those that come first.
            order = rule.refitted().table().query("target == @target")
            first = order.sort_values("priority", ascending=False)["source"].tolist()[:k]
            assert {s for s, t in asked if t == target} == {*first}
        for measured in (None, transfers):
            again = called.refitted(measured)
            assert again.fingerprint == told.refitted(measured).fingerprint
        if k == 0:
            assert called.refitted(transfers).fingerprint == rule.refitted(transfers).fingerprint


def test_the_sources_that_are_not_scored_keep_their_place_behind_those_that_are(
    embeddings: dict[str, TaskEmbedding],
) -> None:
    rule = LearningRule(TransferPredictor(embeddings), start=0.0)
    of_news = rule.refitted().kept("news")
    turned = {source: float(place) for place, source in enumerate(of_news)}
    refined = rule.refine(lambda source, _: turned.get(source, 0.0), k=2).refitted()
    assert refined.kept("news") == [*of_news[1::-1], *of_news[2:]]


@pytest.mark.parametrize("known", [True, False], ids=["embeddings", "no embeddings"])
def test_a_proxy_score_that_fails_or_says_nothing_costs_its_own_pair_only(
    embeddings: dict[str, TaskEmbedding], known: bool
) -> None:
    pairs = ordered_pairs(sorted(embeddings))
    predictor = TransferPredictor(embeddings) if known else TransferPredictor()
    rule = LearningRule(predictor, pairs=pairs, start=0.4)
    lacking = {("rescue", "news"): math.nan, ("rumour", "news"): math.inf}
    failing = next(pair for pair in pairs.itertuples(index=False, name=None) if "news" not in pair)

    def score(source: str, target: str) -> float:
        if (source, target) == failing:
            raise RuntimeError("no such model")
        return lacking.get((source, target), float(len(source)))

    unscored = {failing, *lacking}
    told = "3 of 30 pairs have no proxy score and keep their place; scoring failed for 1, first .*"
    with pytest.warns(TransferPrunerWarning, match=told + ": no such model") as warned:
        refined = rule.refine(score)
    assert [str(w.filename) for w in warned] == [__file__]
    table = pairs.assign(score=pairs["source"].str.len())
    there = [pair not in unscored for pair in pairs.itertuples(index=False, name=None)]
    assert refined.refitted().fingerprint == rule.refine(table[there]).refitted().fingerprint
    if not known:
        # Nothing is known of them: they are kept.
        assert not any(refined.refitted().decide(*pair).eliminated for pair in unscored)


def test_a_callable_that_always_fails_changes_nothing_and_is_told_of_once() -> None:
    for predictor in (TransferPredictor(), TransferPredictor(feature_columns=["x"])):
        rule = LearningRule(predictor, pairs=PAIRS.assign(x=np.arange(len(PAIRS))), start=0.5)
        with pytest.warns(TransferPrunerWarning, match="132 of 132 .* first 't00' -> 't01': Key"):
            refined = rule.refine(lambda source, target: {}[source])
        for measured in (None, a_world()):
            assert refined.refitted(measured).fingerprint == rule.refitted(measured).fingerprint


def test_a_pair_of_which_nothing_is_known_stays_kept_beside_those_with_a_proxy_score(
    embeddings: dict[str, TaskEmbedding],
) -> None:
    pairs = ordered_pairs([*sorted(embeddings), "gossip"])
    with pytest.warns(TransferPrunerWarning, match="does not know 1 of 7 tasks: 'gossip'"):
        rule = LearningRule(TransferPredictor(embeddings), pairs=pairs, start=0.7)
    assert rule.refitted().decide("gossip", "news").eliminated is False
    scored = pairs[(pairs["source"] != "gossip") & (pairs["target"] != "gossip")]
    refined = rule.refine(scored.assign(score=1.0)).refitted()
    assert refined.decide("gossip", "news").eliminated is False
    assert len(refined.kept("news")) == 3
    # Its proxy score is something to judge it by.
    judged = rule.refine(pairs.assign(score=-1.0 * (pairs["source"] == "gossip"))).refitted()
    assert judged.decide("gossip", "news").eliminated is True
    # The same where there are no embeddings, and a target has no proxy score at all.
    alone = LearningRule(TransferPredictor(), pairs=pairs, start=0.7)
    one = scored[scored["target"] == "news"].assign(score=np.arange(5))
    assert len(alone.refine(one).refitted().kept("advice")) == 6
    assert alone.refine(one).refitted().kept("news")[:2] == [*one["source"]][:2:-1]


def test_what_a_callable_took_is_counted(embeddings: dict[str, TaskEmbedding]) -> None:
    rule = LearningRule(TransferPredictor(embeddings))

    def slow(source: str, _: str) -> float:
        time.sleep(0.002)
        return float(len(source))

    refined = rule.refine(slow, k=2)
    assert refined.scoring_seconds >= 0.002 * 2 * len(embeddings)
    assert refined.refitted().scoring_seconds == refined.scoring_seconds
    table = ordered_pairs(sorted(embeddings)).assign(score=1.0, seconds=0.5)
    # A table was paid for as a whole.
    again = refined.refine(table, k=1)
    assert again.scoring_seconds == pytest.approx(refined.scoring_seconds + 15.0)


def test_measured_facts_need_no_embeddings_beside_a_proxy_score() -> None:
    world = a_world()
    rule = LearningRule(TransferPredictor(), pairs=PAIRS, start=0.5)
    scores = world.rename(columns={"gain": "score"})
    refined = rule.refine(scores)
    assert n_eliminated(rule.refitted()) == 0
    assert n_eliminated(refined.refitted()) == 12 * 5
    best = world.loc[world.groupby("target")["gain"].idxmax()]
    for row in best.itertuples():
        assert refined.refitted().kept(row.target)[0] == row.source


def test_what_are_no_proxy_scores_is_refused(embeddings: dict[str, TaskEmbedding]) -> None:
    rule = LearningRule(TransferPredictor(embeddings))
    with pytest.raises(ValueError, match=r"scores must be a callable .* but got None"):
        rule.refine(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k cannot be negative but got -1"):
        rule.refine(lambda *_: 1.0, -1)
    with pytest.raises(ValueError, match="k must be a whole number, 0 or more, but got 'two'"):
        rule.refine(lambda *_: 1.0, "two")  # type: ignore[arg-type]
    pairs = ordered_pairs(sorted(embeddings))
    with pytest.raises(ValueError, match="lacks the column 'score'"):
        rule.refine(pairs)
    with pytest.raises(ValueError, match="more than once"):
        rule.refine(pd.concat([pairs, pairs]).assign(score=1.0))
    with pytest.raises(ValueError, match="holds no score of any of the rule's 30 pairs"):
        rule.refine(pairs.assign(score=math.nan))
    with pytest.warns(TransferPrunerWarning, match="names 1 of 7 tasks .*: 'gossip'"):
        more = pd.DataFrame({"source": ["gossip"], "target": ["news"]})
        rule.refine(pd.concat([pairs, more]).assign(score=1.0))


def test_reasons_of_very_many_pairs_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    world = a_world()
    world["gain"] -= 0.05
    rule = LearningRule(TransferPredictor(), pairs=PAIRS)
    for measured in (world[:40], world[world["target"] > "t02"], world[:12]):
        learnt = rule.refitted(measured)
        one_by_one = EliminationRule(dict(learnt.decisions), learnt.settings)
        assert len(learnt.decisions.whys) <= 6  # type: ignore[attr-defined]
        assert len(one_by_one.decisions.whys) >= len(learnt.decisions.whys)  # type: ignore[attr-defined]
        assert one_by_one.fingerprint == learnt.fingerprint
        learnt.save(tmp_path)
        copied = pickle.loads(pickle.dumps(learnt))  # noqa: S301
        for other in (one_by_one, EliminationRule.load(tmp_path), copied):
            pd.testing.assert_frame_equal(other.table(), learnt.table())
            assert other.fingerprint == learnt.fingerprint
        refined = learnt.refine(PAIRS.assign(score=np.arange(len(PAIRS))), k=2)
        assert (
            refined.fingerprint
            == one_by_one.refine(PAIRS.assign(score=np.arange(len(PAIRS))), k=2).fingerprint
        )


def test_a_rule_of_very_many_pairs_is_small_and_made_at_once() -> None:
    tasks = [f"task-{i:03}" for i in range(150)]
    pairs = ordered_pairs(tasks).assign(attribution_score=np.linspace(0, 1, 22_350))
    predictor = TransferPredictor(feature_columns=["attribution_score"])
    measured = pairs[::900].assign(gain=np.linspace(-0.1, 0.1, 25))[["source", "target", "gain"]]
    rule = LearningRule(predictor, pairs=pairs)
    # A million pairs would take 20 MB and 300 while the rule is made.
    few = 300_000
    assert len(pickle.dumps(rule)) < 20 * len(pairs) + few
    tracemalloc.start()
    try:
        LearningRule(predictor, pairs=pairs)
        assert tracemalloc.get_traced_memory()[1] < 300 * len(pairs) + few
        tracemalloc.reset_peak()
        assert len(pickle.dumps(rule.refitted(measured))) < 40 * len(pairs)
        # The blocks of the posterior, and what a refit holds of every pair.
        assert tracemalloc.get_traced_memory()[1] < 8e6 + 500 * len(pairs)
    finally:
        tracemalloc.stop()


def test_what_cannot_be_told_of_a_pair_is_kept() -> None:
    candidates = Candidates.of(TransferPredictor(), PAIRS)
    measured = a_world()[:30]
    n = len(PAIRS)
    said = decisions(
        candidates,
        measured,
        np.zeros(30, dtype=int),
        np.full(n, -1.0),
        np.full(n, np.nan),
        np.full(n, np.nan),
        0.05,
    )
    assert not said.columns["eliminated"].any()
