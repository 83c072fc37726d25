from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from transfer_pruner import (
    TaskEmbedding,
    TransferPrunerWarning,
    load_embeddings,
    save_embeddings,
)
from transfer_pruner.embedding import embedding_file

finite = st.floats(-1e6, 1e6, width=32)
vectors = st.dictionaries(
    st.text(min_size=1), arrays(np.float32, array_shapes(max_dims=1), elements=finite), min_size=1
)


def same(a: TaskEmbedding, b: TaskEmbedding) -> bool:
    return (
        a.fingerprint == b.fingerprint
        and a.layers == b.layers
        and dict(a.provenance) == dict(b.provenance)
    )


# On a busy machine the first draw takes a second.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(min_size=1, max_size=40), vectors)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, name: str, vectors: dict[str, np.ndarray]
) -> None:
    embedding = TaskEmbedding(name, vectors, {"spread": np.zeros((2, 3))}, {"n_probe": 7})
    folder = tmp_path_factory.mktemp("embeddings")
    save_embeddings([embedding], folder)
    assert same(load_embeddings(folder)[name], embedding)


def test_task_names_never_leave_the_folder(tmp_path: Path) -> None:
    names = ["../escape", "a/b", "..", "weather?", "C:\\news"]
    save_embeddings([TaskEmbedding(name, {"l": [1.0]}) for name in names], tmp_path / "in")
    assert sorted(load_embeddings(tmp_path / "in")) == sorted(names)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", [3, np.int64(3), 3.0, "3"])
def test_a_task_may_be_a_number_whatever_its_type(name: str, tmp_path: Path) -> None:
    save_embeddings([TaskEmbedding(name, {"l": [1.0]})], tmp_path)
    assert list(load_embeddings(tmp_path)) == ["3"]
    assert embedding_file(tmp_path, "3").is_file()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(name=st.text("洪水é/ %", min_size=1, max_size=120))
def test_no_name_is_too_long_for_a_file(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    others = [name + "水", name + "洪" * 120 + "1", name + "洪" * 120 + "2"]
    save_embeddings([TaskEmbedding(task, {"l": [1.0]}) for task in (name, *others)], folder)
    assert sorted(load_embeddings(folder)) == sorted([name, *others])


def test_a_copy_of_an_old_file_is_left_out_and_told(tmp_path: Path) -> None:
    save_embeddings([TaskEmbedding("news", {"l": [1.0]})], tmp_path)
    for copy_of in ("a copy", "news (1)", "news.bak"):
        shutil.copy(tmp_path / "news.safetensors", tmp_path / f"{copy_of}.safetensors")
    save_embeddings([TaskEmbedding("news", {"l": [2.0]})], tmp_path)
    with pytest.warns(TransferPrunerWarning, match=r"left out, as 'news\.safetensors' hol") as told:
        assert load_embeddings(tmp_path)["news"].vectors["l"][0] == 2.0
    assert len(told) == 1
    (tmp_path / "news.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds the task 'news' in .*: leave one of them there"):
        load_embeddings(tmp_path)
    for copy_of in ("a copy", "news (1)"):
        (tmp_path / f"{copy_of}.safetensors").unlink()
    # A file that was renamed holds what it held.
    assert load_embeddings(tmp_path)["news"].vectors["l"][0] == 1.0


def test_what_macos_writes_beside_a_file_stops_nothing(tmp_path: Path) -> None:
    names = ["news", "._rescue"]
    save_embeddings([TaskEmbedding(name, {"l": [1.0]}) for name in names], tmp_path)
    (tmp_path / "._news.safetensors").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert sorted(load_embeddings(tmp_path)) == sorted(names)


def test_saving_again_replaces_the_task_and_keeps_the_others(tmp_path: Path) -> None:
    save_embeddings([TaskEmbedding("a", {"l": [1.0]}), TaskEmbedding("b", {"l": [2.0]})], tmp_path)
    save_embeddings([TaskEmbedding("a", {"l": [3.0]})], tmp_path)
    loaded = load_embeddings(tmp_path)
    assert loaded["a"].vectors["l"][0] == 3.0
    assert loaded["b"].vectors["l"][0] == 2.0


def test_equal_values_have_equal_fingerprints_and_others_do_not() -> None:
    first = TaskEmbedding("a", {"l": [1.0, 2.0]}, provenance={"seconds": 1.0})
    assert first.fingerprint == TaskEmbedding("a", {"l": [1.0, 2.0]}).fingerprint
    assert first.fingerprint != TaskEmbedding("a", {"l": [1.0, 2.5]}).fingerprint
    assert first.fingerprint != TaskEmbedding("b", {"l": [1.0, 2.0]}).fingerprint


def test_an_embedding_cannot_be_changed_and_copies_share_it() -> None:
    embedding = TaskEmbedding("a", {"l": [1.0, 2.0]})
    with pytest.raises(ValueError, match="read-only"):
        embedding.vectors["l"][0] = 5.0
    assert copy.deepcopy({"a": embedding})["a"] is embedding


def test_an_embedding_travels_between_processes() -> None:
    embedding = TaskEmbedding("a", {"l": [1.0, 2.0]}, {"s": np.ones((2, 2))}, {"target": 1})
    assert same(pickle.loads(pickle.dumps(embedding)), embedding)  # noqa: S301


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_attributions_that_are_not_finite_stop_with_the_layer_and_the_count(bad: float) -> None:
    with pytest.raises(ValueError, match=r"vectors\['hidden'\] of task 'news' has 1 NaN or inf.*3"):
        TaskEmbedding("news", {"hidden": [1.0, bad, 2.0]})


def test_malformed_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="name must be a non-empty string but got ''"):
        TaskEmbedding("", {"l": [1.0]})
    with pytest.raises(ValueError, match=r"name must be a non-empty string but got \['a'\]"):
        TaskEmbedding(["a"], {"l": [1.0]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one layer"):
        TaskEmbedding("a", {})
    with pytest.raises(ValueError, match=r"one-dimensional but has shape \(1, 2\)"):
        TaskEmbedding("a", {"l": [[1.0, 2.0]]})
    with pytest.raises(ValueError, match="more than once: a"):
        save_embeddings([TaskEmbedding("a", {"l": [1.0]})] * 2, "unused")


@pytest.mark.parametrize("kept_bytes", [0, 5, 100, -4])
def test_a_truncated_file_is_named(tmp_path: Path, kept_bytes: int) -> None:
    save_embeddings([TaskEmbedding("news", {"l": np.ones(50)})], tmp_path)
    path = tmp_path / "news.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=r"news\.safetensors' is not a whole task embedding"):
        load_embeddings(tmp_path)


def test_somebody_elses_safetensors_file_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors' is no task embedding but a file of"):
        load_embeddings(tmp_path)


def test_an_empty_or_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file"):
        load_embeddings(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_embeddings(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    save_embeddings([TaskEmbedding("a", {"l": [1.0]})], tmp_path)
    with pytest.raises(TypeError):
        save_embeddings([TaskEmbedding("a", {"l": [2.0]}, provenance={"x": object()})], tmp_path)
    assert load_embeddings(tmp_path)["a"].vectors["l"][0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
