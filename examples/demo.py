"""The main job on real images: an exhaustive search, the same search gated, one that learns, TPE.

The search that learns takes attributions and proxy scores of all pairs, and goes on with the pair
that is worth most; it has as many trials as train behind the gate. Which proxy score it takes, and
that it begins with every baseline, was chosen on other splits (splits.py), not on this one.

Run it again after Ctrl-C: finished models, embeddings and trials are kept in demo-output/.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import load_model, save_model
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

import digits
from transfer_pruner import (
    EliminationRule,
    LearningRule,
    TaskEmbedding,
    TransferPredictor,
    embed,
    estimate_savings,
    load_embeddings,
    regret,
    save_embeddings,
    score_pairs,
)
from transfer_pruner.answer import SHOWN
from transfer_pruner.pairs import source_popularity
from transfer_pruner.plotting import pair_heatmap
from transfer_pruner.savings import Regret, Savings
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import (
    StopWhenSettled,
    TransferSampler,
    answer_from_study,
    ending_from_study,
    gate,
    records_from_study,
)

OUT = Path("demo-output")
KEPT = 3
PROXY = "h_score"
"""Of the four proxy scores the one that ranks best on splits 2 and 3."""
RANDOM_REPEATS = 500
TASKS = list(digits.TASKS)
SPACE = {"source": TASKS, "target": TASKS, "lr": [3e-3, 1e-2], "epochs": [20, 40]}
N_TRIALS = int(np.prod([len(choices) for choices in SPACE.values()]))
DISTRIBUTIONS = {
    name: optuna.distributions.CategoricalDistribution(choices) for name, choices in SPACE.items()
}
Callback = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]
console = Console()


def progress() -> Progress:
    columns = (TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def source_models() -> tuple[dict[str, digits.Network], float]:
    """Train the single-task models, or read those that an earlier run finished."""
    folder = OUT / "models"
    folder.mkdir(parents=True, exist_ok=True)
    models, seconds = {}, 0.0
    with progress() as bar:
        for task in bar.track(TASKS, description="training single-task models"):
            path, timing = folder / f"{task}.safetensors", folder / f"{task}.json"
            if timing.exists():
                models[task] = digits.Network()
                load_model(models[task], path)
            else:
                started = time.perf_counter()
                models[task] = digits.source_model(task)
                save_model(models[task], str(path))
                timing.write_text(json.dumps(time.perf_counter() - started))
            seconds += json.loads(timing.read_text())
    return models, seconds


def task_embeddings(
    models: dict[str, digits.Network],
) -> tuple[dict[str, TaskEmbedding], dict[str, TaskEmbedding], float]:
    """Embed every task as a source and, by a model of its 30 labelled images, as a target."""
    timing = OUT / "attribution-seconds.json"
    if not timing.exists():
        started = time.perf_counter()
        sources, targets = [], []
        with progress() as bar:
            for task in bar.track(TASKS, description="attributing"):
                few_shot = digits.target_model(task, lr=1e-2, epochs=40)
                sources.append(embed(models[task], digits.PROBE, name=task, target=1))
                targets.append(embed(few_shot, digits.PROBE, name=task, target=1))
        save_embeddings(sources, OUT / "embeddings/sources")
        save_embeddings(targets, OUT / "embeddings/targets")
        timing.write_text(json.dumps(time.perf_counter() - started))
    embeddings = [load_embeddings(OUT / f"embeddings/{role}") for role in ("sources", "targets")]
    return embeddings[0], embeddings[1], json.loads(timing.read_text())


def make_objective(models: dict[str, digits.Network]) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", TASKS)
        target = trial.suggest_categorical("target", TASKS)
        lr = trial.suggest_categorical("lr", SPACE["lr"])
        epochs = trial.suggest_categorical("epochs", SPACE["epochs"])
        model = None if source == target else models[source]
        dev, test = digits.transfer_scores(model, target, lr, epochs)
        trial.set_user_attr("test", test)
        return dev

    return objective


def search(name: str, objective: Callable[[optuna.Trial], float]) -> tuple[optuna.Study, float]:
    """Run what is left of a grid search; return the study and the seconds of all its trials."""
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(f"{OUT}/studies.log")),
        direction="maximize",
        sampler=optuna.samplers.GridSampler(SPACE, seed=0),
        load_if_exists=True,
    )
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state in finished]
    # The sampler takes a point for visited that an interrupted run left unfinished.
    for trial in trials:
        if trial.state not in finished and trial.params.keys() == SPACE.keys():
            study.enqueue_trial(trial.params, skip_if_exists=False)
    with progress() as bar:
        shown = bar.add_task(f"{name} search", total=N_TRIALS, completed=len(done))
        while (left := N_TRIALS - len(study.get_trials(deepcopy=False, states=finished))) > 0:
            study.optimize(objective, n_trials=left, callbacks=[lambda *_: bar.advance(shown)])
    trials = study.get_trials(deepcopy=False, states=finished)
    return study, sum(trial.duration.total_seconds() for trial in trials)


def guided_search(
    name: str,
    objective: Callable[[optuna.Trial], float],
    sampler: optuna.samplers.BaseSampler,
    n_trials: int,
    callbacks: Sequence[Callback] = (),
) -> tuple[optuna.Study, float]:
    """Run what is left of a search that a sampler guides, all baselines first."""
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(f"{OUT}/studies.log")),
        direction="maximize",
        sampler=sampler,
        load_if_exists=True,
    )
    for task, lr, epochs in itertools.product(TASKS, SPACE["lr"], SPACE["epochs"]):
        baseline = {"source": task, "target": task, "lr": lr, "epochs": epochs}
        study.enqueue_trial(baseline, skip_if_exists=True)
    states = (optuna.trial.TrialState.COMPLETE,)
    done = len(study.get_trials(deepcopy=False, states=states))
    with progress() as bar:
        shown = bar.add_task(f"{name} search", total=n_trials, completed=done)
        if done < n_trials:
            advance = [lambda *_: bar.advance(shown)]
            study.optimize(objective, n_trials=n_trials - done, callbacks=[*callbacks, *advance])
    trials = study.get_trials(deepcopy=False, states=states)
    return study, sum(trial.duration.total_seconds() for trial in trials)


def share_kept(everything: pd.DataFrame, found: pd.DataFrame) -> Regret:
    """Tell what a search lost that ran some of the exhaustive search's trials."""
    tried = set(found[[*SPACE]].itertuples(index=False, name=None))
    keys = everything[[*SPACE]].itertuples(index=False, name=None)
    is_baseline = everything["source"] == everything["target"]
    rows = everything[is_baseline | np.array([key in tried for key in keys])]

    def best(trials: pd.DataFrame) -> pd.Series:
        return trials.loc[trials.groupby("target")["dev"].idxmax()].set_index("target")["test"]

    by_target = best(everything) - best(rows)
    attainable = float((best(everything) - best(everything[is_baseline])).mean())
    lost = float(by_target.mean())
    return Regret(lost, attainable, 1 - lost / attainable, by_target)


