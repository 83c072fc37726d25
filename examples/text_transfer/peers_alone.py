"""Run a peer's package on what peers.py wrote; in an environment of the package's own.

    ranker/bin/python examples/text_transfer/peers_alone.py transformer_ranker out/peers
    selector/bin/python examples/text_transfer/peers_alone.py dataset_selector out/peers

Nothing of this project is imported. For every seed's folder a CSV of source, target, score and
seconds of CPU is written, by the package's own defaults. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from datasets import ClassLabel, Dataset

ESM_TEXTS = 500
"""A source's texts that its map is trained on, at most: each is padded to 128 tokens, twice."""


def dataset(file: Path, most: int | None = None) -> Dataset:
    """Read texts and labels; labels are classes, whatever their number."""
    frame = pd.read_csv(file, dtype={"text": str}, keep_default_na=False)[:most]
    n_classes = int(frame["label"].max()) + 1
    classes = ClassLabel(num_classes=n_classes)
    return Dataset.from_pandas(frame, preserve_index=False).cast_column("label", classes)


def transformer_ranker(folder: Path, estimator: str) -> pd.DataFrame:
    """Rank the sources' models for every target: transferability of the mean over layers."""
    from transformer_ranker import TransformerRanker

    models = sorted(path for path in (folder / "sentence-transformers").iterdir())
    models = [path for path in models if path.name != "base"]
    rows = []
    for file in sorted((folder / "dev").glob("*.csv")):
        started = time.process_time()
        others = [str(path) for path in models if path.name != file.stem]
        ranker = TransformerRanker(dataset(file), text_column="text", label_column="label")
        found = ranker.run(others, estimator=estimator, batch_size=32, device="cpu")
        seconds = (time.process_time() - started) / len(others)
        rows += [
            (Path(model).name, file.stem, score, seconds) for model, score in found.scores.items()
        ]
    return pd.DataFrame(rows, columns=["source", "target", "score", "seconds"])


def dataset_selector(folder: Path) -> pd.DataFrame:
    """Rank the sources' data sets: LogME behind a linear map of the base model's embeddings."""
    from hfselect import Dataset as Texts
    from hfselect import ESMTrainer, compute_scores
    from transformers import AutoModel, AutoTokenizer

    models = folder / "sentence-transformers"
    base = AutoModel.from_pretrained(models / "base")
    tokenizer = AutoTokenizer.from_pretrained(models / "base")

    def texts(file: Path, most: int | None = None) -> Texts:
        return Texts(dataset(file, most), "text", "label", is_regression=False, metadata={})

    names = sorted(file.stem for file in (folder / "dev").glob("*.csv"))
    started, maps = time.process_time(), []
    torch.manual_seed(0)
    for name in names:
        maps.append(
            ESMTrainer().train_with_models(
                texts(folder / "train" / f"{name}.csv", ESM_TEXTS),
                base_model=base,
                tuned_model=AutoModel.from_pretrained(models / name),
                tokenizer=tokenizer,
            )
        )
    rows = []
    for target in names:
        scores = compute_scores(texts(folder / "dev" / f"{target}.csv"), base, maps, tokenizer)
        rows += [
            (source, target, score)
            for source, score in zip(names, scores, strict=True)
            if source != target
        ]
    table = pd.DataFrame(rows, columns=["source", "target", "score"])
    return table.assign(seconds=(time.process_time() - started) / len(table))


RUNS = {
    "transformer_ranker": {
        "transformer_ranker_h_score": lambda folder: transformer_ranker(folder, "hscore"),
        "transformer_ranker_logme": lambda folder: transformer_ranker(folder, "logme"),
    },
    "dataset_selector": {"dataset_selector": dataset_selector},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", choices=RUNS)
    parser.add_argument("folder", type=Path, help="peers, in the folder that peers.py wrote to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        for name, run in RUNS[options.package].items():
            file = folder / f"{name}.csv"
            if not file.exists():
                run(folder).to_csv(file, index=False)


if __name__ == "__main__":
    main()
