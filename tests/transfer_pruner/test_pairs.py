from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TaskEmbedding, pair_features
from transfer_pruner.pairs import (
    attribution_score,
    attribution_terms,
    copies_of_one_encoder,
    correspondence,
    cosine,
    ordered_pairs,
    pair_columns,
    source_popularity,
)
from transfer_pruner.tasks import is_baseline


def test_features_are_directed_where_they_should_be(embeddings: dict[str, TaskEmbedding]) -> None:
    pairs = pd.DataFrame({"source": ["news", "advice"], "target": ["advice", "news"]})
    there, back = pair_features(pairs, embeddings).to_dict("records")
    for symmetric in ("cosine", "example_cosine", "cka"):
        assert there[f"{symmetric}[hidden]"] == pytest.approx(back[f"{symmetric}[hidden]"])
    assert there["containment[hidden]"] != pytest.approx(back["containment[hidden]"])
    assert there["source_rank[hidden]"] == pytest.approx(back["target_rank[hidden]"])
    assert there["norm_ratio[last]"] == pytest.approx(-back["norm_ratio[last]"])


def test_a_pair_with_an_unknown_task_has_no_features(embeddings: dict[str, TaskEmbedding]) -> None:
    pairs = pd.DataFrame({"source": ["news", "gossip"], "target": ["advice", "news"]}, index=[7, 3])
    features = pair_features(pairs, embeddings)
    assert list(features.index) == [7, 3]
    assert features.loc[7].notna().all()
    assert features.loc[3].isna().all()


def test_attributions_that_are_all_zero_have_no_score(make_embedding: object) -> None:
    rng = np.random.default_rng(0)
    lower, upper, none = rng.normal(size=(20, 8)), rng.normal(size=(20, 4)), np.zeros((20, 4))
    tasks = {
        name: make_embedding(name, **layers)  # type: ignore[operator]
        for name, layers in {
            "whole": {"lower": lower, "upper": upper},
            "half": {"lower": lower[::-1], "upper": none},
            "none": {"lower": np.zeros((20, 8)), "upper": none},
        }.items()
    }
    pairs = ordered_pairs(list(tasks))
    features = pair_features(pairs, tasks)
    silent = (pairs[["source", "target"]] == "none").any(axis=1)
    assert features.loc[silent, "attribution_score"].isna().all()
    # A layer that says something is scored by itself.
    assert features.loc[~silent, "attribution_score"].notna().all()
    assert features.loc[~silent, "cka[upper]"].isna().all()


def test_examples_of_different_probes_are_not_compared(make_embedding: object) -> None:
    rng = np.random.default_rng(0)
    embeddings = {
        "a": make_embedding("a", probe="one", l=rng.normal(size=(9, 4))),  # type: ignore[operator]
        "b": make_embedding("b", probe="two", l=rng.normal(size=(9, 4))),  # type: ignore[operator]
    }
    pairs = pd.DataFrame({"source": ["a"], "target": ["b"]})
    features = pair_features(pairs, embeddings).iloc[0]
    assert np.isnan(features["cka[l]"])
    assert np.isnan(features["change_correlation"])
    assert attribution_score(pairs, embeddings)[0] == pytest.approx(features["cosine[l]"])


def test_models_that_answer_alike_have_correlated_changes(make_embedding: object) -> None:
    rng = np.random.default_rng(0)
    layers = {name: rng.normal(size=(9, 4)) for name in "ab"}
    layers["twice a"] = 2 * layers["a"] + 1
    embeddings = {n: make_embedding(n, l=values) for n, values in layers.items()}  # type: ignore[operator]
    pairs = pd.DataFrame({"source": ["a", "twice a"], "target": ["b", "a"]})
    found = pair_features(pairs, embeddings)["change_correlation"]
    expected = np.corrcoef(layers["a"].sum(axis=1), layers["b"].sum(axis=1))[0, 1]
    assert found.tolist() == pytest.approx([expected, 1], rel=1e-5)


def test_models_of_different_widths_are_compared_by_examples(make_embedding: object) -> None:
    rng = np.random.default_rng(0)
    embeddings = {
        "a": make_embedding("a", l=rng.normal(size=(9, 4))),  # type: ignore[operator]
        "b": make_embedding("b", l=rng.normal(size=(9, 6))),  # type: ignore[operator]
    }
    pairs = pd.DataFrame({"source": ["a"], "target": ["b"]})
    features = pair_features(pairs, embeddings).iloc[0]
    assert np.isnan(features["cosine[l]"])
    assert 0 < features["cka[l]"] < 1
    assert np.isfinite(attribution_score(pairs, embeddings)[0])


