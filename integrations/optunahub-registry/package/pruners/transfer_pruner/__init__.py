"""TransferPruner for OptunaHub: loads what transfer_pruner has, and adds nothing."""

try:
    from transfer_pruner_optuna import TransferPruner
except ImportError as error:
    raise ImportError(
        "TransferPruner needs transfer_pruner: pip install 'transfer-pruner[optuna]', or from a "
        "clone of its repository pip install '.[optuna]'."
    ) from error

__all__ = ["TransferPruner"]
