"""The command line: parse, call the library, print. No logic."""

import sys

try:
    import click  # noqa: F401
except ImportError:
    sys.exit("the command line needs click and rich: pip install 'transfer-pruner[cli]'.")

from transfer_pruner.cli import doctor, embed, rules, searches  # noqa: F401
from transfer_pruner.cli.command import main

__all__ = ["main"]
