"""The command that says which pairs are worth a trial next: next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transfer_pruner.cli.options import (
    DIRECTORY,
    FILE,
    OUT_FILE,
    read_scores,
    transfers_options,
)
from transfer_pruner.cli.program import Answer, answers, command, fail, terminal_table

if TYPE_CHECKING:
    import pandas as pd

    from transfer_pruner.rule.elimination import EliminationRule

_COLUMNS = ("source", "target", "priority", "score", "probability", "measured", "reason")


@command(
    "transfer-pruner next --embeddings embeddings/ --scores scores.csv",
    "transfer-pruner next --embeddings embeddings/ --scores scores.csv \\\n"
    "      --transfers transfers.csv --target news -k 3 --out next.csv",
)
@click.option("--embeddings", "embeddings_dir", type=DIRECTORY, help="Task embeddings.")
@click.option("--target-embeddings", type=DIRECTORY, help="Of the tasks as targets, if others.")
@click.option("--scores", type=FILE, help="Proxy scores, as `score` writes them.")
@transfers_options
@click.option("--target", help="Pairs of this target only.")
@click.option(
    "-k", "--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many pairs."
)
@click.option("--out", type=OUT_FILE, help="All pairs in this order, .csv or .parquet.")
@answers
def next(
    embeddings_dir: Path | None,
    target_embeddings: Path | None,
    scores: Path | None,
    transfers: Path | None,
    target: str | None,
    top: int,
    out: Path | None,
    **columns: str,
) -> Answer:
    """Say which pairs are worth a trial next, by a rule that learns.

    It goes by --embeddings and --scores before anything was measured, and by --transfers as they
    come. A pair's priority is the gain over its target's best that its next trial is expected to
    bring; without transfers only the order means something.
    """
    if embeddings_dir is None and scores is None:
        raise click.UsageError("give --embeddings, --scores or both.")
    from transfer_pruner import LearningRule, TransferPredictor, load_embeddings
    from transfer_pruner.exceptions import not_found
    from transfer_pruner.transfers import read_transfers, transfers_format, write_transfers

    if out is not None:
        transfers_format(out)  # a wrong suffix is told before anything is computed
    embeddings = load_embeddings(embeddings_dir) if embeddings_dir else None
    predictor = TransferPredictor(
        embeddings,
        target_embeddings=load_embeddings(target_embeddings) if target_embeddings else None,
    )
    table = read_scores(scores) if scores is not None else None
    if embeddings is None:
        assert table is not None
        rule = LearningRule(predictor, pairs=table[["source", "target"]]).refine(table)
    else:
        rule = LearningRule(predictor)
        rule = rule if table is None else rule.refine(table)
    measured = None
    if transfers is not None:
        measured = read_transfers(
            transfers, tasks=embeddings, also=["score", "baseline"], **columns
        )
    pairs = _in_order(rule.refitted(measured), measured)
    if target is not None:
        targets = {*pairs["target"]}
        if target not in targets:
            fail(not_found("--target", target, "the rule", targets))
        pairs = pairs[pairs["target"] == target]
    if out is not None:
        write_transfers(pairs, out)
    kept = pairs[~pairs["eliminated"]]
    rows: list[Any] = kept[[*_COLUMNS]].head(top).to_dict("records")
    n_measured = 0 if measured is None else len(measured)
    said = (
        f"{len(kept)} pairs survive and {len(pairs) - len(kept)} are eliminated, after "
        f"{n_measured} measured transfers."
    )
    data = {"next": rows, "transfers": n_measured, "out": out}
    return Answer(data, [_shown(rows, n_measured > 0), said])


def _in_order(rule: EliminationRule, measured: pd.DataFrame | None) -> pd.DataFrame:
    """All pairs, the one that is worth most first, as searches take them; the eliminated last."""
    table = rule.table()
    counts = {} if measured is None else measured.groupby(["source", "target"]).size().to_dict()
    keys = zip(table["source"], table["target"], strict=True)
    return table.assign(measured=[int(counts.get(key, 0)) for key in keys]).sort_values(
        ["eliminated", "priority", "target", "source"],
        ascending=[True, False, True, True],
        ignore_index=True,
    )


def _shown(rows: Sequence[dict[str, Any]], learnt: bool) -> Any:
    numbers = ["priority", "score", *(["probability", "measured"] if learnt else [])]
    shown = [
        {
            **row,
            "priority": f"{row['priority']:.4f}",
            **{
                name: "" if row[name] != row[name] else f"{row[name]:.{places}f}"
                for name, places in (("score", 4), ("probability", 2))
            },
        }
        for row in rows
    ]
    return terminal_table(shown, ["source", "target", *numbers, "reason"], numbers)
