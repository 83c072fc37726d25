"""Predict the transfer gain of ordered pairs: mean, spread and covariance, from one model."""

from transfer_pruner.predictor.estimator import TransferPredictor

__all__ = ["TransferPredictor"]
