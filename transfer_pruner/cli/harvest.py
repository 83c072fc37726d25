"""The command that turns a search into a transfers table: harvest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from transfer_pruner.cli.options import OUT_FILE, Search, search_options
from transfer_pruner.cli.program import Answer, answers, command


@command(
    "transfer-pruner harvest --storage sqlite:///study.db --study NAME --out transfers.csv",
    "transfer-pruner harvest --ray ray_results/NAME --metric f1 --mode max --out transfers.csv",
)
@search_options
@click.option("--out", required=True, type=OUT_FILE, help="File, .csv or .parquet.")
@answers
def harvest(out: Path, **search: Any) -> Answer:
    """Turn a search that has run into a transfers table: an Optuna study or a Ray experiment."""
    from transfer_pruner.transfers import transfers_format, write_transfers

    transfers_format(out)  # a wrong suffix is told before a long search is read
    transfers = Search(**search).transfers()
    write_transfers(transfers, out)
    pairs = len(transfers[["source", "target"]].drop_duplicates())
    left_out = transfers.attrs["left_out"]
    counts = ", ".join(f"{n} {why}" for why, n in left_out.items())
    data = {"out": out, "transfers": len(transfers), "pairs": pairs, "left_out": left_out}
    text = f"{len(transfers)} measured transfers of {pairs} pairs written to {out}."
    return Answer(data, [text + f" Other trials: {counts}." * bool(counts)])
