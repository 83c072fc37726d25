"""Figures draw what was measured, name what is estimated, and never fail on an empty study."""

from __future__ import annotations

import logging
import math
import subprocess
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from tests.integrations.transfer_pruner_optuna.told_search import (
    ELIMINATED,
    PAIR_OF,
    SPACE,
    one_after_the_other,
    retold,
    search,
    told_rule,
    told_study,
)
from transfer_pruner import Decision, EliminationRule
from transfer_pruner.plotting import style
from transfer_pruner.tables import measured_gains
from transfer_pruner_optuna import gate
from transfer_pruner_optuna.figure_tables import scored_records
from transfer_pruner_optuna.visualization import (
    _correlation,
    plot_gains,
    plot_pairs,
    plot_savings,
)

go = pytest.importorskip("plotly.graph_objects")
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def rule() -> EliminationRule:
    return told_rule()


@pytest.fixture
def study() -> optuna.Study:
    return told_study()


def traces(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.name}


def note(figure: go.Figure) -> str:
    [annotation] = figure.layout.annotations
    return annotation.text.replace("<br>", " ")


# What was predicted and what was measured.


def test_every_trial_with_a_gain_is_a_point_and_audit_trials_are_marked_otherwise(
    study: optuna.Study,
) -> None:
    figure = plot_gains(study)
    assert isinstance(figure, go.Figure)
    kept, audited = figure.data
    assert kept.x == (0.3, 0.3, 0.5)
    assert kept.y == pytest.approx((0.1, 0.2, 0.1))
    assert audited.name == "eliminated, audit trial"
    assert audited.x == (0.1, 0.0)
    assert audited.y == pytest.approx((-0.05, -0.1))
    assert kept.marker.symbol != audited.marker.symbol
    assert kept.text[1] == (
        "a → t<br>trial 4<br>lr = 0.01<br>predicted score 0.3, measured gain 0.2"
    )
    [zero] = figure.layout.shapes
    assert (zero.y0, zero.y1) == (0, 0)
    # Ranks 1, 2, 3, 4 of c -> u, c -> t, a -> t, b -> u by score and 1, 2, 4, 3 by mean gain.
    assert figure.layout.title.subtitle.text == "Spearman correlation over 4 pairs: 0.80"


def test_a_point_a_pair_is_the_mean_of_its_trials(study: optuna.Study) -> None:
    kept, audited = plot_gains(study, per_pair=True).data
    assert dict(zip(kept.x, kept.y, strict=True)) == pytest.approx({0.3: 0.15, 0.5: 0.1})
    assert len(audited.x) == 2
    assert kept.text[0].startswith("a → t<br>mean of 2 trials<br>")


def test_the_correlation_within_targets_ignores_what_scores_of_two_targets_say() -> None:
    # Perfect order within each target; across targets the scores mislead.
    gains = pd.DataFrame(
        {
            "source": ["a", "b", "c"] * 2 + ["a"],
            "target": ["t"] * 3 + ["u"] * 3 + ["v"],
            "score": [1.0, 2.0, 3.0, 11.0, 12.0, 13.0, 2.5],
            "gain": [0.4, 0.5, 0.6, 0.1, 0.2, 0.3, 0.35],
        }
    )
    # By score they rank 1, 2, 4, 5, 6, 7 and 3, by gain 5, 6, 7, 1, 2, 3 and 4.
    rho = 1 - 6 * (16 + 16 + 9 + 16 + 16 + 16 + 1) / (7 * 48)
    assert _correlation(gains) == (
        f"Spearman correlation over 7 pairs: {rho:.2f}; within targets: 1.00 (mean of 2)"
    )
    assert _correlation(gains[:1]) == "Spearman correlation over 1 pairs: not defined"


def test_in_a_study_that_minimizes_a_positive_gain_is_an_improvement(
    rule: EliminationRule,
) -> None:
    kept, audited = plot_gains(search(rule, direction="minimize")).data
    assert kept.y == pytest.approx((-0.1, -0.2, -0.1))
    assert audited.y == pytest.approx((0.05, 0.1))


def test_trials_that_no_adapter_marked_are_scored_by_the_rule(
    rule: EliminationRule, caplog: pytest.LogCaptureFixture
) -> None:
    plain = search(None)
    assert "pass rule=" in note(plot_gains(plain))
    kept, audited = plot_gains(plain, rule).data
    assert kept.x == (0.3, 0.3, 0.1, 0.5, 0.0)
    assert audited.x == ()
    # Half of a study from before the gate: those without a score are told of, not drawn.
    caplog.clear()
    half = search(rule)
    for trial in plain.get_trials():
        half.add_trial(trial)
    assert sum(len(trace.x) for trace in plot_gains(half).data) == 5
    assert "5 of 10 trials have no predicted score" in caplog.text
    assert sum(len(trace.x) for trace in plot_gains(half, rule).data) == 10


