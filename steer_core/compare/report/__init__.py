"""The report of a comparison: tables, figures and words, all made from `steer_core.compare.comparison`."""

from steer_core.compare.report.page import summary_table, write_report

__all__ = ["summary_table", "write_report"]
