"""How a rule is told in a run: tags that say what decided, parameters that tell runs apart."""

from __future__ import annotations

import json

import transfer_pruner
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule


def rule_tags(rule: EliminationRule | LearningRule | None) -> dict[str, str]:
    """Take the rule's settings and fingerprint, and our version."""
    tags = {"transfer_pruner.version": transfer_pruner.__version__}
    if rule is None:
        return tags
    tags["transfer_pruner.rule"] = json.dumps(rule.settings, default=str)[:4000]
    if isinstance(rule, EliminationRule):
        tags["transfer_pruner.rule_fingerprint"] = rule.fingerprint
    return tags


def rule_params(rule: EliminationRule | LearningRule | None) -> dict[str, str]:
    """Take the settings that tell runs apart in MLflow's comparison."""
    if rule is None:
        return {}
    return {
        f"transfer_pruner.{name}": str(value)
        for name, value in rule.settings.items()
        if isinstance(value, (str, int, float)) and len(str(value)) <= 250
    }