def trials_table(study: optuna.Study) -> pd.DataFrame:
    rows = [
        {**trial.params, "dev": trial.value, "test": trial.user_attrs["test"]}
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    ]
    return pd.DataFrame(rows)


def measured_gains(trials: pd.DataFrame) -> pd.DataFrame:
    """Gain of every pair on the test images: the mean over the hyperparameter settings."""
    baseline = trials[trials["source"] == trials["target"]]
    baseline = baseline.set_index(["target", "lr", "epochs"])["test"].rename("baseline")
    joined = trials[trials["source"] != trials["target"]].join(
        baseline, on=["target", "lr", "epochs"]
    )
    joined["gain"] = joined["test"] - joined["baseline"]
    return joined.groupby(["source", "target"], as_index=False)["gain"].mean()


def keep_best(pairs: pd.DataFrame, scores: np.ndarray, k: int) -> set[tuple[str, str]]:
    ranked = pairs.assign(score=scores).sort_values("score", ascending=False)
    best = ranked.groupby("target").head(k)
    return set(zip(best["source"], best["target"], strict=True))


def compare(
    trials: pd.DataFrame, predictor: TransferPredictor, random_repeats: int = RANDOM_REPEATS
) -> pd.DataFrame:
    """Regret of every way to choose k sources, on the exhaustive search's own trials."""
    pairs = measured_gains(trials)
    # Which setting of a pair is chosen depends on no other pair.
    trials = trials.loc[trials.groupby(["source", "target"])["dev"].idxmax()]
    sources, targets = pairs["source"].to_numpy(), pairs["target"].to_numpy()
    ways = {
        "attributions alone": predictor.predict(pairs),
        "source popularity *": source_popularity(sources, targets, pairs),
        "fitted predictor *": cross_val_predict(
            predictor, pairs, pairs["gain"], groups=pairs["target"], cv=LeaveOneGroupOut()
        ),
    }
    rng = np.random.default_rng(0)
    rows = []
    for k in (1, 2, 3, 5):
        for way, scores in ways.items():
            found = regret(trials, keep_best(pairs, scores, k))
            rows.append((k, way, found.regret, np.nan, found.share_kept))
        found_at_random = [
            regret(trials, keep_best(pairs, rng.random(len(pairs)), k))
            for _ in range(random_repeats)
        ]
        lost = np.array([found.regret for found in found_at_random])
        shares = np.mean([found.share_kept for found in found_at_random])
        rows.append((k, "random", lost.mean(), lost.std(), shares))
    return pd.DataFrame(rows, columns=["kept", "way", "regret", "spread", "share"])


