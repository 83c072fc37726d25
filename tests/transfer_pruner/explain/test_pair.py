"""An explanation's numbers are those of the rule, the features and the predictor themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVR

from transfer_pruner import (
    EliminationRule,
    TaskEmbedding,
    TransferPredictor,
    pair_features,
    ranking_trust,
)
from transfer_pruner.explain import explain_pair
from transfer_pruner.explain.explanation import Explanation
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner.plotting.explanation import layer_figure

MakeEmbedding = Callable[..., TaskEmbedding]
Embeddings = dict[str, TaskEmbedding]


def total(explanation: Explanation) -> float:
    return explanation.base + sum(part.contribution for part in explanation.contributions)


def test_the_contributions_add_up_to_the_score_that_the_rule_decided_by(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    rule = EliminationRule.top_k(predictor, k=2)
    for source, target in ordered_pairs(sorted(embeddings)).to_numpy()[::7]:
        explanation = explain_pair(
            source, target, rule=rule, embeddings=embeddings, transfers=transfers
        )
        assert explanation.decision == rule.decide(source, target)
        assert total(explanation) == pytest.approx(explanation.decision.score)
        assert explanation.score == pytest.approx(explanation.decision.score)
        assert len(explanation.contributions) == 7 * 2 + 4
        assert not explanation.notes


@given(seed=st.integers(0, 10_000), n_measured=st.integers(4, 20))
@settings(max_examples=6, deadline=None)
def test_the_contributions_add_up_whatever_was_measured(seed: int, n_measured: int) -> None:
    rng = np.random.default_rng(seed)
    embeddings = {
        name: TaskEmbedding(name, {"hidden": rng.normal(size=3)}) for name in ("a", "b", "c", "d")
    }
    pairs = ordered_pairs([*embeddings, "unseen"])
    measured = pairs.sample(n_measured, random_state=seed)
    measured["gain"] = rng.normal(size=n_measured)
    predictor = TransferPredictor(embeddings).fit(measured, measured["gain"])
    pair = pd.DataFrame({"source": ["a"], "target": ["b"]})
    explanation = explain_pair("a", "b", embeddings=embeddings, transfers=measured)
    assert explanation.score == pytest.approx(float(predictor.predict(pair)[0]))
    assert total(explanation) == pytest.approx(explanation.score)


def test_a_rule_from_attributions_alone_is_taken_apart_layer_by_layer(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=2)
    # Transfers that were measured since do not change what the rule decided by.
    explanation = explain_pair(
        "news", "advice", rule=rule, embeddings=embeddings, transfers=transfers
    )
    assert explanation.decision is not None
    assert total(explanation) == pytest.approx(explanation.decision.score)
    assert {part.feature for part in explanation.contributions} == {
        *("cka[hidden]", "cka[last]", "log source_rank[hidden]", "log source_rank[last]"),
        "change_correlation",
    }
    assert explanation.nearest
    assert not explanation.notes


def forest() -> RandomForestRegressor:
    return RandomForestRegressor(n_estimators=5, random_state=0)


@pytest.mark.parametrize("regressor", [None, forest(), make_pipeline(SimpleImputer(), SVR())])
def test_a_predictor_is_explained_as_it_is(
    regressor: BaseEstimator | None, embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings, regressor=regressor)
    predictor.fit(transfers, transfers["gain"])
    rule = EliminationRule.top_k(predictor, k=2)
    explanation = explain_pair("news", "advice", rule=rule, predictor=predictor)
    assert explanation.decision == rule.decide("news", "advice")
    assert explanation.score == pytest.approx(rule.decide("news", "advice").score, rel=1e-9)
    assert total(explanation) == pytest.approx(explanation.score)
    assert "source_popularity" in {part.feature for part in explanation.contributions}
    assert explanation.layers
    assert explanation.nearest
    assert explanation.measured_gain == pytest.approx(
        transfers.set_index(["source", "target"])["gain"]["news", "advice"]
    )
    assert not explanation.notes


def test_a_predictor_that_is_not_fitted_is_explained_as_it_is(embeddings: Embeddings) -> None:
    # The targets' own embeddings count, and nothing is learnt from transfers measured since.
    few = dict(list(embeddings.items())[:4])
    predictor = TransferPredictor(few, regressor=forest())
    rule = EliminationRule.top_k(predictor, k=1)
    measured = pd.DataFrame({"source": ["news"], "target": ["weather"], "gain": [0.25]})
    explanation = explain_pair("news", "advice", rule=rule, predictor=predictor, transfers=measured)
    assert explanation.score == pytest.approx(rule.decide("news", "advice").score, rel=1e-9)
    assert "change_correlation" in {part.feature for part in explanation.contributions}
    assert [pair.gain for pair in explanation.nearest] == [0.25]
    assert not hasattr(predictor, "measured_")


def test_a_predictors_own_columns_are_explained(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    rng = np.random.default_rng(0)
    table = transfers.rename(columns={"source": "teacher", "target": "pupil"})
    table["logme"] = rng.normal(size=len(table))
    gains = 0.1 * table["logme"] + rng.normal(0, 0.001, len(table))
    names = {"source_column": "teacher", "target_column": "pupil", "feature_columns": ["logme"]}
    predictor = TransferPredictor(embeddings, **names).fit(table, gains)
    row = table.loc[[table["logme"].idxmax()]]
    source, target = row[["teacher", "pupil"]].iloc[0]
    explanation = explain_pair(source, target, predictor=predictor, pairs=table)
    assert explanation.score == predictor.predict(row)[0]
    parts = {part.feature: part for part in explanation.contributions}
    assert parts["logme"].value == row["logme"].item()
    assert max(parts.values(), key=lambda part: abs(part.contribution)).feature == "logme"
    assert explanation.nearest[0].distance < explanation.nearest[-1].distance
    with pytest.raises(ValueError, match="pairs must have the predictor's feature_columns 'logme'"):
        explain_pair("news", "advice", predictor=predictor)


def test_a_predictor_of_transfers_alone_needs_no_embeddings(transfers: pd.DataFrame) -> None:
    predictor = TransferPredictor(regressor=forest()).fit(transfers, transfers["gain"])
    explanation = explain_pair("news", "advice", predictor=predictor)
    assert total(explanation) == pytest.approx(
        predictor.predict(pd.DataFrame({"source": ["news"], "target": ["advice"]}))[0]
    )
    assert explanation.decision is None
    assert len(explanation.nearest) == 5


def test_of_copies_of_one_encoder_the_outputs_are_part_of_what_is_taken_apart(
    make_embedding: MakeEmbedding,
) -> None:
    rng = np.random.default_rng(0)
    weight = np.exp(rng.normal(size=8))
    tasks = {
        name: make_embedding(name, hidden=rng.choice([-1, 1], size=(20, 8)) * weight)
        for name in ("a", "b", "c")
    }
    rule = EliminationRule.top_k(TransferPredictor(tasks), k=1)
    explanation = explain_pair("a", "b", rule=rule, embeddings=tasks)
    assert explanation.decision is not None
    assert total(explanation) == pytest.approx(explanation.decision.score)
    parts = {part.feature: part for part in explanation.contributions}
    changes = parts["change_correlation"]
    assert changes.contribution == pytest.approx(changes.value)
    assert parts["log source_rank[hidden]"].contribution == pytest.approx(0)


def test_tasks_of_different_probes_are_explained_by_cosines(make_embedding: MakeEmbedding) -> None:
    rng = np.random.default_rng(0)
    embeddings = {
        name: make_embedding(name, probe=name, hidden=rng.normal(size=(9, 4))) for name in "abc"
    }
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=1)
    explanation = explain_pair("a", "b", rule=rule, embeddings=embeddings)
    assert [part.feature for part in explanation.contributions] == ["cosine[hidden]"]
    assert explanation.decision is not None
    assert total(explanation) == pytest.approx(explanation.decision.score)
    assert explanation.layers[0].agreement == "cosine"


def test_the_rank_is_the_rules(embeddings: Embeddings) -> None:
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=5)
    ranked = [explain_pair(s, "advice", rule=rule) for s in rule.kept("advice")]
    assert [explanation.rank for explanation in ranked] == [1, 2, 3, 4, 5]
    assert {explanation.candidates for explanation in ranked} == {5}


@pytest.fixture
def planted(make_embedding: MakeEmbedding) -> Embeddings:
    """In the lower layer twin is target; in the upper one it is nothing like it."""
    rng = np.random.default_rng(0)

    def task(name: str, lower: np.ndarray, upper: np.ndarray) -> TaskEmbedding:
        return make_embedding(name, lower=lower, upper=upper)

    lower, upper = rng.normal(size=(2, 30, 5))
    others = {
        name: task(name, rng.normal(size=(30, 5)), upper + rng.normal(size=(30, 5)) / 2)
        for name in ("b", "c", "d")
    }
    apart = np.zeros((30, 5))
    apart[0] = 1
    return {"target": task("target", lower, upper), "twin": task("twin", lower, apart), **others}


def test_layers_are_ranked_among_the_targets_sources(planted: Embeddings) -> None:
    explanation = explain_pair("twin", "target", embeddings=planted)
    lower, upper = explanation.layers
    assert (lower.standings["cka"].rank, lower.standings["cka"].n) == (1, 4)
    assert lower.standings["cka"].value == pytest.approx(1)
    assert upper.standings["cka"].rank == 4
    pairs = pd.DataFrame({"source": ["b", "c", "d"], "target": "target"})
    others = pair_features(pairs, planted)["cka[upper]"]
    drawn = upper.standings["cka"]
    assert (drawn.low, drawn.median, drawn.high) == pytest.approx(
        (others.min(), others.median(), others.max())
    )
    lines = explanation.lines()
    assert "  agree: lower (CKA 1.000)" in lines
    assert any(line.startswith("  differ: upper") for line in lines)


def test_its_figure_has_a_bar_for_each_layer(planted: Embeddings) -> None:
    explanation = explain_pair("twin", "target", embeddings=planted)
    (axes,) = layer_figure(explanation).axes
    bars = [bar.get_width() for bar in axes.containers[1]]
    assert bars == [layer.standings["cka"].value for layer in explanation.layers]
    nothing = layer_figure(Explanation("a", "b"))
    assert "no layer of the two tasks" in nothing.texts[0].get_text()


def test_tokens_are_told_apart_by_which_task_attributes_them() -> None:
    def task(name: str, **tokens: float) -> TaskEmbedding:
        values = np.array(list(tokens.values()))
        vectors = {"hidden": np.ones(2)}
        return TaskEmbedding(name, vectors, {"tokens": values}, {"tokens": list(tokens)})

    tasks = {
        "news": task("news", flood=0.5, help=0.2, the=-0.1, minister=0.3),
        "advice": task("advice", flood=0.25, help=0.75, the=0.5, shelter=-2.0),
    }
    explanation = explain_pair("news", "advice", embeddings=tasks)
    assert [x.token for x in explanation.tokens_shared] == ["flood", "help"]
    assert [x.token for x in explanation.tokens_opposed] == ["the"]
    assert [x.token for x in explanation.tokens_source_only] == ["minister"]
    assert [x.token for x in explanation.tokens_target_only] == ["shelter"]
    lines = explanation.lines()
    assert "  both: flood +0.5/+0.25, help +0.2/+0.75" in lines
    assert "  only advice: shelter -2" in lines


def test_the_nearest_measured_pair_is_that_of_a_twin(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    tasks = embeddings | {"twin": replace(embeddings["news"], name="twin")}
    # Equally popular elsewhere, and measured on advice, where news was not.
    as_twin = transfers[transfers["source"] == "news"].assign(source="twin")
    measured = pd.concat([transfers, as_twin[as_twin["target"] != "news"]])
    measured = measured[(measured["source"] != "news") | (measured["target"] != "advice")]
    explanation = explain_pair("news", "advice", embeddings=tasks, transfers=measured)
    nearest = explanation.nearest[0]
    assert (nearest.source, nearest.target) == ("twin", "advice")
    gains = measured.set_index(["source", "target"])["gain"]
    assert nearest.gain == gains["twin", "advice"]
    assert math.isnan(explanation.measured_gain)
    distances = [pair.distance for pair in explanation.nearest]
    assert distances == sorted(distances)
    assert distances[0] < distances[1] / 1.25


def test_the_pairs_own_measurement_is_named_and_not_counted_as_near(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    again = transfers.assign(gain=transfers["gain"] + 1)
    both = pd.concat([transfers, again], ignore_index=True)
    explanation = explain_pair("news", "advice", embeddings=embeddings, transfers=both)
    own = transfers.set_index(["source", "target"])["gain"]["news", "advice"] + 0.5
    assert explanation.measured_gain == pytest.approx(own)
    assert ("news", "advice") not in [(x.source, x.target) for x in explanation.nearest]


def test_it_tells_how_attributions_alone_have_ranked_what_was_measured(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    explanation = explain_pair("news", "advice", embeddings=embeddings, transfers=transfers)
    assert explanation.trust == ranking_trust(embeddings, transfers)
    assert "attributions alone: predicted and measured gains" in " ".join(explanation.lines())
    alone = explain_pair("news", "advice", embeddings=embeddings, transfers=transfers.iloc[:1])
    assert "attributions alone" not in " ".join(alone.lines())


def test_the_risk_is_told_if_the_rule_was_calibrated(transfers: pd.DataFrame) -> None:
    predictor = TransferPredictor().fit(transfers, transfers["gain"])
    rule = EliminationRule.calibrate(
        predictor, transfers, transfers["gain"], risk=0.2, tolerance=0.01
    )
    told = " ".join(" ".join(explain_pair("news", "advice", rule=rule).lines()).split())
    assert "risk: a target like the 6 that the rule was calibrated on" in told
    assert "by more than 0.01 with probability about 0.2 at most" in told


def test_transfers_alone_explain_by_popularity(transfers: pd.DataFrame) -> None:
    predictor = TransferPredictor().fit(transfers, transfers["gain"])
    rule = EliminationRule.top_k(predictor, k=2)
    explanation = explain_pair("news", "advice", rule=rule, transfers=transfers)
    features = {part.feature for part in explanation.contributions}
    assert features == {"source_popularity", "similar_pairs"}
    assert explanation.decision is not None
    assert total(explanation) == pytest.approx(explanation.decision.score)
    assert explanation.notes == (
        "no embeddings were given: they tell which layers and tokens agree.",
    )


def test_the_targets_own_embeddings_are_compared_with(
    embeddings: Embeddings, make_embedding: MakeEmbedding
) -> None:
    rng = np.random.default_rng(2)
    as_targets = {
        name: make_embedding(name, hidden=rng.normal(size=(20, 8)), last=rng.normal(size=(20, 4)))
        for name in embeddings
    }
    rule = EliminationRule.top_k(TransferPredictor(embeddings, target_embeddings=as_targets), k=1)
    both = {"embeddings": embeddings, "target_embeddings": as_targets}
    explanation = explain_pair("news", "advice", rule=rule, **both)
    pair = pd.DataFrame({"source": ["news"], "target": ["advice"]})
    features = pair_features(pair, embeddings, as_targets).iloc[0]
    assert explanation.layers[0].standings["cka"].value == features["cka[hidden]"]
    assert explanation.decision is not None
    assert total(explanation) == pytest.approx(explanation.decision.score)


def test_tasks_without_a_common_layer_are_said_to_have_none(make_embedding: MakeEmbedding) -> None:
    tasks = {
        "news": make_embedding("news", lower=np.eye(4)),
        "advice": make_embedding("advice", upper=np.eye(4)),
    }
    explanation = explain_pair("news", "advice", embeddings=tasks)
    assert "the embeddings of news and advice have no layer in common." in explanation.notes
    assert (explanation.layers, explanation.contributions) == ((), ())
    assert math.isnan(explanation.score)


def test_what_was_made_from_other_files_is_told(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    rule = EliminationRule.top_k(predictor, k=2)
    others = explain_pair(
        "news", "advice", rule=rule, embeddings=embeddings, transfers=transfers.iloc[:12]
    )
    assert "these files do not give again" in others.notes[-1]
    other = TransferPredictor(embeddings).fit(transfers.iloc[:12], transfers["gain"].iloc[:12])
    by_another = explain_pair("news", "advice", rule=rule, predictor=other)
    assert "the predictor does not give it" in by_another.notes[-1]
    without = explain_pair("news", "advice", rule=rule, embeddings=embeddings)
    assert "it learnt from transfers" in without.notes[-1]


def test_a_pair_that_the_rule_does_not_know_is_kept(embeddings: Embeddings) -> None:
    few = {name: embeddings[name] for name in ("news", "advice", "weather")}
    rule = EliminationRule.top_k(TransferPredictor(few), k=1)
    explanation = explain_pair("rescue", "advice", rule=rule, embeddings=embeddings)
    assert explanation.decision is not None
    assert not explanation.decision.eliminated
    assert explanation.lines()[0] == "rescue -> advice: kept"
    assert explanation.rank is None
    assert not rule.unknown_pairs
    assert explanation.layers[0].standings["cka"].n == 3


def test_bad_questions_stop_early(embeddings: Embeddings) -> None:
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=1)
    with pytest.raises(ValueError, match="pass one of them"):
        explain_pair("news", "advice")
    with pytest.raises(ValueError, match="predictor has embeddings of its own"):
        explain_pair(
            "news", "advice", predictor=TransferPredictor(embeddings), embeddings=embeddings
        )
    with pytest.raises(ValueError, match="single-task baseline"):
        explain_pair("news", "news", rule=rule)
    with pytest.raises(ValueError, match=r"source 'newz' is not in .*rule.*Did you mean 'news'"):
        explain_pair("newz", "advice", rule=rule)
    with pytest.raises(ValueError, match="target 'xylophone' is not in what was given"):
        explain_pair("news", "xylophone", embeddings=embeddings)


@pytest.mark.filterwarnings("ignore:Glyph")
@given(st.text(min_size=1, max_size=120).filter(lambda name: name not in ("b", "c")))
@settings(max_examples=20, deadline=None)
def test_any_name_of_a_task_can_be_written(name: str) -> None:
    rng = np.random.default_rng(0)
    tasks = {task: TaskEmbedding(task, {"hidden": rng.normal(size=3)}) for task in (name, "b", "c")}
    explanation = explain_pair(name, "b", embeddings=tasks)
    assert any("cosine[hidden]" in line for line in explanation.lines())
    layer_figure(explanation).savefig("/dev/null", format="svg")


def test_an_explanation_is_plain_data(embeddings: Embeddings, transfers: pd.DataFrame) -> None:
    rule = EliminationRule.top_k(TransferPredictor(embeddings), k=1)
    explanation = explain_pair(
        "news", "advice", rule=rule, embeddings=embeddings, transfers=transfers
    )
    data = explanation.to_dict()
    assert data["decision"]["score"] == explanation.score
    assert data["layers"][0]["standings"]["cka"]["rank"] >= 1
    assert max(map(len, explanation.lines())) <= 100
