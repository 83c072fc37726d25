"""What is written on Tune's trials of an elimination, and how it is read again.

What it must satisfy: reading needs no Ray and runs no code; and an audit's mark says which rule
drew it, so that a configuration that is used again in another search is no audit there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transfer_pruner.tasks import Source

Pair = tuple[Source, str]

PREFIX = "transfer_pruner/"
ELIMINATED = PREFIX + "eliminated"
SCORE = PREFIX + "score"
PROBABILITY = PREFIX + "probability"
PRIORITY = PREFIX + "priority"
REASON = PREFIX + "reason"
SCORING = PREFIX + "scoring_seconds"
# In the experiment's folder: why the search was stopped.
SETTLED_FILE = "transfer_pruner.json"

# An attribute of a Trial, with what the rule said; and beside the pair in the configuration of one
# that no adapter could write on, the fingerprint of the rule.
AUDIT = "transfer_pruner_audit"
# An attribute of a Trial whose pair JSON does not hold: its source and target by name.
PAIR = "transfer_pruner_pair"

# Tune puts these for what is no number, text or truth value until a trial is added.
_PLACEHOLDERS = ("__fn_ph", "__ref_ph")


def flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of nested dicts with ``/``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found


def is_placeholder(value: Any) -> bool:
    """Whether Tune has yet to put a value here, or in this list."""
    if not isinstance(value, (list, tuple)):
        return False
    return (len(value) == 2 and value[0] in _PLACEHOLDERS) or any(map(is_placeholder, value))


def split_audit(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Take the audit's mark out of a flat configuration: the rest, and whose audit it is."""
    marks = [name for name in config if name.rpartition("/")[2] == AUDIT]
    rest = {name: value for name, value in config.items() if name not in marks}
    return rest, next((str(config[name]) for name in marks if config[name]), "")


def with_audit(config: Mapping[str, Any], beside: str, fingerprint: str) -> dict[str, Any]:
    """Mark a nested configuration as an audit, in the dict that holds the parameter `beside`."""
    return with_value(config, beside.rpartition("/")[0] + "/" + AUDIT, fingerprint)


def with_value(config: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Put a value into a nested configuration, dicts that lead there included."""
    head, _, rest = name.lstrip("/").partition("/")
    if not rest:
        return {**config, head: value}
    inner = config.get(head)
    return {**config, head: with_value(inner if isinstance(inner, dict) else {}, rest, value)}
