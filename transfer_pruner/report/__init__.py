"""A search as one self-contained page: `write_report`."""

from transfer_pruner.report.page import pairs_table, write_report

__all__ = ["pairs_table", "write_report"]
