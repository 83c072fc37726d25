"""Every figure follows from the events: the same ones give the same points, at any time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_pruner import TrialRecord, estimate_audit, estimate_savings
from transfer_pruner.tables import pairs_table
from transfer_pruner_mlflow.ledger import Ledger, Point
from transfer_pruner_mlflow.spool import Event, Spool, encode_record

SECONDS = st.floats(0, 1e4)
TRIALS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from(["trained", "eliminated", "failed"]),
        SECONDS,
        st.floats(0, 1),
        st.sampled_from([None, "s1", "s2"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


def record_of(number: int, outcome: str, seconds: float, value: float, source, audit: bool):  # type: ignore[no-untyped-def]
    audit = audit and outcome == "trained" and source is not None
    return TrialRecord(number, source, "t", outcome, seconds, value, audit=audit)  # type: ignore[arg-type]


def events(records: Iterable[TrialRecord], closed: bool = True, **settings: object) -> list[Event]:
    made = [Event("x/0", "run", 0, {"maximize": True, **settings})]
    made += [Event("x/1", "trial", 10 * i, encode_record(r)) for i, r in enumerate(records)]
    return [*made, Event("x/2", "closed", 10**6, {"status": "FINISHED"})] if closed else made


def points(events: Iterable[Event], ledger: Ledger | None = None) -> list[Point]:
    ledger = ledger or Ledger()
    return [point for event in events for point in ledger.add(event)]


@settings(deadline=None, max_examples=50)
@given(trials=TRIALS)
def test_a_replay_makes_the_points_that_the_search_made(
    tmp_path_factory: pytest.TempPathFactory, trials: list[tuple[int, str, float, float, str, bool]]
) -> None:
    records = [record_of(*trial) for trial in trials]
    spool = Spool(tmp_path_factory.mktemp("spool") / "x.jsonl", lambda error: None)
    live = Ledger()
    sent = [p for event in events(records) for p in live.add(spool.append(event.kind, event.data))]
    spool.close()
    assert points(spool.events()) == sent


@settings(deadline=None, max_examples=50)
@given(trials=TRIALS)
def test_each_trial_has_one_point_and_the_last_ones_are_the_estimates(
    trials: list[tuple[int, str, float, float, str, bool]],
) -> None:
    records = [record_of(*trial) for trial in trials]
    ledger = Ledger()
    made = points(events(records, single_task_seconds=7.0), ledger)
    # No two have a step and a time in common, which is what tells a replay that it was sent.
    assert len({(p.key, p.step, p.timestamp) for p in made}) == len(made)
    steps = [p.step for p in made if p.key == "savings/trials_trained"]
    # A trial of two pairs is two decisions: one was eliminated, and the trial took the other.
    latest_of = {(record.number, record.source): record for record in records}
    assert sorted(set(steps)) == list(range(1, len(latest_of) + 1))
    # At most one more: a correction of the last.
    assert len(steps) <= len(latest_of) + 1
    latest = {p.key: p.value for p in sorted(made, key=lambda p: (p.step, p.timestamp))}
    last = sorted(latest_of.values(), key=lambda record: record.number)
    expected = estimate_savings(last, single_task_seconds=7.0).metrics()
    if any(record.audit for record in last):
        expected |= estimate_audit(last).metrics()
    for key, value in expected.items():
        assert latest[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key


def test_a_proposal_that_was_eliminated_counts_beside_the_trial_that_took_another_pair() -> None:
    records = [
        TrialRecord(0, None, "t", "trained", 2.0, 0.5),
        TrialRecord(1, "bad", "t", "eliminated", 0.0, score=0.1, reason="rank 9 of 9"),
        TrialRecord(1, "s1", "t", "trained", 2.0, 0.7),
        TrialRecord(2, "worse", "t", "eliminated", 0.0),
        TrialRecord(2, "s1", "t", "failed", 1.0),
        # A correction is of the same trial and pair.
        TrialRecord(2, "s1", "t", "trained", 2.0, 0.6),
    ]
    ledger = Ledger()
    made = points(events(records), ledger)
    assert [p.step for p in made if p.key == "savings/trials_eliminated"] == [1, 2, 3, 4, 5, 5]
    savings = ledger.savings()
    assert savings == estimate_savings([*records[:4], records[5]])
    assert (savings.trials_trained, savings.trials_eliminated, savings.pairs_eliminated) == (
        3,
        2,
        2,
    )
    assert savings.estimated_seconds_saved == pytest.approx(4.0)
    assert "2 of 5 trials and 2 of 3 pairs eliminated before training" in ledger.note()
    assert [record.number for record in ledger.records()] == [0, 1, 1, 2, 2]
    pairs = ledger.pairs_table().set_index("source")
    assert pairs["trials"].to_dict() == {"": 1, "bad": 1, "s1": 2, "worse": 1}
    assert len(ledger.decisions_table()) == 5


def test_estimates_are_made_at_times_of_their_own() -> None:
    trained = [TrialRecord(i, "s", "t", "trained", 1.0, 0.5) for i in range(2000)]
    made = points(events(trained))
    steps = [p.step for p in made if p.key == "savings/estimated_seconds_saved"]
    assert steps[:12] == [*range(1, 11), 15, 20]
    assert len(steps) < 60
    assert steps[-1] == 2000
    hours = [Event("x/0", "trial", i * 3_600_000, encode_record(r)) for i, r in enumerate(trained)]
    slow = points(hours[:200])
    assert sum(p.key == "savings/estimated_seconds_saved" for p in slow) == 200


def test_gains_are_measured_against_the_targets_baseline() -> None:
    records = [
        TrialRecord(0, None, "t", "trained", 1.0, 0.5),
        TrialRecord(1, "s1", "t", "trained", 1.0, 0.7),
        TrialRecord(2, "s1", "t", "trained", 1.0, 0.6),
        TrialRecord(3, "s2", "t", "eliminated", 0.0),
        TrialRecord(4, ("s1", "s2"), "t", "trained", 1.0, 0.9),
        TrialRecord(5, "s1", "u", "trained", 1.0, 0.9),
    ]

    def gains(**settings: object) -> pd.Series:
        ledger = Ledger()
        points(events(records, **settings), ledger)
        return ledger.pairs_table().set_index(["source", "target"])["mean_gain"]

    up = gains(maximize=True)
    assert up["s1", "t"] == pytest.approx(0.15)
    assert up["s2", "t"] is up["s1", "u"] is None
    assert up["s1 + s2", "t"] == pytest.approx(0.4)
    # One table of pairs, whoever shows it: the report's, with an empty cell where JSON has no NaN.
    ledger = Ledger()
    points(events(records), ledger)
    pd.testing.assert_frame_equal(
        ledger.pairs_table(), pairs_table(records), check_dtype=False, check_exact=True
    )
    assert gains(maximize=False)["s1", "t"] == pytest.approx(-0.15)
    with pytest.raises(KeyError, match="mean_gain"):
        gains(maximize=None)


def test_where_no_direction_is_known_nothing_is_said_of_gains_and_audits(tmp_path: Path) -> None:
    records = [
        TrialRecord(0, None, "t", "trained", 1.0, 0.5),
        TrialRecord(1, "s1", "t", "trained", 1.0, 0.7, audit=True),
    ]
    ledger = Ledger()
    assert not any(
        p.key.startswith("audit/") for p in points(events(records, maximize=None), ledger)
    )
    assert "Audit" not in ledger.note()
    assert "What elimination missed is not known: no trial was audited.**" in ledger.note()
    known = Ledger()
    assert any(p.key.startswith("audit/") for p in points(events(records), known))
    assert "Audit: 1 of 1 audit trials beat" in known.note()
    assert "False eliminations: 1 of 1 audited, 90% interval 5% to 100%.**" in known.note()


def test_trials_say_which_way_is_better_where_nobody_did_and_else_the_note_says_why() -> None:
    def told(*directions: bool | None) -> Ledger:
        ledger = Ledger()
        records = [
            TrialRecord(n, f"s{n}" if n else None, "t", "trained", 1.0, 0.5 + n, maximize=maximize)
            for n, maximize in enumerate(directions)
        ]
        points(events(records, maximize=None), ledger)
        return ledger

    for directions, best in (([True, True], "s1"), ([False, False], None)):
        answer = told(*directions).answer()
        assert answer is not None
        assert answer.targets[0].best is not None
        assert answer.targets[0].best.source == best
    for directions in ([None, None], [True, False]):
        ledger = told(*directions)
        assert ledger.answer() is None
        assert "What was best is not said: nobody told" in ledger.note()
    assert "What was best is not said" not in told(True, True).note()


def test_how_many_dev_examples_there_were_stands_with_the_answer() -> None:
    ledger = Ledger()
    records = [TrialRecord(0, None, "t", "trained", 1.0, 0.5)]
    points(events(records, dev_sizes={"t": 400}), ledger)
    assert "400 dev examples, standard error 0.025" in ledger.note()


def test_a_search_that_was_not_closed_is_known() -> None:
    ledger = Ledger()
    points(events([TrialRecord(0, "s", "t", "trained", 1.0)], closed=False), ledger)
    assert (ledger.closed, ledger.status) == (False, "KILLED")
    ledger.add(Event("x/9", "closed", 0, {"status": "FAILED"}))
    assert (ledger.closed, ledger.status) == (True, "FAILED")


def test_of_a_trial_that_is_on_disk_little_stays_in_memory_and_every_pair_is_told(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path / "x.jsonl", lambda error: None)
    spool.append("run", {"maximize": True})
    ledger = Ledger(spool.taken)
    n = 10_000

    def take(begin: int, end: int) -> None:
        for number in range(begin, end):
            outcome = "eliminated" if number % 4 else "trained"
            settings = {"lr": number % 7 / 10, "optimizer": f"adam-{number}", "layers": 3}
            made = TrialRecord(
                number, f"s{number % 90}", "t", outcome, 1.0, 0.5, hyperparameters=settings
            )
            spool.append("trial", encode_record(made))
        for event in spool.take():
            ledger.add(event)

    # Whatever is imported on the way is imported by then.
    take(0, 100)
    tracemalloc.start()
    take(100, n)
    retained = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # A number, an outcome and its seconds; the records themselves are a kilobyte each.
    assert retained < 250 * n
    pairs = ledger.pairs_table()
    assert len(pairs) == 90
    assert pairs[["trials_trained", "trials_eliminated"]].sum().sum() == n
    assert ledger.savings() == estimate_savings(ledger.records())
    spool.close()


def test_what_the_disk_does_not_take_is_known_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/dev/full")
    spool = Spool(tmp_path / "x.jsonl", lambda error: None)
    ledger = Ledger(spool.taken)
    for number in range(3):
        record = TrialRecord(number, "s", "t", "trained", 1.0)
        spool.append("trial", encode_record(record))
        for event in spool.take():
            ledger.add(event)
    assert [record.number for record in ledger.records()] == [0, 1, 2]
    spool.close()


def test_records_are_in_the_order_of_their_numbers_and_decisions_in_that_of_time() -> None:
    records = [TrialRecord(number, "s", "t", "trained", 1.0) for number in (7, 2, 5)]
    ledger = Ledger()
    points(events([*records, TrialRecord(7, "s", "t", "failed", 1.0)]), ledger)
    assert [record.number for record in ledger.records()] == [2, 5, 7]
    table = ledger.decisions_table()
    assert list(table["number"]) == [7, 2, 5]
    assert list(table["outcome"]) == ["failed", "trained", "trained"]
    assert list(table)[:5] == ["decided", "number", "source", "target", "outcome"]
