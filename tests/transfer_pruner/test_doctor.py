"""What is broken is named with what to do; nothing is created, changed or written down."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_server
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
import pytest

from transfer_pruner import EliminationRule, TaskEmbedding, TransferPredictor, save_embeddings
from transfer_pruner.cli.options import list_studies
from transfer_pruner.doctor import (
    Check,
    check_embeddings,
    check_models,
    check_packages,
    check_rule,
    check_storage,
    check_torch,
    check_tracking,
)
from transfer_pruner.files import one_line, without_password

MakeEmbedding = Callable[..., TaskEmbedding]


def install(folder: Path, name: str, version: str, *lines: str) -> None:
    """Install a distribution that is nothing but its metadata, as pip would leave it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    header = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]
    (info / "METADATA").write_text("\n".join(header) + "\n")


def test_packages_are_compared_with_what_the_distribution_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "of-today", "2.5.1")
    install(tmp_path, "of-yesterday", "0.9")
    install(
        *(tmp_path, "our-house", "1.2", "Requires-Python: >=3.11"),
        *("Requires-Dist: of-today>=2", "Requires-Dist: of-yesterday<2,>=1.0"),
        *("Requires-Dist: of-nowhere", 'Requires-Dist: of-mars; sys_platform == "mars"'),
        *("Provides-Extra: wings", 'Requires-Dist: of-air>=3; extra == "wings"'),
        *("Provides-Extra: all", 'Requires-Dist: our-house[wings]; extra == "all"'),
        'Requires-Dist: of-yesterday>=0.5; extra == "wings"',
    )
    checks = {check.name: check for check in check_packages("our-house")}
    assert list(checks) == [
        *("our-house", "python", "of-today", "of-yesterday", "of-nowhere", "of-air")
    ]
    statuses = [check.status for check in checks.values()]
    assert statuses == ["ok", "ok", "ok", "broken", "broken", "absent"]
    assert checks["of-yesterday"].found.startswith("0.9 is out of range")
    assert checks["of-yesterday"].advice == "pip install 'of-yesterday<2,>=1.0'"
    assert checks["of-air"].advice == "pip install 'transfer-pruner[wings]'"
    install(tmp_path, "of-tomorrow", "1", "Requires-Python: >=99")
    _, python = check_packages("of-tomorrow")
    assert (python.status, python.advice) == ("broken", "make an environment with a Python >=99")
    (nowhere,) = check_packages("of-no-house")
    assert nowhere.status == "broken"


def test_this_environment_is_fine() -> None:
    checks = check_packages()
    assert checks[0].name == "transfer-pruner"
    assert {"numpy", "pandas", "optuna"} <= {check.name for check in checks}
    assert [check for check in checks if check.status == "broken"] == []


def test_torch_says_whether_it_sees_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    check = check_torch()
    assert check.status == "ok"
    assert torch.__version__ in check.found
    seen = torch.cuda.device_count() or torch.backends.mps.is_available()
    assert ("sees none" in check.found) == (not seen)


