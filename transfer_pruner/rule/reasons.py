"""Reasons of decisions: put together when they are asked for, from numbers and few texts.

What it must satisfy: of very many pairs no text is kept, and a reason reads as it did when the
decision was made.
"""

from __future__ import annotations

import math
import re

WHY, BEST, PREDICTED = range(3)
"""Forms of a reason: by rank or its text alone; the target's best pair; a predicted gain."""

# How reasons of ranked pairs begin; what follows names the target.
_RANKED = re.compile(r"rank ([1-9][0-9]{0,8}) of ([1-9][0-9]{0,8}) for ")


def reason(
    why: str,
    target: str,
    rank: int,
    candidates: int,
    form: int = WHY,
    score: float = math.nan,
    best: float = math.nan,
    chance: float = math.nan,
    priority: float = math.nan,
) -> str:
    """Write a reason out; `why` is what it has in common with many others."""
    if form == BEST:
        start = f"the best of {best:.3f} measured for {target}"
    elif form == PREDICTED:
        what = f"the best of {best:.3f} measured for" if best > 0 else "the single-task baseline of"
        start = f"predicted gain {score:.3f}; exceeds {what} {target} with probability {chance:.2g}"
    elif rank:
        return f"rank {rank} of {candidates} for {target}{why}"
    else:
        return why
    return f"{start}{why}; priority {round(priority, 6):.2g}"


def taken_apart(text: str, target: str) -> tuple[int, int, str]:
    """Split a reason into rank, candidates and why; rank 0 if it is of no rank."""
    start = _RANKED.match(text)
    if start is None or not text.startswith(target, start.end()):
        return 0, 0, text
    return int(start[1]), int(start[2]), text[start.end() + len(target) :]
