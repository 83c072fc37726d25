"""What to measure next: what is promising, and what teaches most."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from transfer_pruner import TaskEmbedding, TransferPredictor, suggest_pairs
from transfer_pruner.pairs import ordered_pairs

Embeddings = dict[str, TaskEmbedding]


def test_pairs_that_were_measured_are_not_suggested_again(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    half = transfers.sample(frac=0.5, random_state=0)
    predictor = TransferPredictor(embeddings).fit(half, half["gain"])
    suggested = suggest_pairs(predictor, 100)
    assert len(suggested) == len(transfers) - len(half)
    both = suggested.merge(half, on=["source", "target"])
    assert both.empty
    assert not suggested.duplicated(["source", "target"]).any()
    assert (suggested["source"] != suggested["target"]).all()


def test_without_exploration_the_best_scored_source_of_each_target_comes_first(
    embeddings: Embeddings,
) -> None:
    predictor = TransferPredictor(embeddings)
    first = suggest_pairs(predictor, len(embeddings) * 5, exploration=0.0)
    best = first.drop_duplicates("target")
    pairs = ordered_pairs(sorted(embeddings))
    pairs["score"] = predictor.predict(pairs)
    expected = pairs.sort_values("score").drop_duplicates("target", keep="last")
    assert dict(zip(best["target"], best["source"], strict=True)) == dict(
        zip(expected["target"], expected["source"], strict=True)
    )


def test_with_exploration_every_source_and_target_has_its_turn(embeddings: Embeddings) -> None:
    suggested = suggest_pairs(TransferPredictor(embeddings), 6, exploration=100.0)
    assert set(suggested["source"]) == set(suggested["target"]) == set(embeddings)


def test_suggested_transfers_find_better_sources_than_as_many_at_random() -> None:
    """Some sources are good everywhere, and a feature tells a little of each pair."""

    def lost(choose: str, seed: int) -> float:
        rng = np.random.default_rng(seed)
        tasks = [f"task-{i:02}" for i in range(15)]
        quality = dict(zip(tasks, rng.normal(0, 0.1, len(tasks)), strict=True))
        world = ordered_pairs(tasks)
        world["gain"] = world["source"].map(quality) + rng.normal(0, 0.03, len(world))
        world["hint"] = world["gain"] + rng.normal(0, 0.2, len(world))
        world = world.sample(frac=1, random_state=seed, ignore_index=True)
        measured = world.iloc[:5]
        for n_more in (5, 10, 10):
            predictor = TransferPredictor(feature_columns=["hint"]).fit(measured, measured["gain"])
            rest = world[~world.index.isin(measured.index)]
            if choose == "suggest":
                chosen = suggest_pairs(predictor, n_more, pairs=rest)
                rest = rest.reset_index().merge(chosen[["source", "target"]]).set_index("index")
            measured = pd.concat([measured, rest.iloc[:n_more]])
        predictor = TransferPredictor(feature_columns=["hint"]).fit(measured, measured["gain"])
        said = world.assign(said=predictor.predict(world))
        kept = said.sort_values("said").groupby("target").tail(3)
        best = world.groupby("target")["gain"].max()
        return float((best - kept.groupby("target")["gain"].max()).mean())

    suggested, random = (
        np.mean([lost(choose, seed) for seed in range(6)]) for choose in ("suggest", "random")
    )
    assert suggested < random


def test_there_may_be_fewer_pairs_than_asked_for(embeddings: Embeddings) -> None:
    candidates = pd.DataFrame({"source": ["news", "news"], "target": ["news", "advice"]})
    suggested = suggest_pairs(TransferPredictor(embeddings), 5, pairs=candidates)
    assert suggested[["source", "target"]].to_numpy().tolist() == [["news", "advice"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget must be at least 1 pair but got 0"),
        ({"exploration": -1.0}, r"exploration cannot be negative but got -1\.0"),
        ({"pairs": pd.DataFrame({"source": ["a"], "target": ["a"]})}, "nothing to suggest"),
    ],
)
def test_what_cannot_be_suggested_is_refused(
    embeddings: Embeddings, changes: dict[str, object], message: str
) -> None:
    arguments = {"budget": 3, **changes}
    with pytest.raises(ValueError, match=message):
        suggest_pairs(TransferPredictor(embeddings), **arguments)  # type: ignore[arg-type]
