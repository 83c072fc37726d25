"""Which output of a single-task model stands for its task, whatever kind of head it has.

What it must satisfy: along the path from baseline input to input each probe example keeps one
target, so that conductance still adds up to the change of one number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PREDICTED = "predicted"
"""Of each probe example, the output of the class that the model predicts for it."""
SUM = "sum"
"""The sum of all outputs."""

Target = int | str | None
"""What a user may give: an output's index, PREDICTED, SUM, or nothing."""


def default_target(config: Any, architecture: str) -> int | str:
    """Choose the target of a transformers classifier from its configuration.

    One logit (regression, or a single-logit binary head): that one. Multi-label: ``"sum"``. Two
    labels: the positive class, 1. More: ``"predicted"``.

    Raises
    ------
    ValueError
        If the model classifies tokens, of whose labels none stands for the task.
    """
    labels = int(config.num_labels or 1)
    if architecture.endswith("ForTokenClassification"):
        raise ValueError(
            f"target must say which of the {labels} labels of {architecture}, from 0 to "
            f"{labels - 1}, stands for the task: its logit is averaged over a text's tokens."
        )
    if labels == 1:
        return 0
    if config.problem_type == "multi_label_classification":
        return SUM
    return 1 if labels == 2 else PREDICTED


def plain_target(target: Any) -> Target:
    """Take a number of numpy's or torch's, such as an element of an array of labels, as an int."""
    if target is None or isinstance(target, str):
        return target
    try:
        return operator.index(target)
    except TypeError:
        raise ValueError(
            f"target must be a whole number, {PREDICTED!r}, {SUM!r} or None but got {target!r}."
        ) from None


def check_target(shape: tuple[int, ...], target: Target) -> None:
    """Refuse a target that outputs of this shape do not have.

    Raises
    ------
    ValueError
        If the outputs are neither (n,) nor (n, outputs), or the target is none of them.
    """
    if len(shape) not in (1, 2):
        raise ValueError(
            f"the model's output must be of shape (n,) or (n, outputs) but is {shape}."
        )
    if len(shape) == 1:
        if target is not None:
            raise ValueError(
                f"target must be left out for a model with one output but got {target!r}."
            )
        return
    if isinstance(target, str):
        known = target in (PREDICTED, SUM)
    else:
        known = target is not None and 0 <= target < shape[1]
    if not known:
        raise ValueError(
            f"target must say which of the model's {shape[1]} outputs to attribute, from 0 to "
            f"{shape[1] - 1}, or be {PREDICTED!r} or {SUM!r}, but got {target!r}."
        )


def target_of(
    scorer: Callable[[Tensor], Tensor], inputs: Tensor, target: Target
) -> int | Tensor | None:
    """Settle the target of some probe examples, as Captum takes it.

    For ``"sum"`` it is None, that of a scorer which sums its outputs.
    """
    if target == PREDICTED:
        return scorer(inputs).argmax(dim=1)
    return None if isinstance(target, str) else target


def select(output: Tensor, target: int | Tensor | None) -> Tensor:
    """Take the target's column, of each row its own if there are several: (n, ...) to (n,)."""
    if target is None:
        return output
    if isinstance(target, int):
        return output[:, target]
    return output.gather(1, target[:, None]).squeeze(1)
