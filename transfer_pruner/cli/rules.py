"""Commands that make a rule and ask it: fit, rank, explain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    read_transfers,
    terminal_table,
    transfers_options,
    write_file,
)

if TYPE_CHECKING:
    from rich.table import Table


@command(
    "transfer-pruner fit --embeddings embeddings/ --top-k 3 --out rule/",
    "transfer-pruner fit --embeddings embeddings/ --transfers transfers.csv --risk 0.1 --out rule/",
)
@click.option("--embeddings", "embeddings_dir", type=DIRECTORY, help="Task embeddings.")
@click.option("--target-embeddings", type=DIRECTORY, help="Of the tasks as targets, if others.")
@transfers_options
@click.option("--top-k", type=int, help="Keep this many sources of every target.")
@click.option("--fraction", type=float, help="Eliminate this share of every target's sources.")
@click.option("--min-gain", type=float, help="Eliminate pairs with a lower predicted gain.")
@click.option("--budget", type=float, help="Seconds that training all kept pairs may take.")
@click.option("--seconds-per-pair", type=float, help="With --budget: what one pair takes.")
@click.option("--risk", type=float, help="Bound the chance that a target loses its best source.")
@click.option("--tolerance", type=float, help="With --risk: a gain that is too small to miss.")
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the rule.")
@answers
def fit(
    embeddings_dir: Path | None,
    target_embeddings: Path | None,
    transfers: Path | None,
    source_column: str,
    target_column: str,
    gain_column: str,
    top_k: int | None,
    fraction: float | None,
    min_gain: float | None,
    budget: float | None,
    seconds_per_pair: float | None,
    risk: float | None,
    tolerance: float | None,
    out: Path,
) -> Answer:
    """Fit a predictor and write an elimination rule.

    Without --transfers the rule ranks by attributions alone. --risk is calibrated on --transfers.
    """
    given = [value for value in (top_k, fraction, min_gain, budget, risk) if value is not None]
    if len(given) != 1:
        raise click.UsageError(
            "give exactly one of --top-k, --fraction, --min-gain, --budget and --risk."
        )
    if tolerance is not None and risk is None:
        raise click.UsageError("--tolerance goes with --risk: give --risk too.")
    if (budget is None) != (seconds_per_pair is None):
        raise click.UsageError("--budget and --seconds-per-pair go together: give both.")
    if embeddings_dir is None and transfers is None:
        raise click.UsageError("give --embeddings, --transfers or both.")
    if risk is not None and transfers is None:
        raise click.UsageError("--risk is calibrated on measured transfers: give --transfers too.")
    from transfer_pruner import EliminationRule, TransferPredictor, load_embeddings

    predictor = TransferPredictor(
        load_embeddings(embeddings_dir) if embeddings_dir else None,
        target_embeddings=load_embeddings(target_embeddings) if target_embeddings else None,
    )
    if transfers is not None:
        table = read_transfers(transfers, source_column, target_column, gain_column)
        predictor.fit(table, table["gain"])
    if top_k is not None:
        rule = EliminationRule.top_k(predictor, k=top_k)
    elif fraction is not None:
        rule = EliminationRule.fraction(predictor, fraction)
    elif min_gain is not None:
        rule = EliminationRule.min_gain(predictor, min_gain)
    elif budget is not None and seconds_per_pair is not None:
        rule = EliminationRule.budget(predictor, budget, seconds_per_pair=seconds_per_pair)
    else:
        assert risk is not None
        rule = EliminationRule.calibrate(
            predictor, table, table["gain"], risk, tolerance=tolerance or 0.0
        )
    rule.save(out)
    data = {
        "out": out,
        "settings": rule.settings,
        "pairs": len(rule),
        "eliminated": int(rule.table()["eliminated"].sum()),
        "fingerprint": rule.fingerprint,
    }
    return Answer(data, [f"{rule!r} written to {out}."])


@command(
    "transfer-pruner rank --rule rule/ --target news",
    "transfer-pruner rank --rule rule/ --all --top 3",
)
@click.option("--rule", "rule_dir", required=True, type=DIRECTORY)
@click.option("--target", help="The target task.")
@click.option("--all", "every", is_flag=True, help="Rank the sources of every target.")
@click.option("--top", type=click.IntRange(min=1), help="Show the best N sources of a target only.")
@answers
def rank(rule_dir: Path, target: str | None, every: bool, top: int | None) -> Answer:
    """Rank the sources of a target task, with the decision on each."""
    if (target is None) != every:
        raise click.UsageError("give --target, or --all for every target.")
    from transfer_pruner import EliminationRule
    from transfer_pruner.exceptions import not_found
    from transfer_pruner.rule.ranking import ranked

    decisions = ranked(EliminationRule.load(rule_dir).table())
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
    source_column: str,
    target_column: str,
    gain_column: str,
    figure: Path | None,
    top: int,
) -> Answer:
    """Tell why the pair SOURCE -> TARGET was eliminated or kept.

    With --embeddings it names the layers and tokens that agree and differ, and what each feature
    adds to the score; with --transfers, too, the gains of similar pairs that were measured.
    """
    if figure is not None and embeddings_dir is None:
        raise click.UsageError("--figure draws layers: give --embeddings too.")
    from transfer_pruner import EliminationRule, load_embeddings
    from transfer_pruner.explain.pair import explain_pair

    explanation = explain_pair(
        source,
        target,
        rule=EliminationRule.load(rule_dir),
        embeddings=load_embeddings(embeddings_dir) if embeddings_dir else None,
        target_embeddings=load_embeddings(target_embeddings) if target_embeddings else None,
        transfers=(
            read_transfers(transfers, source_column, target_column, gain_column)
            if transfers
            else None
        ),
    )
    data, text = explanation.to_dict(), explanation.lines(top)
    if figure is not None:
        from io import BytesIO

        from transfer_pruner.plotting.explanation import layer_figure

        drawn = BytesIO()
        layer_figure(explanation).savefig(drawn, format=figure.suffix[1:] or "png")
        write_file(figure, drawn.getvalue())
        data["figure"] = figure
        text = [*text, "", f"figure written to {figure}."]
    return Answer(data, text)
