"""Pairs are scored from files, and a target's sources re-ranked by the scores."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from transfer_pruner import (
    EliminationRule,
    TaskEmbedding,
    TransferPrunerWarning,
    save_embeddings,
    score_pairs,
)
from transfer_pruner.cli import main

SaveModel = Callable[..., Path]
WORDS = ("flood", "city", "help", "water", "food", "school", "road", "shelter")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fine(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def error(*arguments: object, code: int = 1) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    return result.output.strip().splitlines()[-1]


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(30)]
    data = pd.DataFrame({"tweet": texts, "id": range(30)})
    for task, word in (("news", "flood"), ("advice", "help"), ("other", "food")):
        data[task] = [int(word in text) for text in texts]
    data.loc[:4, "advice"] = None
    data.to_csv(tmp_path / "dev.csv", index=False)
    return tmp_path / "dev.csv"


@pytest.fixture
def models(save_model: SaveModel) -> Path:
    save_model("advice", seed=1)
    return save_model("news").parent


def test_a_table_with_a_column_for_each_target(
    models: Path, dev: Path, tmp_path: Path, save_model: SaveModel
) -> None:
    out, cache = tmp_path / "scores.csv", tmp_path / "seen"
    command = ("score", "--models", models, "--data", dev, "--text-column", "tweet")
    shown = fine(*command, "--out", out, "--cache", cache)
    assert "2 of 2 pairs scored by zero_shot and written to" in shown
    table, data = pd.read_csv(out), pd.read_csv(dev)
    assert list(table.columns) == ["source", "target", "score", "method", "seconds"]
    expected = score_pairs(
        {task: models / task for task in ("advice", "news")},
        {task: (data["tweet"], data[task]) for task in ("news", "advice")},
        progress=False,
    )
    assert table["score"].tolist() == pytest.approx(expected["score"].tolist())
    assert len(list(cache.iterdir())) == 2
    named = ("--target", "other", "--target", "news", "--method", "logme", "--json")
    answer = json.loads(
        CliRunner().invoke(main, [*map(str, command), "--out", str(out), *named]).stdout
    )
    assert answer["method"] == "logme"
    assert {(row["source"], row["target"]) for row in answer["scores"]} == {
        *(("advice", "other"), ("advice", "news"), ("news", "other")),
    }


def test_a_folder_with_a_table_for_each_target(models: Path, dev: Path, tmp_path: Path) -> None:
    data, folder = pd.read_csv(dev), tmp_path / "dev"
    folder.mkdir()
    for task, file in (("news", "news.csv.gz"), ("a.b", "a.b.tsv")):
        column = "news" if task == "news" else "other"
        table = data[["tweet", column]].rename(columns={"tweet": "text", column: "y"})
        table.to_csv(folder / file, index=False, sep="\t" if file.endswith("tsv") else ",")
    out = tmp_path / "scores.parquet"
    fine("score", "--models", models, "--data", folder, "--label-column", "y", "--out", out)
    assert set(pd.read_parquet(out)["target"]) == {"news", "a.b"}
    command = ("score", "--models", models, "--data", folder, "--out", out)
    assert "column 'label' is not in" in error(*command)
    assert "Did you mean 'news'?" in error(*command, "--label-column", "y", "--target", "new")


def test_sources_are_re_ranked_by_scores(
    embeddings: dict[str, TaskEmbedding], tmp_path: Path
) -> None:
    folder, file = tmp_path / "embeddings", tmp_path / "scores.csv"
    save_embeddings(embeddings.values(), folder)
    pairs = [(s, t) for s in embeddings for t in embeddings if s != t]
    scores = pd.DataFrame(pairs, columns=["source", "target"])
    scores["score"] = scores["source"].map({task: n for n, task in enumerate(sorted(embeddings))})
    scores.loc[(scores["source"] == "rescue") & (scores["target"] == "news"), "score"] = None
    scores.to_csv(file, index=False)

    def ranking(*more: object) -> dict[str, Any]:
        shown = run("rank", "--embeddings", folder, "--target", "news", "--json", *more)
        assert shown.exit_code == 0, shown.output
        return {row["source"]: row for row in json.loads(shown.stdout)["ranking"]}

    assert [row["eliminated"] for row in ranking("--first", 3).values()] == [False] * 3 + [True] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("always", TransferPrunerWarning)
        shown = run("rank", "--embeddings", folder, "--all", "--scores", file)
        assert "warning: 1 of 30 kept pairs have no proxy score" in shown.stderr
        rows = ranking("--scores", file, "--keep", 2)
    # What has no score stays kept.
    assert {source for source, row in rows.items() if not row["eliminated"]} == {
        *("weather", "rumour", "rescue")
    }
    assert rows["weather"]["score"] == 5
    rule, looked = tmp_path / "rule", tmp_path / "looked"
    scores.fillna(0).to_csv(file, index=False)
    fine("fit", "--embeddings", folder, "--top-k", 2, "--out", rule)
    fine("fit", "--embeddings", folder, "--top-k", 2, "--scores", file, "--out", looked)
    refined = run("rank", "--rule", rule, "--all", "--scores", file, "--json")
    kept = [row for row in json.loads(refined.stdout)["ranking"] if not row["eliminated"]]
    assert len(kept) == len(embeddings)
    again = EliminationRule.load(looked)
    assert {(row["source"], row["target"]) for row in kept} == {
        (source, target) for target in embeddings for source in again.kept(target)
    }
    both = ("--rule", rule, "--embeddings", folder)
    assert "give --rule, or --embeddings" in error("rank", "--target", "news", *both, code=2)
    assert "give --rule, or --embeddings" in error("rank", "--target", "news", code=2)


def test_what_is_wrong_is_said(models: Path, dev: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    command = ("score", "--models", models, "--out", out, "--data")
    assert "column 'text' is not in" in error(*command, dev)
    assert "scores.xls" in error(*command[:-2], tmp_path / "scores.xls", "--data", dev)
    alone = tmp_path / "alone.csv"
    pd.DataFrame({"text": ["a"], "topic": [1]}).to_csv(alone, index=False)
    assert "has no column that is called as a model; it has: topic" in error(*command, alone)
    assert "give --model or --models" in error("score", "--data", dev, "--out", out, code=2)
    assert not out.exists()
