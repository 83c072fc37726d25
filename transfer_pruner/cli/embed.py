"""The command that embeds text tasks from saved models: embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from transfer_pruner.cli.options import DIRECTORY, FILE, models_options, named_models
from transfer_pruner.cli.program import (
    Answer,
    answers,
    command,
    needing,
    note,
    terminal_table,
)

_METHODS = (
    *("conductance", "gradient_x_activation"),
    *("deep_lift", "gradient_shap", "integrated_gradients"),
)


@command(
    "transfer-pruner embed --model models/news --data texts.csv --name news --out embeddings/",
    "transfer-pruner embed --model news=org/bert --model advice=bert/ --data texts.csv --out e/",
    "transfer-pruner embed --models models/ --data texts.csv --out embeddings/",
)
@models_options
@click.option(
    "--data",
    required=True,
    type=FILE,
    help="Probe texts: CSV, TSV, Parquet, JSON lines or one text a line (.txt); no labels.",
)
@click.option("--text-column", default="text", show_default=True, help="Column of --data.")
@click.option("--only", metavar="COLUMN=VALUE", help="Take the texts of one class only.")
@click.option(
    "--max-texts",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Take this many different texts, drawn with --seed: the same whatever the rows' order.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For the drawing of texts.")
@click.option(
    "--method",
    metavar="NAME",
    type=click.Choice(_METHODS),
    default="conductance",
    show_default=True,
    help=f"One of {', '.join(_METHODS)}.",
)
@click.option(
    "--steps", type=int, help="Steps along the path.  [default: 8; more if they miss much]"
)
@click.option("--batch-size", type=int, default=16, show_default=True, help="Texts at once.")
@click.option(
    "--max-length", type=int, default=128, show_default=True, help="Tokens per text, at most."
)
@click.option(
    "--target-class",
    "targets",
    multiple=True,
    metavar="[NAME=]TARGET",
    help="Logit to attribute: number, label, predicted or sum; of the task NAME, or of all.",
)
@click.option("--layer", "layers", multiple=True, help="Module to attribute, instead of blocks.")
@click.option("--device", help="As torch names it; left out, a GPU where there is one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What the models compute in.",
)
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the embeddings.")
@answers
def embed(
    given: tuple[str, ...],
    name: str | None,
    folder: Path | None,
    data: Path,
    text_column: str,
    only: str | None,
    max_texts: int,
    seed: int,
    steps: int | None,
    targets: tuple[str, ...],
    layers: tuple[str, ...],
    out: Path,
    **settings: Any,
) -> Answer:
    """Embed text tasks by the attributions of their single-task models.

    All tasks get the same probe texts. What is there already and has not changed is left alone: the
    same command goes on where it was stopped.
    """
    from transfer_pruner.probes import probe_texts

    models = named_models(given, name, folder, "embed")
    target = _targets(targets, models)
    texts = probe_texts(data, column=text_column, only=_only(only), n=max_texts, seed=seed)
    with needing("text", "embed"):
        from transformers.utils.logging import disable_progress_bar

        from transfer_pruner.text.store import NotEmbeddedError, embed_many
    # One bar counts tasks; another for every model that is read would tear it apart.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    from transfer_pruner.doctor import compared
    from transfer_pruner.embedding import embedding_file, load_embeddings, read_provenance
    from transfer_pruner.files import one_line

    files = {task: embedding_file(out, task) for task in models}
    before = {task: _modified(file) for task, file in files.items()}
    failed: dict[str, str] = {}
    try:
        embed_many(
            models,
            texts,
            out,
            n_steps=steps,
            target=target,
            layers=layers or None,
            **settings,
        )
    except NotEmbeddedError as group:
        failed = {task: one_line(error) for task, error in group.of_task.items()}
    rows: list[dict[str, Any]] = []
    for task, file in files.items():
        if task in failed or not file.exists():
            continue
        provenance = read_provenance(file)
        rows.append(
            {
                "task": task,
                "layers": len(provenance.get("layers", ())),
                "texts": provenance.get("n_probe"),
                "seconds": round(float(provenance.get("seconds", 0.0)), 2),
                "embedded": "now" if _modified(file) != before[task] else "before",
                "file": str(file),
            }
        )
    for task, why in failed.items():
        note(f"Error: {task} could not be embedded: {why}")
    unlike = compared(f"embeddings {out}", load_embeddings(out)) if rows else []
    for check in unlike:
        note(f"warning: {check.found}; {check.advice}.")
    numbers = ("layers", "texts", "seconds")
    columns = ["task", *numbers, "embedded"]
    seconds = sum(row["seconds"] for row in rows)
    text = f"{len(rows)} of {len(models)} tasks embedded in {out}, in {seconds:.1f} seconds."
    return Answer(
        {"out": out, "embeddings": rows, "failed": failed, "seconds": seconds},
        [*([terminal_table(rows, columns, numbers)] if rows else []), text],
        exit_code=int(bool(failed)),
    )


def _only(given: str | None) -> dict[str, str] | None:
    if given is None:
        return None
    column, _, value = given.partition("=")
    if not column or not value:
        raise click.UsageError(f"--only {given} must be COLUMN=VALUE.")
    return {column: value}


def _targets(given: Sequence[str], models: Mapping[str, str]) -> Any:
    """Read what to attribute: for all tasks, or of each that is named."""
    targets: dict[str | None, int | str] = {}
    for target in given:
        # Labels and tasks may hold an equals sign themselves.
        task = next((task for task in models if target.startswith(f"{task}=")), None)
        value = target if task is None else target[len(task) + 1 :]
        if task is None and "=" in target:
            raise click.UsageError(
                f"--target-class {target} is of no model here; there are: {', '.join(models)}."
            )
        if not value:
            raise click.UsageError(
                f"--target-class {target} must be [NAME=] and a number, a label, predicted or sum."
            )
        targets[task] = int(value) if value.isdecimal() else value
    for_all = targets.pop(None, None)
    return {task: targets.get(task, for_all) for task in models}


def _modified(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None
