"""A report of a search as one HTML file."""

from transfer_pruner.report.page import write_report
from transfer_pruner.tables import pairs_table

__all__ = ["pairs_table", "write_report"]
