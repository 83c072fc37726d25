"""transfer_pruner in Optuna: eliminate pairs of existing studies before they train."""

from transfer_pruner_optuna.callback import TrackingCallback
from transfer_pruner_optuna.ending import ending_from_study
from transfer_pruner_optuna.gate import gate
from transfer_pruner_optuna.pruner import TransferPruner
from transfer_pruner_optuna.records import records_from_study, transfers_from_study
from transfer_pruner_optuna.sampler import TransferSampler
from transfer_pruner_optuna.stopping import StopWhenSettled
from transfer_pruner_optuna.visualization import plot_gains, plot_pairs, plot_savings

__all__ = [
    "StopWhenSettled",
    "TrackingCallback",
    "TransferPruner",
    "TransferSampler",
    "ending_from_study",
    "gate",
    "plot_gains",
    "plot_pairs",
    "plot_savings",
    "records_from_study",
    "transfers_from_study",
]
