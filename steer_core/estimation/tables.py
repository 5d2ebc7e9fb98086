"""What `steer estimate` shows and writes of an estimate: the table for the terminal, and the files of a folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from steer_core.common.errors import SteerError
from steer_core.common.files import json_text, write_atomically
from steer_core.estimation.estimate import Estimate
from steer_core.estimation.figure import estimate_figure

QUESTIONS = {"target": "state", "source": "influence", "size": "size"}
"""The three questions, and what a table calls them."""
ESTIMATE_COLUMNS = 92
"""Columns of a terminal that `estimate_table` needs."""
_BOUNDED = ("pearson", "spearman", "sign")


def estimate_table(record: dict[str, Any], update: str) -> Table:
    """For the terminal: every estimate of one update against the measured change and against the influence.

    state: against the measured change there. influence: against the token's effect on the batch's mean
    entropy. size: |estimate| against |influence|. factor: what the prediction must be multiplied by to
    fit best, 1 for the right scale.
    """
    summary = record["updates"][update]
    title = f"{record['run'] or record['model']}, {update}, {summary['tokens']} tokens"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("estimate", no_wrap=True)
    for name in ("MSE", "Pearson", "Spearman", "right sign", "factor"):
        table.add_column(name, justify="right", no_wrap=True)
    for question, about in QUESTIONS.items():
        table.add_row(f"[italic]{about}")
        for name, scores in summary[question].items():
            bounded = [with_interval(scores[measure]) for measure in _BOUNDED]
            mse, factor = (
                math.nan if scores[measure][0] is None else scores[measure][0] for measure in ("mse", "slope")
            )
            table.add_row(label_of(name), f"{mse:.0e}", *bounded, f"{factor:.2g}")
        table.add_section()
    return table


def label_of(estimate: str) -> str:
    """An estimate as a table names it."""
    return estimate.removesuffix("_influence").replace("_", " ")


def with_interval(scores: list[float | None]) -> str:
    """A value with its 95% interval over prompts; - for what is undefined."""
    value, low, high = ("-" if score is None else f"{score:.2f}" for score in scores)
    return f"{value} [{low}, {high}]"


def write_estimate(estimate: Estimate, folder: Path) -> Path:
    """estimate.json, tokens_*.csv.gz and estimate.png in `folder`; the path of the first.

    Raises SteerError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for update, tokens in estimate.tokens.items():
            tokens.to_csv(folder / f"tokens_{update.replace(':', '_')}.csv.gz", index=False, float_format="%.9g")
        estimate_figure(estimate.tokens, estimate.record).savefig(folder / "estimate.png", dpi=160)
        write_atomically(folder / "estimate.json", json_text(estimate.record))
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error
    return folder / "estimate.json"
