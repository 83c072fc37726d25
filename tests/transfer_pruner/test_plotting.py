from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from transfer_pruner.plotting import pair_heatmap


def test_predicted_and_measured_gain_stand_side_by_side_in_one_order() -> None:
    tasks = ["a", "b", "c"]
    measured = pd.DataFrame(
        [[np.nan, 0.1, 0.1], [0.3, np.nan, 0.3], [-0.2, -0.2, np.nan]], tasks, tasks
    )
    figure = pair_heatmap(measured * 5, measured, title="three tasks")
    left, right = figure.axes[:2]
    assert [label.get_text() for label in right.get_xticklabels()] == ["b", "a", "c"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["b", "a", "c"]
    shown = right.images[0].get_array()
    np.testing.assert_array_equal(shown.mask, np.eye(3, dtype=bool))
    assert right.images[0].get_clim() == (-0.3, 0.3)


def test_tables_of_different_pairs_are_refused() -> None:
    table = pd.DataFrame([[1.0]], ["a"], ["b"])
    with pytest.raises(ValueError, match="same sources and targets"):
        pair_heatmap(table, table.rename(index={"a": "c"}))
