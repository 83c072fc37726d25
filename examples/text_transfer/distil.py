"""Distil MiniLM into a smaller encoder: another architecture for the same tasks.

    python examples/text_transfer/distil.py --folder mixed --train train.csv --test test.csv \
        --out small-encoder
    TEXT_ENCODER=small-encoder python examples/text_transfer/measure.py ...

A BERT of four blocks, 192 wide, where MiniLM has six, 384 wide. Its blocks and positions begin with
new weights and learn to say of every token what MiniLM's last block says, through a linear map that
is then thrown away. Its word embeddings are the principal components of MiniLM's, and stay so. It
sees the texts to train on of every task, and none of their labels.

So it has another shape and other weights, and is no independent pretraining: it tells whether what
holds for copies of MiniLM holds for copies of another network, not of another language model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import encoder
import numpy as np
import tasks
import torch
from measure import MOST_TEXTS
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

WIDTH, BLOCKS, HEADS = 192, 4, 4
BATCH = 64
RATE = 1e-3
Rows = np.ndarray


def texts_of(options: argparse.Namespace) -> list[str]:
    """Read the texts to train on, each once: train splits of a folder, the pool of one CSV."""
    found: dict[str, None] = {}
    if options.folder:
        columns = options.text_column, options.label_column, options.split_column
        folder = tasks.read_folder(options.folder, *columns, MOST_TEXTS)
        for name in folder.names:
            found |= dict.fromkeys(folder.texts[row] for row in folder.rows_of[name, "train"])
    if options.train and options.test:
        columns = options.text_column, options.labels_column, options.separator
        many = tasks.read_many_labels(options.train, options.test, *columns, split_seed=0)
        found |= dict.fromkeys(many.texts[row] for row in many.rows_of["pool"])
    if not found:
        raise SystemExit("give --folder, or --train and --test, or all three.")
    return list(found)


def batches(lengths: Rows, rng: np.random.Generator) -> Iterator[Rows]:
    """Deal texts of one length together, so that nothing is padded, in an order new every time."""
    shuffled = rng.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    same = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    parts = [part for rows in same for part in np.array_split(rows, -(-len(rows) // BATCH))]
    yield from (parts[place] for place in rng.permutation(len(parts)))


def new_student(teacher: BertModel) -> BertModel:
    """Make the smaller encoder: word embeddings projected, all else new."""
    student = BertModel(
        BertConfig(
            vocab_size=teacher.config.vocab_size,
            hidden_size=WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=4 * encoder.MAX_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    words = teacher.embeddings.word_embeddings.weight.detach()
    _, vectors = torch.linalg.eigh(words.T @ words)
    student.embeddings.word_embeddings.weight.data = words @ vectors[:, -WIDTH:]
    student.embeddings.word_embeddings.requires_grad_(False)
    return student


@torch.no_grad()
def last_states(teacher: BertModel, ids: list[list[int]], lengths: Rows) -> list[np.ndarray]:
    """Run the teacher once: what its last block says of every token, a text an array."""
    states: list[np.ndarray] = [np.empty(0)] * len(ids)
    for rows in batches(lengths, np.random.default_rng(0)):
        with encoder.half_precision(True):
            said = teacher(torch.tensor([ids[row] for row in rows])).last_hidden_state
        for row, values in zip(rows, said.to(torch.float16).numpy(), strict=True):
            states[row] = values
    return states


def loss_of(said: Tensor, true: Tensor) -> Tensor:
    """1 - cosine, of tokens and of the texts' means: their mean."""
    of_tokens = nn.functional.cosine_similarity(said, true, dim=-1).mean()
    of_texts = nn.functional.cosine_similarity(said.mean(dim=1), true.mean(dim=1), dim=-1).mean()
    return 1 - (of_tokens + of_texts) / 2


def distil(texts: list[str], epochs: int) -> BertModel:
    """Train the smaller encoder; print the loss of every epoch."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    teacher = AutoModel.from_pretrained(encoder.pretrained(), local_files_only=True).eval()
    ids = tokenizer(texts, truncation=True, max_length=encoder.MAX_LENGTH)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    states = last_states(teacher, ids, lengths)
    print(f"{time.strftime('%H:%M:%S')} {len(texts)} texts run through the teacher", flush=True)
    torch.manual_seed(0)
    student = new_student(teacher)
    to_teacher = nn.Linear(WIDTH, teacher.config.hidden_size)
    trained = [p for p in student.parameters() if p.requires_grad] + [*to_teacher.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01, fused=True)
    rng = np.random.default_rng(0)
    of_epochs = [list(batches(lengths, rng)) for _ in range(epochs)]
    steps = sum(map(len, of_epochs))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for epoch, dealt in enumerate(of_epochs):
        total = 0.0
        for rows in dealt:
            true = torch.from_numpy(np.stack([states[row] for row in rows])).float()
            with encoder.half_precision(True):
                hidden = student(torch.tensor([ids[row] for row in rows])).last_hidden_state
                said = to_teacher(hidden)
            loss = loss_of(said.float(), true)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += loss.item() * len(rows)
        print(f"{time.strftime('%H:%M:%S')} epoch {epoch}: loss {total / len(texts):.3f}")
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of one CSV a task: text, label, split")
    parser.add_argument("--train", type=Path, help="CSV of the pool, as measure.py takes it")
    parser.add_argument("--test", type=Path, help="CSV of the shifted test split: none is read of")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--split-column", default="split")
    parser.add_argument("--labels-column", default="labels")
    parser.add_argument("--separator", default="|")
    parser.add_argument("--most", type=int, help="texts, drawn at random")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(options)
    drawn = np.random.default_rng(0).permutation(len(texts))[: options.most]
    started = time.process_time()
    distil([texts[row] for row in drawn], options.epochs).save_pretrained(options.out)
    tokenizer = AutoTokenizer.from_pretrained(encoder.pretrained(), local_files_only=True)
    tokenizer.save_pretrained(options.out)
    print(f"{time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
