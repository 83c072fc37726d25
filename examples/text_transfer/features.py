"""What can be known of every pair before it trains: attributions, and what others go by.

    python examples/text_transfer/features.py --train train.csv --test test.csv --out trec-is-4
    python examples/text_transfer/features.py --folder mixed --out mixed

For every seed, of the source models that measure.py left in the folder and of each target's model
that was trained on its few labels (the single-task baseline): their attributions on shared probe
texts, compared pair by pair; proxy scores of the source's model on the target's dev texts
(`score_pairs`), one of which, the column ``look``, re-ranks sources. Of the labels of one
CSV also LogME and H-score of the source's features on the target's few texts, what its head scores
there, label overlap and sizes. Numbers alone are written, and the seconds of CPU of each kind.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import encoder
import measure
import numpy as np
import pandas as pd
import torch
from attributions import Probe, embed_top, embed_whole
from encoder import OfRows, Top
from measure import Bench
from sklearn.metrics import average_precision_score, roc_auc_score
from table import looked_at
from tasks import ManyLabels, Rows

from transfer_pruner import pair_features, save_embeddings
from transfer_pruner.pairs import attribution_score, cosine, ordered_pairs
from transfer_pruner.transferability import h_score, logme, null_corrected, score_pairs

SCORES = ("h_score", "logme", "linear_probe")
Tops = dict[str, Top]


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[what] = time.process_time() - started


def of_seed(bench: Bench, seed: int, options: argparse.Namespace, probe: Probe) -> pd.DataFrame:
    """Compute every pair's features, from models of one seed."""
    tops = {name: bench.source_model(name, seed) for name in bench.names}
    alone, seconds = baselines(bench, seed), dict[str, float]()
    with timed(seconds, "attributions"), encoder.half_precision(bench.half):
        sources, targets = (
            {
                name: embed_top(top, probe, name, options.steps, options.method)
                for name, top in models.items()
            }
            for models in (tops, alone)
        )
        pairs = ordered_pairs(bench.names)
        features = pair_features(pairs, sources, targets)
    folder = bench.out / "embeddings" / kind(options) / str(seed)
    save_embeddings(sources.values(), folder / "source")
    save_embeddings(targets.values(), folder / "target")
    table = pairs.assign(seed=seed).join(features)
    table["tokens_cosine"] = [
        cosine(sources[s].signals["tokens"], targets[t].signals["tokens"])
        for s, t in zip(pairs["source"], pairs["target"], strict=True)
    ]
    if options.whole:
        with timed(seconds, "whole"):
            table["whole_score"] = of_whole_models(bench, tops, alone, pairs)
    found = []
    if isinstance(bench.tasks, ManyLabels):
        with timed(seconds, "probing"):
            found.append(
                pd.concat([of_source(bench, bench.tasks, *top, seed) for top in tops.items()])
            )
        with timed(seconds, "look"):
            found.append(look(bench, tops, pairs, "zero_shot"))
        some = pairs.groupby("target").sample(looked_at(len(bench.names)), random_state=seed)
        with timed(seconds, "looked_at_again"):
            look(bench, tops, some, "zero_shot")
    else:
        scores = proxies(bench, tops, pairs, seconds)
        found.append(scores.assign(look=scores["logme"]))
        # No text is in two tasks: what a look costs is that of its pair.
        looked = looked_at(len(bench.names)) / (len(bench.names) - 1)
        seconds["look"] = seconds["logme"]
        seconds["looked_at_again"] = looked * seconds["look"]
    for others in found:
        table = table.merge(others, on=["source", "target"], how="left", validate="one_to_one")
    table.attrs["seconds"] = seconds
    return table


def baselines(bench: Bench, seed: int) -> Tops:
    """Take each target's own model, of the learning rate that is best on dev."""
    alone = {}
    for name in bench.names:
        by_lr = [bench.train_target(None, "", name, lr, seed)[0] for lr in bench.lrs]
        metric = "dev_ap" if bench.tasks.n_outputs(name) == 1 else "dev_f1"
        alone[name] = max(by_lr, key=lambda top: bench.scores(top, name, ("dev",))[0][metric])
    return alone


def of_whole_models(bench: Bench, tops: Tops, alone: Tops, pairs: pd.DataFrame) -> np.ndarray:
    """Score pairs by attributions as a user of whole models does: 64 texts, `embed_text`."""
    texts = bench.tasks.probe(64)
    sources, targets = (
        {name: embed_whole(top, texts, name) for name, top in models.items()}
        for models in (tops, alone)
    )
    return attribution_score(pairs, sources, targets)


