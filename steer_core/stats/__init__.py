"""Intervals, tests and pass@k, on plain numbers."""