@pytest.mark.parametrize("how", ["raise ImportError('libcudart.so.12 is not there')", "exit(3)"])
def test_a_torch_that_dies_on_import_is_reported(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "torch.py").write_text(how + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = check_torch()
    assert check.status == "broken"
    assert check.found.endswith(("libcudart.so.12 is not there", "exit code 3"))


def test_a_storage_opens_and_lists_its_studies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage = optuna.storages.RDBStorage(url)
    assert check_storage(url, list_studies).status == "warning"
    optuna.create_study(study_name="pairs", storage=storage)
    assert check_storage(url, list_studies) == Check(f"storage {url}", "ok", "holds pairs")
    journal = str(tmp_path / "journal.log")
    backend = optuna.storages.journal.JournalFileBackend(journal)
    optuna.create_study(study_name="mine", storage=optuna.storages.JournalStorage(backend))
    assert check_storage(journal, list_studies).found == "holds mine"


def test_no_storage_is_made_where_there_is_none(tmp_path: Path) -> None:
    for storage in (f"sqlite:///{tmp_path}/x.db", str(tmp_path / "x.log")):
        check = check_storage(storage, list_studies)
        assert check.status == "broken"
        assert check.found.startswith("there is no file")
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_database_is_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mine.db") as database:
        database.execute("create table recipes (name text)")
    check = check_storage(f"sqlite:///{tmp_path}/mine.db", list_studies)
    assert check.status == "broken"
    assert check.found == "does not open: (sqlite3.OperationalError) no such table: version_info"
    with sqlite3.connect(tmp_path / "mine.db") as database:
        assert database.execute("select name from sqlite_master").fetchall() == [("recipes",)]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class OfAnotherHouse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[HTTPServer], str]]:
    servers: list[HTTPServer] = []

    def start(server: HTTPServer) -> str:
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_mlflow_server_answers(serve: Callable[[HTTPServer], str]) -> None:
    pytest.importorskip("mlflow.server")
    from mlflow.server import app

    uri = serve(make_server("127.0.0.1", 0, app, handler_class=Quiet))
    assert check_tracking(uri).status == "ok"
    assert check_tracking(uri + "/").status == "ok"


def test_a_server_that_is_none_of_mlflows_is_broken(serve: Callable[[HTTPServer], str]) -> None:
    check = check_tracking(serve(HTTPServer(("127.0.0.1", 0), OfAnotherHouse)))
    assert (check.status, check.found) == ("broken", "answers 404 Not Found")


def test_a_server_that_refuses_or_hangs_is_broken() -> None:
    with create_server(("127.0.0.1", 0)) as hanging:
        uri = f"http://ann:secret@127.0.0.1:{hanging.getsockname()[1]}"
        check = check_tracking(uri, timeout=0.2)
        assert (check.status, "does not answer within 0.2 s" in check.found) == ("broken", True)
    check = check_tracking(uri)
    assert check.status == "broken"
    assert "secret" not in f"{check}"
    assert "ann:***@" in check.name


