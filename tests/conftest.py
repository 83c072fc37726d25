"""Task embeddings and transfers that several test modules tell their stories with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported, here or in a child process: beside other work a second thread spins
# and the suite takes three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from transfer_pruner import TaskEmbedding
from transfer_pruner.pairs import ordered_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A machine that others share takes its time; a test that hangs has pytest's own limit.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

MakeEmbedding = Callable[..., TaskEmbedding]
SENTENCES = (
    "flood in the city help we need water and food for two hundred people at the old school "
    "road closed volunteers wanted at the shelter tonight donate blankets"
)


@pytest.fixture
def make_embedding() -> MakeEmbedding:
    """Make an embedding from example-wise attributions of one layer or more."""

    def make(name: str, probe: str = "shared", **layers: np.ndarray) -> TaskEmbedding:
        return TaskEmbedding(
            name=name,
            vectors={layer: np.mean(values, axis=0) for layer, values in layers.items()},
            signals={f"examples/{layer}": values for layer, values in layers.items()}
            | {"output_changes": list(layers.values())[-1].sum(axis=1)},
            provenance={"probe": probe},
        )

    return make


@pytest.fixture
def embeddings(make_embedding: MakeEmbedding) -> dict[str, TaskEmbedding]:
    """Six tasks that were attributed on the same 20 probe examples."""
    rng = np.random.default_rng(0)
    return {
        name: make_embedding(name, hidden=rng.normal(size=(20, 8)), last=rng.normal(size=(20, 4)))
        for name in ("news", "advice", "weather", "rescue", "donations", "rumour")
    }


@pytest.fixture
def transfers(embeddings: dict[str, TaskEmbedding]) -> pd.DataFrame:
    """Every ordered pair with a gain: some sources are better than others, with noise."""
    rng = np.random.default_rng(1)
    pairs = ordered_pairs(sorted(embeddings))
    quality = dict(zip(sorted(embeddings), np.linspace(-0.1, 0.1, len(embeddings)), strict=True))
    pairs["gain"] = pairs["source"].map(quality) + rng.normal(0, 0.01, len(pairs))
    return pairs


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of two dozen words and four special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *dict.fromkeys(SENTENCES.split())]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make a database's tables: made once, copied for each test."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def save_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Save a small classifier and its tokenizer, as somebody who fine-tuned it would."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    def save(name: str, seed: int = 0, **more: Any) -> Path:
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
            **more,
        )
        folder = tmp_path / "models" / name
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save
