from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from transfer_pruner import Decision, EliminationRule, TrialRecord, estimate_savings, regret
from transfer_pruner.tables import savings_over_time_data


def trained(number: int, seconds: float, **hyperparameters: object) -> TrialRecord:
    return TrialRecord(
        number, f"s{number}", "t", "trained", seconds, 0.5, hyperparameters=hyperparameters
    )


def eliminated(number: int, **hyperparameters: object) -> TrialRecord:
    return TrialRecord(
        number, f"s{number}", "t", "eliminated", 0.01, hyperparameters=hyperparameters
    )


def test_eliminated_trials_cost_what_trials_like_them_cost() -> None:
    records = [
        trained(i, 1.0 + 9.0 * (i % 2), epochs=10 + 90 * (i % 2), lr=0.1 / (i + 1))
        for i in range(20)
    ]
    records += [eliminated(100 + i, epochs=100, lr=0.01) for i in range(5)]
    savings = estimate_savings(records)
    assert savings.estimated_seconds_saved == pytest.approx(50 - 0.05)
    assert savings.estimated_exhaustive_seconds == pytest.approx(110 + 50)
    assert savings.seconds_spent == pytest.approx(110 + 0.05)
    assert savings.trials_eliminated == 5
    assert savings.pairs_eliminated == 5


def test_attribution_is_paid_for_and_single_task_training_is_not_saved() -> None:
    records = [trained(i, 2.0) for i in range(10)] + [eliminated(50 + i) for i in range(10)]
    plain = estimate_savings(records)
    paid = estimate_savings(records, single_task_seconds=30.0, attribution_seconds=7.0)
    assert paid.estimated_seconds_saved == pytest.approx(plain.estimated_seconds_saved - 7)
    assert paid.seconds_spent == pytest.approx(plain.seconds_spent + 37)
    assert paid.estimated_fraction_saved < plain.estimated_fraction_saved
    costly = estimate_savings(records, attribution_seconds=100.0)
    assert costly.estimated_seconds_saved < 0


def test_the_interval_covers_what_the_trials_would_have_taken() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        seconds = rng.gamma(4.0, 1.0, 60)
        records = [trained(i, x) for i, x in enumerate(seconds[:30])]
        records += [eliminated(i) for i in range(30, 60)]
        low, high = estimate_savings(records, n_resamples=300).estimated_seconds_saved_interval
        covered += low <= seconds[30:].sum() - 0.3 <= high
    # 90% of 200 is 180; below 168 a true 90% interval falls once in a hundred.
    assert covered >= 168


def test_a_machine_that_is_slower_at_times_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        # Each stretch of twelve trials has its own slowness; the eliminated ones run at another.
        slowness = np.repeat(rng.normal(1.0, 0.15, 6), 12)
        seconds = slowness * rng.gamma(50.0, 0.02, 72)
        records = [trained(i, x) for i, x in enumerate(seconds[:60])]
        records += [eliminated(i) for i in range(60, 72)]
        low, high = estimate_savings(records, n_resamples=300).estimated_seconds_saved_interval
        covered += low <= seconds[60:].sum() - 0.12 <= high
    assert covered >= 168


@pytest.mark.parametrize("huge", [math.inf, -math.inf, 1e300, "inf"])
def test_a_hyperparameter_may_be_infinite(huge: object) -> None:
    records = [trained(i, 1.0 + i % 2, clip=huge if i % 2 else 1) for i in range(20)]
    savings = estimate_savings([*records, eliminated(30, clip=huge), eliminated(31)])
    assert 1.5 < savings.estimated_seconds_saved < 4