def test_a_target_can_have_another_embedding_than_the_source_that_it_would_be(
    make_embedding: object,
) -> None:
    rng = np.random.default_rng(0)
    rich = {n: make_embedding(n, l=rng.normal(size=(9, 4))) for n in "ab"}  # type: ignore[operator]
    few = {n: make_embedding(n, l=rng.normal(size=(9, 4))) for n in "ab"}  # type: ignore[operator]
    pairs = pd.DataFrame({"source": ["a"], "target": ["b"]})
    mixed = pair_features(pairs, rich, few).iloc[0]
    expected = cosine(rich["a"].vectors["l"], few["b"].vectors["l"])
    assert mixed["cosine[l]"] == pytest.approx(expected, rel=1e-5)


def test_the_attribution_score_prefers_alike_and_then_rich_sources(make_embedding: object) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(40, 6))
    alike = target + 0.1 * rng.normal(size=(40, 6))
    one_direction = np.outer(alike[:, 0], np.ones(6))
    tasks = {"t": target, "alike": alike, "poor": one_direction, "noise": rng.normal(size=(40, 6))}
    embeddings = {n: make_embedding(n, l=x) for n, x in tasks.items()}  # type: ignore[operator]
    pairs = pd.DataFrame({"source": ["alike", "poor", "noise"], "target": "t"})
    score = attribution_score(pairs, embeddings)
    assert score[0] == max(score)


def test_popularity_never_looks_at_the_pairs_own_target() -> None:
    measured = pd.DataFrame(
        {
            "source": ["a", "b", "a", "b"],
            "target": ["t", "t", "u", "u"],
            "gain": [0.3, 0.1, 0.0, 0.4],
        }
    )
    sources = np.array(["a", "b", "a", "stranger"], dtype=object)
    targets = np.array(["t", "t", "new", "t"], dtype=object)
    popularity = source_popularity(sources, targets, measured)
    # On u, a is 0.2 below the mean and b 0.2 above; on t, a is 0.1 above.
    np.testing.assert_allclose(popularity[:3], [-0.2, 0.2, (0.1 - 0.2) / 2], atol=1e-12)
    assert np.isnan(popularity[3])


def test_ordered_pairs_hold_both_directions_and_no_task_with_itself() -> None:
    pairs = ordered_pairs(["a", "b", "c"])
    assert len(pairs) == 6
    assert {("a", "b"), ("b", "a")} <= set(pairs.itertuples(index=False, name=None))


@pytest.mark.parametrize("source", [None, "", float("nan"), "t"])
def test_no_source_and_the_target_itself_are_the_baseline(source: object) -> None:
    assert is_baseline(source, "t")
    assert not is_baseline("s", "t")


def test_a_table_without_the_columns_is_refused(embeddings: dict[str, TaskEmbedding]) -> None:
    with pytest.raises(ValueError, match="pairs lacks the column 'target'; it has: source, goal"):
        pair_features(pd.DataFrame({"source": ["a"], "goal": ["b"]}), embeddings)
    with pytest.raises(ValueError, match=r"must be a pandas DataFrame .* but got list"):
        pair_features([("a", "b")], embeddings)  # type: ignore[arg-type]


def copies(make_embedding: object, permuted: bool) -> dict[str, TaskEmbedding]:
    """Tasks whose models weigh the same neurons alike, for or against; permuted: others each."""
    rng = np.random.default_rng(0)
    weight = np.exp(rng.normal(size=40))
    tasks = {}
    for name in "abcdef":
        values = (
            rng.choice([-1, 1], size=(30, 40)) * weight * np.exp(0.3 * rng.normal(size=(30, 40)))
        )
        order = rng.permutation(40) if permuted else slice(None)
        tasks[name] = make_embedding(name, l=values[:, order])  # type: ignore[operator]
    return tasks


def test_neurons_correspond_in_copies_of_one_model_and_not_in_models_of_their_own(
    make_embedding: object,
) -> None:
    assert correspondence("l", copies(make_embedding, permuted=False)) > 0.8
    assert abs(correspondence("l", copies(make_embedding, permuted=True))) < 0.1


def test_correspondence_is_the_mean_correlation_over_ordered_pairs(
    embeddings: dict[str, TaskEmbedding],
) -> None:
    def unit(embedding: TaskEmbedding) -> np.ndarray:
        values = np.abs(embedding.signals["examples/hidden"].astype(float))
        values -= values.mean(axis=1, keepdims=True)
        return (values / np.linalg.norm(values)).ravel()

    found = [
        unit(s) @ unit(t) for s in embeddings.values() for t in embeddings.values() if s is not t
    ]
    assert correspondence("hidden", embeddings) == pytest.approx(np.mean(found))
    alone = {"news": embeddings["news"]}
    assert correspondence("hidden", alone) == 0
    assert correspondence("no such layer", embeddings) == 0


def test_of_copies_of_one_encoder_the_score_asks_whether_their_outputs_change_alike(
    make_embedding: object,
) -> None:
    tasks = copies(make_embedding, permuted=False)
    examples = tasks["a"].signals["examples/l"]
    # CKA and effective rank cannot tell these two sources apart.
    tasks["with"] = make_embedding("with", l=examples)  # type: ignore[operator]
    tasks["against"] = make_embedding("against", l=-examples)  # type: ignore[operator]
    pairs = pd.DataFrame({"source": ["with", "against"], "target": ["a", "a"]})
    along, against = attribution_score(pairs, tasks)
    assert copies_of_one_encoder("l", tasks) == 1
    assert along - against == pytest.approx(2, rel=1e-4)


