"""The command that tells why a pair was eliminated or kept: explain."""

from __future__ import annotations

from pathlib import Path

import click

from transfer_pruner.cli.options import DIRECTORY, OUT_FILE, transfers_options
from transfer_pruner.cli.program import Answer, answers, command


@command(
    "transfer-pruner explain news advice --rule rule/ --embeddings embeddings/",
)
@click.argument("source")
@click.argument("target")
@click.option("--rule", "rule_dir", required=True, type=DIRECTORY, help="The rule that decided.")
@click.option("--embeddings", "embeddings_dir", type=DIRECTORY, help="What it was fitted on.")
@click.option("--target-embeddings", type=DIRECTORY, help="Of the tasks as targets, if others.")
@transfers_options
@click.option("--figure", type=OUT_FILE, help="Draw the layers into this file, e.g. pair.png.")
@click.option("--top", type=click.IntRange(min=1), default=8, show_default=True, help="Rows shown.")
@answers
def explain(
    source: str,
    target: str,
    rule_dir: Path,
    embeddings_dir: Path | None,
    target_embeddings: Path | None,
    transfers: Path | None,
    figure: Path | None,
    top: int,
    **columns: str,
) -> Answer:
    """Say why the pair SOURCE -> TARGET was eliminated or kept.

    With --embeddings it names the layers and tokens that agree and differ, and what each feature
    adds to the score; with --transfers, too, the gains of similar pairs that were measured.
    """
    if figure is not None and embeddings_dir is None:
        raise click.UsageError("--figure draws layers: give --embeddings too.")
    from transfer_pruner import EliminationRule, load_embeddings
    from transfer_pruner.explain import explain_pair
    from transfer_pruner.transfers import read_transfers

    explanation = explain_pair(
        source,
        target,
        rule=EliminationRule.load(rule_dir),
        embeddings=load_embeddings(embeddings_dir) if embeddings_dir else None,
        target_embeddings=load_embeddings(target_embeddings) if target_embeddings else None,
        transfers=read_transfers(transfers, **columns) if transfers else None,
    )
    data, text = explanation.to_dict(), explanation.lines(top)
    if figure is not None:
        from io import BytesIO

        from transfer_pruner.files import write_atomically
        from transfer_pruner.plotting.explanation import layer_figure

        drawn = BytesIO()
        layer_figure(explanation).savefig(drawn, format=figure.suffix[1:] or "png")
        figure.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(figure, drawn.getvalue())
        data["figure"] = figure
        text = [*text, "", f"figure written to {figure}."]
    return Answer(data, text)
