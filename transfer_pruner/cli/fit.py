"""The command that writes a rule: fit."""

from __future__ import annotations

from pathlib import Path

import click

from transfer_pruner.cli.options import DIRECTORY, refined, scores_options, transfers_options
from transfer_pruner.cli.program import Answer, answers, command


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
@scores_options
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the rule.")
@answers
def fit(
    embeddings_dir: Path | None,
    target_embeddings: Path | None,
    transfers: Path | None,
    top_k: int | None,
    fraction: float | None,
    min_gain: float | None,
    budget: float | None,
    seconds_per_pair: float | None,
    risk: float | None,
    tolerance: float | None,
    scores: Path | None,
    keep: int,
    out: Path,
    **columns: str,
) -> Answer:
    """Fit a predictor and write an elimination rule.

    Without --transfers the rule ranks by attributions alone. --risk is calibrated on --transfers,
    and bounds what the rule loses before --scores.
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
    from transfer_pruner.transfers import read_transfers

    embeddings = load_embeddings(embeddings_dir) if embeddings_dir else None
    predictor = TransferPredictor(
        embeddings,
        target_embeddings=load_embeddings(target_embeddings) if target_embeddings else None,
    )
    if transfers is not None:
        table = read_transfers(transfers, tasks=embeddings, **columns)
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
    rule = refined(rule, scores, keep)
    rule.save(out)
    data = {
        "out": out,
        "settings": rule.settings,
        "pairs": len(rule),
        "eliminated": int(rule.table()["eliminated"].sum()),
        "fingerprint": rule.fingerprint,
    }
    return Answer(data, [f"{rule!r} written to {out}."])
