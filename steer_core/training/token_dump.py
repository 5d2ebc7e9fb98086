"""Every token of a rollout as `steer diagnose` reads it (`runs/dumps.py`): each as its own optimiser step saw it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steer_core.config.config import Config
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.runs.responses import token_texts
from steer_core.training.batch import MicroBatch
from steer_core.training.sampling import SampledRollout


def token_rows(
    tokenizer: PreTrainedTokenizerBase,
    sampled: SampledRollout,
    old: TokenStats,
    batches: Sequence[list[MicroBatch]],
    log: dict[str, Tensor],
    clip: ClipRange,
    config: Config,
    n: int,
) -> Iterator[dict[str, Any]]:
    """A row of a dump for each of this rank's responses of rollout n, from 1, in the order of the optimiser steps.

    batches, log: the mini-batches of its optimiser steps and their `token_log`, tokens in the same order; `step` counts
    these steps over the run. clip: the range in force. ln p is ln p_old plus the logged ln ratio, bounded by 20.
    """
    rollout, group = sampled.rollout, len(sampled.rollout.texts) // len(sampled.problems)
    places = [(i, row, n) for i, batch in enumerate(batches) for part in batch for row, n in part.lengths().items()]
    split = {name: log[name].split([n for *_, n in places]) for name in ("ratio", "advantage", "entropy")}
    told = {"clip_low": clip.low, "clip_high": clip.high, "dual_clip": clip.dual}
    settings = {name: value for name, value in told.items() if value is not None and math.isfinite(value)}
    for k, (i, row, _) in enumerate(places):
        mask, problem = rollout.response_mask_BT[row].bool(), sampled.problems[row // group]
        ids, old_logprob = rollout.response_ids_BT[row][mask].tolist(), old.logprob[row][mask]
        reason = rollout.finish_reasons[row]
        given = {
            "logprob": (old_logprob + split["ratio"][k].log()).clamp_max(0).tolist(),
            "advantage": split["advantage"][k].tolist(),
            "old_logprob": old_logprob.tolist(),
            "entropy": split["entropy"][k].tolist(),
            "old_entropy": old.entropy[row][mask].tolist(),
            "tokens": token_texts(tokenizer, ids, reason == "stop"),
            "token_ids": ids,
            "step": (n - 1) * len(batches) + i + 1,
            "group": problem.id,
            "prompt": problem.prompt,
            "response": rollout.texts[row],
            "reward": float(sampled.rewards_B[row]),
            "truncated": reason == "length",
            "max_tokens": config.rollout.max_new_tokens,
        }
        if rollout.logprobs_BT is not None:
            given["sampler_logprob"] = rollout.logprobs_BT[row][mask].tolist()
        yield given | settings
