"""Where the pair stands among a trial's parameters, and what a trial's record says of it."""

from __future__ import annotations

import pytest

from transfer_pruner import PairParams
from transfer_pruner.tasks import plain_source, source_name


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
