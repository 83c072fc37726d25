"""What the figures show adds up by hand, and estimates are those of `estimate_savings`."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integrations.transfer_pruner_optuna.told_search import (
    ELIMINATED,
    PAIR_OF,
    SCORES,
    one_after_the_other,
    search,
    told_study,
)
from transfer_pruner import LearningRule, TransferPredictor, TrialRecord, estimate_savings
from transfer_pruner_optuna import transfers_from_study
from transfer_pruner_optuna.figure_tables import (
    finished_steps,
    gains_table,
    pair_means,
    pairs_table,
    savings_table,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def study() -> optuna.Study:
    return told_study()


def test_gains_are_told_trial_by_trial_with_what_was_predicted(study: optuna.Study) -> None:
    table, why_not = gains_table(study, None, PAIR_OF, None)
    assert why_not == ""
    expected = [
        (3, "a", "t", 0.3, 0.1, False, {"lr": 0.1}),
        (4, "a", "t", 0.3, 0.2, False, {"lr": 0.01}),
        (7, "c", "t", 0.1, -0.05, True, {"lr": 0.1}),
        (8, "b", "u", 0.5, 0.1, False, {"lr": 0.1}),
        (11, "c", "u", 0.0, -0.1, True, {"lr": 0.01}),
    ]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=table.columns))


def test_a_pair_that_was_audited_and_later_kept_has_a_point_for_each() -> None:
    gains = pd.DataFrame(
        {
            "source": ["a", "a", "a"],
            "target": ["t", "t", "t"],
            "predicted": [0.1, 0.2, 0.4],
            "gain": [0.5, 0.1, 0.3],
            "audit": [True, False, False],
        }
    )
    means = pair_means(gains).set_index("audit")
    assert means.loc[True, "gain"] == 0.5
    assert means.loc[False, "gain"] == pytest.approx(0.2)
    assert means.loc[False, "predicted"] == pytest.approx(0.3)


def test_a_learning_rule_scores_by_what_it_has_learnt_from_the_study() -> None:
    study = search(None)
    pairs = pd.DataFrame(list(SCORES), columns=["source", "target"])
    learning = LearningRule(TransferPredictor(), refit_every=4, min_targets=1, pairs=pairs)
    table, _ = gains_table(study, learning, PAIR_OF, None)
    # Eight complete trials are a whole multiple of four: it has learnt from all of them.
    taught = learning.refitted(transfers_from_study(study))
    expected = [taught.decide(row.source, row.target).score for row in table.itertuples()]
    np.testing.assert_equal(table["predicted"].tolist(), expected)
    assert np.isfinite(expected).any()


def test_savings_add_up_by_hand(study: optuna.Study) -> None:
    steps = finished_steps(one_after_the_other(study), PAIR_OF, "trial")
    assert [at for at, _ in steps] == list(range(13))
    table = savings_table(steps, single_task_seconds=0, attribution_seconds=0, confidence=0.9)
    # Fewer trials than checkpoints: every trial is one.
    assert table["trials"].tolist() == list(range(1, 14))
    eliminated = np.array([sum(n <= at for n in ELIMINATED) for at in range(13)])
    ran = np.arange(1, 14) - eliminated
    np.testing.assert_allclose(table["seconds_spent"], 10 * ran + eliminated)
    # Every trial that ran took ten seconds, and deciding one: nine saved, and no doubt about it.
    for column in ("estimated_seconds_saved", "estimated_low", "estimated_high"):
        np.testing.assert_allclose(table[column], 9 * eliminated, atol=1e-9)


def test_before_anything_trained_the_estimate_is_left_open() -> None:
    records = [
        TrialRecord(0, "a", "t", "eliminated", 1.0),
        TrialRecord(1, "b", "t", "trained", 10.0),
    ]
    table = savings_table(
        list(enumerate(records)), single_task_seconds=0, attribution_seconds=0, confidence=0.9
    )
    assert math.isnan(table["estimated_seconds_saved"][0])
    assert table["seconds_spent"].tolist() == [1.0, 11.0]
    assert table["estimated_seconds_saved"][1] == pytest.approx(9.0)


RECORDS = st.lists(
    st.builds(
        TrialRecord,
        number=st.integers(0, 10**6),
        source=st.sampled_from([None, "a", "b"]),
        target=st.just("t"),
        outcome=st.sampled_from(["trained", "eliminated", "failed"]),
        seconds=st.floats(0, 1e4),
        hyperparameters=st.fixed_dictionaries({"lr": st.sampled_from([0.1, 0.01])}),
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=15, deadline=None)
@given(RECORDS)
def test_the_last_checkpoint_is_the_estimate_of_the_whole_search(
    records: list[TrialRecord],
) -> None:
    table = savings_table(
        list(enumerate(records)), single_task_seconds=3, attribution_seconds=2, confidence=0.9
    )
    whole = estimate_savings(records, single_task_seconds=3, attribution_seconds=2)
    last = table.iloc[-1]
    assert last["trials"] == len(records)
    assert len(table) == min(len(records), 50)
    assert table["seconds_spent"].is_monotonic_increasing
    np.testing.assert_equal(
        [last["estimated_seconds_saved"], last["estimated_low"], last["estimated_high"]],
        [whole.estimated_seconds_saved, *whole.estimated_seconds_saved_interval],
    )


def test_a_pair_is_told_with_its_trials_eliminations_and_mean_gain(study: optuna.Study) -> None:
    table = pairs_table(study, None, PAIR_OF, None).set_index(["source", "target"])
    expected = pd.DataFrame(
        [
            ("a", "t", 0.3, 2, 0, 0, 0.15),
            ("a", "u", -0.1, 1, 1, 0, math.nan),
            ("b", "t", 0.2, 1, 0, 0, math.nan),
            ("b", "u", 0.5, 1, 0, 0, 0.1),
            ("c", "t", 0.1, 2, 1, 1, -0.05),
            ("c", "u", 0.0, 2, 1, 1, -0.1),
            ("u", "t", -0.3, 1, 1, 0, math.nan),
        ],
        columns=["source", "target", "predicted", "trials", "eliminated", "audited", "gain"],
    ).set_index(["source", "target"])
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
