"""What a search of Tune's may try, and what it has tried."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray import tune

from transfer_pruner import Decision, EliminationRule
from transfer_pruner.tasks import PairParams
from transfer_pruner_ray.history import History, PairSpace

PAIR = {"source": tune.choice([None, "a", 3]), "target": tune.choice(["b", "a"])}


@pytest.mark.parametrize(
    ("others", "possible"),
    [
        ({}, 1),
        ({"lr": 0.1, "layers": [64, 64]}, 1),
        ({"lr": tune.choice([1, 2, 3]), "seed": tune.randint(0, 5)}, 15),
        ({"lr": tune.quniform(0, 1, 0.25), "n": tune.qrandint(2, 8, 2)}, 20),
        ({"lr": tune.uniform(0, 1)}, math.inf),
        ({"lr": tune.sample_from(lambda spec: 1)}, math.inf),
        ({"opt": tune.choice([{"lr": tune.uniform(0, 1)}, {}])}, math.inf),
    ],
)
def test_settings_are_counted_where_they_can_be(others: dict[str, Any], possible: float) -> None:
    space = PairSpace.of(PAIR | others, PairParams())
    assert space is not None
    assert space.possible == possible
    assert space.sources == {None: None, "a": "a", "3": 3}
    assert set(space.targets) == {"a", "b"}
    again = PairSpace.from_state(json.loads(json.dumps(space.get_state())))
    assert again == space


@pytest.mark.parametrize(
    ("space", "pair_of"),
    [
        (PAIR, PairParams(["source", "second"])),
        (PAIR, PairParams("source_{target}")),
        (PAIR, PairParams(lambda params: params["source"])),
        (PAIR | {"source": tune.choice([["a", "b"], "c"])}, PairParams()),
        (PAIR | {"source": tune.sample_from(lambda spec: "a")}, PairParams()),
        ({"source": tune.choice(["a"])}, PairParams()),
        ({"pair": tune.choice([{"source": "a", "target": "b"}])}, PairParams("pair/source")),
    ],
    ids=["joint", "branches", "function", "lists", "drawn", "no target", "apart"],
)
def test_where_no_order_can_be_told_there_is_no_space(
    space: dict[str, Any], pair_of: PairParams
) -> None:
    assert PairSpace.of(space, pair_of) is None


def test_a_pair_is_written_with_the_values_of_the_space() -> None:
    space = PairSpace.of(PAIR, PairParams())
    assert space is not None
    assert space.params(("3", "b"), PairParams()) == {"source": 3, "target": "b"}
    assert space.params((None, "b"), PairParams()) == {"source": None, "target": "b"}
    without = PairSpace.of(PAIR | {"source": tune.choice(["b"])}, PairParams())
    assert without is not None
    assert without.params((None, "b"), PairParams()) == {"source": "b", "target": "b"}
    assert without.params((None, "b"), PairParams(target="b")) == {"source": "b"}


def test_what_was_tried_comes_back_from_plain_data() -> None:
    rule = EliminationRule({("a", "b"): Decision(False, 0.5, 0.5, "")}, {})

    def history() -> History:
        return History(rule, PairParams())

    first = history()
    first.space = PairSpace.of(PAIR | {"lr": tune.choice([1, 2])}, PairParams())
    ends: list[tuple[dict[str, Any] | None, bool]] = [
        ({"score": 0.7}, False),
        ({"score": math.nan}, False),
        (None, True),
        # Eliminated by a scheduler before it ran.
        (None, False),
    ]
    for i, (result, error) in enumerate(ends):
        first.start(str(i), {"source": "a", "target": "b", "lr": i % 2 + 1})
        first.end(str(i), result, error=error, metric="score", maximize=True)
    first.start("running", {"source": "a", "target": "b", "lr": 1})
    again = history()
    again.set_state(json.loads(json.dumps(first.get_state())))
    for one in (first, again):
        assert one.ended == 3
        assert one.trials == {("a", "b"): 3}
        assert one.done == {("a", "b")}
        assert one.pairs_running() == {("a", "b"): 1}
        assert one.knows("3")
        assert one.repeats(("a", "b"), {"source": "c", "target": "b", "lr": 2})
    assert json.dumps(again.get_state()) == json.dumps(first.get_state())
