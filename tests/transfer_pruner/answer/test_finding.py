"""What a search found for every target, and how sure that is."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TrialRecord, find_answer
from transfer_pruner.tasks import Source


def trial(
    number: int,
    source: Source,
    value: float,
    *,
    target: str = "t",
    outcome: str = "trained",
    audit: bool = False,
    maximize: bool = True,
    **hyperparameters: object,
) -> TrialRecord:
    return TrialRecord(
        number,
        source,
        target,
        outcome,  # type: ignore[arg-type]
        1.0,
        value,
        hyperparameters=hyperparameters,
        audit=audit,
        maximize=maximize,
    )


def test_the_answer_is_the_best_source_with_its_gain_and_the_next_best_source() -> None:
    records = [
        trial(0, None, 0.70, lr=0.1),
        trial(1, None, 0.72, lr=0.01),
        trial(2, "a", 0.80, lr=0.1),
        trial(3, "a", 0.79, lr=0.01),
        trial(4, "b", 0.78, lr=0.1),
        trial(5, "c", 0.60, lr=0.1),
    ]
    (answer,) = find_answer(records).targets
    assert answer.best is not None
    assert answer.second is not None
    assert answer.baseline is not None
    assert (answer.best.source, answer.best.hyperparameters) == ("a", {"lr": 0.1})
    assert answer.gain == pytest.approx(0.08), "over the best baseline trial, not their mean"
    assert answer.second.source == "b", "the next best source, not the same one at other settings"
    assert answer.margin == pytest.approx(0.02)
    assert answer.configurations == answer.trials_finished == 6
    assert answer.headline() == (
        "t: a with lr=0.1 scores 0.8000, +0.0800 over the single-task baseline; second is b, "
        "0.0200 behind (one trial: what another seed changes is not known)."
    )


def test_where_less_is_better_the_lowest_is_best_and_a_gain_is_positive() -> None:
    records = [
        trial(0, None, 0.5, maximize=False),
        trial(1, "a", 0.3, maximize=False),
        trial(2, "b", 0.4, maximize=False),
    ]
    (answer,) = find_answer(records).targets
    assert answer.best is not None
    assert answer.best.source == "a"
    assert answer.gain == pytest.approx(0.2)
    assert answer.margin == pytest.approx(0.1)
    with pytest.raises(ValueError, match="some maximize and some minimize"):
        find_answer([*records, trial(3, "c", 0.9)])
    (turned,) = find_answer(records, maximize=True).targets
    assert turned.best is not None
    assert turned.best.source is None


def test_no_transfer_beats_the_baseline_then_training_alone_is_the_answer() -> None:
    records = [trial(0, "a", 0.7), trial(1, None, 0.7), trial(2, "b", 0.6)]
    (answer,) = find_answer(records).targets
    assert not answer.transfers, "nor does one that is as good"
    assert answer.gain == 0
    assert answer.second is not None
    assert answer.second.source == "a"
    assert (
        "t: training alone scores 0.7000; no transfer does better; second is a, 0.0000 behind"
        in answer.headline()
    )
    (alone,) = find_answer([trial(0, None, 0.7)]).targets
    assert "no transfer was tried" in alone.headline()
    assert math.isnan(alone.margin)


def test_without_a_baseline_there_is_an_answer_but_no_gain() -> None:
    (answer,) = find_answer([trial(0, "a", 0.7), trial(1, None, 0.5, outcome="failed")]).targets
    assert answer.transfers
    assert math.isnan(answer.gain)
    assert "no single-task baseline finished" in answer.headline()


def test_trials_without_a_score_count_for_nothing() -> None:
    records = [
        trial(0, "a", 0.99, outcome="failed"),
        trial(1, "b", math.nan, outcome="eliminated"),
        trial(2, "c", math.nan),  # as Optuna's pruners leave it
        trial(3, "d", math.inf),
        trial(4, "e", -math.inf),
        trial(5, "f", 0.1, target="u"),
    ]
    unknown, known = find_answer(records).targets
    assert (unknown.target, unknown.best, unknown.trials_finished) == ("t", None, 0)
    assert unknown.headline() == "t: no finished trial has a score."
    assert known.best is not None
    assert known.best.source == "f"
    answer = find_answer(records)
    assert "1 without a finished trial" in answer.headline()
    assert answer.metrics() == {
        "answer/targets": 2,
        "answer/targets_answered": 1,
        "answer/targets_with_transfer": 1,
    }


def test_trials_that_differ_by_their_seed_are_one_configuration() -> None:
    records = [
        trial(0, "lucky", 0.90, lr=0.1, seed=0),
        trial(1, "lucky", 0.60, lr=0.1, seed=1),
        trial(2, "steady", 0.80, lr=0.1, seed=0),
        trial(3, "steady", 0.82, lr=0.1, seed=1),
        trial(4, "steady", 0.84, lr=0.1, seed=2),
    ]
    (answer,) = find_answer(records).targets
    best = answer.best
    assert best is not None
    assert (best.source, best.trials, best.seeds, best.number) == ("steady", 3, 3, 2)
    assert best.hyperparameters == {"lr": 0.1}
    assert best.value == pytest.approx(0.82)
    assert best.spread == pytest.approx(0.02)
    assert "mean of 3 trials with 3 seeds, standard deviation 0.02" in answer.certainty
    (apart,) = find_answer(records, seed_param="fold").targets
    assert apart.best is not None
    assert apart.best.source == "lucky"


def test_how_sure_it_is_says_what_cannot_be_known() -> None:
    one = find_answer([trial(0, "a", 0.8)], dev_sizes=400).targets[0]
    assert one.certainty == (
        "one trial: what another seed changes is not known; 400 dev examples, standard error 0.02 "
        "if the score is an accuracy"
    )
    alike = find_answer([trial(0, "a", 0.8), trial(1, "a", 0.8)]).targets[0]
    assert "tell nothing of another seed" in alike.certainty
    close = [trial(0, "a", 0.8, seed=0), trial(1, "a", 0.9, seed=1), trial(2, "b", 0.84)]
    assert "the second is within that" in find_answer(close).targets[0].certainty
    loss = find_answer([trial(0, "a", 3.5)], dev_sizes={"t": 50}).targets[0]
    assert loss.certainty.endswith("; 50 dev examples"), "no accuracy is above 1"
    audited = find_answer([trial(0, "a", 0.8, audit=True), trial(1, "b", 0.7)]).targets[0]
    assert "found by an audit: the rule had eliminated the pair" in audited.certainty
    kept_too = [trial(0, "a", 0.8, audit=True), trial(1, "a", 0.8)]
    assert "audit" not in find_answer(kept_too).targets[0].certainty


@pytest.mark.parametrize("size", [0, -1, 2.5, True, {"t": 0}])
def test_a_dev_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="dev_sizes must be whole numbers from 1 but has"):
        find_answer([trial(0, "a", 0.8)], dev_sizes=size)  # type: ignore[arg-type]


def test_joint_transfer_is_a_source_of_its_own() -> None:
    records = [
        trial(0, None, 0.5),
        trial(1, ("b", "a"), 0.8),
        trial(2, "a", 0.7),
        trial(3, ("a", "b"), 0.78, lr=1),
    ]
    answer = find_answer(records)
    best = answer.targets[0]
    assert best.best is not None
    assert best.second is not None
    assert best.best.source == ("a", "b")
    assert best.second.source == "a"
    assert answer.table()["source"].tolist() == ["a + b"]
    assert answer.as_dict()["t"]["source"] == ["a", "b"]


def test_ties_are_broken_alike_on_every_machine() -> None:
    records = [
        trial(3, "b", 0.8),
        trial(2, "a", 0.8),
        trial(5, "c", 0.8),
        trial(6, "c", 0.8),
        trial(4, "a", 0.8, lr=1),
    ]
    (first,) = find_answer(records).targets
    assert first.best is not None
    assert first.second is not None
    assert (first.best.source, first.second.source) == ("c", "a"), "more trials, then the earlier"
    random.Random(0).shuffle(records)
    assert find_answer(records).targets == (first,)


def test_the_table_has_a_row_a_target_with_types_that_hold_when_it_is_empty() -> None:
    empty = find_answer([]).table()
    full = find_answer([trial(0, None, 0.5, lr=0.1), trial(1, "a", 0.75, lr=0.1)]).table()
    assert empty.empty
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    row = full.iloc[0]
    assert (row["source"], row["hyperparameters"]) == ("a", "lr=0.1")
    assert (row["gain"], row["baseline_value"], row["second_value"]) == (0.25, 0.5, 0.5)
    assert row["second_source"] == "", "as in every table, the baseline"
    assert find_answer([]).headline() == "Transfer is best for 0 of 0 targets."


def test_it_is_written_as_json_whatever_hyperparameters_are() -> None:
    odd = {"lr": np.float32(0.5), "layers": np.array([1, 2]), "opt": dict, "n": math.inf, "k": [1]}
    told = find_answer([trial(0, None, 0.5, **odd)]).as_dict()
    read = json.loads(json.dumps(told, allow_nan=False))
    assert read["t"]["hyperparameters"]["lr"] == 0.5
    assert read["t"]["margin"] is None
    assert read["t"]["source"] is None
    assert read["t"]["number"] == 0


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0.0000"), (35.268, "35.27"), (-12345.6, "-12346"), (1e-7, "1e-07"), (1e308, "1e+308")],
)
def test_scores_of_any_size_are_written_to_four_digits(value: float, written: str) -> None:
    (shown,) = find_answer([trial(0, "a", value)]).shown()
    assert shown["score"] == written
    assert (shown["gain"], shown["second"], shown["behind"], shown["trials"]) == ("", "", "", "1")


def test_several_targets_are_said_in_one_line() -> None:
    records = [
        *(trial(0, None, 0.5), trial(1, "a", 0.7)),
        *(trial(2, None, 0.5, target="u"), trial(3, "a", 0.4, target="u")),
        trial(4, "a", 0.4, target="v"),
    ]
    assert find_answer(records).headline() == (
        "Transfer is best for 2 of 3 targets; mean gain over the single-task baseline +0.1 "
        "(measured, over 2 targets)."
    )
    assert find_answer(records).metrics()["answer/mean_gain"] == pytest.approx(0.1)


some_records = st.lists(
    st.builds(
        trial,
        number=st.integers(0, 99),
        source=st.sampled_from([None, "a", "b", ("a", "b")]),
        value=st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.just(math.nan)),
        target=st.sampled_from(["t", "u", "a"]),
        outcome=st.sampled_from(["trained", "failed", "eliminated"]),
        lr=st.sampled_from([1, 2]),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(records=some_records, maximize=st.booleans(), seed=st.integers(0, 9))
def test_nothing_tried_is_better_whatever_the_order(
    records: list[TrialRecord], maximize: bool, seed: int
) -> None:
    records = [replace(r, number=at, maximize=maximize) for at, r in enumerate(records)]
    answer = find_answer(records)
    assert {one.target for one in answer.targets} == {record.target for record in records}
    for one in answer.targets:
        values: dict[tuple[Source, object], list[float]] = {}
        for r in records:
            if r.target == one.target and r.outcome == "trained" and math.isfinite(r.value):
                values.setdefault((r.source, r.hyperparameters["lr"]), []).append(r.value)
        means = {key: fmean(found) for key, found in values.items()}
        best_of = max if maximize else min
        assert (one.best is None) == (not means)
        if one.best is not None:
            assert one.best.value == best_of(means.values())
            assert not one.gain < 0
            assert not one.margin < 0
            alone = [value for (source, _), value in means.items() if source is None]
            assert (one.baseline.value if one.baseline else None) == best_of(alone, default=None)
        assert one.headline().startswith(f"{one.target}: ")
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    assert find_answer(shuffled) == answer
