"""The command line: parse, call the library, print. No logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    import click
except ImportError:
    sys.exit("the command line needs click and rich: pip install 'transfer-pruner[cli]'.")

if TYPE_CHECKING:
    import pandas as pd

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Commands(click.Group):
    """Turns the library's errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, FileNotFoundError, ImportError, KeyError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="transfer-pruner")
def main() -> None:
    """Eliminate unpromising (source task, target task) pairs before they train."""


@main.command()
@click.option("--storage", required=True, help="Storage URL, e.g. sqlite:///study.db.")
@click.option("--study", "study_name", required=True, help="Name of the study.")
@click.option("--source-param", default="source", show_default=True)
@click.option("--target-param", default="target", show_default=True)
@click.option("--target", help="The target task, for a study that searches over sources only.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def harvest(
    storage: str,
    study_name: str,
    source_param: str,
    target_param: str,
    target: str | None,
    out: Path,
) -> None:
    """Turn a finished Optuna study into a transfers table.

    transfer-pruner harvest --storage sqlite:///study.db --study NAME --out transfers.csv
    """
    try:
        import optuna

        from transfer_pruner_optuna import transfers_from_study
    except ImportError:
        _fail("harvest needs optuna: pip install 'transfer-pruner[optuna]'.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        names = optuna.get_all_study_names(storage)
        _fail(f"--study {study_name!r} is not in {storage}; it has: {', '.join(names) or 'none'}.")
    transfers = transfers_from_study(
        study, source_param=source_param, target_param=target_param, target=target
    )
    transfers.to_csv(out, index=False)
    pairs = len(transfers[["source", "target"]].drop_duplicates())
    click.echo(f"{len(transfers)} measured transfers of {pairs} pairs written to {out}.")


@main.command()
@click.option("--embeddings", "embeddings_dir", type=_DIRECTORY, help="Task embeddings.")
@click.option("--target-embeddings", type=_DIRECTORY, help="Of the tasks as targets, if others.")
@click.option("--transfers", type=_FILE, help="CSV with the columns source, target and gain.")
@click.option("--top-k", type=int, help="Keep this many sources of every target.")
@click.option("--fraction", type=float, help="Eliminate this share of every target's sources.")
@click.option("--min-gain", type=float, help="Eliminate pairs with a lower predicted gain.")
@click.option("--risk", type=float, help="Bound the chance that a target loses its best source.")
@click.option("--tolerance", type=float, help="With --risk: a gain that is too small to miss.")
@click.option("--out", required=True, type=_DIRECTORY)
def fit(
    embeddings_dir: Path | None,
    target_embeddings: Path | None,
    transfers: Path | None,
    top_k: int | None,
    fraction: float | None,
    min_gain: float | None,
    risk: float | None,
    tolerance: float | None,
    out: Path,
) -> None:
    """Fit a predictor and write an elimination rule.

    Without --transfers the rule ranks by attributions alone. --risk is calibrated on --transfers.

    transfer-pruner fit --embeddings embeddings/ --transfers transfers.csv --top-k 3 --out rule/
    """
    from transfer_pruner import EliminationRule, TransferPredictor, load_embeddings

    given = [value for value in (top_k, fraction, min_gain, risk) if value is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --top-k, --fraction, --min-gain and --risk.")
    if tolerance is not None and risk is None:
        raise click.UsageError("--tolerance goes with --risk: give --risk too.")
    if embeddings_dir is None and transfers is None:
        raise click.UsageError("give --embeddings, --transfers or both.")
    if risk is not None and transfers is None:
        raise click.UsageError("--risk is calibrated on measured transfers: give --transfers too.")
    predictor = TransferPredictor(
        load_embeddings(embeddings_dir) if embeddings_dir else None,
        target_embeddings=load_embeddings(target_embeddings) if target_embeddings else None,
    )
    if transfers is not None:
        table = _read_transfers(transfers)
        predictor.fit(table, table["gain"])
    if top_k is not None:
        rule = EliminationRule.top_k(predictor, k=top_k)
    elif fraction is not None:
        rule = EliminationRule.fraction(predictor, fraction)
    elif min_gain is not None:
        rule = EliminationRule.min_gain(predictor, min_gain)
    else:
        assert risk is not None
        rule = EliminationRule.calibrate(
            predictor, table, table["gain"], risk, tolerance=tolerance or 0.0
        )
    rule.save(out)
    click.echo(f"{rule!r} written to {out}.")


@main.command()
@click.option("--rule", "rule_dir", required=True, type=_DIRECTORY)
@click.option("--target", required=True, help="The target task.")
def rank(rule_dir: Path, target: str) -> None:
    """Rank the sources of a target task, with the decision on each.

    transfer-pruner rank --rule rule/ --target news
    """
    from transfer_pruner import EliminationRule

    decisions = EliminationRule.load(rule_dir).table()
    targets = sorted(decisions["target"].unique())
    if target not in targets:
        _fail(f"--target {target!r} is not in the rule; it has: {', '.join(targets)}.")
    _print(decisions[decisions["target"] == target].sort_values("score", ascending=False))


def _read_transfers(path: Path) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_csv(path)
    missing = [name for name in ("source", "target", "gain") if name not in table.columns]
    if missing:
        _fail(f"{path} lacks the column {missing[0]!r}; it has: {', '.join(table.columns)}.")
    return table


def _print(decisions: pd.DataFrame) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("source", "decision", "score", "probability", "reason"):
        table.add_column(column, justify="right" if column in ("score", "probability") else "left")
    for row in decisions.to_dict("records"):
        table.add_row(
            row["source"],
            "eliminated" if row["eliminated"] else "kept",
            f"{row['score']:.4f}",
            "" if row["probability"] != row["probability"] else f"{row['probability']:.2f}",
            row["reason"],
        )
    Console().print(table)


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)