def test_of_models_on_their_own_the_score_asks_for_rich_sources_instead(
    make_embedding: object,
) -> None:
    tasks = copies(make_embedding, permuted=True)
    weight = copies_of_one_encoder("l", tasks)
    assert weight == pytest.approx(max(2 * correspondence("l", tasks), 0))
    assert weight < 0.2
    pairs = pd.DataFrame({"source": ["b"], "target": ["a"]})
    features = pair_features(pairs, tasks).iloc[0]
    expected = features["cka[l]"] + (1 - weight) * np.log(features["source_rank[l]"])
    expected += weight * features["change_correlation"]
    assert attribution_score(pairs, tasks)[0] == pytest.approx(expected)


def test_embeddings_without_output_changes_are_scored_as_those_of_models_on_their_own(
    make_embedding: object,
) -> None:
    tasks = copies(make_embedding, permuted=False)
    one = tasks["b"]
    signals = {name: x for name, x in one.signals.items() if name != "output_changes"}
    tasks["b"] = TaskEmbedding(one.name, one.vectors, signals, one.provenance)
    assert copies_of_one_encoder("l", tasks) == 0
    pairs = pd.DataFrame({"source": ["b", "c"], "target": ["a", "a"]})
    features = pair_features(pairs, tasks)
    expected = features["cka[l]"] + np.log(features["source_rank[l]"])
    assert attribution_score(pairs, tasks).tolist() == pytest.approx(expected.tolist())


@st.composite
def tasks_of_some_layers(draw: st.DrawFn) -> dict[str, TaskEmbedding]:
    """Tasks with some of three layers, of their own probe or not, with output changes or not."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    probes = draw(st.sampled_from([["one"], ["one", "two"]]))
    tasks = {}
    for name in "abcd":
        layers = draw(st.lists(st.sampled_from(["l", "m", "n"]), unique=True, max_size=3))
        examples = {layer: rng.normal(size=(6, 3)) for layer in layers}
        signals = {f"examples/{layer}": values for layer, values in examples.items()}
        if draw(st.booleans()):
            signals["output_changes"] = rng.normal(size=6)
        vectors = {layer: values.mean(axis=0) for layer, values in examples.items()}
        provenance = {"probe": draw(st.sampled_from(probes))}
        tasks[name] = TaskEmbedding(name, vectors or {"own": [1.0]}, signals, provenance)
    return tasks


@given(tasks_of_some_layers())
@settings(max_examples=40, deadline=None)
def test_the_terms_of_the_score_add_up_to_it(tasks: dict[str, TaskEmbedding]) -> None:
    pairs = ordered_pairs([*tasks, "unknown"])
    score = attribution_score(pairs, tasks)
    terms = attribution_terms(pairs, tasks)
    assert list(terms.index) == list(pairs.index)
    np.testing.assert_array_equal(terms.to_numpy().sum(axis=1), score)
    assert (terms.isna().all(axis=1) == terms.isna().any(axis=1)).all()
    features = pair_features(pairs, tasks)

    def of_layer(layer: str) -> pd.Series:
        if "change_correlation" not in terms:
            return features[f"cosine[{layer}]"]
        copies = copies_of_one_encoder(layer, tasks)
        changes = copies * features["change_correlation"].fillna(0)
        rich = (1 - copies) * np.log(features[f"source_rank[{layer}]"])
        return features[f"cka[{layer}]"] + rich + changes

    layers = dict.fromkeys(layer for task in tasks.values() for layer in task.vectors)
    expected = pd.concat([of_layer(layer) for layer in layers], axis=1).mean(axis=1)
    np.testing.assert_allclose(score, expected)


def test_tasks_in_a_table_are_called_as_embeddings_are(make_embedding: object) -> None:
    rng = np.random.default_rng(0)
    tasks = {n: make_embedding(n, l=rng.normal(size=(9, 4))) for n in ("3", "37")}  # type: ignore[operator]
    (expected,) = attribution_score(pd.DataFrame({"source": ["3"], "target": ["37"]}), tasks)
    for dtype in (int, float, "Int64", object, "category"):
        pairs = pd.DataFrame({"source": [3], "target": [37]}).astype(dtype)
        assert attribution_score(pairs, tasks).tolist() == [expected]
    missing = pd.DataFrame({"source": [3, None, pd.NA, ""], "target": [37, 37, 37, 37]})
    assert pair_columns(missing, "source", "target")[0].tolist() == ["3", None, None, None]
    joint = pd.DataFrame({"source": [("a", "b"), "c"], "target": "t"})
    assert pair_columns(joint, "source", "target")[0].tolist() == [("a", "b"), "c"]
