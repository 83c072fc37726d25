"""An elimination rule as a model of MLflow's registry: pairs in, decisions out.

What it must satisfy: the model folder holds no pickle, and loading it needs no torch.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_pruner.rule.elimination import EliminationRule

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo


def log_rule(
    rule: EliminationRule,
    name: str = "rule",
    *,
    registered_model_name: str | None = None,
    run_id: str | None = None,
) -> ModelInfo:
    """Log a rule as an MLflow model, where MLflow's tracking URI points.

    Its input is a table of pairs, columns source (may be missing or None: the single-task baseline)
    and target; its output has a row for each: eliminated, score, probability, reason. Where it is
    loaded, transfer_pruner has to be installed.

    Parameters
    ----------
    rule : EliminationRule
        For a LearningRule, what its `refitted` makes.
    name : str
        Of the model.
    registered_model_name : str, optional
        Registers a new version under this name.
    run_id : str, optional
        The run that the model belongs to, e.g. ``tracker.run_id``; the active one if left out.
        No run is started and none is ended.

    Returns
    -------
    mlflow.models.model.ModelInfo
        Its ``model_uri`` is what ``mlflow.pyfunc.load_model`` takes.

    Raises
    ------
    ValueError
        If `rule` is something else, or decides on no pair.

    Examples
    --------
    >>> import mlflow
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_mlflow import log_rule
    >>> mlflow.set_tracking_uri("sqlite:///mlflow.db")
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> info = log_rule(EliminationRule.top_k(predictor, k=1, pairs=pairs))
    >>> mlflow.pyfunc.load_model(info.model_uri).predict(pairs)["eliminated"].tolist()
    [False, True]
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    if not isinstance(rule, EliminationRule) or not len(rule):
        raise ValueError(
            f"rule must be an EliminationRule with decisions but got {rule!r}; of a LearningRule, "
            "pass rule.refitted(transfers)."
        )
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "source", required=False),
                ColSpec(DataType.string, "target"),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.boolean, "eliminated"),
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.double, "probability"),
                ColSpec(DataType.string, "reason"),
            ]
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        rule.save(folder)
        info: ModelInfo = Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            registered_model_name=registered_model_name,
            # Models from code: MLflow keeps this script, not a pickle of an object.
            python_model=str(Path(__file__).with_name("rule_model.py")),
            artifacts={"rule": folder},
            signature=signature,
            input_example=pd.DataFrame(islice(rule.decisions, 3), columns=["source", "target"]),
            # Given, so that MLflow does not load the model in a process of its own to guess them.
            pip_requirements=["transfer-pruner[mlflow]"],
            metadata={"transfer_pruner.rule_fingerprint": rule.fingerprint},
        )
    return info
