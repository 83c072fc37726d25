"""Replay spools into MLflow: ``python -m transfer_pruner_mlflow [SPOOL] [--tracking-uri URI]``."""

from __future__ import annotations

import argparse
import sys

from transfer_pruner_mlflow.replay import sync
from transfer_pruner_mlflow.spool import DEFAULT_DIRECTORY


def main() -> int:
    """Replay what the command line names and print what it came to."""
    parser = argparse.ArgumentParser("python -m transfer_pruner_mlflow", description=sync.__doc__)
    parser.description = "Send what an outage kept from MLflow. Safe to repeat."
    parser.add_argument("spool", nargs="?", default=DEFAULT_DIRECTORY, help="a file or a folder")
    parser.add_argument("--tracking-uri", help="where to; left out, where the search sent it")
    arguments = parser.parse_args()
    try:
        print(sync(arguments.spool, tracking_uri=arguments.tracking_uri))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
