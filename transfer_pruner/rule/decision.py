"""What a rule says of pairs, in memory and as JSON.

What is read here is data only and cannot run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class Decision:
    """What the rule says of a pair.

    Attributes
    ----------
    eliminated : bool
        True: do not train it. False: it is kept.
    score : float
        What the predictor said; NaN if it said nothing. Comparable within a target.
    probability : float
        Probability of a positive gain; NaN before the predictor has learnt from measured gains.
    reason : str
        One line for a person.
    """

    eliminated: bool
    score: float
    probability: float
    reason: str


Decisions = Mapping[tuple[str, str], Decision]


def encode_decisions(decisions: Decisions, settings: Mapping[str, Any]) -> bytes:
    """Write decisions and settings as JSON, the same bytes for the same decisions."""
    rows = [
        [
            source,
            target,
            decision.eliminated,
            _to_json(decision.score),
            _to_json(decision.probability),
            decision.reason,
        ]
        for (source, target), decision in sorted(decisions.items())
    ]
    content = {"format": FORMAT, "settings": settings, "decisions": rows}
    return json.dumps(content, allow_nan=False).encode()


def read_decisions(path: Path) -> tuple[dict[tuple[str, str], Decision], dict[str, Any]]:
    """Read what `encode_decisions` wrote: decisions and settings.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist: write a rule there with EliminationRule.save()."
        )
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
        decisions = {
            (source, target): Decision(
                bool(eliminated), _from_json(score), _from_json(probability), str(reason)
            )
            for source, target, eliminated, score, probability, reason in content["decisions"]
        }
        return decisions, dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not a whole elimination rule ({error}).") from error


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _from_json(value: float | None) -> float:
    return math.nan if value is None else float(value)
