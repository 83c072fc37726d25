"""What the figures of a study share; importing it loads no plotly."""

from __future__ import annotations

import logging
import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from transfer_pruner.tasks import Source, source_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

_logger = logging.getLogger("transfer_pruner_optuna.visualization")


def plotly() -> Any:
    """Import plotly, or say what to install."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError(
            "figures of a study need plotly: pip install 'transfer-pruner[plot]'."
        ) from error
    return go


def add_marks(
    figure: go.Figure, name: str, rows: pd.DataFrame, *, x: str = "x", y: str = "y", **more: Any
) -> None:
    """Add marks with the texts of a column ``hover``."""
    figure.add_scatter(
        x=rows[x].tolist(),
        y=rows[y].tolist(),
        mode="markers",
        name=name,
        text=rows["hover"].tolist(),
        hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        **more,
    )


def empty(figure: go.Figure, why: str) -> go.Figure:
    """Say in a figure, and in the log, why there is nothing in it."""
    _logger.warning(why)
    # Plotly breaks no lines.
    text = "<br>".join(textwrap.wrap(why, 80))
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def pair_name(source: Source, target: str) -> str:
    """Write a pair as a figure shows it."""
    return f"{source_name(source)} → {target}"
