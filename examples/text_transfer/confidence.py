"""Can the probabilities and the bounds be believed? Each target held out in turn."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scores import ATTRIBUTIONS, columns_of, fitted
from table import Array, Measured, ranks

from transfer_pruner.rule.calibration import conformal_position, target_depths


def print_reliability(data: Measured, console: Console, bins: int = 5) -> None:
    """Compare the probability of a positive gain with its rate on test, in bins of equal counts.

    A gain is that of one pair on one draw of labels, as the predictor learnt them.
    """
    columns = columns_of(data.features, ATTRIBUTIONS)
    said = fitted(data, "target", columns, method="predict_proba").ravel()
    gains = data.test_gain.ravel()
    there = np.isfinite(said) & np.isfinite(gains)
    said, positive = said[there], gains[there] > 0
    printed = Table("probability of a gain, attributions fitted", "pairs", "said", "came true")
    parts = np.array_split(np.argsort(said), bins)
    for part in parts:
        between = f"{said[part].min():.2f} to {said[part].max():.2f}"
        rates = (f"{values[part].mean():.0%}" for values in (said, positive))
        printed.add_row(between, str(len(part)), *rates)
    console.print(printed)
    off = sum(abs(said[part].mean() - positive[part].mean()) * len(part) for part in parts)
    brier = np.mean((said - positive) ** 2)
    console.print(
        f"Expected calibration error {off / len(said):.3f}; Brier score {brier:.3f}, of the base "
        f"rate {positive.mean() * (1 - positive.mean()):.3f}."
    )


def print_risk(
    data: Measured, scores: Array, console: Console, risks: tuple[float, ...] = (0.1, 0.2)
) -> None:
    """Calibrate on all targets but one, and look at that one: leave-target-out."""
    printed = Table("risk asked for", "tolerance", "sources kept", "targets that lost their best")
    rank, gains = ranks(scores.mean(axis=0)) + 1, data.test_gain.mean(axis=0)
    for tolerance in (0.0, 0.01):
        frame = pd.DataFrame(
            [
                (target, rank[t, s], gains[t, s])
                for t, target in enumerate(data.tasks)
                for s in range(len(data.tasks))
                if s != t
            ],
            columns=["target", "rank", "gain"],
        )
        depths = target_depths(frame, tolerance)
        for risk in risks:
            kept = []
            for target in data.tasks:
                others = np.sort(depths.drop(target))
                kept.append(others[conformal_position(len(others), risk) - 1])
            lost = depths[data.tasks].to_numpy() > np.array(kept)
            printed.add_row(
                f"{risk:g}", f"{tolerance:g}", f"{np.mean(kept):.1f}", f"{lost.mean():.0%}"
            )
    console.print(printed)
