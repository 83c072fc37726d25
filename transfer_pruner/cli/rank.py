"""The command that asks a rule for a target's sources: rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transfer_pruner.cli.options import DIRECTORY, refined, scores_options
from transfer_pruner.cli.program import Answer, answers, command, fail, terminal_table

if TYPE_CHECKING:
    from rich.table import Table


@command(
    "transfer-pruner rank --rule rule/ --target news",
    "transfer-pruner rank --rule rule/ --all --top 3",
    "transfer-pruner rank --embeddings embeddings/ --scores scores.csv --target news",
)
@click.option("--rule", "rule_dir", type=DIRECTORY, help="Rule whose sources are ranked.")
@click.option(
    "--embeddings", type=DIRECTORY, help="In place of a rule: rank by attributions alone."
)
@click.option(
    "--first",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="With --embeddings: keep this many sources of every target.",
)
@scores_options
@click.option("--target", help="The target task.")
@click.option("--all", "every", is_flag=True, help="Rank the sources of every target.")
@click.option("--top", type=click.IntRange(min=1), help="Show the best N sources of a target only.")
@answers
def rank(
    rule_dir: Path | None,
    embeddings: Path | None,
    first: int,
    scores: Path | None,
    keep: int,
    target: str | None,
    every: bool,
    top: int | None,
) -> Answer:
    """Rank the sources of a target task, with the decision on each."""
    if (rule_dir is None) == (embeddings is None):
        raise click.UsageError("give --rule, or --embeddings to rank by attributions alone.")
    if (target is None) != every:
        raise click.UsageError("give --target, or --all for every target.")
    from transfer_pruner import EliminationRule, TransferPredictor, load_embeddings
    from transfer_pruner.exceptions import not_found
    from transfer_pruner.rule.ranking import ranked

    if rule_dir is not None:
        rule = EliminationRule.load(rule_dir)
    else:
        assert embeddings is not None
        rule = EliminationRule.top_k(TransferPredictor(load_embeddings(embeddings)), k=first)
    decisions = ranked(refined(rule, scores, keep).table())
    targets = set(decisions["target"])
    if target is not None and target not in targets:
        fail(not_found("--target", target, "the rule", targets))
    chosen = decisions if target is None else decisions[decisions["target"] == target]
    if top is not None:
        chosen = chosen[chosen["rank"] <= top]
    columns = ["target", "rank", "source", "eliminated", "score", "probability", "reason"]
    rows: list[Any] = chosen[columns].to_dict("records")
    return Answer({"ranking": rows}, _ranking(rows, with_target=every))


def _ranking(rows: Sequence[Mapping[str, Any]], with_target: bool) -> list[str | Table]:
    shown = []
    for row in rows:
        ranking, _, why = row["reason"].partition("; ")
        shown.append(
            {
                "target": row["target"],
                "rank": row["rank"],
                "source": row["source"],
                "decision": "eliminated" if row["eliminated"] else "kept",
                "score": "" if math.isnan(row["score"]) else f"{row['score']:.4f}",
                "P(gain > 0)": ("" if math.isnan(p := row["probability"]) else f"{p:.2f}"),
                # The rank has a column of its own.
                "reason": why if ranking.startswith("rank ") else row["reason"],
            }
        )
    left_out = set() if with_target else {"target"}
    # Attributions alone give no probability.
    left_out |= {"P(gain > 0)"} if not any(row["P(gain > 0)"] for row in shown) else set()
    reasons = {row["reason"] for row in shown}
    left_out |= {"reason"} if len(reasons) == 1 else set()
    columns = [name for name in shown[0] if name not in left_out]
    table = terminal_table(shown, columns, numbers=("rank", "score", "P(gain > 0)"))
    return [table, *(f"{reason}." for reason in reasons if "reason" in left_out)]