@pytest.mark.filterwarnings("error")
def test_trials_that_took_no_time_do_not_hide_how_unsteady_the_machine_is() -> None:
    slow_at_times = [trained(i, 1.0 + (i >= 30) + 0.01 * (i % 3), cached=0) for i in range(60)]
    no_time = [trained(100 + i, 0.0, cached=1) for i in range(20)]
    gone = [eliminated(200 + i, cached=0) for i in range(5)]
    low, high = estimate_savings([*slow_at_times, *gone]).estimated_seconds_saved_interval
    with_them = estimate_savings([*slow_at_times, *no_time, *gone])
    assert with_them.estimated_seconds_saved_interval == pytest.approx((low, high), rel=0.1)
    # Where nothing took any time, nothing is saved, and nothing is said of the machine.
    nothing = estimate_savings([*no_time, eliminated(200, cached=1)])
    assert nothing.estimated_seconds_saved == pytest.approx(-0.01)
    assert nothing.estimated_seconds_saved_interval == pytest.approx((-0.01, -0.01))


def test_the_order_in_which_records_are_given_is_no_order_in_time() -> None:
    records = [trained(i, 1.0 + (i >= 30) + 0.01 * (i % 3)) for i in range(60)]
    records.append(eliminated(60))
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    low, high = estimate_savings(records).estimated_seconds_saved_interval
    for_any_order = estimate_savings(shuffled).estimated_seconds_saved_interval
    steady = [trained(i, 1.0 + i % 2 + 0.01 * (i % 3)) for i in range(60)]
    at_once = estimate_savings([*steady, eliminated(60)]).estimated_seconds_saved_interval
    assert for_any_order == pytest.approx((low, high), rel=0.15)
    assert high - low > 1.5 * (at_once[1] - at_once[0])


def test_settings_that_are_words_or_missing_can_set_the_cost() -> None:
    records = [
        trained(i, 1.0 + 4.0 * (i % 2), size="large" if i % 2 else "small") for i in range(20)
    ]
    records += [trained(20 + i, 3.0) for i in range(10)]
    savings = estimate_savings([*records, eliminated(90, size="large"), eliminated(91)])
    assert savings.estimated_seconds_saved == pytest.approx(5 + 3 - 0.02)


def test_nothing_can_be_said_before_anything_trained() -> None:
    savings = estimate_savings([eliminated(1)])
    assert math.isnan(savings.estimated_seconds_saved)
    assert "nothing can be said" in savings.headline()
    assert "savings/estimated_seconds_saved" not in savings.metrics()
    empty = estimate_savings([])
    assert empty.seconds_spent == 0
    assert math.isnan(empty.estimated_fraction_saved)


def test_of_trials_that_took_no_time_it_does_not_say_that_none_trained() -> None:
    records = [TrialRecord(0, None, "t", "trained", 0.0), TrialRecord(1, "s", "t", "eliminated", 0)]
    said = estimate_savings(records).headline()
    assert "the exhaustive search would take no time, so nothing can be said" in said


def test_failed_trials_are_spent_and_counted_but_no_model_of_cost() -> None:
    failed = TrialRecord(9, "s9", "t", "failed", 100.0)
    savings = estimate_savings([trained(i, 1.0) for i in range(5)] + [failed, eliminated(10)])
    assert savings.trials_failed == 1
    assert savings.training_seconds == 105
    assert savings.estimated_exhaustive_seconds == 106


def test_the_baseline_is_a_trial_but_no_pair() -> None:
    records = [
        TrialRecord(0, None, "t", "trained", 1.0),
        TrialRecord(1, "t", "t", "trained", 1.0),
        trained(2, 1.0),
    ]
    savings = estimate_savings(records)
    assert (savings.trials_trained, savings.pairs_trained) == (3, 1)


def test_the_headline_and_the_metrics_say_what_is_estimated() -> None:
    savings = estimate_savings([trained(i, 1.0) for i in range(5)] + [eliminated(7)])
    assert "1 of 6 pairs eliminated" in savings.headline()
    assert "spent (measured), an estimated" in savings.headline()
    metrics = savings.metrics()
    assert metrics["savings/seconds_spent"] == savings.seconds_spent
    assert {name for name in metrics if "saved" in name} == {
        "savings/estimated_seconds_saved",
        "savings/estimated_seconds_saved_low",
        "savings/estimated_seconds_saved_high",
        "savings/estimated_fraction_saved",
    }


