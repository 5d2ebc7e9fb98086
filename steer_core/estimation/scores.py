"""How well each estimate tells an entropy change. Three questions are asked of it:

    target: does it tell how the entropy at the token's own state will change? (measured change)
    source: does it tell how the token's update will change the batch's mean entropy? (influence)
    size:   do the largest estimates belong to the tokens with the largest influence, whichever its sign?

A method that damps tokens by |estimate| relies on the third. As influence, the change at one state is
divided by the N tokens of the mini-batch: in a tabular policy that is all there is to it. Beside the
estimates stands a baseline that looks at no entropy, -A (1 - p). Intervals are 95% percentile
bootstraps over prompts, given the steps that were taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.ladder.attribution import RUNGS, Attribution, contributions
from steer_core.stats.agreement import agreement_intervals

SOURCE_ESTIMATES = (*ENTROPY_CHANGE, "output_layer_influence", "baseline")
SHOWN = 8
"""Tokens listed at either end of the contributions by token."""


def accuracy(tokens: pd.DataFrame, truth: str, estimates: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """By estimate and measure: [value, low, high] against the column `truth`; see `agreement_intervals`.

    The interval is over prompts, all tokens of a prompt together.
    """
    return {
        name: {
            measure: [interval.mean, interval.low, interval.high]
            for measure, interval in agreement_intervals(tokens[name], tokens[truth], tokens["group"]).items()
        }
        for name in estimates
    }


def answers(tokens: pd.DataFrame) -> dict[str, dict[str, dict[str, list[float]]]]:
    """`accuracy` for each of the three questions: target, source and size.

    tokens: the token table of one or more mini-batches, with `states`, the tokens of each row's own.
    size is over tokens with an advantage, of absolute values.
    """
    tokens = tokens.assign(baseline=-tokens["advantage"] * -np.expm1(tokens["logprob"]))
    shares = tokens.assign(**{name: tokens[name] / tokens["states"] for name in ENTROPY_CHANGE})
    sizes = shares[shares["advantage"] != 0]
    sizes = sizes.assign(**{name: sizes[name].abs() for name in (*SOURCE_ESTIMATES, "influence")})
    size = accuracy(sizes, "influence", SOURCE_ESTIMATES)
    for scores in size.values():
        scores["sign"] = [math.nan] * 3  # of absolute values there is none to tell
    return {
        "target": accuracy(tokens, "measured", (*RUNGS, "baseline")),
        "source": accuracy(shares, "influence", SOURCE_ESTIMATES),
        "size": size,
    }


def summarise(results: list[Attribution], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], pd.DataFrame]:
    """(JSON-ready summary of one update over its mini-batches, the token table of all of them).

    totals, contributions and seconds are means over the mini-batches.
    """
    for result in results:
        vocabulary = {i: tokenizer.decode([i]) for i in result.tokens["token"].unique()}
        result.tokens.insert(4, "text", result.tokens["token"].map(vocabulary))
    tokens = pd.concat([result.tokens for result in results], ignore_index=True)
    tables = {}
    for column in ("quadrant", "group", "text"):
        table = pd.concat([contributions(result.tokens, column) for result in results]).groupby(level=0).sum()
        table.iloc[:, 1:] /= len(results)
        tables[column] = table
    ranked = tables["text"].sort_values("influence")
    tables["text"] = pd.concat([ranked.head(SHOWN), ranked.tail(SHOWN)]) if len(ranked) > 2 * SHOWN else ranked
    return {
        "mini_batches": len(results),
        "tokens": len(tokens),
        **answers(tokens),
        "totals": _means([result.totals for result in results]),
        "contributions": {name: table.reset_index().to_dict("records") for name, table in tables.items()},
        "seconds": _means([result.seconds for result in results]),
    }, tokens


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
