"""transfer_pruner in Optuna: eliminate pairs of existing studies before they train."""

from transfer_pruner_optuna.gate import gate
from transfer_pruner_optuna.pruner import TransferPruner
from transfer_pruner_optuna.records import records_from_study, transfers_from_study

__all__ = ["TransferPruner", "gate", "records_from_study", "transfers_from_study"]
