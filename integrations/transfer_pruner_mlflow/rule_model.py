"""The script that MLflow keeps with a logged rule and runs to load it; see model.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from transfer_pruner.rule.elimination import EliminationRule


class RuleModel(PythonModel):
    """Decide on the pairs of a table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the rule: JSON."""
        self._rule = EliminationRule.load(context.artifacts["rule"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a row for each pair: eliminated, score, probability, reason."""
        sources = model_input.get("source", pd.Series([None] * len(model_input)))
        decisions = [
            asdict(self._rule.decide(source, target))
            for source, target in zip(sources, model_input["target"], strict=True)
        ]
        columns = ["eliminated", "score", "probability", "reason"]
        return pd.DataFrame(decisions, columns=columns, index=model_input.index)


set_model(RuleModel())
