"""Figures show what their tables say, and the tables are what one counts by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from transfer_pruner import (
    Decision,
    EliminationRule,
    TaskEmbedding,
    TransferPredictor,
    TrialRecord,
    estimate_savings,
    pair_features,
    plotting,
    regret,
)
from transfer_pruner.audit import share_interval
from transfer_pruner.plotting import pair_heatmap
from transfer_pruner.plotting.style import written

MakeEmbedding = Callable[..., TaskEmbedding]


def drawn(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def texts(figure: Figure) -> str:
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)


def baseline(number: int, value: float = 0.5, target: str = "t") -> TrialRecord:
    return TrialRecord(number, None, target, "trained", 10.0, value)


def transfer(
    number: int,
    source: str | tuple[str, ...],
    value: float,
    probability: float = math.nan,
    score: float = math.nan,
    audit: bool = False,
    target: str = "t",
) -> TrialRecord:
    said = {"score": score, "probability": probability, "audit": audit}
    return TrialRecord(number, source, target, "trained", 10.0, value, **said)


def eliminated(number: int, source: str = "e", target: str = "t") -> TrialRecord:
    return TrialRecord(number, source, target, "eliminated", 0.0)


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
    data = plotting.pair_heatmap_data(measured * 5, measured)
    assert data["source"].tolist() == ["b", "b", "a", "a", "c", "c"]
    assert data["predicted_rank"].tolist() == [1, 1, 1, 2, 2, 2]
    assert data["measured_gain"].tolist() == [0.3, 0.3, 0.1, 0.1, -0.2, -0.2]


def test_tables_of_different_pairs_are_refused() -> None:
    table = pd.DataFrame([[1.0]], ["a"], ["b"])
    with pytest.raises(ValueError, match="same sources and targets"):
        pair_heatmap(table, table.rename(index={"a": "c"}))


def test_clustering_puts_similar_tasks_side_by_side() -> None:
    tasks = ["a", "b", "c", "d"]
    alike = np.array(
        [[0, 0.1, 0.9, 0.1], [0.1, 0, 0.1, 0.9], [0.9, 0.1, 0, 0.1], [0.1, 0.9, 0.1, 0]]
    )
    table = pd.DataFrame(alike, tasks, tasks)
    order = plotting.pair_heatmap_data(table, table, cluster=table)["source"].unique().tolist()
    assert abs(order.index("a") - order.index("c")) == 1
    assert abs(order.index("b") - order.index("d")) == 1
    # By gains: two kinds of sources, each helping targets of its own.
    gains = pd.DataFrame(np.tile([[1.0, 0, 1, 0], [0, 1, 0, 1]], (2, 1)), tasks, list("wxyz"))
    data = plotting.pair_heatmap_data(gains, gains, cluster=True)
    by_gain = data["source"].unique().tolist()
    assert abs(by_gain.index("a") - by_gain.index("c")) == 1
    across = data["target"].unique().tolist()
    assert abs(across.index("w") - across.index("y")) == 1
    with pytest.raises(ValueError, match="no similarity of the task 'w'"):
        pair_heatmap(gains, gains, cluster=table)


def test_eliminated_pairs_are_crossed_out_and_nothing_measured_is_no_error() -> None:
    tasks = ["a", "b", "c"]
    nothing = pd.DataFrame(np.nan, tasks, tasks)
    crossed = pd.DataFrame(False, tasks, tasks)
    crossed.loc["c", "a"] = True
    figure = pair_heatmap(nothing.fillna(1.0), nothing, eliminated=crossed)
    marks = figure.axes[1].collections[-1].get_offsets()
    np.testing.assert_array_equal(marks, [[0, 2]])
    assert drawn(figure)


def test_seconds_over_time_are_those_of_the_trials_up_to_there() -> None:
    records = [eliminated(3), transfer(2, "s", 0.6), baseline(1), eliminated(4)]
    data = plotting.savings_over_time_data(records, attribution_seconds=4.0)
    assert data["number"].tolist() == [1, 2, 3, 4]
    assert data["seconds_spent"].tolist() == [14, 24, 24, 24]
    assert data["estimated_seconds_saved"].tolist() == [-4, -4, 6, 16]
    assert data["trials_eliminated"].tolist() == [0, 0, 1, 2]
    whole = estimate_savings(records, attribution_seconds=4.0)
    interval = data[["estimated_seconds_saved_low", "estimated_seconds_saved_high"]].iloc[-1]
    assert tuple(interval) == whole.estimated_seconds_saved_interval
    figure = plotting.savings_over_time(records, attribution_seconds=4.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["seconds spent (measured)"].get_ydata()) == [14, 24, 24, 24]
    assert list(lines["estimated seconds saved"].get_ydata()) == [-4, -4, 6, 16]


def test_a_long_search_is_drawn_at_a_few_points_and_the_last_one_is_the_end() -> None:
    records = [baseline(number) for number in range(300)]
    data = plotting.savings_over_time_data(records, checkpoints=7)
    assert len(data) == 7
    assert data["trials"].iloc[[0, -1]].tolist() == [1, 300]


def test_calibration_counts_each_pair_once_with_what_was_said_before_it_ran() -> None:
    records = [
        baseline(0),
        transfer(1, "a", 0.7, probability=0.81),
        transfer(2, "b", 0.4, probability=0.85),
        transfer(3, "c", 0.6, probability=0.15),
        # Measured twice: on average no gain, and foretold by the first only.
        transfer(5, "d", 0.55, probability=0.99),
        transfer(4, "d", 0.4, probability=0.82),
        transfer(6, ("a", "b"), 0.9, probability=0.1),
        transfer(7, "f", 0.9),
        transfer(8, "g", 0.9, probability=0.5, target="without a baseline"),
        eliminated(9),
    ]
    data = plotting.calibration_curve_data(records, confidence=0.8)
    assert data["bin_low"].tolist() == [0.1, 0.8]
    assert data["pairs"].tolist() == [1, 3]
    assert data["positive"].tolist() == [1, 1]
    assert data["predicted"].tolist() == pytest.approx([0.15, (0.81 + 0.85 + 0.82) / 3])
    assert tuple(data[["low", "high"]].iloc[1]) == share_interval(1, 3, 0.8)
    figure = plotting.calibration_curve(records)
    assert "1 of 3" in texts(figure)
    assert "estimated probability" in texts(figure)


def test_where_less_is_better_a_lower_value_is_a_gain() -> None:
    records = [baseline(0), transfer(1, "a", 0.2, probability=0.8, score=0.1)]
    assert plotting.calibration_curve_data(records, maximize=False)["positive"].tolist() == [1]
    assert plotting.calibration_curve_data(records)["positive"].tolist() == [0]
    gain = plotting.predicted_and_measured_data(records, maximize=False)["gain"]
    assert gain.tolist() == pytest.approx([0.3])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_calibration_loses_no_pair_and_bounds_each_share(
    said: list[tuple[float, bool]], bins: int
) -> None:
    records = [baseline(0)] + [
        transfer(at + 1, f"s{at}", 0.6 if came_true else 0.4, probability=probability)
        for at, (probability, came_true) in enumerate(said)
    ]
    data = plotting.calibration_curve_data(records, bins=bins)
    assert data["pairs"].sum() == len(said)
    assert data["positive"].sum() == sum(came_true for _, came_true in said)
    assert (data["bin_low"] <= data["predicted"] + 1e-9).all()
    assert (data["predicted"] <= data["bin_high"] + 1e-9).all()
    assert (data["low"] <= data["observed"]).all()
    assert (data["observed"] <= data["high"]).all()


def test_predicted_gains_stand_beside_measured_ones_and_audit_trials_are_marked() -> None:
    records = [
        baseline(0, 0.5),
        transfer(1, "a", 0.7, probability=0.9, score=0.3),
        transfer(2, "a", 0.6, probability=0.9, score=0.3),
        transfer(3, "b", 0.4, probability=0.2, score=-0.1, audit=True),
        transfer(4, "c", 0.9, score=5.0),  # scored by attributions, before the rule had learnt
    ]
    data = plotting.predicted_and_measured_data(records)
    assert data["source"].tolist() == ["a", "b"]
    assert data["predicted"].tolist() == [0.3, -0.1]
    assert data["gain"].tolist() == pytest.approx([0.15, -0.1])
    assert data["trials"].tolist() == [2, 1]
    assert data["audit"].tolist() == [False, True]
    assert "estimated" in texts(plotting.predicted_and_measured(records))
    unlearnt = [baseline(0), transfer(4, "c", 0.9, score=5.0)]
    assert "attribution score" in texts(plotting.predicted_and_measured(unlearnt))


def test_a_joint_trial_has_a_gain_of_its_own() -> None:
    records = [baseline(0, 0.5), transfer(1, ("a", "b"), 0.75), transfer(2, "t", 0.1)]
    table = plotting.measured_gains(records)
    # The target as its own source is a baseline trial.
    assert table["source"].tolist() == ["a + b"]
    assert table["joint"].tolist() == [True]
    assert table["gain"].tolist() == pytest.approx([0.75 - (0.5 + 0.1) / 2])


def exhaustive(seed: int = 0, n_tasks: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    tasks = [f"task {at}" for at in range(n_tasks)]
    rows = [
        (None if s == t else s, t, lr, *rng.random(2), rng.integers(1, 9))
        for s in tasks
        for t in tasks
        for lr in (0.1, 0.2)
    ]
    return pd.DataFrame(rows, columns=["source", "target", "lr", "dev", "test", "seconds"])


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_curve_is_the_regret_of_each_number_of_sources_kept(seed: int) -> None:
    trials = exhaustive(seed).sample(frac=1, random_state=seed)
    pairs = trials.dropna(subset="source").drop_duplicates(["source", "target"])
    pairs = pairs[["source", "target"]].assign(
        score=np.random.default_rng(seed).permutation(len(pairs))
    )
    data = plotting.savings_regret_curve_data(
        trials, pairs, attribution_seconds=3.0, random_repeats=2, seed=seed
    )
    ours = data[data["way"] == "scores"].set_index("sources_kept")
    assert list(ours.index) == [0, 1, 2, 3, 4]
    for k, row in ours.iterrows():
        best = pairs.sort_values("score", ascending=False).groupby("target").head(int(k))
        kept = set(zip(best["source"], best["target"], strict=True))
        expected = regret(trials, kept)
        assert row["regret"] == pytest.approx(expected.regret)
        assert row["share_of_gain_kept"] == pytest.approx(expected.share_kept, nan_ok=True)
        ran = [
            source is None or pd.isna(source) or (source, target) in kept
            for source, target in zip(trials["source"], trials["target"], strict=True)
        ]
        spent = trials.loc[ran, "seconds"].sum() + 3.0
        assert row["share_of_seconds_saved"] == pytest.approx(1 - spent / trials["seconds"].sum())
    at_random = data[data["way"] == "random"].set_index("sources_kept")
    for k in (0, 4):  # nothing and everything kept are no draw
        assert at_random.loc[k, "regret_low"] == pytest.approx(ours.loc[k, "regret"])
        assert at_random.loc[k, "regret_high"] == pytest.approx(ours.loc[k, "regret"])


def test_tasks_that_are_numbers_give_the_curve_of_their_names() -> None:
    numbered = exhaustive().replace({f"task {at}": at for at in range(5)})
    pairs = numbered.dropna(subset="source").drop_duplicates(["source", "target"])
    pairs = pairs[["source", "target"]].assign(score=np.arange(len(pairs)))
    data = plotting.savings_regret_curve_data(numbered, pairs, random_repeats=2)
    named = {"source": "task {:.0f}".format, "target": "task {:.0f}".format}
    same = plotting.savings_regret_curve_data(
        exhaustive(),
        pairs.assign(**{column: pairs[column].map(write) for column, write in named.items()}),
        random_repeats=2,
    )
    pd.testing.assert_frame_equal(data[data["way"] == "scores"], same[same["way"] == "scores"])
    kept = data[(data["way"] == "scores")]["regret"]
    assert kept.iloc[0] > kept.iloc[-1] == 0


def test_the_curve_of_a_rule_holds_what_the_rule_decides() -> None:
    trials = exhaustive()
    pairs = trials.dropna(subset="source").drop_duplicates(["source", "target"])
    decisions = {
        (s, t): Decision(at % 3 == 0, math.nan if at == 1 else float(at), math.nan, "")
        for at, (s, t) in enumerate(zip(pairs["source"], pairs["target"], strict=True))
    }
    rule = EliminationRule(decisions, {"rule": "by hand"})
    data = plotting.savings_regret_curve_data(trials.drop(columns="seconds"), rule)
    decided = data[data["sources_kept"].isna()]
    assert decided["regret"].tolist() == pytest.approx([regret(trials, rule).regret])
    gone = sum(decision.eliminated for decision in decisions.values())
    assert decided["share_of_seconds_saved"].tolist() == pytest.approx([2 * gone / len(trials)])
    assert not data["seconds_measured"].any()
    # The pair without a score is kept even where k is 0.
    none_kept = data[(data["sources_kept"] == 0) & (data["way"] != "random")]
    kept = [(s, t) for (s, t), decision in decisions.items() if math.isnan(decision.score)]
    assert none_kept["regret"].tolist() == pytest.approx([regret(trials, kept).regret])
    said = texts(plotting.savings_regret_curve(trials, {"$one$": rule}, random_repeats=3))
    assert "the rule as it decides" in said


def test_several_ways_are_drawn_from_a_table_too(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    baselines = pd.DataFrame({"source": None, "target": list(embeddings), "gain": 0.0})
    trials = pd.concat([transfers, baselines], ignore_index=True)
    trials["dev"] = trials["test"] = 0.5 + trials["gain"]
    # The predictor reads its two columns under names of its own.
    predictor = TransferPredictor(embeddings, source_column="from", target_column="to")
    ways = {"attributions": predictor, "measured": transfers.rename(columns={"gain": "score"})}
    data = plotting.savings_regret_curve_data(trials, ways, random_repeats=4)
    best = data[(data["way"] == "measured") & (data["sources_kept"] == 1)]
    assert best["regret"].tolist() == pytest.approx([0.0])
    again = plotting.savings_regret_curve(pd.read_csv(io.StringIO(data.to_csv(index=False))))
    assert "estimated: trials last alike" in again.axes[0].get_xlabel()
    assert drawn(again)


def test_what_is_missing_from_an_exhaustive_search_is_named() -> None:
    trials = exhaustive()
    with pytest.raises(ValueError, match="attribution_seconds is 3"):
        plotting.savings_regret_curve_data(
            trials.drop(columns="seconds"), {}, attribution_seconds=3.0
        )
    with pytest.raises(ValueError, match="chosen_by is 'f1'"):
        plotting.savings_regret_curve_data(trials, {}, chosen_by="f1")
    with pytest.raises(ValueError, match=r"no single-task baseline .* 'task 0'"):
        plotting.savings_regret_curve_data(
            trials[trials["source"].notna() | (trials["target"] != "task 0")], {}
        )


def test_distances_on_the_map_are_those_of_the_similarities(make_embedding: MakeEmbedding) -> None:
    # Two directions in all, so that two axes show everything.
    x, y = np.array([1.0, -1, 0, 0]), np.array([0.0, 0, 1, -1])
    tasks = {
        name: make_embedding(name, layer=np.outer(x, [a]) + np.outer(y, [b]))
        for name, a, b in (("a", 1, 0), ("b", 0, 1), ("c", 2, 0))
    }
    similarity = plotting.task_similarity(tasks)
    pair = pd.DataFrame({"source": ["a"], "target": ["b"]})
    assert similarity.loc["a", "b"] == pair_features(pair, tasks)["cka[layer]"].item()
    places = plotting.task_map_data(tasks).set_index("task")
    for one, other in (("a", "b"), ("b", "c"), ("a", "c")):
        between = np.linalg.norm(places.loc[one] - places.loc[other])
        expected = math.sqrt(2 * (1 - similarity.loc[one, other]))
        assert between == pytest.approx(expected, abs=1e-6)
    assert sum(plotting.task_map_data(tasks).attrs["shares"]) == pytest.approx(1)


def test_tasks_that_share_different_layers_are_mapped_too() -> None:
    # No three unit vectors have these inner products: 1, 1 and -1.
    layers = {"a": {"one": 1, "two": 1}, "b": {"one": 1, "three": 1}, "c": {"two": 1, "three": -1}}
    tasks = {
        name: TaskEmbedding(name, {layer: [float(sign), 0.0] for layer, sign in of.items()})
        for name, of in layers.items()
    }
    similarity = plotting.task_similarity(tasks)
    assert np.linalg.eigvalsh(similarity).min() < -0.5
    places = plotting.task_map_data(tasks).set_index("task")
    assert np.isfinite(places.to_numpy()).all()
    near = np.linalg.norm(places.loc["a"] - places.loc["b"])
    assert near < np.linalg.norm(places.loc["b"] - places.loc["c"])
    alike = plotting.task_map_data(dict.fromkeys("abc", tasks["a"]))
    assert alike[["x", "y"]].to_numpy() == pytest.approx(0, abs=1e-6)
    assert np.isnan(alike.attrs["shares"]).all()


def test_names_on_the_map_do_not_overlap(make_embedding: MakeEmbedding) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(20, 6))
    tasks = {
        f"a task like task {at}": make_embedding(
            f"a task like task {at}", layer=base + 0.3 * rng.normal(size=(20, 6))
        )
        for at in range(20)
    }
    figure = plotting.task_map(tasks)
    drawn(figure)
    boxes = [
        super(type(text), text).get_window_extent()  # the words alone, without the line to them
        for text in figure.axes[0].texts
    ]
    assert len(boxes) == 20
    apart = [not one.overlaps(two) for at, one in enumerate(boxes) for two in boxes[:at]]
    assert all(apart)


def test_tasks_that_cannot_be_compared_are_named(make_embedding: MakeEmbedding) -> None:
    tasks = {
        "a": make_embedding("a", one=np.ones((3, 2))),
        "b": make_embedding("b", other=np.ones((3, 2))),
    }
    with pytest.raises(ValueError, match="'a' and 'b' have no layer"):
        plotting.task_map(tasks)
    assert drawn(plotting.task_map({"a": tasks["a"]}))
    assert "no task" in texts(plotting.task_map({}))


def test_sources_are_ranked_with_the_decision_and_the_interval_of_residuals(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    rule = EliminationRule.top_k(predictor, k=2)
    data = plotting.source_ranking_data(rule, "news", predictor=predictor, confidence=0.5)
    assert data["source"].head(2).tolist() == rule.kept("news")
    assert data["decision"].tolist() == ["kept"] * 2 + ["eliminated"] * 3
    low, high = np.quantile(predictor.residuals_, [0.25, 0.75])
    np.testing.assert_allclose(data["low"], data["score"] + low)
    np.testing.assert_allclose(data["high"], data["score"] + high)
    figure = plotting.source_ranking(rule, "news", predictor=predictor)
    assert {"kept", "eliminated"} <= set(texts(figure).split("\n"))
    assert "estimated transfer gain" in texts(figure)
    undecided = plotting.source_ranking_data(predictor, "news")
    assert set(undecided["decision"]) == {"not decided"}
    np.testing.assert_allclose(undecided["score"], data["score"])
    with pytest.raises(ValueError, match=r"target 'nonsense' has no sources; there are: advice"):
        plotting.source_ranking(rule, "nonsense")


def test_attribution_scores_have_no_interval(embeddings: dict[str, TaskEmbedding]) -> None:
    data = plotting.source_ranking_data(TransferPredictor(embeddings), "news")
    assert data[["low", "high"]].isna().all(axis=None)
    said = texts(plotting.source_ranking(TransferPredictor(embeddings), "news"))
    assert "only the order means something" in said


def test_a_source_without_a_score_is_drawn_as_kept() -> None:
    decisions = {
        ("a", "t"): Decision(False, math.nan, math.nan, "no score: kept"),
        ("b", "t"): Decision(True, -0.1, 0.2, ""),
    }
    data = plotting.source_ranking_data(EliminationRule(decisions, {}), "t")
    assert data["source"].tolist() == ["b", "a"]
    assert data["decision"].tolist() == ["eliminated", "kept"]
    assert "no score" in texts(plotting.source_ranking(EliminationRule(decisions, {}), "t"))


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (plotting.savings_over_time, "no trial"),
        (plotting.calibration_curve, "No pair"),
        (plotting.predicted_and_measured, "No pair"),
    ],
)
def test_nothing_to_show_is_said_and_a_wrong_table_is_refused(
    draw: Callable[..., Figure], said: str
) -> None:
    figure = draw([])
    assert said in texts(figure)
    assert drawn(figure)
    with pytest.raises(ValueError, match=f"what {draw.__name__}_data"):
        draw(pd.DataFrame({"trials": [1]}))


@given(st.text(max_size=60))
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@pytest.mark.filterwarnings("ignore:Matplotlib currently does not support:UserWarning")
def test_any_name_can_be_drawn(name: str) -> None:
    assert written(name).isprintable()
    assert len(written(name)) <= 28
    source = name if name not in ("", "t") else "s"
    rule = EliminationRule({(source, "t"): Decision(False, 0.1, 0.5, "")}, {})
    assert drawn(plotting.source_ranking(rule, "t"))
