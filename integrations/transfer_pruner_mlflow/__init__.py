"""transfer_pruner in MLflow: what elimination saved and what it cost."""

from transfer_pruner_mlflow.tracker import SavingsTracker

__all__ = ["SavingsTracker"]
