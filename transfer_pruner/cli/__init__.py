"""The command line: parse, call the library, print. No logic."""

import sys

try:
    import click  # noqa: F401
except ImportError:
    sys.exit("the command line needs click and rich: pip install 'transfer-pruner[cli]'.")

from transfer_pruner.cli import checks, rules, searches, tasks  # noqa: F401
from transfer_pruner.cli.frame import main

__all__ = ["main"]
