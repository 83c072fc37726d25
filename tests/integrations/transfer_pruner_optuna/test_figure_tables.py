"""A study's figures are drawn from what its trials were marked with, else the rule of now."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from tests.integrations.transfer_pruner_optuna.told_search import (
    ELIMINATED,
    PAIR_OF,
    SCORES,
    SPACE,
    one_after_the_other,
    retold,
    search,
    told_rule,
    told_study,
)
from transfer_pruner import LearningRule, TransferPredictor
from transfer_pruner.tables import measured_gains, pairs_table, savings_over_time_data
from transfer_pruner_optuna import records_from_study, transfers_from_study
from transfer_pruner_optuna.figure_tables import places, scored_records

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def study() -> optuna.Study:
    return told_study()


def test_gains_are_told_trial_by_trial_with_what_was_predicted(study: optuna.Study) -> None:
    table = measured_gains(scored_records(study, None, PAIR_OF, None))
    expected = [
        (3, "a", "t", 0.3, 0.1, False),
        (4, "a", "t", 0.3, 0.2, False),
        (7, "c", "t", 0.1, -0.05, True),
        (8, "b", "u", 0.5, 0.1, False),
        (11, "c", "u", 0.0, -0.1, True),
    ]
    columns = ["number", "source", "target", "score", "gain", "audit"]
    pd.testing.assert_frame_equal(
        table[columns], pd.DataFrame(expected, columns=columns), check_dtype=False
    )


def test_a_learning_rule_scores_by_what_it_has_learnt_from_the_study() -> None:
    study = search(None)
    pairs = pd.DataFrame(list(SCORES), columns=["source", "target"])
    learning = LearningRule(TransferPredictor(), refit_every=4, min_targets=1, pairs=pairs)
    table = measured_gains(scored_records(study, learning, PAIR_OF, None))
    # Eight complete trials are a whole multiple of four: it has learnt from all of them.
    taught = learning.refitted(transfers_from_study(study))
    expected = [taught.decide(row.source, row.target).score for row in table.itertuples()]
    np.testing.assert_equal(table["score"].tolist(), expected)
    assert np.isfinite(expected).any()


def test_what_a_trial_was_marked_with_is_not_overruled(study: optuna.Study) -> None:
    marked = scored_records(study, None, PAIR_OF, None)
    assert scored_records(study, told_rule(), PAIR_OF, None) == marked
    scored = scored_records(search(None), told_rule(), PAIR_OF, None)
    assert {r.score for r in scored if (r.source, r.target) == ("c", "t")} == {0.1}
    assert all(math.isnan(record.score) for record in scored if record.source is None)


def test_savings_add_up_by_hand(study: optuna.Study) -> None:
    records = records_from_study(one_after_the_other(study))
    table = savings_over_time_data(records)
    # Fewer trials than checkpoints: every trial is one.
    assert table["number"].tolist() == list(range(13))
    eliminated = np.array([sum(n <= at for n in ELIMINATED) for at in range(13)])
    ran = np.arange(1, 14) - eliminated
    np.testing.assert_allclose(table["seconds_spent"], 10 * ran + eliminated)
    # Every trial that ran took ten seconds, and deciding one: nine saved, and no doubt about it.
    for column in ("", "_low", "_high"):
        estimate = table[f"estimated_seconds_saved{column}"]
        np.testing.assert_allclose(estimate, 9 * eliminated, atol=1e-9)


def test_trials_stand_by_their_numbers_or_by_when_they_finished(study: optuna.Study) -> None:
    trials = one_after_the_other(study).get_trials()
    assert places(trials, PAIR_OF, "trial") == {number: number for number in range(13)}
    # The first trial starts at 2 and outlasts all others, as on another worker.
    times = [(2.0, 100.0)] + [(3.0 + n, 4.0 + n) for n in range(1, 13)]
    trials = retold(study, times).get_trials()
    expected = {0: 98.0} | {n: 2.0 + n for n in range(1, 13)}
    assert places(trials, PAIR_OF, "seconds") == expected


def test_a_pair_is_told_with_its_trials_eliminations_and_mean_gain(study: optuna.Study) -> None:
    table = pairs_table(scored_records(study, None, PAIR_OF, None))
    columns = ["score", "trials", "trials_eliminated", "trials_audited", "mean_gain"]
    table = table[table["source"] != ""].set_index(["source", "target"]).sort_index()[columns]
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
        columns=["source", "target", *columns],
    ).set_index(["source", "target"])
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_gains_are_those_that_a_predictor_learns_from_whichever_way_the_study_goes(
    direction: str,
) -> None:
    study = search(told_rule(), direction=direction)
    # What a pruner stopped has a value of fewer steps: it is no result.
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params={"source": "a", "target": "t", "lr": 0.1},
            distributions=SPACE,
            intermediate_values={0: 0.99},
        )
    )
    learnt = transfers_from_study(study).groupby(["source", "target"])["gain"].mean()
    table = pairs_table(scored_records(study, None, PAIR_OF, None))
    shown = table[table["source"] != ""].set_index(["source", "target"])["mean_gain"].dropna()
    assert shown.to_dict() == pytest.approx(learnt.to_dict())
    assert shown["a", "t"] == pytest.approx(0.15 if direction == "maximize" else -0.15)
    # The records that a user reads say the same: they know their direction and what was stopped.
    pd.testing.assert_frame_equal(pairs_table(records_from_study(study)), table)
    row = table.set_index(["source", "target"]).loc[("a", "t")]
    assert row["highest_value"] == 0.6
    assert row["trials_trained"] == 3
