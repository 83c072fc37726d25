"""An eliminated trial gets the parameters of its own branch, and none of another."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from transfer_pruner import PairParams
from transfer_pruner_optuna.branches import Branches

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "source": CategoricalDistribution([None, "a", "b"]),
    "target": CategoricalDistribution(["t", "u"]),
    "opt": CategoricalDistribution(["adam", "sgd"]),
    "layers": IntDistribution(1, 3),
    "width_2": IntDistribution(1, 9),
}


def trial(**params: Any) -> FrozenTrial:
    others = {name: FloatDistribution(0, 1) for name in params if name not in DISTRIBUTIONS}
    known = {name: DISTRIBUTIONS[name] for name in params if name in DISTRIBUTIONS}
    return optuna.trial.create_trial(params=params, distributions=others | known, value=0.0)


def filled(branches: Branches, **params: Any) -> list[str]:
    """Suggest what follows, with the first choice of each, until nothing is known."""
    names = []
    while (following := branches.following(trial(**params))) is not None:
        name, distribution = following
        names.append(name)
        params[name] = distribution.choices[0] if name == "opt" else 1  # type: ignore[attr-defined]
    return names


def seen(*trials: FrozenTrial, keeps_order: bool = True, **pair: Any) -> Branches:
    branches = Branches(PairParams(**pair), keeps_order=keeps_order)
    for one in trials:
        branches.add(one)
    return branches


SGD = {"opt": "sgd", "momentum": 0.5, "lr": 0.1}


def test_nothing_is_known_of_nothing() -> None:
    assert filled(seen(), source="a", target="t") == []
    assert not seen().knows(trial(source="a"))


def test_what_trials_of_one_kind_had_a_like_one_gets_in_their_order() -> None:
    branches = seen(trial(source="a", target="t", lr=0.1, layers=2, decay=0.2))
    assert filled(branches, source="b", target="t") == ["lr", "layers", "decay"]
    assert branches.order == ("source", "target", "lr", "layers", "decay")


@pytest.mark.parametrize("keeps_order", [True, False])
def test_a_branch_that_nobody_trained_in_is_not_guessed(keeps_order: bool) -> None:
    scrambled = trial(lr=0.1, target="t", momentum=0.5, source="a", opt="sgd")
    known = trial(source="a", target="t", **SGD) if keeps_order else scrambled
    branches = seen(known, keeps_order=keeps_order)
    assert filled(branches, source="b", target="t") == ["opt"], "the first choice is adam"
    assert filled(branches, source="b", target="t", opt="sgd") in (
        ["momentum", "lr"],
        ["lr", "momentum"],
    )
    assert not branches.knows(trial(source="b", opt="adam"))


def test_what_only_some_trials_had_is_not_taken() -> None:
    branches = seen(
        trial(source="a", target="t", layers=1, lr=0.1),
        trial(source="a", target="t", layers=2, width_2=3, lr=0.1),
    )
    assert filled(branches, source="b", target="t") == ["layers", "lr"]


def test_trials_of_the_same_target_count_before_others() -> None:
    branches = seen(
        trial(source="a", target="t", lr_t=0.1), trial(source="a", target="u", lr_u=0.1)
    )
    assert filled(branches, source="b", target="u") == ["lr_u"]
    assert filled(seen(trial(source="a", target="t", lr=0.1)), source="b", target="u") == ["lr"]


def test_single_task_trials_say_nothing_of_transfers() -> None:
    assert filled(seen(trial(source=None, target="t", lr=0.1)), source="b", target="t") == []


def test_sources_of_other_targets_may_be_called_otherwise() -> None:
    branches = seen(
        trial(target="t", source_t=0.1, lr=0.1), trial(target="u", source_u=0.2, lr=0.1),
        source_param="source_{target}",
    )  # fmt: skip
    assert filled(branches, target="u", source_u=0.3) == ["lr"]
    assert branches.targets == 2
