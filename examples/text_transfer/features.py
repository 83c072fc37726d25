"""What can be known of every pair before it trains: attributions, and what others go by.

    python examples/text_transfer/features.py --train train.csv --test test.csv --out trec-is-4

For every seed, of the source models that measure.py left in the folder and of each target's model
that was trained on its few labels (the single-task baseline): their attributions on shared probe
texts, compared pair by pair; LogME and H-score of the source's features on the target's few texts;
what the source's head scores there, and on the target's dev texts, untrained; label overlap; sizes.
Numbers alone are written, and the seconds of CPU that each kind took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import encoder
import measure
import numpy as np
import pandas as pd
import torch
from encoder import Activations, Top
from measure import Bench
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from table import LOOKED
from tasks import Rows
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from transfer_pruner import TaskEmbedding, pair_features, save_embeddings
from transfer_pruner.attribution import embed_batches
from transfer_pruner.attribution.methods import Batch, Scorer
from transfer_pruner.pairs import cosine, ordered_pairs
from transfer_pruner.transferability import h_score, logme, null_corrected


class Probe:
    """Shared probe texts as batches of frozen activations, and those of their baseline inputs.

    Texts are cut to multiples of `cut` tokens: texts of few lengths are few batches.
    """

    def __init__(self, texts: list[str], n_trainable: int, cut: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(encoder.minilm(), local_files_only=True)
        model = AutoModel.from_pretrained(encoder.minilm(), local_files_only=True).eval()
        encoded = tokenizer(
            texts, truncation=True, max_length=encoder.MAX_LENGTH, return_special_tokens_mask=True
        )
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        lengths = np.where(lengths > cut, lengths // cut * cut, lengths)
        self.order = np.argsort(lengths, kind="stable")
        self.batches: list[Batch] = []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            ids, mask = (
                torch.tensor([encoded[name][row][:length] for row in rows])
                for name in ("input_ids", "special_tokens_mask")
            )
            special = mask.bool()
            without = torch.where(special, ids, tokenizer.pad_token_id)
            with torch.no_grad():
                ends = [
                    model(x, output_hidden_states=True).hidden_states[-1 - n_trainable]
                    for x in (ids, without)
                ]
            self.batches.append(Batch(*ends, tokens=ids))

    def __call__(self) -> Iterator[Batch]:
        """Give the batches, from the first on."""
        return iter(self.batches)


class Classifier(nn.Module):
    """The trainable part on texts of one length: (texts, tokens, width) -> (texts,)."""

    def __init__(self, top: Top) -> None:
        super().__init__()
        self.blocks, self.head = top.blocks, top.head

    def forward(self, hidden: Tensor) -> Tensor:
        """Score texts of one length."""
        for block in self.blocks:
            output = block(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.head(hidden.mean(dim=1)).squeeze(-1)


def embed_top(top: Top, probe: Probe, name: str, n_steps: int, method: str) -> TaskEmbedding:
    """Embed a task by the part of its model that was trained; the rest is the same for all."""
    tokens: dict[int, float] = {}

    def observe(batch: Batch, attributed: Tensor) -> None:
        assert batch.tokens is not None
        of_position = attributed.sum(dim=-1).flatten().tolist()
        for token, value in zip(batch.tokens.flatten().tolist(), of_position, strict=True):
            tokens[token] = tokens.get(token, 0.0) + value

    embedding = embed_batches(
        Scorer(Classifier(top)),
        probe,
        name=name,
        target=None,
        layers=[f"blocks.{index}" for index in range(len(top.blocks))],
        method=method,
        n_steps=n_steps,
        batch_size=64,
        keep_examples=True,
        order=probe.order,
        observe_inputs=observe,
        provenance={"probe": "shared"},
    )
    dense = np.array([tokens[token] for token in sorted(tokens)])
    return TaskEmbedding(
        name,
        embedding.vectors,
        {**embedding.signals, "tokens": dense},
        {**embedding.provenance, "tokens": sorted(tokens)},
    )


def pooled(top: Top, activations: Activations, rows: Rows) -> NDArray[np.float64]:
    """Compute what the head sees of texts, (texts, width)."""
    seen: list[Tensor] = []
    hook = top.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lengths = activations.starts[rows + 1] - activations.starts[rows]
    order: list[NDArray[np.intp]] = []
    with torch.no_grad():
        for length in np.unique(lengths):
            order.append(np.flatnonzero(lengths == length))
            top(*activations.batch(rows[order[-1]]))
    hook.remove()
    values = torch.cat(seen).double().numpy()
    return values[np.argsort(np.concatenate(order))]


def of_seed(bench: Bench, seed: int, probe: Probe, n_steps: int, method: str) -> pd.DataFrame:
    """Compute every pair's features, from models of one seed."""
    tops = {name: bench.source_model(name, seed) for name in bench.names}
    alone = {}
    for name in bench.names:
        by_lr = [bench.train_target(None, name, lr, seed)[0] for lr in bench.lrs]
        alone[name] = max(by_lr, key=lambda top: bench.scores(top, name)[0]["dev_ap"])
    started = time.process_time()
    with encoder.half_precision(bench.half):
        sources, targets = (
            {name: embed_top(top, probe, name, n_steps, method) for name, top in models.items()}
            for models in (tops, alone)
        )
    pairs = ordered_pairs(bench.names)
    features = pair_features(pairs, sources, targets)
    features["tokens_cosine"] = [
        cosine(sources[s].signals["tokens"], targets[t].signals["tokens"])
        for s, t in zip(pairs["source"], pairs["target"], strict=True)
    ]
    seconds = {"attributions": time.process_time() - started}
    folder = bench.out / "embeddings" / f"{method}-{n_steps}" / str(seed)
    save_embeddings(sources.values(), folder / "source")
    save_embeddings(targets.values(), folder / "target")
    for name in bench.names:
        assert sources[name].provenance["tokens"] == targets[name].provenance["tokens"]
    started = time.process_time()
    probed = [of_source(bench, top, name, seed) for name, top in tops.items()]
    seconds["probing"] = time.process_time() - started
    started = time.process_time()
    looks = look(bench, tops, dict.fromkeys(tops, bench.names))
    seconds["look"] = time.process_time() - started
    chosen = some_targets(bench.names, LOOKED, seed)
    started = time.process_time()
    look(bench, tops, chosen)
    seconds["looked_at_again"] = time.process_time() - started
    table = pairs.assign(seed=seed).join(features)
    for others in (pd.concat(probed), looks):
        table = table.merge(others, on=["source", "target"], validate="one_to_one")
    table.attrs["seconds"] = seconds
    return table


