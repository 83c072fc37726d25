"""What a task, a source and a pair are, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import pytest

from transfer_pruner import PairParams
from transfer_pruner.tasks import is_baseline, plain_source, source_name, task_name


def test_a_pair_is_two_parameters_and_the_rest_are_hyperparameters() -> None:
    pair_of = PairParams("aux", "main")
    params = {"aux": "news", "main": "advice", "lr": 0.1}
    assert pair_of(params) == ("news", "advice")
    assert pair_of.hyperparameters(params) == {"lr": 0.1}
    assert not pair_of.is_in({"aux": "news"})


def test_a_fixed_target_is_no_parameter() -> None:
    pair_of = PairParams(target="advice")
    assert pair_of.params == ("source",)
    assert pair_of({"source": None}) == (None, "advice")


@pytest.mark.parametrize(
    ("params", "sources"),
    [
        ({"a": "x", "b": "y"}, ("x", "y")),
        ({"a": "y", "b": "x"}, ("x", "y")),
        ({"a": "x", "b": None}, "x"),
        ({"a": "x", "b": "x"}, "x"),
        ({"a": "t", "b": None}, None),
        ({"a": ["x", "y"], "b": ("z",)}, ("x", "y", "z")),
    ],
)
def test_joint_transfer_has_several_sources_in_whichever_order(
    params: dict[str, object], sources: object
) -> None:
    pair_of = PairParams(("a", "b"), target="t")
    assert pair_of(params) == (sources, "t")


def test_one_parameter_may_hold_a_list_of_sources() -> None:
    assert PairParams()({"source": ["x", "y"], "target": "y"}) == ("x", "y")
    assert PairParams()({"source": [], "target": "y"}) == (None, "y")


def test_no_parameter_is_no_source() -> None:
    with pytest.raises(ValueError, match="source_param must name a parameter but got"):
        PairParams(())


def test_sources_are_written_in_one_cell() -> None:
    assert [source_name(s) for s in (None, "x", ("x", "y"))] == ["", "x", "x + y"]
    assert plain_source(("x", "t"), "t") == "x"
    assert plain_source("", "t") is None


class Task(Enum):
    NEWS = "news"
    THREE = 3


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("news", "news"),
        (np.str_("news"), "news"),
        (Task.NEWS, "news"),
        (Task.THREE, "3"),
        (3, "3"),
        (np.int64(3), "3"),
        (3.0, "3"),
        (0, "0"),
        (0.5, "0.5"),
        (False, "False"),
        ("NA", "NA"),
        ("None", "None"),
        (None, None),
        ("", None),
        (float("nan"), None),
        (np.float32("nan"), None),
    ],
)
def test_a_task_has_one_name_whatever_its_type(task: object, name: str | None) -> None:
    assert task_name(task) == name


def test_a_task_called_zero_is_a_task() -> None:
    assert not is_baseline(0, 1)
    assert is_baseline(0, "0")
    assert PairParams()({"source": 0, "target": 1}) == ("0", "1")
    assert source_name(plain_source(0, 1)) == "0"


def test_a_pattern_finds_the_parameter_of_the_branch() -> None:
    pair_of = PairParams("source_{target}")
    params = {"target": "news", "source_news": "advice", "lr": 0.1}
    assert pair_of(params) == ("advice", "news")
    assert pair_of.names_in(params) == ("source_news", "target")
    assert pair_of.hyperparameters(params) == {"lr": 0.1}
    assert not pair_of.is_in({"target": "news", "source_advice": "news"})
    assert not pair_of.is_named
    anything = PairParams("source_*", target="news")
    assert anything(params) == ("advice", "news")


def test_a_callable_reads_the_source_and_what_it_reads_is_no_hyperparameter() -> None:
    def source_of(params: Mapping[str, Any]) -> Any:
        return params["other"] if params["kind"] == "transfer" else None

    pair_of = PairParams(source_of)
    params = {"kind": "transfer", "other": "advice", "target": "news", "lr": 0.1}
    assert pair_of(params) == ("advice", "news")
    assert pair_of.hyperparameters(params) == {"lr": 0.1}
    assert pair_of({"kind": "alone", "target": "news"}) == (None, "news")
    assert not pair_of.is_in({"target": "news"})


def test_parameters_without_a_pair_are_named() -> None:
    pair_of = PairParams()
    with pytest.raises(KeyError, match=r"no 'source' and 'target' .* there are: src, tgt"):
        pair_of({"src": "a", "tgt": "b"})
