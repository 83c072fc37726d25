"""One call from models, dev sets and an objective to a study and a report, part by part."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
from torch import Tensor, nn  # noqa: E402

from transfer_pruner import LearningRule, TransferPrunerWarning, estimate_savings  # noqa: E402
from transfer_pruner_optuna import (  # noqa: E402
    TransferSampler,
    autopilot,
    records_from_study,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

torch.manual_seed(0)
INPUTS = torch.randn(300, 6)
TASKS = {
    "first": INPUTS[:, 0] + INPUTS[:, 1] > 0,
    "second": INPUTS[:, 0] - INPUTS[:, 1] > 0,
    "both": (INPUTS[:, 0] > 0) & (INPUTS[:, 1] > 0),
    "other": INPUTS[:, 4] * INPUTS[:, 5] > 0,
}
DEV = slice(150, 300)


def trained(layers: nn.Sequential, task: str, rows: slice, lr: float = 0.05) -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(*deepcopy(layers), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INPUTS[rows]), TASKS[task][rows].long()).backward()
        optimizer.step()
    return model


def fresh() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh())


MODELS = {task: trained(fresh(), task, slice(0, 100)) for task in TASKS}
SETS: dict[str, tuple[Tensor, Tensor]] = {
    task: (INPUTS[DEV], labels[DEV].long()) for task, labels in TASKS.items()
}


def score(source: str, target: str, lr: float) -> float:
    layers = fresh() if source == target else MODELS[source][:2]
    model = trained(layers, target, slice(100, 112), lr)
    return float((model(INPUTS[DEV]).argmax(1) == TASKS[target][DEV]).float().mean())


def objective_of(targets: list[str]) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", list(TASKS))
        target = trial.suggest_categorical("target", targets)
        return score(source, target, trial.suggest_categorical("lr", [0.01, 0.05]))

    return objective


def to_first(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", list(TASKS))
    return score(source, "first", trial.suggest_categorical("lr", [0.01, 0.05]))


@pytest.mark.parametrize("targets", [["both"], ["first", "both"], list(TASKS)])
def test_it_searches_one_target_or_many_and_writes_what_it_found(
    targets: list[str], tmp_path: Path
) -> None:
    sets = {task: SETS[task] for task in targets}
    study = autopilot(
        MODELS, sets, objective_of(targets), n_trials=4 * len(targets), folder=tmp_path
    )
    assert isinstance(study.sampler, TransferSampler)
    trials = study.get_trials(deepcopy=False)
    pairs = [(trial.params["source"], trial.params["target"]) for trial in trials]
    assert {target for _, target in pairs} == set(targets)
    assert sorted(pairs[: len(targets)]) == sorted((task, task) for task in targets)
    assert len(trials) <= 4 * len(targets)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "report-data" / "answer.csv").is_file()
    told = study.user_attrs["transfer_pruner.answer"]["targets"]
    assert {*told} == set(targets)
    savings = estimate_savings(records_from_study(study))
    assert savings.scoring_seconds > 0


def test_a_target_that_is_no_parameter_is_named(tmp_path: Path) -> None:
    one = {"first": SETS["first"]}
    study = autopilot(MODELS, one, to_first, n_trials=5, folder=tmp_path, target="first")
    sources = [trial.params["source"] for trial in study.trials]
    assert sources[0] == "first"
    assert len({*sources}) > 1
    with pytest.raises(ValueError, match="target is 'both', of which datasets has no dev set; it"):
        autopilot(MODELS, one, to_first, n_trials=5, folder=tmp_path, target="both")


def test_the_same_call_goes_on_and_computes_nothing_twice(tmp_path: Path) -> None:
    objective = objective_of(list(TASKS))
    first = autopilot(MODELS, SETS, objective, n_trials=6, folder=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "embeddings").iterdir()}
    again = autopilot(MODELS, SETS, objective, n_trials=9, folder=tmp_path)
    assert len(first.trials) == len(again.trials) == 9
    assert files == {path: path.stat().st_mtime_ns for path in files}
    # Another model of a task is embedded anew, and only that.
    models = MODELS | {"other": trained(fresh(), "other", slice(0, 50))}
    autopilot(models, SETS, objective, n_trials=9, folder=tmp_path)
    changed = [path.name for path in files if path.stat().st_mtime_ns != files[path]]
    assert len(changed) == 1


def test_without_a_number_of_trials_it_ends_when_it_is_settled(tmp_path: Path) -> None:
    sets = {"both": SETS["both"]}
    study = autopilot(MODELS, sets, objective_of(["both"]), folder=tmp_path)
    settled = study.user_attrs["transfer_pruner.settled"]
    assert settled["reason"] in (tmp_path / "report.html").read_text()
    trials = len(study.trials)
    assert trials <= 8
    assert len(autopilot(MODELS, sets, objective_of(["both"]), folder=tmp_path).trials) == trials


def test_each_part_can_be_given(tmp_path: Path) -> None:
    pairs = [(s, t) for s in TASKS for t in TASKS if s != t]
    scores = pd.DataFrame(pairs, columns=["source", "target"])
    scores["score"] = (scores["source"] == "second").astype(float)
    ended: list[int] = []
    own = optuna.create_study(
        study_name="mine",
        storage=f"sqlite:///{tmp_path}/study.db",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    study = autopilot(
        MODELS,
        SETS,
        objective_of(list(TASKS)),
        n_trials=5,
        folder=tmp_path,
        study=own,
        probe=INPUTS[:20],
        scores=scores,
        callbacks=[lambda _, trial: ended.append(trial.number)],
    )
    assert study is own
    assert ended == [0, 1, 2, 3, 4]
    assert not (tmp_path / "seen").exists()
    rule = LearningRule.__new__(LearningRule)
    with pytest.raises(ValueError, match="n_trials must be a whole number from 1 but got 0"):
        autopilot(MODELS, SETS, to_first, n_trials=0, folder=tmp_path, rule=rule)


def test_text_classifiers_in_folders_are_searched_too(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    models = {task: save_model(task, seed=n) for n, task in enumerate(("news", "advice", "food"))}
    texts = ["we need water", "road closed tonight", "flood in the city", "donate blankets"] * 4
    sets = {task: pd.DataFrame({"text": texts, "label": [0, 1, 1, 0] * 4}) for task in models}

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", list(models))
        target = trial.suggest_categorical("target", list(models))
        return 0.5 + 0.1 * (source == "food") * (source != target)

    study = autopilot(models, sets, objective, n_trials=5, folder=tmp_path / "search")
    assert [trial.params["source"] for trial in study.trials[:3]] == ["advice", "food", "news"]
    assert (tmp_path / "search" / "report.html").is_file()


def test_a_target_without_a_model_is_ranked_by_proxy_scores(tmp_path: Path) -> None:
    models: dict[str, Any] = {task: MODELS[task] for task in ("second", "both", "other")}
    one = {"first": SETS["first"]}

    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [None, *models])
        return score(source or "first", "first", 0.05)

    with pytest.warns(TransferPrunerWarning):
        study = autopilot(models, one, objective, n_trials=3, folder=tmp_path, target="first")
    assert len(study.trials) == 3
