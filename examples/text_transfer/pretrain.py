"""Pretrain a small encoder by masked language modelling: another architecture for the same tasks.

    python examples/text_transfer/pretrain.py --folder mixed --train train.csv --out small-encoder
    TEXT_ENCODER=small-encoder python examples/text_transfer/measure.py ...

A BERT of four blocks, 128 wide, with MiniLM's tokenizer and new weights. It sees the texts to train
on of every task, and none of their labels. It is no good encoder, and is not meant to be: it says
whether what holds for copies of MiniLM holds for copies of something else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import encoder
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

MASKED = 0.15
BATCH = 64


def texts_of(folder: Path | None, train: Path | None, column: str) -> list[str]:
    """Read the texts to train on, each once."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.csv")) if folder else []:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        found |= dict.fromkeys(frame.loc[frame["split"] == "train", column])
    if train:
        found |= dict.fromkeys(pd.read_csv(train, dtype=str, keep_default_na=False)[column])
    if not found:
        raise SystemExit("give --folder or --train, or both.")
    return list(found)


class Masked(nn.Module):
    """An encoder, and a guess at every token that was masked."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.transform = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.LayerNorm(config.hidden_size),
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def loss(self, ids: Tensor, there: Tensor, masked: Tensor, mask_id: int) -> Tensor:
        """Cross-entropy of the tokens that `masked` says; the output's weights are the input's."""
        seen = torch.where(masked, mask_id, ids)
        hidden = self.bert(seen, attention_mask=there).last_hidden_state[masked]
        logits = self.transform(hidden) @ self.bert.embeddings.word_embeddings.weight.T + self.bias
        return nn.functional.cross_entropy(logits, ids[masked])


def batches(lengths: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Deal texts of about one length together, in an order that is new every time."""
    order = np.argsort(lengths + rng.random(len(lengths)))
    parts = np.array_split(order, -(-len(order) // BATCH))
    yield from (parts[place] for place in rng.permutation(len(parts)))


def pretrain(texts: list[str], epochs: int) -> BertModel:
    """Train the encoder; print the loss of every epoch."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    ids = tokenizer(texts, truncation=True, max_length=encoder.MAX_LENGTH)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Masked(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=128,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    steps = epochs * -(-len(texts) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    for epoch in range(epochs):
        total, count = 0.0, 0
        for rows in batches(lengths, rng):
            width = int(lengths[rows].max())
            padded = np.full((len(rows), width), tokenizer.pad_token_id)
            for place, row in enumerate(rows):
                padded[place, : lengths[row]] = ids[row]
            batch = torch.from_numpy(padded)
            masked = torch.from_numpy(rng.random(padded.shape) < MASKED)
            masked &= ~torch.isin(batch, special)
            if not masked.any():
                continue
            there = batch != tokenizer.pad_token_id
            with encoder.half_precision(True):
                loss = model.loss(batch, there, masked, tokenizer.mask_token_id)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total, count = total + loss.item(), count + 1
        print(f"{time.strftime('%H:%M:%S')} epoch {epoch}: loss {total / count:.3f}", flush=True)
    return model.bert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of one CSV a task, with a column split")
    parser.add_argument("--train", type=Path, help="CSV of texts to train on")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(options.folder, options.train, options.text_column)
    print(f"{len(texts)} texts", flush=True)
    pretrain(texts, options.epochs).save_pretrained(options.out)
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
