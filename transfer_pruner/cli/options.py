"""Options that several commands take, and what they are read into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transfer_pruner.cli.program import fail, needing

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from transfer_pruner.records import TrialRecord
    from transfer_pruner.rule.elimination import EliminationRule

DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)


def transfers_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take a table of measured transfers, as `transfer_pruner.transfers.read_transfers` does."""
    for option in (
        click.option("--gain-column", default="gain", show_default=True),
        click.option("--target-column", default="target", show_default=True),
        click.option("--source-column", default="source", show_default=True),
        click.option("--transfers", type=FILE, help="Measured transfers, CSV or Parquet."),
    ):
        function = option(function)
    return function


def scores_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take a table of proxy scores, as `refined` re-ranks a rule by it."""
    for option in (
        click.option(
            "--keep",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="With --scores: keep this many of them.",
        ),
        click.option("--scores", type=FILE, help="Re-rank the kept sources by this table."),
    ):
        function = option(function)
    return function


def refined(rule: EliminationRule, scores: Path | None, keep: int) -> EliminationRule:
    """Re-rank a rule's kept sources by a table that `transfer-pruner score` wrote, if there is."""
    return rule if scores is None else rule.refine(read_scores(scores), k=keep)


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table that `transfer-pruner score` wrote."""
    from transfer_pruner.transfers import read_transfers

    table = read_transfers(path, gain_column="score", also=["seconds"])
    return table.rename(columns={"gain": "score"})


def models_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take the single-task models of tasks, as `named_models` reads them."""
    for option in (
        click.option(
            "--models",
            "folder",
            type=DIRECTORY,
            help="Folder of models, each in a folder named as its task.",
        ),
        click.option("--name", help="The task, of a single --model."),
        click.option(
            "--model",
            "given",
            multiple=True,
            metavar="[NAME=]DIR_OR_HUB_ID",
            help="A saved classifier or PEFT adapter; repeat it for several, each with its NAME.",
        ),
    ):
        function = option(function)
    return function


def named_models(
    given: Sequence[str], name: str | None, folder: Path | None, what: str
) -> dict[str, str]:
    """Name the tasks of `models_options`, and where their models are."""
    models: dict[str, str] = {}
    for model in given:
        task, equals, where = model.partition("=")
        if not equals or Path(model).is_dir():
            if name is None or len(given) > 1:
                raise click.UsageError(
                    f"--model {model} needs the name of its task: write NAME={model}."
                )
            task, where = name, model
        elif name is not None:
            raise click.UsageError(f"--model {model} names its task: leave out --name.")
        if task in models:
            raise click.UsageError(f"two models are called {task!r}: give each task one name.")
        if not task or not where:
            raise click.UsageError(f"--model {model} must be NAME=DIR_OR_HUB_ID.")
        models[task] = where
    if folder is not None:
        with needing("text", what):
            from transfer_pruner.text.folders import is_model, model_folder, models_in
        if not folder.is_dir():
            fail(f"--models {folder}: there is no such folder.")
        if is_model(model_folder(folder)):
            raise click.UsageError(
                f"--models {folder} is the folder of one model: give it as --model NAME={folder}."
            )
        found = {task: str(path) for task, path in models_in(folder).items()}
        if not found:
            fail(
                f"--models {folder} holds no folder with a config.json or adapter_config.json: "
                "see save_pretrained()."
            )
        twice = sorted(found.keys() & models.keys())
        if twice:
            raise click.UsageError(f"--models and --model both name {twice[0]!r}.")
        models |= dict(sorted(found.items()))
    if not models:
        raise click.UsageError("give --model or --models.")
    return models


