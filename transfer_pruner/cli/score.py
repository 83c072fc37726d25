"""The command that scores pairs by what the sources' models give on the targets' texts: score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from transfer_pruner.cli.options import DIRECTORY, OUT_FILE, models_options, named_models
from transfer_pruner.cli.program import Answer, answers, command, needing, terminal_table

_METHODS = ("auto", "zero_shot", "logme", "h_score", "linear_probe")


@command(
    "transfer-pruner score --models models/ --data dev.csv --method logme --out scores.csv",
    "transfer-pruner score --models models/ --data dev/ --cache seen/ --out scores.csv",
)
@models_options
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Labelled dev texts: a table with a column for each target, or a folder of a table each.",
)
@click.option("--text-column", default="text", show_default=True, help="Column of the texts.")
@click.option(
    "--label-column", default="label", show_default=True, help="In a folder: column of the labels."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Column or file of a target; repeat it.  [default: columns named as models; all files]",
)
@click.option(
    "--method",
    metavar="NAME",
    type=click.Choice(_METHODS),
    default="auto",
    show_default=True,
    help=f"One of {', '.join(_METHODS)}.",
)
@click.option("--batch-size", type=int, default=16, show_default=True, help="Texts at once.")
@click.option(
    "--max-length", type=int, default=128, show_default=True, help="Tokens per text, at most."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="For the folds of a linear probe."
)
@click.option("--device", help="As torch names it; left out, a GPU where there is one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What the models compute in.",
)
@click.option("--cache", type=DIRECTORY, help="Folder of the models' outputs, to resume from.")
@click.option("--out", required=True, type=OUT_FILE, help="File, .csv or .parquet.")
@answers
def score(
    given: tuple[str, ...],
    name: str | None,
    folder: Path | None,
    data: Path,
    text_column: str,
    label_column: str,
    targets: tuple[str, ...],
    method: str,
    out: Path,
    **settings: Any,
) -> Answer:
    """Score every source's model on every target's dev texts, before any pair is trained.

    Every model sees every text once. `rank --scores` re-ranks by the scores.
    """
    from transfer_pruner.transferability.dev_files import read_dev_sets
    from transfer_pruner.transfers import transfers_format, write_transfers

    transfers_format(out)  # a wrong suffix is told before models are run
    models = named_models(given, name, folder, "score")
    datasets = read_dev_sets(
        data,
        sources=models,
        targets=targets,
        text_column=text_column,
        label_column=label_column,
    )
    with needing("text", "score"):
        from transformers.utils.logging import disable_progress_bar

        from transfer_pruner.transferability import score_pairs
    # One bar counts models; another for every model that is read would tear it apart.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    scores = score_pairs(
        models,
        datasets,
        method,
        text_column=text_column,
        label_column=label_column,
        **settings,
    )
    write_transfers(scores, out)
    known = scores.dropna(subset="score")
    best = known.loc[known.groupby("target", sort=False)["score"].idxmax()]
    rows: list[dict[str, Any]] = [
        {"target": row["target"], "best source": row["source"], "score": f"{row['score']:.4f}"}
        for row in best.to_dict("records")
    ]
    used, seconds = scores["method"].iloc[0], float(scores["seconds"].sum())
    text = (
        f"{len(known)} of {len(scores)} pairs scored by {used} and written to {out}, in "
        f"{seconds:.1f} seconds."
    )
    answer = {"out": out, "method": used, "seconds": seconds, "scores": scores.to_dict("records")}
    return Answer(answer, [terminal_table(rows, list(rows[0]), ("score",)), text])
