"""Which pairs are worth a trial next, asked on the command line as a search asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from transfer_pruner import (
    LearningRule,
    TaskEmbedding,
    TransferPredictor,
    save_embeddings,
)
from transfer_pruner.cli import main
from transfer_pruner.rule.order import PairOrder
from transfer_pruner.transfers import read_transfers


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["next", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output
    return result.output


def asked(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def folder(tmp_path: Path, embeddings: dict[str, TaskEmbedding]) -> Path:
    save_embeddings(embeddings.values(), tmp_path / "embeddings")
    return tmp_path / "embeddings"


@pytest.fixture
def scores(tmp_path: Path, transfers: pd.DataFrame) -> Path:
    """Proxy scores that put the worst sources first."""
    table = transfers.assign(score=-transfers["gain"], method="logme", seconds=0.1)
    table.drop(columns="gain").to_csv(tmp_path / "scores.csv", index=False)
    return tmp_path / "scores.csv"


@pytest.fixture
def measured(tmp_path: Path, transfers: pd.DataFrame) -> Path:
    """Twenty-four transfers of thirty pairs, as `harvest` writes them: two of one pair."""
    table = pd.concat([transfers[:23], transfers[:1]])
    table = table.assign(baseline=0.5, score=0.5 + table["gain"], seconds=1.0)
    table.to_csv(tmp_path / "transfers.csv", index=False)
    return tmp_path / "transfers.csv"


def pairs_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for row in rows]


def test_before_any_transfer_it_goes_by_attributions_and_proxy_scores(
    folder: Path, scores: Path, embeddings: dict[str, TaskEmbedding]
) -> None:
    alone = LearningRule(TransferPredictor(embeddings))
    table = pd.read_csv(scores)
    for rule, *given in (
        (alone, "--embeddings", folder),
        (alone.refine(table), "--embeddings", folder, "--scores", scores),
        (
            LearningRule(TransferPredictor(), pairs=table).refine(table),
            *("--scores", scores),
        ),
    ):
        found = asked(*given, "-k", 3)
        assert found["transfers"] == 0
        assert len(found["next"]) == 3
        first = PairOrder(rule.refitted()).best({*embeddings}, {*embeddings})
        assert pairs_of(found["next"])[0] == first
    # With proxy scores alone, what they say is all there is.
    assert pairs_of(found["next"])[0] in pairs_of(
        table.sort_values("score").tail(6).to_dict("records")
    )


def test_after_some_transfers_it_takes_the_pairs_that_a_search_would(
    folder: Path,
    scores: Path,
    measured: Path,
    tmp_path: Path,
    embeddings: dict[str, TaskEmbedding],
) -> None:
    given = ("--embeddings", folder, "--scores", scores, "--transfers", measured)
    out = tmp_path / "order.csv"
    found = asked(*given, "--out", out)
    assert found["transfers"] == 24
    rule = LearningRule(TransferPredictor(embeddings)).refine(pd.read_csv(scores))
    learnt = rule.refitted(read_transfers(measured, also=["score", "baseline"]))
    order, waiting = PairOrder(learnt), {}
    for number, pair in enumerate(pairs_of(found["next"])):
        assert order.best({*embeddings}, {*embeddings}, waiting) == pair
        waiting[pair] = number
    written = pd.read_csv(out)
    assert len(written) == 30
    assert pairs_of(written[:10].to_dict("records")) == pairs_of(found["next"])
    assert written["eliminated"].is_monotonic_increasing
    assert written.set_index(["source", "target"])["measured"].max() == 2
    assert "learnt from 24 transfers" in found["next"][0]["reason"]

    one = asked(*given, "--target", "news", "-k", 50)["next"]
    assert {row["target"] for row in one} == {"news"}
    kept = written[~written["eliminated"]]
    assert pairs_of(one) == pairs_of(kept[kept["target"] == "news"].to_dict("records"))

    told = run(*given, "-k", 2)
    assert "after 24 measured transfers." in told
    assert found["next"][0]["source"] in told


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    assert "give --embeddings, --scores or both" in run(code=2)
    asked_for = ("--embeddings", folder)
    assert "Did you mean 'news'?" in run(*asked_for, "--target", "new", code=1)
    assert "order.xls" in run(*asked_for, "--out", tmp_path / "order.xls", code=1)
    assert not (tmp_path / "order.xls").exists()