def look(
    bench: Bench, tops: Tops, pairs: pd.DataFrame, method: str, cache: str | None = None
) -> pd.DataFrame:
    """Score sources' models on their targets' dev texts: a trial of no step, or LogME.

    What the frozen blocks make of a text is known, as it is to a trial.
    """
    models = {name: OfRows(tops[name], bench.activations) for name in pairs["source"].unique()}
    datasets = {
        name: (
            bench.scored[name, "dev"][:, None],
            bench.tasks.truth(name, bench.scored[name, "dev"]),
        )
        for name in pairs["target"].unique()
    }
    with encoder.half_precision(bench.half):
        scores = score_pairs(
            models,
            datasets,
            method,
            pairs=pairs,
            cache=cache,
            batch_size=256,
            progress=False,
        )
    return scores[["source", "target", "score"]].rename(columns={"score": "look"})


def proxies(
    bench: Bench, tops: Tops, pairs: pd.DataFrame, seconds: dict[str, float]
) -> pd.DataFrame:
    """Score the same in every way; zero-shot where the head has as many outputs as the target."""
    n_outputs = bench.tasks.n_outputs
    fits = [
        n_outputs(s) == n_outputs(t) for s, t in zip(pairs["source"], pairs["target"], strict=True)
    ]
    with timed(seconds, "zero_shot"):
        found = look(bench, tops, pairs[fits], "zero_shot")
    table = pairs.merge(found.rename(columns={"look": "zero_shot"}), how="left")
    with tempfile.TemporaryDirectory() as cache:
        with timed(seconds, "running"):
            look(bench, tops, pairs, "h_score", cache)
        for method in SCORES:
            with timed(seconds, method):
                found = look(bench, tops, pairs, method, cache)
            table = table.merge(found.rename(columns={"look": method}))
    seconds["running"] -= seconds["h_score"]
    for method in SCORES:
        seconds[method] += seconds["running"]
    return table


def of_source(bench: Bench, tasks: ManyLabels, source: str, top: Top, seed: int) -> pd.DataFrame:
    """Compute what a source's model and labels say of every target, apart from attributions."""
    size = bench.regime.target_size
    of_target = {
        name: tasks.target_rows(name, size, seed) for name in bench.names if name != source
    }
    rows = np.unique(np.concatenate(list(of_target.values())))
    seen = pooled(bench, top, rows)
    head = top.head.weight[0].detach().double().numpy()
    pool = tasks.rows_of["pool"]
    is_source = tasks.positive(source, pool)
    found = []
    for target, its in of_target.items():
        truth = tasks.positive(target, its)
        features = seen[np.searchsorted(rows, its)]
        zero_shot = features @ head
        is_target = tasks.positive(target, pool)
        both = float((is_source & is_target).mean())
        found.append(
            {
                "source": source,
                "target": target,
                "logme": null_corrected(logme, features, truth, n_permutations=5),
                "h_score": null_corrected(h_score, features, truth, n_permutations=5),
                "zero_shot_ap": float(average_precision_score(truth, zero_shot)),
                "zero_shot_auc": float(roc_auc_score(truth, zero_shot)),
                "label_correlation": float(np.corrcoef(is_source, is_target)[0, 1]),
                "label_given_source": both / float(is_source.mean()),
                "label_given_target": both / float(is_target.mean()),
                "source_size": float(min(is_source.sum(), bench.regime.source_size)),
            }
        )
    return pd.DataFrame(found)


@torch.no_grad()
def pooled(bench: Bench, top: Top, rows: Rows) -> np.ndarray:
    """Compute what the head sees of texts, (texts, width)."""
    return OfRows(top, bench.activations).features(rows).double().numpy()


def kind(options: argparse.Namespace) -> str:
    """Name the way of embedding, in files."""
    return f"{options.method}-{options.steps}-{options.probe}-{options.cut}"


def main() -> None:
    parser = measure.arguments()
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--method", default="conductance")
    parser.add_argument("--probe", type=int, default=128, help="texts")
    parser.add_argument("--cut", type=int, default=8, help="texts to multiples of so many tokens")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="score by attributions of whole models too, with embed_text's defaults",
    )
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    probe = Probe(bench.tasks.probe(options.probe), options.trainable, options.cut)
    out = Path(options.out)
    for seed in options.seeds:
        file = out / f"features-{kind(options)}-{seed}.csv"
        if not file.exists():
            table = of_seed(bench, seed, options, probe)
            seconds = pd.DataFrame([{"seed": seed} | table.attrs["seconds"]])
            seconds.round(3).to_csv(out / f"overhead-{kind(options)}-{seed}.csv", index=False)
            table.round(5).to_csv(file, index=False)
    for name in ("features", "overhead"):
        parts = [
            pd.read_csv(file) for file in sorted(out.glob(f"{name}-{kind(options)}-[0-9]*.csv"))
        ]
        pd.concat(parts).to_csv(out / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