def print_targets(trials: pd.DataFrame, found: Regret, rule: EliminationRule) -> None:
    everything = regret(
        trials, rule.table()[["source", "target"]].itertuples(index=False, name=None)
    )
    nothing = regret(trials, [])
    winners = trials.loc[trials.groupby("target")["dev"].idxmax()].set_index("target")
    table = Table(title="Best test F1 per target, chosen on dev")
    for column in ("target", "no transfer", "exhaustive", "gated", "best source", "kept sources"):
        numeric = column in ("no transfer", "exhaustive", "gated")
        table.add_column(column, justify="right" if numeric else "left")
    for target in TASKS:
        best = everything.by_target[target]
        score = winners.loc[target, "test"]
        table.add_row(
            target,
            f"{score - nothing.by_target[target]:.3f}",
            f"{score - best:.3f}",
            f"{score - found.by_target[target]:.3f}",
            "none" if winners.loc[target, "source"] == target else winners.loc[target, "source"],
            ", ".join(rule.kept(target)),
        )
    console.print(table)


def heat_map(predictor: TransferPredictor, trials: pd.DataFrame) -> Figure:
    gains = measured_gains(trials)
    gains["predicted"] = predictor.predict(gains)
    predicted, measured = (
        gains.pivot(index="source", columns="target", values=column).loc[TASKS, TASKS]
        for column in ("predicted", "gain")
    )
    return pair_heatmap(predicted, measured, title="Digit tasks: 182 ordered pairs")


def print_comparison(comparison: pd.DataFrame) -> None:
    table = Table(title="Test F1 lost (regret) by keeping k of 13 sources, chosen by")
    for column in ("k", "chosen by", "regret", "share of gain kept"):
        table.add_column(column, justify="left" if column == "chosen by" else "right")
    for row in comparison.itertuples():
        spread = "" if np.isnan(row.spread) else f" ± {row.spread:.4f}"
        last = row.way == "random"
        table.add_row(
            str(row.kept),
            row.way,
            f"{row.regret:.4f}{spread}",
            f"{row.share:.0%}",
            end_section=last,
        )
    console.print(table)
    console.print(
        "share of gain kept: 1 - regret / regret of never transferring\n"
        "* was given all transfers measured to the other targets; a new search has none\n"
        f"random: mean and standard deviation of {RANDOM_REPEATS} repeats",
        highlight=False,
    )