def test_a_confidence_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"confidence must be between 0 and 1 but got 1\.0"):
        estimate_savings([], confidence=1.0)


def test_what_was_never_started_counts_as_an_estimate_with_an_interval() -> None:
    baseline = TrialRecord(99, None, "t", "trained", 500.0)
    records = [baseline, *(trained(i, 2.0 + i % 2) for i in range(10))]
    records += [eliminated(50 + i) for i in range(3)]
    savings = estimate_savings(records, exhaustive_trials=40, stopped="nothing to gain")
    assert savings.trials_never_started == 40 - 11 - 3
    # A trial of which nothing is known costs what the pairs' trials did, not the baseline.
    assert savings.estimated_never_started_seconds == pytest.approx(26 * 2.5)
    plain = estimate_savings(records)
    assert savings.seconds_spent == plain.seconds_spent
    more = savings.estimated_seconds_saved - plain.estimated_seconds_saved
    assert more == pytest.approx(26 * 2.5)
    assert savings.estimated_exhaustive_seconds == pytest.approx(
        savings.seconds_spent + savings.estimated_seconds_saved
    )
    low, high = savings.estimated_never_started_seconds_interval
    assert low < 65 < high
    assert "26 of the exhaustive search's 40 never started" in savings.headline()
    assert "65.0 s of them never started" in savings.headline()
    assert savings.stopped == "nothing to gain"
    metrics = savings.metrics()
    assert metrics["savings/trials_never_started"] == 26
    assert metrics["savings/estimated_never_started_seconds_low"] == low
    assert "savings/stopped" not in metrics


def test_without_being_told_nothing_is_claimed_of_trials_never_started() -> None:
    savings = estimate_savings([trained(i, 2.0) for i in range(5)])
    assert (savings.exhaustive_trials, savings.trials_never_started) == (None, None)
    assert math.isnan(savings.estimated_never_started_seconds)
    assert "never started" not in savings.headline()
    assert not [name for name in savings.metrics() if "never" in name or "exhaustive_t" in name]
    nothing = estimate_savings([], exhaustive_trials=5)
    assert math.isnan(nothing.estimated_seconds_saved)
    assert nothing.trials_never_started == 5


def test_a_setting_that_was_eliminated_again_and_again_is_one_of_the_exhaustive_search() -> None:
    records = [trained(i, 1.0, lr=i) for i in range(10)]
    records += [eliminated(i, lr=3) for i in (20, 20, 20, 21)]
    # One that was eliminated at first and trained as an audit is not saved.
    records += [eliminated(2, lr=2)]
    savings = estimate_savings(records, exhaustive_trials=12)
    assert savings.trials_never_started == 0
    assert savings.estimated_exhaustive_seconds == pytest.approx(12.0)
    assert savings.trials_eliminated == 5
    # More settings than the exhaustive search has cannot be saved.
    assert estimate_savings(records, exhaustive_trials=11).estimated_exhaustive_seconds == 11.0


def test_more_trials_than_the_exhaustive_search_has_are_a_loss() -> None:
    savings = estimate_savings([trained(i, 1.0) for i in range(12)], exhaustive_trials=10)
    assert savings.trials_never_started == 0
    assert savings.estimated_never_started_seconds == 0
    assert savings.estimated_never_started_seconds_interval == (0, 0)
    assert savings.estimated_seconds_saved == pytest.approx(-2.0)


def test_the_interval_covers_what_was_never_started() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        seconds = rng.gamma(4.0, 1.0, 60)
        records = [trained(i, x) for i, x in enumerate(seconds[:30])]
        savings = estimate_savings(records, exhaustive_trials=60, n_resamples=300)
        low, high = savings.estimated_never_started_seconds_interval
        covered += low <= seconds[30:].sum() <= high
    assert covered >= 168


@pytest.mark.parametrize("count", [-1, 1.5, float("nan")])
def test_a_number_of_trials_that_is_none_is_refused(count: float) -> None:
    with pytest.raises(ValueError, match=f"exhaustive_trials must be a whole number .* {count}"):
        estimate_savings([], exhaustive_trials=count)  # type: ignore[arg-type]