def look(bench: Bench, tops: dict[str, Top], targets: dict[str, list[str]]) -> pd.DataFrame:
    """Average precision of every source's model, head and all, on its targets' dev texts.

    A trial of no step. A model scores a text once, however many targets have it.
    """
    found = []
    for source, top in tops.items():
        others = [target for target in targets[source] if target != source]
        if not others:
            continue
        of_target = {target: bench.scored[target, "dev"] for target in others}
        rows = np.unique(np.concatenate(list(of_target.values())))
        with encoder.half_precision(bench.half):
            logits = encoder.logits(top, bench.activations, rows)
        for target, its in of_target.items():
            truth = bench.tasks.positive(target, its)
            score = average_precision_score(truth, logits[np.searchsorted(rows, its)])
            found.append({"source": source, "target": target, "look": float(score)})
    return pd.DataFrame(found)


def some_targets(names: list[str], n_sources: int, seed: int) -> dict[str, list[str]]:
    """Draw sources for every target, and turn this round: the targets of every source."""
    rng = np.random.default_rng(seed)
    targets: dict[str, list[str]] = {name: [] for name in names}
    for target in names:
        others = [name for name in names if name != target]
        for source in rng.permutation(others)[:n_sources]:
            targets[source].append(target)
    return targets


def of_source(bench: Bench, top: Top, source: str, seed: int) -> pd.DataFrame:
    """Compute what a source's model and labels say of every target, apart from attributions."""
    positives = bench.regime.target_positives
    of_target = {
        name: bench.tasks.sample(name, "pool", positives, seed)
        for name in bench.names
        if name != source
    }
    rows = np.unique(np.concatenate(list(of_target.values())))
    seen = pooled(top, bench.activations, rows)
    head = top.head.weight[0].detach().double().numpy()
    pool = bench.tasks.splits["pool"]
    is_source = bench.tasks.positive(source, pool)
    found = []
    for target, its in of_target.items():
        truth = bench.tasks.positive(target, its)
        features = seen[np.searchsorted(rows, its)]
        zero_shot = features @ head
        is_target = bench.tasks.positive(target, pool)
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
                "source_size": float(min(is_source.sum(), bench.regime.source_positives)),
            }
        )
    return pd.DataFrame(found)


def main() -> None:
    parser = measure.arguments()
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--method", default="conductance")
    parser.add_argument("--probe", type=int, default=128, help="texts")
    parser.add_argument("--cut", type=int, default=8, help="texts to multiples of so many tokens")
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    probe = Probe(bench.tasks.probe(options.probe), options.trainable, options.cut)
    out = Path(options.out)
    kind = f"{options.method}-{options.steps}-{options.probe}-{options.cut}"
    for seed in options.seeds:
        file = out / f"features-{kind}-{seed}.csv"
        if not file.exists():
            table = of_seed(bench, seed, probe, options.steps, options.method)
            seconds = pd.DataFrame([{"seed": seed} | table.attrs["seconds"]])
            seconds.round(3).to_csv(out / f"overhead-{kind}-{seed}.csv", index=False)
            table.round(5).to_csv(file, index=False)
    for name in ("features", "overhead"):
        parts = [pd.read_csv(file) for file in sorted(out.glob(f"{name}-{kind}-[0-9]*.csv"))]
        pd.concat(parts).to_csv(out / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
