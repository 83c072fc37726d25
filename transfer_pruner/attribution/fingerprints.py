"""What tells models and probe examples apart: SHA-256 of what they hold."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and values."""
    array = tensor.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 of a model's class and weights."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{fingerprint(tensor)}".encode())
    return digest.hexdigest()