@dataclass(frozen=True)
class Search:
    """Where a search is to be read: `search_options` in one piece."""

    storage: str | None
    study_name: str | None
    objective_index: int | None
    ray_folder: str | None
    metric: str | None
    mode: str | None
    source_params: tuple[str, ...]
    target_param: str
    target: str | None

    def __post_init__(self) -> None:
        if (self.storage is None) == (self.ray_folder is None):
            raise click.UsageError("give --storage and --study, or --ray.")
        if self.storage is not None and self.study_name is None:
            raise click.UsageError("--storage needs --study, the name of one of its studies.")
        if self.ray_folder is not None and self.metric is None:
            raise click.UsageError("--ray needs --metric, a metric that its trials report.")
        if self.ray_folder is not None and self.mode is None:
            raise click.UsageError(
                "--ray needs --mode: max if a higher metric is better, else min."
            )

    @property
    def pair(self) -> dict[str, Any]:
        """Which of a trial's parameters hold the pair, as the adapters take it."""
        return {
            "source_param": self.source_params,
            "target_param": self.target_param,
            "target": self.target,
        }

    def transfers(self) -> pd.DataFrame:
        """Read the search as a table of measured transfers."""
        if self.storage is not None:
            with needing("optuna", "--storage"):
                from transfer_pruner_optuna import transfers_from_study
            return transfers_from_study(
                self._study(), objective_index=self.objective_index, **self.pair
            )
        assert self.ray_folder is not None
        with needing("ray", "--ray"):
            import pyarrow  # noqa: F401

            from transfer_pruner_ray import transfers_from_results
        return transfers_from_results(
            self.ray_folder, metric=self.metric, mode=self.mode, **self.pair
        )

    def records(self, rule: EliminationRule | None) -> list[TrialRecord]:
        """Read the search as records."""
        if self.storage is not None:
            with needing("optuna", "--storage"):
                from transfer_pruner_optuna.records import check_objective, records_from_study
            study = self._study()
            index = check_objective(study, self.objective_index)
            return records_from_study(study, rule, objective_index=index, **self.pair)
        assert self.ray_folder is not None
        with needing("ray", "--ray"):
            import pyarrow  # noqa: F401

            from transfer_pruner_ray import records_from_results
        return records_from_results(
            self.ray_folder, rule, metric=self.metric, mode=self.mode, **self.pair
        )

    def ending(self) -> dict[str, Any]:
        """Tell how a search that ended by itself did, as `estimate_savings` takes it.

        Where only its budget ended it, the same search without elimination is no longer either.
        """
        ending: dict[str, Any]
        if self.ray_folder is not None:
            with needing("ray", "--ray"):
                from transfer_pruner_ray import ending_from_results
            ending = {**ending_from_results(self.ray_folder)}
        else:
            with needing("optuna", "--storage"):
                from transfer_pruner_optuna import ending_from_study
            ending = {**ending_from_study(self._study(), **self.pair)}
        return ending if ending["stopped"] else {}

    def _study(self) -> optuna.Study:
        assert self.storage is not None
        assert self.study_name is not None
        return open_study(self.storage, self.study_name)


def search_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take what a `Search` is made of."""
    for option in (
        click.option("--target", help="The target task, for a search over sources only."),
        click.option("--target-param", default="target", show_default=True),
        click.option(
            "--source-param",
            "source_params",
            multiple=True,
            default=["source"],
            show_default=True,
            help="Parameter with the source; several for joint transfer.",
        ),
        click.option(
            "--mode", type=click.Choice(["max", "min"]), help="Whether a higher metric is better."
        ),
        click.option("--metric", help="The metric that the experiment's trials report."),
        click.option("--ray", "ray_folder", help="Folder or URI of a Ray Tune experiment."),
        click.option("--objective-index", type=int, help="Which objective, of several."),
        click.option("--study", "study_name", help="Name of the Optuna study."),
        click.option("--storage", help="Of an Optuna study: storage URL or journal file."),
    ):
        function = option(function)
    return function


def open_study(storage: str, name: str) -> optuna.Study:
    """Open a study to read it; nothing is created."""
    import optuna

    from transfer_pruner.files import missing_sqlite, one_line, without_password

    shown = without_password(storage)
    missing = missing_sqlite(storage)
    if missing:
        fail(f"--storage {shown}: there is no file {missing}; correct the path.")
    try:
        opened = _storage(storage)
        return optuna.load_study(study_name=name, storage=opened)
    except KeyError:
        from transfer_pruner.exceptions import not_found

        fail(not_found("--study", name, shown, optuna.get_all_study_names(opened)))
    except Exception as error:
        # Optuna guesses at the reason; its database's driver knows it.
        fail(f"--storage {shown} does not open: {one_line(error.__cause__ or error)}")


def list_studies(storage: str) -> Sequence[str]:
    """Name the studies of a storage; nothing is created."""
    import optuna

    return optuna.get_all_study_names(_storage(storage))


def _storage(url: str) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if "://" not in url:
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(url))
    if url.startswith("redis"):
        return url
    # A wrong address may be somebody else's database: Optuna would make its tables there.
    return optuna.storages.RDBStorage(url, skip_table_creation=True)
