"""Figures of what a study had found when draw its storage's trials, and never fail."""

from __future__ import annotations

import optuna
import pytest

from tests.integrations.transfer_pruner_optuna.told_search import (
    one_after_the_other,
    search,
    told_study,
)
from transfer_pruner.plotting import style
from transfer_pruner_optuna import plot_best, plot_tried

go = pytest.importorskip("plotly.graph_objects")
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def study() -> optuna.Study:
    return one_after_the_other(told_study())


def traces(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data}


def test_a_line_a_target_and_their_mean_rise_with_the_trials(study: optuna.Study) -> None:
    drawn = traces(plot_best(study))
    assert list(drawn) == ["t", "u", "mean"]
    assert drawn["t"].y == (0.5, 0.6, 0.6)
    assert drawn["t"].x == (1, 4, 8), "eliminated and failed trials did not train"
    assert drawn["u"].y == (0.6, 0.7, 0.7)
    assert drawn["mean"].y[-1] == pytest.approx(0.65)
    assert drawn["mean"].line.color == style.BASELINE
    assert "trial 3, a" in drawn["t"].text[1]


def test_against_seconds_the_lines_stand_where_the_trials_ended(study: optuna.Study) -> None:
    drawn = traces(plot_best(study, x="seconds"))
    assert drawn["t"].x == (10, 40, 94)
    shares = traces(plot_best(study, x="seconds", y="share_of_gain"))
    assert shares["t"].y == (0, 1, 1)
    assert shares["mean"].y[-1] == 1


def test_one_target_has_no_mean() -> None:
    study = optuna.create_study(direction="minimize")
    study.optimize(lambda trial: 1.0 / (1 + trial.suggest_int("source", 0, 3)), n_trials=5)
    assert list(traces(plot_best(study, target="t"))) == ["t"]


def test_every_pair_is_drawn_as_early_as_it_was_tried(study: optuna.Study) -> None:
    drawn = traces(plot_tried(study))
    cells = drawn["first tried"]
    assert cells.x == ("t", "u")
    assert cells.y == ("(no source)", "a", "b", "c", "u")
    first = {
        (source, target): cells.z[row][column]
        for row, source in enumerate(cells.y)
        for column, target in enumerate(cells.x)
    }
    assert (first["(no source)", "t"], first["(no source)", "u"], first["a", "t"]) == (1, 3, 4)
    gone = drawn["eliminated, never tried"]
    assert set(zip(gone.y, gone.x, strict=True)) == {("a", "u"), ("u", "t")}
    assert "never tried" in gone.text[0]


def test_a_study_with_nothing_to_show_says_why() -> None:
    empty = optuna.create_study()
    other = optuna.create_study()
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    for plot in (plot_best, plot_tried):
        assert "no finished trials" in plot(empty).layout.annotations[0].text
        assert "no 'source' and 'target'" in plot(other).layout.annotations[0].text
    no_gain = optuna.create_study(direction="maximize")
    no_gain.optimize(lambda trial: trial.suggest_int("source", 1, 1), n_trials=1)
    shares = plot_best(no_gain, target="t", y="share_of_gain")
    assert "No target has a gain" in shares.layout.annotations[0].text


def test_what_is_wrong_is_said_at_once(study: optuna.Study) -> None:
    with pytest.raises(ValueError, match="x must be 'trial' or 'seconds' but got 'time'"):
        plot_best(study, x="time")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y must be 'value' or 'share_of_gain' but got 'gain'"):
        plot_best(study, y="gain")  # type: ignore[arg-type]
    several = search(None, directions=["minimize", "maximize"])
    for plot in (plot_best, plot_tried):
        with pytest.raises(ValueError, match="objective_index must be from 0 to 1"):
            plot(several)
    assert traces(plot_best(several, objective_index=1))["t"].y[-1] == 0.6
