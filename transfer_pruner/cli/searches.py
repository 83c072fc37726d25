"""Commands that read a search which has run: harvest, report, sync. They reach for the adapters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transfer_pruner.cli.command import (
    DIRECTORY,
    OUT_FILE,
    Answer,
    answers,
    command,
    fail,
    needing,
    write_table,
)

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from transfer_pruner.records import TrialRecord
    from transfer_pruner.rule.elimination import EliminationRule


@dataclass(frozen=True)
class _Search:
    """Where a search is to be read: `_search_options` in one piece."""

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

    @property
    def pair(self) -> dict[str, Any]:
        """Where the pair stands among a trial's parameters, as the adapters take it."""
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

    def records(self, rule: EliminationRule | None) -> tuple[list[TrialRecord], bool]:
        """Read the search as records, and whether a higher value is better."""
        if self.storage is not None:
            with needing("optuna", "--storage"):
                from optuna.study import StudyDirection

                from transfer_pruner_optuna.records import check_objective, records_from_study
            study = self._study()
            index = check_objective(study, self.objective_index)
            records = records_from_study(study, rule, objective_index=index, **self.pair)
            return records, study.directions[index] == StudyDirection.MAXIMIZE
        assert self.ray_folder is not None
        with needing("ray", "--ray"):
            import pyarrow  # noqa: F401

            from transfer_pruner_ray import records_from_results
        records = records_from_results(self.ray_folder, rule, metric=self.metric, **self.pair)
        return records, self.mode != "min"

    def _study(self) -> optuna.Study:
        assert self.storage is not None
        assert self.study_name is not None
        return open_study(self.storage, self.study_name)


def _search_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take what a `_Search` is made of."""
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
            "--mode", type=click.Choice(["max", "min"]), help="Which way the metric is better."
        ),
        click.option("--metric", help="The metric that the experiment's trials report."),
        click.option("--ray", "ray_folder", help="Folder or URI of a Ray Tune experiment."),
        click.option("--objective-index", type=int, help="Which objective, of several."),
        click.option("--study", "study_name", help="Name of the Optuna study."),
        click.option("--storage", help="Of an Optuna study: storage URL or journal file."),
    ):
        function = option(function)
    return function


@command(
    "transfer-pruner harvest --storage sqlite:///study.db --study NAME --out transfers.csv",
    "transfer-pruner harvest --ray ray_results/NAME --metric f1 --out transfers.csv",
)
@_search_options
@click.option("--out", required=True, type=OUT_FILE, help="CSV, or Parquet by its suffix.")
@answers
def harvest(out: Path, **search: Any) -> Answer:
    """Turn a search that has run into a transfers table: an Optuna study or a Ray experiment."""
    transfers = _Search(**search).transfers()
    write_table(transfers, out)
    pairs = len(transfers[["source", "target"]].drop_duplicates())
    left_out = transfers.attrs["left_out"]
    counts = ", ".join(f"{n} {why}" for why, n in left_out.items())
    data = {"out": out, "transfers": len(transfers), "pairs": pairs, "left_out": left_out}
    text = f"{len(transfers)} measured transfers of {pairs} pairs written to {out}."
    return Answer(data, [text + f" Other trials: {counts}." * bool(counts)])


@command(
    "transfer-pruner report --storage sqlite:///study.db --study NAME --out report.html",
    "transfer-pruner report --ray ray_results/NAME --metric f1 --rule rule/ --out report.html",
)
@_search_options
@click.option("--rule", "rule_dir", type=DIRECTORY, help="The rule that decided.")
@click.option(
    "--embeddings",
    "embeddings_dir",
    type=DIRECTORY,
    help="Task embeddings: drawn as a map, and their seconds counted.",
)
@click.option("--single-task-seconds", type=float, default=0.0, help="Of the single-task models.")
@click.option(
    "--attribution-seconds", type=float, help="Left out: what the --embeddings took, else 0."
)
@click.option("--title")
@click.option("--out", required=True, type=OUT_FILE, help="HTML; its data goes beside it.")
@answers
def report(
    rule_dir: Path | None,
    embeddings_dir: Path | None,
    single_task_seconds: float,
    attribution_seconds: float | None,
    title: str | None,
    out: Path,
    **search: Any,
) -> Answer:
    """Write what elimination saved and what it cost as one HTML file."""
    where = _Search(**search)
    with needing("plot", "report"):
        from transfer_pruner.report.page import write_report
    from transfer_pruner import EliminationRule, estimate_savings, load_embeddings

    rule = EliminationRule.load(rule_dir) if rule_dir else None
    embeddings = load_embeddings(embeddings_dir) if embeddings_dir else None
    if attribution_seconds is None:
        took = [e.provenance.get("seconds", 0.0) for e in (embeddings or {}).values()]
        attribution_seconds = float(sum(took))
    records, maximize = where.records(rule)
    if not records:
        fail(
            f"no finished trial has the parameters {', '.join(where.source_params)} and "
            f"{where.target_param}: name them with --source-param and --target-param."
        )
    write_report(
        records,
        out,
        maximize=maximize,
        rule=rule,
        title=title,
        single_task_seconds=single_task_seconds,
        attribution_seconds=attribution_seconds,
        embeddings=embeddings,
    )
    savings = estimate_savings(
        records, single_task_seconds=single_task_seconds, attribution_seconds=attribution_seconds
    )
    data = {"out": out, "trials": len(records), "savings": asdict(savings)}
    return Answer(data, [savings.headline(), f"Written to {out}."])


@command(
    "transfer-pruner sync .transfer_pruner/spool",
    "transfer-pruner sync SPOOL --tracking-uri http://localhost:5000",
)
@click.argument("spool", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--tracking-uri", help="Where to; left out, where the search sent it.")
@answers
def sync(spool: Path | None, tracking_uri: str | None) -> Answer:
    """Send to MLflow what an outage kept from it: a spool, or a folder of them. Safe to repeat."""
    # MLflow's own default keeps somebody at a terminal waiting for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with needing("mlflow", "sync"):
        from mlflow import MlflowClient  # noqa: F401
        from mlflow.exceptions import MlflowException

        from transfer_pruner_mlflow import sync as send
    from transfer_pruner.files import one_line

    try:
        sent = send(*([spool] if spool else []), tracking_uri=tracking_uri)
    except MlflowException as error:
        fail(f"MLflow did not take it; sync again once it answers: {one_line(error)}")
    named = {f.name: getattr(sent, f.name) for f in fields(sent)} if is_dataclass(sent) else sent
    return Answer(named, [f"{name.replace('_', ' ')}: {_listed(x)}" for name, x in named.items()])


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


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
