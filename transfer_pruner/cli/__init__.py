"""The command line: parse, call the library, print. No logic."""

import sys

try:
    import click  # noqa: F401
except ImportError:
    sys.exit("the command line needs click and rich: pip install 'transfer-pruner[cli]'.")

from transfer_pruner.cli import (  # noqa: F401
    doctor,
    embed,
    explain,
    fit,
    harvest,
    next,
    rank,
    report,
    score,
    sync,
)
from transfer_pruner.cli.program import main

__all__ = ["main"]
