"""What all figures share.

It must hold that importing a module of figures loads no matplotlib, that the colour-blind can tell
what is drawn apart, and that no task's name can break a figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision. A role has one colour in all figures.
KEPT, ELIMINATED, AUDITED, SAVED = "#0072B2", "#D55E00", "#CC79A7", "#009E73"
# What a gain is measured against; what the rule has no part in; what was not measured.
BASELINE, NEUTRAL, MISSING = "#000000", "#595959", "#D9D9D9"
# Of gains around zero: red below, blue above, in matplotlib and in plotly.
GAINS = "RdBu"
LINES = (KEPT, ELIMINATED, SAVED, AUDITED, "#E69F00", "#56B4E9")

LONGEST_NAME = 28


def new_figure(height: float = 5.5, width: float = 10.0) -> Figure:
    """Make an empty figure, 1000 pixels wide unless told otherwise.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'transfer-pruner[plot]'."
        ) from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def written(name: object, longest: int = LONGEST_NAME) -> str:
    """Write a task's name as a figure can show it: on one line, and not too long."""
    text = "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(name)
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"


def say_why_empty(figure: Figure, axes: Axes, why: str) -> Figure:
    """Put one line where the picture would be: nothing to show is no error."""
    axes.set_axis_off()
    figure.text(0.5, 0.5, why, ha="center", va="center", wrap=True, fontsize=12)
    return figure


def bare(axes: Axes) -> None:
    """Take away the frame's two sides that hold no scale, and put the grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def check_columns(data: pd.DataFrame, columns: tuple[str, ...], made_by: str) -> None:
    """Refuse a table that is not the one a figure is drawn from.

    Raises
    ------
    ValueError
        If a column is missing.
    """
    missing = [column for column in columns if column not in data.columns]
    if missing:
        raise ValueError(
            f"the table lacks the column {missing[0]!r}; it has: "
            f"{', '.join(map(str, data.columns)) or 'none'}. Pass what {made_by}() returns."
        )