# What was saved.


def test_spent_saved_and_its_interval_are_drawn_and_eliminated_trials_marked(
    study: optuna.Study,
) -> None:
    figure = plot_savings(
        one_after_the_other(study), single_task_seconds=100, attribution_seconds=5, confidence=0.8
    )
    by_name = traces(figure)
    assert list(by_name) == [
        "80% interval of the estimate",
        "seconds spent (measured)",
        "estimated seconds saved",
        "eliminated trials",
    ]
    assert by_name["seconds spent (measured)"].y[-1] == pytest.approx(105 + 90 + 4)
    assert by_name["estimated seconds saved"].y[0] == pytest.approx(-5)
    assert by_name["estimated seconds saved"].y[-1] == pytest.approx(36 - 5)
    rug = by_name["eliminated trials"]
    assert list(rug.x) == ELIMINATED
    assert rug.text[0] == "u → t"
    high, low = figure.data[:2]
    assert low.fill == "tonexty"
    assert all(a <= b for a, b in zip(low.y, high.y, strict=True))


def test_over_seconds_trials_stand_in_the_order_in_which_they_finished(
    study: optuna.Study,
) -> None:
    # The first trial starts at 2 and outlasts all others, as on another worker.
    times = [(2.0, 100.0)] + [(3.0 + n, 4.0 + n) for n in range(1, 13)]
    figure = plot_savings(retold(study, times), x="seconds")
    assert traces(figure)["eliminated trials"].x == (8.0, 11.0, 12.0, 14.0)
    spent = traces(figure)["seconds spent (measured)"]
    assert list(spent.x) == [*(2.0 + n for n in range(1, 13)), 98.0]
    assert spent.y[-1] == pytest.approx(98 + 12)


def test_an_axis_that_is_not_there_is_refused(study: optuna.Study) -> None:
    with pytest.raises(ValueError, match="x must be 'trial' or 'seconds' but got 'epoch'"):
        plot_savings(study, x="epoch")  # type: ignore[arg-type]


# Which pairs.


def test_the_heat_map_is_blank_where_nothing_ran_and_marks_what_was_eliminated(
    study: optuna.Study,
) -> None:
    by_name = traces(plot_pairs(study))
    heat = by_name["mean measured gain"]
    # Sources by their mean gain: a 0.15, b 0.1, c -0.075, and u without any.
    assert list(heat.y) == ["a", "b", "c", "u"]
    assert list(heat.x) == ["t", "u"]
    np.testing.assert_allclose(
        heat.z,
        [[0.15, math.nan], [math.nan, 0.1], [-0.05, -0.1], [math.nan, math.nan]],
    )
    assert (heat.zmin, heat.zmax) == pytest.approx((-0.15, 0.15))
    assert heat.text[2][1] == (
        "c → u<br>2 trials: 1 eliminated, 1 audited<br>predicted score 0<br>mean measured gain -0.1"
    )
    assert heat.text[3][1] == ""  # u -> u was never proposed as a pair: it is the baseline
    crosses = by_name["eliminated"]
    assert set(zip(crosses.y, crosses.x, strict=True)) == {
        ("c", "t"), ("c", "u"), ("a", "u"), ("u", "t"),
    }  # fmt: skip
    assert "predicted score -0.1" in crosses.text[list(crosses.y).index("a")]
    dots = by_name["ran, no gain measured"]
    assert list(zip(dots.y, dots.x, strict=True)) == [("b", "t")]


