"""What Optuna asks of every sampler holds for the redirecting one, as it holds for its base."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import optuna
import pytest
from optuna.samplers import BaseSampler

from transfer_pruner import Decision, EliminationRule
from transfer_pruner_optuna.sampler import TransferSampler

# Optuna has published its cases since 5.0.
suite = pytest.importorskip("optuna.testing.pytest_samplers")
pytestmark = pytest.mark.filterwarnings(
    "ignore::transfer_pruner.embedding.TransferPrunerWarning",
    "ignore::optuna.exceptions.ExperimentalWarning",
)

# The values that Optuna's cases give their categorical parameters x and y.
X, Y = [0, 1, 2, 10, 100], [0, 1, 2, -1, -10, -100]


def redirecting(base_sampler: BaseSampler, eliminate: bool) -> BaseSampler:
    rule = EliminationRule(
        {
            (x, y): Decision(eliminate and abs(x) > abs(y), 0.0, 0.5, "told so")  # type: ignore[misc]
            for x, y in product(X, Y)
            if x != y
        },
        {},
    )
    return TransferSampler(rule, base_sampler, source_param="x", target_param="y", seed=0)


class TestKeepingEverything(
    suite.BasicSamplerTestCase, suite.RelativeSamplerTestCase, suite.MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        tpe = optuna.samplers.TPESampler
        return lambda: redirecting(tpe(n_startup_trials=0, multivariate=True, seed=0), False)


class TestRedirectingTPE(
    suite.BasicSamplerTestCase, suite.RelativeSamplerTestCase, suite.MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        tpe = optuna.samplers.TPESampler
        return lambda: redirecting(tpe(n_startup_trials=0, multivariate=True, seed=0), True)


class TestRedirectingRandomSearch(suite.BasicSamplerTestCase, suite.MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: redirecting(optuna.samplers.RandomSampler(seed=0), True)


class TestRedirectingNSGAII(suite.BasicSamplerTestCase, suite.MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: redirecting(optuna.samplers.NSGAIISampler(population_size=4, seed=0), True)


class TestRedirectingQMC(suite.BasicSamplerTestCase, suite.RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        qmc = optuna.samplers.QMCSampler
        return lambda: redirecting(qmc(scramble=True, warn_independent_sampling=False), True)


@pytest.mark.slow
class TestRedirectingGP(suite.BasicSamplerTestCase, suite.RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        pytest.importorskip("torch")
        gp = optuna.samplers.GPSampler
        return lambda: redirecting(gp(n_startup_trials=0, seed=0), True)


def test_the_rule_does_redirect_in_these_cases() -> None:
    study = optuna.create_study(
        sampler=redirecting(optuna.samplers.RandomSampler(seed=0), eliminate=True)
    )
    for _ in range(30):
        trial = study.ask()
        x = trial.suggest_categorical("x", [1, 10, 100])
        y = trial.suggest_categorical("y", [-1, -10, -100])
        study.tell(trial, x + y)
    assert sum("transfer_pruner.redirected" in trial.user_attrs for trial in study.trials) > 5