def test_a_tracking_database_is_there_or_not(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert check_tracking(uri).status == "broken"
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    assert check_tracking(uri).status == "ok"
    assert "sqlite:///mlflow.db" in check_tracking("./mlruns").advice
    assert check_tracking("databricks://mine").status == "warning"


def test_embeddings_of_one_probe_can_be_compared(
    embeddings: dict[str, TaskEmbedding], tmp_path: Path
) -> None:
    save_embeddings(embeddings.values(), tmp_path)
    checks, tasks = check_embeddings(tmp_path)
    assert [(check.status, check.found) for check in checks] == [("ok", "6 tasks of 2 layers")]
    assert set(tasks) == set(embeddings)


@pytest.mark.parametrize(
    ("odd", "status", "what"),
    [
        ({"probe": "another"}, "broken", "probe examples"),
        ({"upper": np.ones((20, 4))}, "broken", "layers"),
        ({"hidden": np.ones((20, 9))}, "warning", "hidden sizes"),
        ({"hidden": np.ones((20, 8))}, None, ""),
    ],
)
def test_embeddings_that_cannot_be_compared_are_named(
    odd: dict[str, np.ndarray], status: str | None, what: str,
    make_embedding: MakeEmbedding, tmp_path: Path,
) -> None:  # fmt: skip
    usual = [make_embedding(name, hidden=np.eye(20, 8)) for name in ("news", "advice")]
    other = make_embedding("odd", **({"hidden": np.eye(20, 8)} | odd))
    save_embeddings([*usual, other], tmp_path)
    (loaded, *found), _ = check_embeddings(tmp_path)
    assert loaded.status == "ok"
    said = [(check.status, check.found) for check in found]
    expected = [(status, f"odd: other {what} than advice, news")]
    assert said == (expected if status else [])


def test_embeddings_that_explain_little_or_nothing_are_named(
    make_embedding: MakeEmbedding, tmp_path: Path
) -> None:
    full, none = np.eye(20, 8), np.zeros((20, 8))
    usual, silent, wide, passed_by = (
        make_embedding(name, lower=lower, hidden=full if name != "silent" else none)
        for name, lower in (("usual", none), ("silent", none), ("wide", full), ("passed by", full))
    )
    gaps = {"gaps": {"lower": 0.97, "hidden": 0.02}}
    wide = replace(wide, provenance={**wide.provenance, **gaps, "whole": ["lower", "hidden"]})
    passed_by = replace(passed_by, provenance={**wide.provenance, **gaps, "whole": ["hidden"]})
    save_embeddings([usual, silent, wide, passed_by], tmp_path)
    (loaded, nothing, little), _ = check_embeddings(tmp_path)
    assert loaded.status == "ok"
    assert (nothing.status, nothing.found.split(":")[0]) == ("broken", "silent")
    assert (little.status, little.found) == ("warning", "wide: up to 97% of the output unexplained")


def test_embeddings_that_do_not_load_are_broken(
    embeddings: dict[str, TaskEmbedding], tmp_path: Path
) -> None:
    (nowhere,), tasks = check_embeddings(tmp_path / "nowhere")
    assert (nowhere.status, tasks) == ("broken", [])
    save_embeddings([embeddings["news"]], tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    (damaged,), _ = check_embeddings(tmp_path)
    assert damaged.status == "broken"
    assert file.name in damaged.found


def test_tasks_that_a_rule_does_not_know_are_named(
    embeddings: dict[str, TaskEmbedding], tmp_path: Path
) -> None:
    some = {name: embeddings[name] for name in ("news", "advice", "weather")}
    EliminationRule.top_k(TransferPredictor(some), k=1).save(tmp_path)
    assert [check.status for check in check_rule(tmp_path, ["news", "advice", "weather"])] == ["ok"]
    assert [check.status for check in check_rule(tmp_path, [])] == ["ok"]
    _, unknown, gone = check_rule(tmp_path, ["news", "advice", "gossip"])
    assert unknown.found == "does not know gossip: their pairs are kept"
    assert gone.found == "knows weather, without an embedding here"
    assert check_rule(tmp_path / "nowhere", [])[0].status == "broken"
    (tmp_path / "rule.json").write_text("{")
    assert check_rule(tmp_path, [])[0].status == "broken"


def test_passwords_are_blotted_out() -> None:
    uri = "postgresql+psycopg://ann:s3cret@db.example/studies"
    assert without_password(uri) == "postgresql+psycopg://ann:***@db.example/studies"
    for plain in ("sqlite:///study.db", "http://localhost:5000/x@y", "journal.log"):
        assert without_password(plain) == plain
    error = ValueError(f"cannot reach\n{uri}\n[SQL: select 1]")
    said = "cannot reach postgresql+psycopg://ann:***@db.example/studies"
    assert one_line(error) == said
    assert one_line(KeyError("no such study")) == "no such study"
    assert one_line(RuntimeError()) == "RuntimeError"


def test_models_are_whole_or_the_doctor_says_what_they_lack(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    models = save_model("news").parent
    (models / "notes").mkdir()
    shutil.copytree(models / "news", models / "run" / "checkpoint-10")
    for file in save_model("bare").glob("tokenizer*"):
        file.unlink()
    adapter = models / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = {check.name: check for check in check_models(models)}
    assert {name: check.status for name, check in found.items()} == {
        "model adapter": "broken",
        "model bare": "broken",
        "model news": "ok",
        "model run": "ok",
    }
    assert "BertForSequenceClassification of 2 labels" in found["model news"].found
    assert "holds no tokenizer" in found["model bare"].found
    (one,) = check_models(models / "news")
    assert (one.name, one.status) == ("model news", "ok")
    assert check_models(models / "notes")[0].found == "no model in it or in its folders"
    assert check_models(tmp_path / "nowhere")[0].status == "broken"