def test_without_baseline_trials_pairs_are_marked_and_no_gain_is_drawn(
    rule: EliminationRule, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study()
    study.enqueue_trial({"source": "a", "target": "t"})
    study.enqueue_trial({"source": "c", "target": "t"})
    space = {name: SPACE[name] for name in ("source", "target")}
    study.optimize(gate(lambda trial: 0.5, rule, search_space=space), n_trials=2)
    by_name = traces(plot_pairs(study))
    assert "No pair has a measured gain" in caplog.text
    assert "mean measured gain" not in by_name
    assert by_name["eliminated"].y == ("c",)
    assert by_name["ran, no gain measured"].y == ("a",)
    assert "Run baseline trials" in note(plot_gains(study))


# Any study.


def test_a_role_has_the_colour_that_it_has_in_the_core_s_figures(study: optuna.Study) -> None:
    kept, audited = plot_gains(study).data
    assert (kept.marker.color, audited.marker.color) == (style.KEPT, style.AUDITED)
    by_name = traces(plot_savings(study))
    assert by_name["eliminated trials"].marker.color == style.ELIMINATED
    assert by_name["estimated seconds saved"].line.color == style.SAVED
    assert by_name["seconds spent (measured)"].line.color == style.NEUTRAL
    band = by_name["90% interval of the estimate"].fillcolor
    assert band == "rgba(0, 158, 115, 0.22)"


def test_names_of_parameters_a_fixed_target_and_joint_trials() -> None:
    study = optuna.create_study(direction="maximize")
    choices = CategoricalDistribution(["none", "a", "b", "t"])
    for first, second, value in (("t", "t", 0.5), ("a", "t", 0.6), ("a", "b", 0.9)):
        params = {"from": first, "and": second}
        study.add_trial(
            create_trial(params=params, distributions=dict.fromkeys(params, choices), value=value)
        )
    rule = EliminationRule({(s, "t"): Decision(False, 1.0, 0.5, "") for s in "ab"}, {})
    names = {"source_param": ["from", "and"], "target": "t"}
    kept, _ = plot_gains(study, rule, **names).data
    assert kept.y == pytest.approx((0.1,))
    assert traces(plot_pairs(study, rule, **names))["mean measured gain"].y == ("a",)
    assert len(traces(plot_savings(study, **names))["seconds spent (measured)"].x) == 3


def test_a_source_may_stand_in_a_parameter_of_its_targets_own() -> None:
    study = optuna.create_study(direction="maximize")
    choices = CategoricalDistribution(["none", "a", "t", "u"])
    for target, source, value in (("t", "t", 0.5), ("t", "a", 0.6), ("u", "u", 0.3)):
        params = {"target": target, f"source_{target}": source}
        study.add_trial(
            create_trial(params=params, distributions=dict.fromkeys(params, choices), value=value)
        )
    rule = EliminationRule({("a", "t"): Decision(False, 1.0, 0.5, "")}, {})
    for source_param in ("source_{target}", lambda params: params[f"source_{params['target']}"]):
        kept, _ = plot_gains(study, rule, source_param=source_param).data
        assert kept.y == pytest.approx((0.1,))
        heat = traces(plot_pairs(study, rule, source_param=source_param))["mean measured gain"]
        assert (heat.x, heat.y) == (("t",), ("a",))
        spent = traces(plot_savings(study, source_param=source_param))["seconds spent (measured)"]
        assert len(spent.x) == 3


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # metric names
def test_of_several_objectives_one_is_chosen(rule: EliminationRule) -> None:
    study = search(rule, directions=["minimize", "maximize"])
    for plot in (plot_gains, plot_pairs):
        with pytest.raises(ValueError, match="objective_index must be from 0 to 1"):
            plot(study)
    study.set_metric_names(["seconds", "f1"])
    for chosen in (1, "f1"):
        kept, _ = plot_gains(study, objective_index=chosen).data
        assert kept.y == pytest.approx((0.1, 0.2, 0.1))
    heat = traces(plot_pairs(study, objective_index=1))["mean measured gain"]
    assert heat.z[0][0] == pytest.approx(0.15)
    assert len(traces(plot_savings(study))["eliminated trials"].x) == len(ELIMINATED)


@pytest.mark.parametrize("plot", [plot_gains, plot_savings, plot_pairs])
@pytest.mark.parametrize("trials", ["none", "running", "without the pair"])
def test_a_study_with_nothing_to_show_gives_an_empty_figure_as_in_optuna(
    plot: object, trials: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study()
    if trials == "running":
        study.ask(SPACE)
    elif trials == "without the pair":
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    if trials == "none":
        assert optuna.visualization.plot_slice(study).data == ()
    caplog.clear()
    figure = plot(study)  # type: ignore[operator]
    assert figure.data == ()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert note(figure) == record.getMessage()
    if trials == "without the pair":
        assert "no 'source' and 'target' among the parameters; there are: x." in note(figure)


def test_trials_that_a_pruner_stopped_have_run_and_have_no_gain(study: optuna.Study) -> None:
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params={"source": "a", "target": "u", "lr": 0.1},
            distributions=SPACE,
            intermediate_values={0: 0.99},
        )
    )
    assert len(measured_gains(scored_records(study, None, PAIR_OF, None))) == 5
    dots = traces(plot_pairs(study))["ran, no gain measured"]
    assert ("a", "u") in zip(dots.y, dots.x, strict=True)


def test_figures_survive_json(study: optuna.Study) -> None:
    for figure in (plot_gains(study), plot_savings(study), plot_pairs(study)):
        assert len(go.Figure(figure.to_plotly_json()).data) == len(figure.data)
        assert "NaN" not in figure.to_json()


def test_plotly_is_loaded_only_to_draw_and_missed_with_advice() -> None:
    code = """
import sys
import transfer_pruner_optuna.visualization as v
assert not {"plotly", "torch"} & set(sys.modules)
sys.modules["plotly"] = None  # as if it were not installed
import optuna
for plot in (v.plot_gains, v.plot_savings, v.plot_pairs):
    try:
        plot(optuna.create_study())
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("pip install 'transfer-pruner[plot]'" in line for line in lines)
