"""Figures.

Each function returns a matplotlib figure and leaves saving it to the caller. Its companion
``<figure>_data`` returns what it draws as a table, so that every figure can lie beside its numbers.
"""

from __future__ import annotations

from transfer_pruner.plotting.pairs import (
    pair_heatmap,
    pair_heatmap_data,
    source_ranking,
    source_ranking_data,
)
from transfer_pruner.plotting.progress import Vertical, best_over_time, pairs_tried
from transfer_pruner.plotting.search import (
    calibration_curve,
    predicted_and_measured,
    savings_over_time,
)
from transfer_pruner.plotting.tasks import task_map, task_map_data, task_similarity
from transfer_pruner.plotting.tradeoff import savings_regret_curve, savings_regret_curve_data
from transfer_pruner.progress import best_over_time_data, pairs_tried_data
from transfer_pruner.tables import (
    calibration_curve_data,
    measured_gains,
    predicted_and_measured_data,
    savings_over_time_data,
)

__all__ = [
    "Vertical",
    "best_over_time",
    "best_over_time_data",
    "calibration_curve",
    "calibration_curve_data",
    "measured_gains",
    "pair_heatmap",
    "pair_heatmap_data",
    "pairs_tried",
    "pairs_tried_data",
    "predicted_and_measured",
    "predicted_and_measured_data",
    "savings_over_time",
    "savings_over_time_data",
    "savings_regret_curve",
    "savings_regret_curve_data",
    "source_ranking",
    "source_ranking_data",
    "task_map",
    "task_map_data",
    "task_similarity",
]