def print_savings(
    exhaustive: optuna.Study,
    gated: optuna.Study,
    savings: Savings,
    exhaustive_seconds: float,
    gated_seconds: float,
    found: Regret,
) -> None:
    table = Table(title="What the gate saved")
    for column in ("", "exhaustive", "gated"):
        table.add_column(column, justify="right" if column else "left")
    pairs = len(TASKS) * (len(TASKS) - 1)
    table.add_row("pairs trained", str(pairs), str(savings.pairs_trained))
    table.add_row("trials trained", str(N_TRIALS), str(savings.trials_trained))
    table.add_row("trials eliminated", "0", str(savings.trials_eliminated))
    table.add_row("single-task training, s", *2 * (f"{savings.single_task_seconds:.1f}",))
    table.add_row("attribution, s", "0.0", f"{savings.attribution_seconds:.1f}")
    table.add_row("seconds in all, measured", f"{exhaustive_seconds:.1f}", f"{gated_seconds:.1f}")
    saved = exhaustive_seconds - gated_seconds
    table.add_row("saved, measured", "", f"{saved:.1f} s ({saved / exhaustive_seconds:.0%})")
    low, high = savings.estimated_seconds_saved_interval
    table.add_row(
        "saved, estimated from the gated study",
        "",
        f"{savings.estimated_seconds_saved:.1f} s ({low:.1f} to {high:.1f})",
    )
    table.add_row("regret, test F1", "0", f"{found.regret:.4f}")
    table.add_row("share of attainable gain kept", "100%", f"{found.share_kept:.0%}")
    console.print(table)


