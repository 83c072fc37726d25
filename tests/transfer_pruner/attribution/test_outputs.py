"""One number stands for a task, whatever head its model has, and is attributed as by Captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance
from torch import Tensor, nn
from transformers import BertConfig

from transfer_pruner import TaskEmbedding, embed
from transfer_pruner.attribution.outputs import check_target, default_target

N_CLASSES, STEPS = 3, 6


@pytest.mark.parametrize(
    ("config", "target"),
    [
        ({"num_labels": 1}, 0),
        ({"num_labels": 1, "problem_type": "regression"}, 0),
        ({"num_labels": 2}, 1),
        ({"num_labels": 7}, "predicted"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, "sum"),
        ({"num_labels": 25, "problem_type": "multi_label_classification"}, "sum"),
    ],
)
def test_a_classifiers_configuration_tells_its_target(
    config: dict[str, object], target: int | str
) -> None:
    assert default_target(BertConfig(**config), "BertForSequenceClassification") == target


def test_which_label_of_a_token_classifier_is_the_task_the_user_says() -> None:
    with pytest.raises(ValueError, match=r"which of the 9 labels .* from 0 to 8, stands for"):
        default_target(BertConfig(num_labels=9), "BertForTokenClassification")


@pytest.mark.parametrize(
    ("shape", "target", "message"),
    [
        ((4, 3), 3, "from 0 to 2, or be 'predicted' or 'sum', but got 3"),
        ((4, 3), -1, "but got -1"),
        ((4, 3), None, "but got None"),
        ((4, 3), "mean", "but got 'mean'"),
        ((4,), 0, "must be left out for a model with one output but got 0"),
        ((4, 3, 2), 0, r"of shape \(n,\) or \(n, outputs\) but is \(4, 3, 2\)"),
    ],
)
def test_a_target_that_the_model_has_not_is_refused(
    shape: tuple[int, ...], target: int | str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_target(shape, target)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, N_CLASSES)).double()


@pytest.fixture
def probe() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(12, 4, dtype=torch.float64)


def examples(model: nn.Module, probe: Tensor, target: int | str) -> np.ndarray:
    embedding: TaskEmbedding = embed(
        model, probe, name="task", target=target, layers=["1"], n_steps=STEPS
    )
    return embedding.signals["examples/1"]


def test_each_examples_own_class_is_attributed_as_captum_does(
    model: nn.Module, probe: Tensor
) -> None:
    predicted = model(probe).argmax(dim=1)
    assert len(predicted.unique()) > 1
    wanted = LayerConductance(model, model[1]).attribute(
        probe, baselines=torch.zeros_like(probe), target=predicted, n_steps=STEPS
    )
    np.testing.assert_allclose(
        examples(model, probe, "predicted"), wanted.detach().numpy(), rtol=1e-5
    )


def test_the_sum_of_all_outputs_has_the_sum_of_their_attributions(
    model: nn.Module, probe: Tensor
) -> None:
    each = sum(examples(model, probe, target) for target in range(N_CLASSES))
    np.testing.assert_allclose(examples(model, probe, "sum"), each, rtol=1e-4, atol=1e-6)
