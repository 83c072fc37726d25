"""transfer_pruner in MLflow: what elimination saved and what it cost."""

from transfer_pruner_mlflow.model import log_rule
from transfer_pruner_mlflow.replay import Synced, sync
from transfer_pruner_mlflow.tracker import SavingsTracker

__all__ = ["SavingsTracker", "Synced", "log_rule", "sync"]
