"""How alike source and target are, layer by layer and token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from transfer_pruner.embedding import TOKENS, TaskEmbedding
from transfer_pruner.explain.explanation import LayerComparison, Standing, TokenAttribution

_STANDINGS = ("cka", "cosine", "example_cosine", "containment", "source_rank")


def compare_layers(features: pd.DataFrame) -> tuple[LayerComparison, ...]:
    """Tell where the first of a target's sources stands among all of them, in each layer."""
    layers: dict[str, dict[str, Standing]] = {}
    for column in features.columns:
        name, bracket, layer = str(column).partition("[")
        values = features[column].to_numpy(dtype=float)
        if not bracket or name not in _STANDINGS or math.isnan(values[0]):
            continue
        others = values[1:][~np.isnan(values[1:])]
        spread = np.quantile(others, [0, 0.5, 1]) if len(others) else np.full(3, np.nan)
        layers.setdefault(layer[:-1], {})[name] = Standing(
            float(values[0]),
            1 + int((others > values[0]).sum()),
            1 + len(others),
            *map(float, spread),
        )
    return tuple(LayerComparison(layer, standings) for layer, standings in layers.items())


def compare_tokens(
    source: TaskEmbedding, target: TaskEmbedding
) -> dict[str, tuple[TokenAttribution, ...]]:
    """Sort tokens by which of the two tasks attributes them, and whether in one direction."""
    of_source, of_target = _token_attributions(source), _token_attributions(target)
    tokens = [
        TokenAttribution(token, of_source.get(token, math.nan), of_target.get(token, math.nan))
        for token in {**of_source, **of_target}
    ]

    def chosen(
        by: Sequence[TokenAttribution],
        size: Any = lambda x: np.nanmax(np.abs([x.source, x.target])),
    ) -> tuple[TokenAttribution, ...]:
        return tuple(sorted(by, key=lambda x: (-float(size(x)), x.token)))

    def smaller(x: TokenAttribution) -> float:
        return min(abs(x.source), abs(x.target))

    return {
        "tokens_shared": chosen([x for x in tokens if x.source * x.target > 0], smaller),
        "tokens_opposed": chosen([x for x in tokens if x.source * x.target < 0], smaller),
        "tokens_source_only": chosen([x for x in tokens if math.isnan(x.target)]),
        "tokens_target_only": chosen([x for x in tokens if math.isnan(x.source)]),
    }


def _token_attributions(embedding: TaskEmbedding) -> dict[str, float]:
    tokens: Sequence[str] = embedding.provenance.get("tokens", ())
    values = embedding.signals.get(TOKENS, np.zeros(0))
    return dict(zip(tokens, values.tolist(), strict=False))
