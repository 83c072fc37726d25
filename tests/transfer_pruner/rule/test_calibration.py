"""The risk is kept whatever the predictor is worth, and no predictor can flatter itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from transfer_pruner import EliminationRule, TransferPredictor, TransferPrunerWarning
from transfer_pruner.rule.calibration import conformal_position, loses_best, target_depths
from transfer_pruner.rule.ranking import ranked
from transfer_pruner.tasks import FloatArray

SOURCES = [f"source-{i:02}" for i in range(12)]


class Table:
    """A predictor that says what it is told to: scores by (source, target)."""

    def __init__(self, scores: Mapping[tuple[str, str], float]) -> None:
        self.scores = dict(scores)

    @property
    def tasks(self) -> list[str]:
        return sorted({task for pair in self.scores for task in pair})

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        keys = zip(pairs["source"], pairs["target"], strict=True)
        return np.array([self.scores.get(key, math.nan) for key in keys])

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        return np.full(len(pairs), math.nan)


class Memoriser(BaseEstimator):  # type: ignore[misc]
    """Knows the gains that it learnt by heart, and of other pairs nothing at all."""

    @property
    def tasks(self) -> list[str]:
        return sorted({*self.measured_["source"], *self.measured_["target"]})

    def fit(self, pairs: pd.DataFrame, gains: ArrayLike) -> Self:
        self.measured_ = pairs[["source", "target"]].assign(gain=np.asarray(gains))
        return self

    def predict(self, pairs: pd.DataFrame) -> FloatArray:
        gains = self.measured_.groupby(["source", "target"])["gain"].mean().to_dict()
        keys = zip(pairs["source"], pairs["target"], strict=True)
        return np.array([gains.get(key, -float(key[0][-2:])) for key in keys])

    def predict_proba(self, pairs: pd.DataFrame) -> FloatArray:
        return np.full(len(pairs), math.nan)


def simulated(quality: float, n_targets: int, seed: int, mean: float = 0.0) -> pd.DataFrame:
    """Gains of independent targets, and scores that know them as well as `quality` says."""
    rng = np.random.default_rng(seed)
    rows = [(s, f"target-{t:05}") for t in range(n_targets) for s in SOURCES]
    table = pd.DataFrame(rows, columns=["source", "target"], dtype=object)
    table["gain"] = rng.normal(mean, 1.0, len(table))
    table["score"] = quality * table["gain"] + rng.normal(size=len(table))
    return table


def predictor_of(table: pd.DataFrame) -> Table:
    keys = zip(table["source"], table["target"], strict=True)
    return Table(dict(zip(keys, table["score"].tolist(), strict=True)))


def of_targets(table: pd.DataFrame, *targets: int) -> pd.DataFrame:
    return table[table["target"].isin([f"target-{t:05}" for t in targets])]


def toy(gains: Mapping[str, list[float]], scores: list[float] | None = None) -> pd.DataFrame:
    """Gains of the sources a, b, c, ... of each target; ranked in this order unless told."""
    rows = [
        ("abcdefgh"[i], target, gain, -i if scores is None else scores[i])
        for target, values in gains.items()
        for i, gain in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["source", "target", "gain", "score"])


def calibrated(table: pd.DataFrame, risk: float = 0.5, tolerance: float = 0.0) -> EliminationRule:
    return EliminationRule.calibrate(
        predictor_of(table), table, table["gain"], risk, tolerance=tolerance, candidates=table
    )


REPEATS = 400


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
@pytest.mark.parametrize("risk", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("quality", [0.0, 0.5, 2.0])
def test_the_risk_is_kept_whatever_the_scores_are_worth(
    quality: float, risk: float, tolerance: float
) -> None:
    # Each repeat calibrates on 19 targets and tries a twentieth.
    table = ranked(simulated(quality, 20 * REPEATS, seed=0))
    depths = target_depths(table, tolerance).to_numpy().reshape(REPEATS, 20)
    k = np.sort(depths[:, :19], axis=1)[:, conformal_position(19, risk) - 1]
    missed = np.mean(depths[:, 19] > k)
    assert missed <= risk + 3 * math.sqrt(risk * (1 - risk) / REPEATS)
    if quality == 0.0 and tolerance == 0.0:
        # Not kept by keeping everything: useless scores eliminate as many as chance allows.
        assert missed > risk / 3
        assert k.mean() == pytest.approx(12 * (1 - risk), abs=1)


def test_better_scores_keep_fewer_sources() -> None:
    sizes = []
    for quality in (0.0, 0.5, 1.0, 3.0):
        depths = np.sort(target_depths(ranked(simulated(quality, 2000, seed=1))))
        sizes.append(depths[conformal_position(2000, 0.1) - 1])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 10
    assert sizes[-1] <= 3


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0.0, 0.7]))
def test_a_rule_loses_the_best_source_of_the_targets_deeper_than_k(
    seed: int, risk: float, tolerance: float
) -> None:
    table = simulated(0.5, 14, seed)
    known, fresh = of_targets(table, *range(10)), of_targets(table, *range(10, 14))
    rule = EliminationRule.calibrate(
        predictor_of(table), known, known["gain"], risk, tolerance=tolerance, candidates=fresh
    )
    k = rule.settings["k"]
    depths = target_depths(ranked(table), tolerance)
    assert k == np.sort(depths.iloc[:10])[conformal_position(10, risk) - 1]
    assert [len(rule.kept(target)) for target in fresh["target"].unique()] == [k] * 4
    lost = loses_best(rule, fresh, fresh["gain"], tolerance=tolerance)
    assert lost.tolist() == (depths.iloc[10:] > k).tolist()
    kept = [(s, t) for t in fresh["target"].unique() for s in rule.kept(t)]
    assert lost.equals(loses_best(kept, fresh, fresh["gain"], tolerance=tolerance))


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(0.1, 0.99), min_size=2, max_size=2),
    st.lists(st.floats(0.0, 2.0), min_size=2, max_size=2),
)
def test_k_never_falls_when_the_risk_or_the_tolerance_falls(
    seed: int, risks: list[float], tolerances: list[float]
) -> None:
    table = ranked(simulated(0.5, 9, seed, mean=-1.0))

    def k(risk: float, tolerance: float) -> int:
        return int(np.sort(target_depths(table, tolerance))[conformal_position(9, risk) - 1])

    strict = k(min(risks), min(tolerances))
    assert strict >= k(max(risks), min(tolerances))
    assert strict >= k(min(risks), max(tolerances))


@settings(deadline=None)
@given(st.floats(0.001, 0.999))
def test_as_many_targets_as_the_error_asks_for_are_enough(risk: float) -> None:
    needed = math.ceil(1 / risk) - 1
    assert 1 <= conformal_position(max(needed, 1), risk) <= max(needed, 1)
    if needed > 1:
        with pytest.raises(ValueError, match=f"needs at least {needed} calibration targets"):
            conformal_position(needed - 1, risk)


@pytest.mark.parametrize(
    ("n_targets", "risk", "position"),
    [(9, 0.1, 9), (19, 0.1, 18), (9, 0.7, 3), (9, 1 - 0.9, 9), (99, 0.07, 93), (1, 0.5, 1)],
)
def test_positions_are_not_off_by_a_rounding_error(
    n_targets: int, risk: float, position: int
) -> None:
    assert conformal_position(n_targets, risk) == position


def test_a_predictor_gets_no_credit_for_gains_that_it_learnt_by_heart() -> None:
    table = simulated(0.0, 19, seed=0)
    memoriser = Memoriser().fit(table, table["gain"])
    in_sample = ranked(table.assign(score=memoriser.predict(table)))
    assert set(target_depths(in_sample)) <= {0, 1}
    rule = EliminationRule.calibrate(memoriser, table, table["gain"], 0.1, candidates=table)
    assert rule.settings["leave_target_out"]
    # What it says of a target that it did not learn from: the sources by name.
    honest = ranked(table.assign(score=[-float(source[-2:]) for source in table["source"]]))
    assert rule.settings["k"] == np.sort(target_depths(honest))[17] >= 9
    assert rule.decide("source-00", "target-00000").reason.endswith(
        "which loses a target's best source with probability at most about 0.1"
    )


def test_what_the_predictor_learnt_besides_the_calibration_targets_stays_learnt() -> None:
    table = simulated(0.0, 30, seed=0)
    known, more = of_targets(table, *range(19)), of_targets(table, *range(19, 30))
    learnt: list[set[str]] = []

    class Watched(Memoriser):
        def fit(self, pairs: pd.DataFrame, gains: ArrayLike) -> Self:
            learnt.append(set(pairs["target"]))
            return super().fit(pairs, gains)

    memoriser = Watched().fit(pd.concat([of_targets(known, 3, 4), more]), np.zeros(13 * 12))
    EliminationRule.calibrate(memoriser, known, known["gain"], 0.1, candidates=known)
    everything = {*more["target"], "target-00003", "target-00004"}
    assert learnt == [everything, everything - {"target-00003"}, everything - {"target-00004"}]


def test_a_predictor_that_never_saw_the_calibration_targets_is_used_as_it_is() -> None:
    table = simulated(0.0, 30, seed=0)
    learnt, known = of_targets(table, *range(10)), of_targets(table, *range(10, 30))
    predictor = TransferPredictor().fit(learnt, learnt["gain"])
    rule = EliminationRule.calibrate(predictor, known, known["gain"], 0.1, candidates=known)
    assert not rule.settings["leave_target_out"]
    depths = target_depths(ranked(known.assign(score=predictor.predict(known))))
    assert rule.settings["k"] == np.sort(depths)[conformal_position(20, 0.1) - 1]


def test_a_fitted_predictor_with_columns_of_its_own_names() -> None:
    rng = np.random.default_rng(0)
    table = simulated(0.0, 19, seed=0)
    table["gain"] = 0.2 * table["source"].str[-2:].astype(int) + rng.normal(0, 0.1, len(table))
    table = table.rename(columns={"source": "from", "target": "to"})
    predictor = TransferPredictor(source_column="from", target_column="to")
    predictor.fit(table, table["gain"])
    rule = EliminationRule.calibrate(predictor, table, table["gain"], candidates=table)
    assert rule.settings["leave_target_out"]
    assert rule.settings["k"] <= 3
    assert not rule.decide("source-11", "target-00000").eliminated


def test_every_ordered_pair_is_decided_on_if_no_candidates_are_given() -> None:
    tasks = list("abcdefghij")
    scores = {(s, t): float(ord(s)) for s in tasks for t in tasks if s != t}
    pairs = pd.DataFrame([(s, t) for s, t in scores if t != "j"], columns=["source", "target"])
    rule = EliminationRule.calibrate(Table(scores), pairs, np.ones(len(pairs)), 0.1)
    assert len(rule) == 90
    assert rule.settings == {
        "rule": "calibrate",
        "risk": 0.1,
        "tolerance": 0.0,
        "n_targets": 9,
        "k": 1,
        "leave_target_out": False,
    }
    assert rule.kept("j") == ["i"]
    assert rule.decide("h", "j").reason == (
        "rank 2 of 9 for j; the rule keeps 1, which loses a target's best source with probability "
        "at most 0.1"
    )


def test_a_saved_rule_decides_the_same(tmp_path: Path) -> None:
    rule = calibrated(simulated(1.0, 19, seed=0), np.float64(0.1), 0.5)
    rule.save(tmp_path)
    loaded = EliminationRule.load(tmp_path)
    assert loaded.fingerprint == rule.fingerprint
    assert loaded.settings == rule.settings
    assert "best source by more than 0.5 with" in loaded.table()["reason"].iloc[0]


def test_a_target_keeps_its_best_source_while_one_as_good_is_kept() -> None:
    table = toy({"t": [0.1, 0.3, 0.29, 0.3]})
    assert calibrated(table).settings["k"] == 2
    assert calibrated(table, tolerance=0.25).settings["k"] == 1
    assert loses_best([("d", "t")], table, table["gain"]).tolist() == [False]
    assert loses_best([("c", "t")], table, table["gain"]).tolist() == [True]
    assert loses_best([("c", "t")], table, table["gain"], tolerance=0.02).tolist() == [False]
    assert loses_best([], table, table["gain"], tolerance=0.3).tolist() == [False]


def test_equal_scores_are_ordered_by_name_as_the_rule_orders_them() -> None:
    table = toy({"t": [0.1, 0.2, 0.3]}, scores=[1.0, 1.0, 1.0])
    rule = calibrated(table)
    assert rule.settings["k"] == 3
    assert rule.kept("t") == ["a", "b", "c"]


@pytest.mark.parametrize(("gain", "tolerance"), [(-0.1, 0.0), (0.0, 0.0), (0.1, 0.1)])
def test_nothing_is_kept_where_there_is_nothing_to_lose(gain: float, tolerance: float) -> None:
    table = toy({target: [gain, gain - 0.1] for target in "tuvwxyzqrs"})
    rule = calibrated(table, 0.1, tolerance)
    assert rule.settings["k"] == 0
    assert rule.table()["eliminated"].all()
    assert not rule.decide(None, "t").eliminated
    assert not loses_best(rule, table, table["gain"], tolerance=tolerance).any()


def test_seeds_are_averaged_and_baselines_and_nan_gains_are_left_out() -> None:
    table = toy({"t": [0.3, 0.0, 0.1], "u": [math.nan, math.nan, math.nan]})
    again = toy({"t": [-0.3, 0.4, 0.1]})
    baselines = pd.DataFrame({"source": [None, "t"], "target": ["t", "t"], "gain": [9.0, 9.0]})
    rows = pd.concat([table, again, baselines], ignore_index=True)
    with pytest.warns(TransferPrunerWarning, match="gains has 3 NaN or infinite values of 11"):
        rule = EliminationRule.calibrate(
            predictor_of(table), rows, rows["gain"], 0.5, candidates=table
        )
    assert rule.settings["n_targets"] == 1
    # Means: a 0.0, b 0.2, c 0.1.
    assert rule.settings["k"] == 2
    with pytest.warns(TransferPrunerWarning, match="gains has 3 NaN"):
        assert loses_best(rule, rows, rows["gain"]).to_dict() == {"t": False}


def test_a_few_measured_sources_are_ranked_among_all_that_the_rule_ranks() -> None:
    table = toy({"t": [0.1, 0.1, 0.1, 0.3], "u": [0.1, 0.1, 0.1, 0.1]})
    measured = table[(table["target"] == "t") & table["source"].isin(["b", "d"])]
    for candidates in (table, table[table["target"] == "u"]):
        rule = EliminationRule.calibrate(
            predictor_of(table), measured, measured["gain"], 0.5, candidates=candidates
        )
        assert rule.settings["k"] == 4


def test_a_best_source_without_a_score_is_kept_and_so_not_lost() -> None:
    table = toy({"t": [0.1, 0.2, 0.3]}, scores=[2.0, 1.0, math.nan])
    with pytest.warns(TransferPrunerWarning, match="1 of 3 pairs have no score and are kept"):
        rule = calibrated(table)
    assert rule.settings["k"] == 0
    assert rule.kept("t") == ["c"]
    assert not loses_best(rule, table, table["gain"]).any()


def test_targets_without_any_score_make_no_room_for_losses_among_the_others() -> None:
    table = simulated(0.0, 30, seed=0)
    table.loc[table["target"] >= "target-00010", "score"] = math.nan
    with pytest.warns(TransferPrunerWarning) as warned:
        rule = calibrated(table, 0.1)
    assert "20 of 30 calibration targets have no scored pair and are left out" in str(
        warned[0].message
    )
    scored = calibrated(of_targets(table, *range(10)), 0.1)
    assert rule.settings == scored.settings
    assert rule.settings["n_targets"] == 10


def test_tasks_that_are_numbers_are_calibrated_as_their_names() -> None:
    table = simulated(1.0, 19, seed=0)
    numbered = table.assign(
        source=table["source"].str[-2:].astype(int) + 100,
        target=table["target"].str[-5:].astype(int),
    )
    named = numbered.assign(**{side: numbered[side].astype(str) for side in ("source", "target")})
    memoriser = Memoriser().fit(numbered, numbered["gain"])
    expected = Memoriser().fit(named, named["gain"])
    rules = [
        EliminationRule.calibrate(predictor, pairs, pairs["gain"], 0.1, candidates=pairs)
        for predictor, pairs in ((expected, named), (expected, numbered), (memoriser, numbered))
    ]
    # One that learnt from the calibration targets is not flattered for having them as numbers.
    assert all(rule.settings["leave_target_out"] for rule in rules)
    assert rules[0].fingerprint == rules[1].fingerprint
    rule = rules[0]
    lost = loses_best(rule, named, named["gain"])
    assert loses_best(rule, numbered, numbered["gain"]).equals(lost)
    kept = [(int(s), int(t)) for (s, t), said in rule.decisions.items() if not said.eliminated]
    assert loses_best(kept, numbered, numbered["gain"]).equals(lost)  # type: ignore[arg-type]


def test_one_target_that_the_predictor_learnt_from_leaves_nothing_to_score_it_with() -> None:
    table = simulated(0.0, 1, seed=0)
    assert calibrated(table).settings["n_targets"] == 1
    memoriser = Memoriser().fit(table, table["gain"])
    with pytest.raises(ValueError, match="learnt from the calibration target 'target-00000' alone"):
        EliminationRule.calibrate(memoriser, table, table["gain"], 0.5)


def test_bad_parameters_stop_early() -> None:
    table = simulated(0.0, 5, seed=0)
    for risk in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"risk must be between 0 and 1 but got {risk}"):
            calibrated(table, risk)
    for tolerance in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance must be a finite number, 0 or more, but"):
            calibrated(table, 0.5, tolerance)
        with pytest.raises(ValueError, match="tolerance must be a finite number, 0 or more, but"):
            loses_best([], table, table["gain"], tolerance=tolerance)
    with pytest.raises(
        ValueError,
        match=r"risk 0\.1 needs at least 9 calibration targets but pairs has 5 with finite gains "
        r"and scores: measure transfers to more targets, or accept a risk of 0\.1667",
    ):
        calibrated(table, 0.1)
    assert calibrated(table, 0.1667).settings["n_targets"] == 5
    with pytest.raises(ValueError, match="gains must have one value for each of the 60 pairs"):
        EliminationRule.calibrate(predictor_of(table), table, [0.1], 0.5)
    with pytest.raises(ValueError, match="pairs must be a pandas DataFrame"):
        EliminationRule.calibrate(predictor_of(table), [("a", "b")], [0.1], 0.5)  # type: ignore[arg-type]
    with (
        pytest.warns(TransferPrunerWarning, match="60 NaN"),
        pytest.raises(ValueError, match="needs at least 1 calibration targets but pairs has 0"),
    ):
        EliminationRule.calibrate(predictor_of(table), table, np.full(60, math.nan), 0.5)


def test_a_predictor_that_fails_cannot_be_calibrated() -> None:
    # A rule that eliminates by the scores of a failed predictor fails open; a bound must not.
    table = simulated(0.0, 5, seed=0)
    with pytest.raises(ValueError, match="neither embeddings nor measured transfers"):
        EliminationRule.calibrate(TransferPredictor(), table, table["gain"], 0.5, candidates=table)
