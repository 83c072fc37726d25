"""The nearest sources against brute force over all pairs, and the memory that it takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TaskEmbedding, pair_features
from transfer_pruner.nearest import top_sources
from transfer_pruner.pairs import ordered_pairs


def random_tasks(n: int, widths: tuple[int, ...], seed: int = 0) -> dict[str, TaskEmbedding]:
    rng = np.random.default_rng(seed)
    names = [f"task-{i}" for i in rng.permutation(n)]
    return {
        name: TaskEmbedding(name, {f"layer-{w}": rng.normal(size=w) for w in widths})
        for name in names
    }


def brute_force(
    embeddings: dict[str, TaskEmbedding], k: int, targets: list[str] | None = None
) -> pd.DataFrame:
    pairs = ordered_pairs(list(embeddings))
    features = pair_features(pairs, embeddings)
    cosines = features[[c for c in features.columns if c.startswith("cosine[")]]
    pairs["score"] = cosines.mean(axis=1).round(6)
    order = {name: i for i, name in enumerate(targets or embeddings)}
    pairs = pairs[pairs["target"].isin(list(order))]
    pairs = pairs.sort_values(["score", "source"], ascending=[False, True])
    pairs = pairs.sort_values("target", key=lambda names: names.map(order), kind="stable")
    return pairs.groupby("target", sort=False).head(k).reset_index(drop=True)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 25),
    widths=st.sampled_from([(5,), (3, 8), (1, 2, 16)]),
    k=st.integers(1, 6),
    block=st.integers(1, 30),
    seed=st.integers(0, 2**16),
)
def test_the_k_best_are_those_of_brute_force_over_all_pairs(
    n: int, widths: tuple[int, ...], k: int, block: int, seed: int
) -> None:
    embeddings = random_tasks(n, widths, seed)
    found = top_sources(embeddings, k, block=block)
    expected = brute_force(embeddings, k)
    assert found["target"].tolist() == expected["target"].tolist()
    # A score that lies on the edge of the sixth decimal may be rounded to either side.
    assert found["score"].to_numpy() == pytest.approx(expected["score"].to_numpy(), abs=2e-6)
    exact = brute_force(embeddings, n).set_index(["target", "source"])["score"]
    of_found = exact[list(zip(found["target"], found["source"], strict=True))].to_numpy()
    assert found["score"].to_numpy() == pytest.approx(of_found, abs=2e-6)
    assert found["rank"].tolist() == [1 + i for _ in range(n) for i in range(min(k, n - 1))]


def test_many_tasks_in_many_blocks_are_ranked_as_brute_force_ranks_them() -> None:
    embeddings = random_tasks(150, (24, 8))
    found = top_sources(embeddings, 7, block=16)
    pd.testing.assert_frame_equal(found[["source", "target", "score"]], brute_force(embeddings, 7))


def test_only_the_targets_that_were_asked_for_are_answered_in_their_order() -> None:
    embeddings = random_tasks(30, (6,))
    found = top_sources(embeddings, 3, targets=iter(["task-9", "task-2", "task-9"]), block=7)
    expected = brute_force(embeddings, 3, ["task-9", "task-2"])
    pd.testing.assert_frame_equal(found[["source", "target", "score"]], expected)
    assert len(top_sources(embeddings, targets=[])) == 0


def test_an_iterable_of_embeddings_gives_the_same_as_a_mapping() -> None:
    embeddings = random_tasks(20, (6, 2))
    pd.testing.assert_frame_equal(
        top_sources(iter(embeddings.values()), 4), top_sources(embeddings, 4)
    )


def test_a_mapping_names_the_tasks_as_it_does_for_pair_features() -> None:
    embedding = TaskEmbedding("anything", {"hidden": np.ones(3)})
    found = top_sources({"news": embedding, "advice": embedding})
    assert found[["target", "source"]].values.tolist() == [["news", "advice"], ["advice", "news"]]


@pytest.mark.parametrize("block", [1, 7, 64, 1024])
def test_copies_of_a_task_tie_and_are_sorted_by_name_however_many_there_are(block: int) -> None:
    rng = np.random.default_rng(0)
    vector, other = rng.normal(size=(2, 48))
    order = [f"copy-{i:03d}" for i in rng.permutation(120)]
    embeddings = {
        name: TaskEmbedding(name, {"hidden": (1 + i) * vector}) for i, name in enumerate(order)
    }
    embeddings["other"] = TaskEmbedding("other", {"hidden": other})
    found = top_sources(embeddings, 3, block=block)
    of = {name: rows["source"].tolist() for name, rows in found.groupby("target")}
    assert of["copy-050"] == ["copy-000", "copy-001", "copy-002"]
    assert of["copy-001"] == ["copy-000", "copy-002", "copy-003"]
    assert of["other"] == ["copy-000", "copy-001", "copy-002"]
    assert (found.loc[found["target"] != "other", "score"] == 1).all()


def test_the_answer_does_not_depend_on_the_block() -> None:
    embeddings = random_tasks(90, (33,))
    expected = top_sources(embeddings, 5)
    for block in (1, 13, 89, 90):
        pd.testing.assert_frame_equal(top_sources(embeddings, 5, block=block), expected)


def test_a_task_is_never_its_own_source_even_as_the_only_candidate_left() -> None:
    embeddings = random_tasks(6, (4,))
    opposite = {
        n: TaskEmbedding(n, {"layer-4": -e.vectors["layer-4"]}) for n, e in embeddings.items()
    }
    both = embeddings | {f"not-{name}": embedding for name, embedding in opposite.items()}
    found = top_sources(both, 100)
    assert len(found) == 12 * 11
    assert (found["target"] != found["source"]).all()
    assert not found.duplicated(["target", "source"]).any()
    assert found.loc[found["rank"] == 11, "score"].tolist() == [-1.0] * 12


def test_a_single_task_has_no_source() -> None:
    found = top_sources(random_tasks(1, (4,)))
    assert found.columns.tolist() == ["target", "source", "rank", "score"]
    assert len(found) == 0


def test_a_task_whose_attributions_are_zero_is_neither_near_nor_far() -> None:
    embeddings = random_tasks(4, (4,)) | {"mute": TaskEmbedding("mute", {"layer-4": np.zeros(4)})}
    found = top_sources(embeddings)
    assert found.loc[found["source"] == "mute", "score"].tolist() == [0] * 4
    assert not np.signbit(found.loc[found["source"] == "mute", "score"]).any()


def test_memory_stays_far_below_a_matrix_of_all_tasks_by_all_tasks() -> None:
    n, width = 5000, 64

    def tasks() -> Iterator[TaskEmbedding]:
        rng = np.random.default_rng(0)
        for i in range(n):
            yield TaskEmbedding(f"task-{i}", {"hidden": rng.normal(size=width)})

    tracemalloc.start()
    try:
        found = top_sources(tasks(), k=5, block=256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 5 * n
    assert peak < n * n * 4 / 10


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"hidden": 3}, "layer 'last' has no vector in task 'news' and 2 numbers in task 'advice'"),
        ({"hidden": 4, "last": 2}, "layer 'hidden' has 4 numbers in task 'news' and 3 numbers in"),
        ({"hidden": 3, "last": 2, "top": 1}, "layer 'top' has 1 numbers in task 'news' and no vec"),
    ],
)
def test_tasks_of_other_layers_are_refused_by_name(layers: dict[str, int], message: str) -> None:
    first = TaskEmbedding("advice", {"hidden": np.ones(3), "last": np.ones(2)})
    second = TaskEmbedding("news", {layer: np.ones(width) for layer, width in layers.items()})
    with pytest.raises(ValueError, match=message):
        top_sources([first, second])


def test_layers_in_another_order_are_the_same_layers() -> None:
    first = TaskEmbedding("advice", {"hidden": np.ones(3), "last": np.ones(2)})
    second = TaskEmbedding("news", {"last": np.ones(2), "hidden": np.ones(3)})
    assert top_sources([first, second])["score"].tolist() == [1, 1]


def test_bad_parameters_are_refused_with_advice() -> None:
    embeddings = random_tasks(3, (4,))
    for k in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"k must be a whole number from 1 up but got {k}"):
            top_sources(embeddings, k)
    with pytest.raises(ValueError, match="block must be a whole number from 1 up but got 0"):
        top_sources(embeddings, block=0)
    with pytest.raises(ValueError, match=r"targets holds 1 tasks .* such as 'tax': embed them"):
        top_sources(embeddings, targets=["task-0", "tax"])
    with pytest.raises(ValueError, match="embeddings must hold at least one task"):
        top_sources([])
    with pytest.raises(ValueError, match="embeddings hold the task 'task-0' more than once"):
        top_sources([embeddings["task-0"]] * 2)