def print_searches(searches: Mapping[str, tuple[int, float, float, Regret]]) -> None:
    """Hold the searches side by side: trials that trained, seconds, what they found."""
    table = Table(title="The same tasks, four searches")
    for column in ("search", "trials", "before, s", "trials, s", "in all, s", "regret", "kept"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for name, (trials, before, seconds, found) in searches.items():
        table.add_row(
            name,
            str(trials),
            f"{before:.1f}",
            f"{seconds:.1f}",
            f"{before + seconds:.1f}",
            f"{found.regret:.4f}",
            f"{found.share_kept:.0%}",
        )
    console.print(table)
    console.print(
        "before: single-task models, attributions, proxy scores, as far as the search uses them\n"
        "regret: test F1 lost against the exhaustive search; kept: share of what transfer offers",
        highlight=False,
    )


def print_answer(study: optuna.Study) -> None:
    answer = answer_from_study(study, dev_sizes=len(digits.DEV))
    table = Table(title="What the learning search found, by dev F1")
    for column in SHOWN[:-1]:
        table.add_column(column)
    for row in answer.shown():
        table.add_row(*(row[column] for column in SHOWN[:-1]))
    console.print(table)
    console.print(answer.headline(), highlight=False)


def main() -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    OUT.mkdir(exist_ok=True)
    models, single_task_seconds = source_models()
    console.print(
        "dev F1 of the source models: "
        + ", ".join(f"{task} {digits.f1(models[task], task, digits.DEV):.2f}" for task in TASKS)
    )
    sources, targets, attribution_seconds = task_embeddings(models)
    predictor = TransferPredictor(sources, target_embeddings=targets)
    rule = EliminationRule.top_k(predictor, k=KEPT)
    rule.save(OUT / "rule")
    objective = make_objective(models)

    exhaustive, exhaustive_seconds = search("exhaustive", objective)
    trials = trials_table(exhaustive)
    found = regret(trials, rule)
    with SavingsTracker(
        "transfer_pruner demo",
        run_name=f"digits, {KEPT} of {len(TASKS) - 1} sources kept",
        tracking_uri=f"sqlite:///{OUT}/mlflow.db",
        rule=rule,
        maximize=True,
        single_task_seconds=single_task_seconds,
        attribution_seconds=attribution_seconds,
    ) as tracker:
        gated_objective = gate(objective, rule, search_space=DISTRIBUTIONS, tracker=tracker)
        gated, gated_seconds = search("gated", gated_objective)
        # The study knows of trials before an interruption too, and of Optuna's own seconds.
        for record in records_from_study(gated, rule):
            tracker.record(record)
        savings = tracker.savings()
        tracker.log_metrics(
            {
                "savings/measured_regret": found.regret,
                "savings/share_of_gain_kept": found.share_kept,
            }
        )
        figure = heat_map(predictor, trials)
        figure.savefig(OUT / "pairs.png", dpi=110)
        tracker.log_figure(figure, "savings/pairs.png")

    scores = score_pairs(
        models,
        {task: (digits.IMAGES[digits.DEV], digits.TASKS[task][digits.DEV]) for task in TASKS},
        PROXY,
        cache=OUT / "seen",
        progress=False,
    )
    learning = LearningRule(predictor).refine(scores)
    n_trained = savings.trials_trained
    with SavingsTracker(
        "transfer_pruner demo",
        run_name="digits, attributions and proxy scores, learning",
        tracking_uri=f"sqlite:///{OUT}/mlflow.db",
        rule=learning,
        maximize=True,
        single_task_seconds=single_task_seconds,
        attribution_seconds=attribution_seconds,
    ) as learning_tracker:
        random = optuna.samplers.RandomSampler(seed=0)
        sampler = TransferSampler(learning, random, seed=0, tracker=learning_tracker)
        learnt, learning_seconds = guided_search(
            "learning", objective, sampler, n_trained, [StopWhenSettled(learning)]
        )
        for record in records_from_study(learnt):
            learning_tracker.record(record)
        learning_tracker.log_ending(**ending_from_study(learnt))
        kept = share_kept(trials, trials_table(learnt))
        learning_tracker.log_metrics(
            {
                "savings/measured_regret": kept.regret,
                "savings/share_of_gain_kept": kept.share_kept,
            }
        )
    tpe, tpe_seconds = guided_search(
        "TPE", objective, optuna.samplers.TPESampler(seed=0), len(learnt.trials)
    )

    print_targets(trials, found, rule)
    comparison = compare(trials, predictor)
    comparison.to_csv(OUT / "comparison.csv", index=False)
    print_comparison(comparison)
    print_savings(
        exhaustive,
        gated,
        savings,
        single_task_seconds + exhaustive_seconds,
        single_task_seconds + attribution_seconds + gated_seconds,
        found,
    )
    print_answer(learnt)
    before = single_task_seconds + attribution_seconds
    scoring_seconds = estimate_savings(records_from_study(learnt)).scoring_seconds
    print_searches(
        {
            "exhaustive": (
                N_TRIALS,
                single_task_seconds,
                exhaustive_seconds,
                share_kept(trials, trials),
            ),
            "gated": (n_trained, before, gated_seconds, found),
            "TPE": (
                len(tpe.trials),
                single_task_seconds,
                tpe_seconds,
                share_kept(trials, trials_table(tpe)),
            ),
            "learning": (len(learnt.trials), before + scoring_seconds, learning_seconds, kept),
        }
    )
    console.print(
        f"\nThe heat map is {OUT}/pairs.png. For the same in MLflow, run\n\n"
        f"  .venv/bin/mlflow ui --backend-store-uri sqlite:///{OUT}/mlflow.db\n\n"
        "and open http://127.0.0.1:5000/#/experiments/"
        f"{learning_tracker.experiment_id}/runs/{learning_tracker.run_id}"
        "?workflowType=machine_learning",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\nStopped. Run it again: what is finished is kept in demo-output/.")
        sys.exit(130)