@pytest.fixture
def trials() -> pd.DataFrame:
    """Target t: a is best on dev but not on test. Target u: no source helps."""
    rows = [
        (None, "t", 0.50, 0.50),
        ("a", "t", 0.80, 0.70),
        ("b", "t", 0.60, 0.75),
        ("a", "u", 0.30, 0.35),
        ("b", "u", 0.20, 0.45),
        ("u", "u", 0.40, 0.40),
    ]
    return pd.DataFrame(rows, columns=["source", "target", "dev", "test"])


def test_regret_chooses_on_dev_and_reports_on_test(trials: pd.DataFrame) -> None:
    found = regret(trials, [("b", "t"), ("a", "u"), ("b", "u")])
    # t loses 0.70 - 0.75 (negative: dev chose worse), u keeps its baseline.
    assert found.by_target.to_dict() == pytest.approx({"t": -0.05, "u": 0.0})
    assert found.attainable == pytest.approx(0.2 / 2)
    assert found.share_kept == pytest.approx(1.25)


def test_keeping_everything_loses_nothing_and_keeping_nothing_all(trials: pd.DataFrame) -> None:
    everything = zip(trials["source"], trials["target"], strict=True)
    assert regret(trials, everything).regret == 0
    nothing = regret(trials, [])
    assert nothing.regret == nothing.attainable
    assert nothing.share_kept == 0


def test_regret_of_a_rule(trials: pd.DataFrame) -> None:
    rule = EliminationRule({("a", "t"): Decision(True, 0.0, 0.0, "test")}, {})
    with pytest.warns(match="does not know the pair"):
        found = regret(trials, rule)
    assert found.by_target["t"] == pytest.approx(-0.05)


def test_regret_of_anything_that_decides_and_of_tasks_that_are_numbers(
    trials: pd.DataFrame,
) -> None:
    class NothingFrom:
        def decide(self, source: str | None, target: str) -> Decision:
            return Decision(source == "1", 0.0, 0.5, "")

    numbers = {"a": 1, "b": 2, "t": 3.0, "u": 4}
    mapped = trials.assign(
        source=trials["source"].map(numbers), target=trials["target"].map(numbers)
    )
    expected = regret(trials, [("b", "t"), ("b", "u")])
    for kept in (NothingFrom(), [(2, 3), (2, 4)], [("2", "3"), ("2", "4")]):
        found = regret(mapped, kept)
        assert found.by_target.tolist() == expected.by_target.tolist()
        assert found.by_target.index.tolist() == ["3", "4"]


def test_regret_without_a_baseline_or_column_is_refused(trials: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"no single-task baseline .* for the target 't'"):
        regret(trials[1:], [])
    with pytest.raises(ValueError, match="reported is 'f1', which is no column"):
        regret(trials, [], reported="f1")


def test_proxy_scores_are_paid_for_once_whoever_tells_of_them() -> None:
    records = [trained(i, 2.0) for i in range(10)] + [eliminated(50 + i) for i in range(10)]
    plain = estimate_savings(records)
    told = [replace(record, scoring_seconds=3.0) for record in records]
    for paid in (
        estimate_savings(told),
        estimate_savings(records, scoring_seconds=3.0),
        estimate_savings(told, scoring_seconds=2.0),
        # A search that went on with scores that were computed again.
        estimate_savings([*records[:5], *told[5:10], *told[10:]]),
    ):
        assert paid.scoring_seconds == 3
        assert paid.seconds_spent == pytest.approx(plain.seconds_spent + 3)
        assert paid.estimated_seconds_saved == pytest.approx(plain.estimated_seconds_saved - 3)
        assert paid.estimated_seconds_saved_interval[0] == pytest.approx(
            plain.estimated_seconds_saved_interval[0] - 3
        )
    assert paid.metrics()["savings/scoring_seconds"] == 3
    over_time = savings_over_time_data(told)
    assert over_time["seconds_spent"].iloc[-1] == pytest.approx(plain.seconds_spent + 3)
