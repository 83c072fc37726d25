"""transfer_pruner in Optuna: eliminate pairs of existing studies before they train."""

from transfer_pruner_optuna.answer import answer_from_study, record_answer
from transfer_pruner_optuna.autopilot import autopilot
from transfer_pruner_optuna.callback import TrackingCallback
from transfer_pruner_optuna.ending import ending_from_study
from transfer_pruner_optuna.gate import gate
from transfer_pruner_optuna.progress import plot_best, plot_tried
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
    "answer_from_study",
    "autopilot",
    "ending_from_study",
    "gate",
    "plot_best",
    "plot_gains",
    "plot_pairs",
    "plot_savings",
    "plot_tried",
    "record_answer",
    "records_from_study",
    "transfers_from_study",
]
