"""The figure of one pair: in which layers its two tasks agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from transfer_pruner.plotting.style import (
    KEPT,
    NEUTRAL,
    bare,
    new_figure,
    say_why_empty,
    written,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transfer_pruner.explain.explanation import Explanation


def layer_figure(explanation: Explanation) -> Figure:
    """Draw how alike the layers are: a bar each, over the range of the target's other sources.

    Parameters
    ----------
    explanation : Explanation
        Of a pair whose two tasks are embedded.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from transfer_pruner import TaskEmbedding
    >>> from transfer_pruner.explain import explain_pair
    >>> from transfer_pruner.plotting.explanation import layer_figure
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> figure = layer_figure(explain_pair("advice", "news", embeddings=embeddings))
    >>> figure.savefig("pair.png")
    """
    named = [(layer.layer, layer.agreement, layer) for layer in explanation.layers]
    drawn = [(name, layer.standings[how]) for name, how, layer in named if how is not None]
    figure = new_figure(height=1.8 + 0.4 * len(drawn))
    axes = figure.subplots()
    title = f"{written(explanation.source)} -> {written(explanation.target)}"
    if not drawn:
        return say_why_empty(figure, axes, f"{title}: no layer of the two tasks can be compared")
    places = np.arange(len(drawn))[::-1]
    standings = [at for _, at in drawn]
    low, high = np.array([[at.low, at.high] for at in standings]).T
    others = "the target's other sources, lowest to highest"
    axes.barh(places, high - low, left=low, height=0.8, color="0.85", label=others)
    axes.barh(places, [at.value for at in standings], color=KEPT, height=0.35, label="this pair")
    medians = [at.median for at in standings]
    axes.plot(medians, places, "|", color=NEUTRAL, ms=24, mew=2, label="their median", zorder=3)
    axes.set_yticks(places, [written(name) for name, _ in drawn], parse_math=False)
    measures = " or ".join(dict.fromkeys(str(how) for _, how, _ in named if how))
    axes.set_xlabel(f"agreement of attributions ({measures.replace('cka', 'linear CKA')})")
    decision = explanation.decision
    said = "" if decision is None else f": {'eliminated' if decision.eliminated else 'kept'}"
    axes.set_title(f"{title}{said}", parse_math=False, loc="left")
    bare(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
