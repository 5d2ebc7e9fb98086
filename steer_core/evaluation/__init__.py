"""Evaluation: sample and grade, on held-out problems and on problem sets by name."""
