"""Fourteen binary tasks on scikit-learn's digits, shared by the examples.

1,797 real images of 8 x 8 pixels ship inside scikit-learn. A source model is trained on 700. A
target has 30 labelled images (10 positive): transfer matters when labels are few. Every score is
the positive-class F1: on the dev images to choose by, on the test images to report. The environment
variable DIGITS_SPLIT, a number, deals the images out differently.
"""

from __future__ import annotations

import copy
import os

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from torch import Tensor, nn

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = torch.tensor(IMAGES / 16, dtype=torch.float32).view(-1, 1, 8, 8)

TASKS: dict[str, np.ndarray] = {f"digit-{digit}": digit == DIGITS for digit in range(10)} | {
    "even": DIGITS % 2 == 0,
    "prime": np.isin(DIGITS, [2, 3, 5, 7]),
    "at-least-five": DIGITS >= 5,
    "closed-loop": np.isin(DIGITS, [0, 6, 8, 9]),
}

SPLIT = int(os.environ.get("DIGITS_SPLIT", "1"))
_SHUFFLED = np.random.default_rng(SPLIT).permutation(len(DIGITS))
SOURCE, POOL, DEV, TEST = np.split(_SHUFFLED, [700, 1000, 1350])
PROBE = IMAGES[POOL[:100]]
"""Probe examples: 100 images of which no label is used, the same for every task."""

N_POSITIVE, N_NEGATIVE = 10, 20
DRAWS = 2
"""Every target score is the mean over this many draws of its labelled images and initial head."""


class Network(nn.Module):
    """A small convolutional network; its head is new for every task."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.hidden = nn.Linear(64, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to logits (n, 2)."""
        features = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        features = nn.functional.max_pool2d(torch.relu(self.conv2(features)), 2)
        return self.head(torch.relu(self.hidden(features.flatten(1))))


def new_network(seed: int) -> Network:
    torch.manual_seed(seed)
    return Network()


def train(
    model: Network, task: str, rows: np.ndarray, lr: float, epochs: int, batch: int, seed: int
) -> Network:
    labels = torch.tensor(TASKS[task].astype(np.int64))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        shuffled = order.permutation(rows)
        for start in range(0, len(shuffled), batch):
            chosen = shuffled[start : start + batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(IMAGES[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model


def f1(model: Network, task: str, rows: np.ndarray) -> float:
    with torch.no_grad():
        predicted = model(IMAGES[rows]).argmax(dim=1).numpy()
    return float(f1_score(TASKS[task][rows], predicted, zero_division=0.0))


def source_model(task: str) -> Network:
    """Train the single-task model that a task is a source with."""
    return train(new_network(0), task, SOURCE, lr=5e-3, epochs=20, batch=50, seed=0)


def few_shot_rows(task: str, draw: int) -> np.ndarray:
    rows = np.random.default_rng(draw).permutation(POOL)
    positive = TASKS[task][rows]
    return np.concatenate([rows[positive][:N_POSITIVE], rows[~positive][:N_NEGATIVE]])


def target_model(
    task: str, lr: float, epochs: int, source: Network | None = None, draw: int = 0
) -> Network:
    """Train a target on its few labels: from a source model (sequential transfer) or from none."""
    fresh = new_network(100 + draw)
    model = fresh if source is None else copy.deepcopy(source)
    model.head.load_state_dict(fresh.head.state_dict())
    return train(model, task, few_shot_rows(task, draw), lr, epochs, batch=30, seed=draw)


def transfer_scores(
    source: Network | None, task: str, lr: float, epochs: int
) -> tuple[float, float]:
    """Train with transfer from `source`, or without, and score on the dev and the test images."""
    models = [target_model(task, lr, epochs, source, draw) for draw in range(DRAWS)]
    dev, test = np.mean([(f1(m, task, DEV), f1(m, task, TEST)) for m in models], axis=0)
    return float(dev), float(test)
