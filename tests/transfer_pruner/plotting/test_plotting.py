"""Figures show what their tables say, and the tables are what one counts by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import norm

from transfer_pruner import (
    Decision,
    EliminationRule,
    TaskEmbedding,
    TransferPredictor,
    TrialRecord,
    pair_features,
    plotting,
    regret,
)
from transfer_pruner.plotting import pair_heatmap, style
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


def test_figures_of_a_search_draw_what_their_tables_say() -> None:
    records = [
        baseline(0, 0.5),
        transfer(1, "a", 0.7, probability=0.81, score=0.3),
        transfer(2, "b", 0.4, probability=0.85, score=-0.1, audit=True),
        eliminated(3),
    ]
    figure = plotting.savings_over_time(records, attribution_seconds=4.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    data = plotting.savings_over_time_data(records, attribution_seconds=4.0)
    assert list(lines["seconds spent (measured)"].get_ydata()) == data["seconds_spent"].tolist()
    saved = data["estimated_seconds_saved"].tolist()
    assert list(lines["estimated seconds saved"].get_ydata()) == saved == [-4, -4, -4, 6]
    figure = plotting.calibration_curve(records)
    assert "1 of 2" in texts(figure)
    assert "estimated probability" in texts(figure)
    assert "estimated" in texts(plotting.predicted_and_measured(records))
    unlearnt = [baseline(0), transfer(4, "c", 0.9, score=5.0)]
    assert "attribution score" in texts(plotting.predicted_and_measured(unlearnt))
    # Where less is better, a positive gain is an improvement all the same.
    minimized = [replace(record, maximize=False) for record in records]
    assert "1 of 2" in texts(plotting.calibration_curve(minimized))
    marks = plotting.predicted_and_measured(minimized).axes[0].collections
    gains = [mark.get_offsets()[:, 1].tolist() for mark in marks]
    assert gains == [pytest.approx([-0.2]), pytest.approx([0.1])]


def test_roles_have_a_colour_each_that_any_eye_tells_from_the_others_and_from_white() -> None:
    roles = [style.KEPT, style.ELIMINATED, style.AUDITED, style.SAVED, style.NEUTRAL]
    for role in roles:
        luminance = LUMINANCE @ linear(role)
        assert 1.05 / (luminance + 0.05) > 3, role
    for seen_by, matrix in SEEN_BY.items():
        seen = [lab(np.clip(matrix @ linear(role), 0, 1)) for role in roles]
        for at, one in enumerate(seen):
            for other in seen[:at]:
                assert np.linalg.norm(one - other) > 15, seen_by


# Machado, Oliveira and Fernandes 2009, of linear RGB, nothing of one cone left.
SEEN_BY = {
    "all cones": np.eye(3),
    "no long": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    ),
    "no middle": np.array(
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "no short": np.array(
        [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]
    ),
}
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def linear(colour: str) -> np.ndarray:
    parts = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB, in which distances are those of the eye."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


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


def test_sources_are_ranked_with_the_decision_and_the_interval_of_the_gain(
    embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    rule = EliminationRule.top_k(predictor, k=2)
    data = plotting.source_ranking_data(rule, "news", predictor=predictor, confidence=0.5)
    assert data["source"].head(2).tolist() == rule.kept("news")
    assert data["decision"].tolist() == ["kept"] * 2 + ["eliminated"] * 3
    _, std = predictor.predict(data[["source"]].assign(target="news"), return_std=True)
    np.testing.assert_allclose(data["low"], norm.ppf(0.25, data["score"], std))
    np.testing.assert_allclose(data["high"], norm.ppf(0.75, data["score"], std))
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


def test_the_best_score_is_drawn_against_trials_and_seconds_with_a_line_a_target() -> None:
    records = [baseline(0, 0.5), baseline(1, 0.4, "u"), transfer(2, "a", 0.7)]
    records += [transfer(3, "a", 0.5, target="u"), transfer(4, "b", 0.8)]
    figure = plotting.best_over_time(records)
    by_trials, by_seconds = figure.axes
    lines = {line.get_label(): line for line in by_trials.lines}
    assert list(lines) == ["t", "u", "mean of 2 targets"]
    np.testing.assert_allclose(lines["t"].get_ydata(), [0.5, 0.7, 0.8, 0.8])
    np.testing.assert_allclose(lines["t"].get_xdata(), [1, 3, 5, 5])
    np.testing.assert_allclose(by_seconds.lines[0].get_xdata(), [10, 30, 50, 50])
    np.testing.assert_allclose(lines["mean of 2 targets"].get_ydata()[-1], 0.65)
    shares = plotting.best_over_time(records, y="share_of_gain").axes[0].lines[0]
    np.testing.assert_allclose(shares.get_ydata(), [0, 0.2 / 0.3, 1, 1])
    one = plotting.best_over_time([r for r in records if r.target == "t"])
    assert [line.get_label() for line in one.axes[0].lines] == ["t"]
    many = [baseline(at, at / 25, f"task {at}") for at in range(25)]
    labels = texts(plotting.best_over_time(many))
    assert "25 targets" in labels
    assert "task 3" not in labels
    with pytest.raises(ValueError, match="y must be 'value' or 'share_of_gain' but got 'gain'"):
        plotting.best_over_time(records, y="gain")  # type: ignore[arg-type]


def test_a_pair_is_drawn_as_early_as_it_was_tried() -> None:
    records = [baseline(0), transfer(1, "b", 0.5), eliminated(2), transfer(3, "a", 0.6, target="u")]
    figure = plotting.pairs_tried(records)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["(no source)", "a", "b", "e"]
    shown = axes.images[0].get_array()
    assert shown.filled(0).tolist() == [[1, 0], [0, 3], [2, 0], [0, 0]]
    assert axes.collections[0].get_offsets().tolist() == [[0, 3]]
    assert "eliminated, never tried" in texts(figure)


@pytest.mark.parametrize(
    ("records", "best", "tried"),
    [
        ([], "No trial finished with a score.", "There is no trial."),
        ([eliminated(0)], "No trial finished with a score.", "eliminated, never tried"),
        ([baseline(0)], "best score so far", "(no source)"),
    ],
)
def test_a_search_with_nothing_to_show_says_so(
    records: list[TrialRecord], best: str, tried: str
) -> None:
    for figure, words in (
        (plotting.best_over_time(records), best),
        (plotting.pairs_tried(records), tried),
    ):
        assert words in texts(figure)
        assert drawn(figure)
    shares = plotting.best_over_time(records, y="share_of_gain")
    assert "No t" in texts(shares)
