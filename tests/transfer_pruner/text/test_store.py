"""Many tasks are embedded from saved models: once each, whatever was stopped or changed between."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transfer_pruner import embed_many, load_embeddings
from transfer_pruner.text import embed_text
from transfer_pruner.text.store import NotEmbeddedError

TEXTS = ["flood in the city", "we need water and food", "help"]
SaveModel = Callable[..., Path]


def written(files: dict[str, Path]) -> dict[str, int]:
    return {name: file.stat().st_mtime_ns for name, file in files.items()}


def changed(before: dict[str, int], files: dict[str, Path]) -> set[str]:
    return {name for name, at in written(files).items() if before.get(name) != at}


def test_the_embeddings_are_those_of_embed_text(save_model: SaveModel, tmp_path: Path) -> None:
    models = {"news": save_model("a"), "advice/all": save_model("b", seed=1)}
    files = embed_many(models, TEXTS, tmp_path / "out", n_steps=5)
    assert list(files) == ["news", "advice/all"]
    embeddings = load_embeddings(tmp_path / "out")
    for name, folder in models.items():
        one = embed_text(
            AutoModelForSequenceClassification.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            TEXTS,
            name=name,
            n_steps=5,
        )
        assert embeddings[name].fingerprint == one.fingerprint


def test_only_what_changed_is_computed_again(save_model: SaveModel, tmp_path: Path) -> None:
    models = {"news": save_model("a"), "advice": save_model("b", seed=1)}
    out = tmp_path / "out"
    first = written(embed_many(models, TEXTS, out))
    assert not changed(first, embed_many(models, TEXTS, out))
    # A default that is written out is the same setting.
    assert not changed(first, embed_many(models, tuple(TEXTS), out, method="conductance"))
    # A folder that moved holds the same model.
    models["news"] = Path(shutil.move(models["news"], tmp_path / "moved"))
    assert not changed(first, embed_many(models, TEXTS, out))

    save_model("b", seed=2)
    files = embed_many(models, TEXTS, out)
    assert changed(first, files) == {"advice"}

    for again in ({"n_steps": 3}, {"layers": ["bert.encoder.layer.1"]}, {"dtype": "float64"}):
        before = written(files)
        assert changed(before, embed_many(models, TEXTS, out, **again)) == {"news", "advice"}
    before = written(files)
    own = {"news": TEXTS, "advice": ["help the city"]}
    embed_many(models, TEXTS, out)
    before = written(files)
    assert changed(before, embed_many(models, own, out)) == {"advice"}


def test_a_truncated_embedding_is_computed_again(save_model: SaveModel, tmp_path: Path) -> None:
    (file,) = embed_many({"news": save_model("a")}, TEXTS, tmp_path / "out").values()
    whole = load_embeddings(tmp_path / "out")["news"]
    file.write_bytes(file.read_bytes()[:100])
    embed_many({"news": tmp_path / "models" / "a"}, TEXTS, tmp_path / "out")
    again = load_embeddings(tmp_path / "out")["news"]
    assert all(np.array_equal(again.vectors[name], whole.vectors[name]) for name in whole.vectors)


def test_one_bad_model_does_not_cost_the_others(save_model: SaveModel, tmp_path: Path) -> None:
    broken = save_model("broken", seed=3)
    (broken / "model.safetensors").write_bytes(b"half")
    pickled = save_model("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    models = {"broken": broken, "pickled": pickled, "good": save_model("good")}
    with pytest.raises(ExceptionGroup, match="2 of 3 tasks could not be embedded") as raised:
        embed_many(models, TEXTS, tmp_path / "out")
    assert list(load_embeddings(tmp_path / "out")) == ["good"]
    messages = [str(error) for error in raised.value.exceptions]
    assert any("holds no .safetensors file: save the model with" in text for text in messages)
    assert any("'broken'" in note for e in raised.value.exceptions for note in e.__notes__ or [])


def test_a_model_of_the_hub_is_taken_by_its_id(save_model: SaveModel, tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--me--flood"
    shutil.copytree(save_model("a"), cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    code = (
        "import sys; from transfer_pruner import embed_many\n"
        f"embed_many({{'flood': 'me/flood'}}, {TEXTS!r}, {str(tmp_path / 'out')!r})\n"
        f"embed_many({{'other': 'me/other'}}, {TEXTS!r}, {str(tmp_path / 'out')!r})\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert list(load_embeddings(tmp_path / "out")) == ["flood"]
    assert "models['other'] is 'me/other', which is no folder here" in done.stderr


def test_what_was_finished_before_a_kill_is_not_computed_again(
    save_model: SaveModel, tmp_path: Path
) -> None:
    models = {f"task-{i}": save_model(str(i), seed=i) for i in range(5)}
    out = tmp_path / "out"
    code = (
        "from transfer_pruner import embed_many\n"
        f"embed_many({ {k: str(v) for k, v in models.items()}!r}, {TEXTS!r}, {str(out)!r}, "
        "n_steps=150)"
    )
    running = subprocess.Popen([sys.executable, "-c", code])
    while len(list(out.glob("*.safetensors"))) < 2:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {file.stem: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    assert 2 <= len(before) < 5
    files = embed_many(models, TEXTS, out, n_steps=150)
    assert changed(before, files) == set(models) - set(before)
    embed_many(models, TEXTS, tmp_path / "whole", n_steps=150)
    resumed, whole = load_embeddings(out), load_embeddings(tmp_path / "whole")
    for name in models:
        for layer, vector in whole[name].vectors.items():
            np.testing.assert_allclose(resumed[name].vectors[layer], vector, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": "flood"}, "texts must be a sequence of strings but got the string 'flood'"),
        ({"texts": {"other": TEXTS}}, "texts holds none for the task 'news'"),
        ({"dtype": "int8"}, "dtype must be 'float32', 'bfloat16' or 'float16' but got 'int8'"),
        ({"steps": 5}, "settings holds 'steps', which embed_text does not have; it has: .*n_steps"),
    ],
)
def test_bad_parameters_stop_before_anything_is_computed(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    arguments = {"texts": TEXTS, **changes}
    with pytest.raises(ValueError, match=message):
        embed_many({"news": "nowhere"}, directory=tmp_path, **arguments)  # type: ignore[arg-type]


def test_a_model_that_is_nowhere_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        embed_many({"news": "/no/such/folder"}, TEXTS, tmp_path)
    assert "models['news'] is '/no/such/folder', which is no folder" in str(
        raised.value.exceptions[0]
    )


def test_numbers_are_tasks_by_their_digits(save_model: SaveModel, tmp_path: Path) -> None:
    models = {3: save_model("a"), np.int64(37): save_model("b", seed=1)}
    out = tmp_path / "out"
    files = embed_many(models, {"3": TEXTS, 37.0: TEXTS}, out, target={3: 0, "37": np.int64(1)})
    assert list(files) == ["3", "37"]
    found = load_embeddings(out)
    assert {name: one.provenance["target"] for name, one in found.items()} == {"3": 0, "37": 1}
    with pytest.raises(ValueError, match="models holds the task '3' twice, as text and as number"):
        embed_many({3: "x", "3": "y"}, TEXTS, out)


@pytest.mark.parametrize("name", ["news ", " news", "news\n", "", None, " "])
def test_a_name_that_looks_like_another_is_no_task(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"models holds the task .*: a name is not empty and has no"
    ):
        embed_many({name: "x"}, TEXTS, tmp_path)


def test_the_text_of_a_task_is_not_its_letters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts\['news'\] must be a sequence of strings but got"):
        embed_many({"news": "x"}, {"news": "one text"}, tmp_path)


def test_errors_carry_their_tasks(save_model: SaveModel, tmp_path: Path) -> None:
    models = {"news": "/no/such/'advice'", "advice": save_model("a"), "rescue": "/nor/this"}
    with pytest.raises(NotEmbeddedError, match="2 of 3 tasks could not be embedded") as raised:
        embed_many(models, TEXTS, tmp_path)
    assert list(raised.value.of_task) == ["news", "rescue"]
    assert [*raised.value.of_task.values()] == [*raised.value.exceptions]
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
    assert [str(error) for error in again.exceptions] == list(map(str, raised.value.exceptions))
    missing, others = raised.value.split(FileNotFoundError)
    assert missing is not None
    assert len(missing.exceptions) == 2
    assert others is None
