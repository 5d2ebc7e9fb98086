"""Which sampled responses a run keeps, token by token, with their weights and estimated entropy changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steer_core.formulas.token_stats import TokenStats
from steer_core.runs.responses import Response, token_texts
from steer_core.training.batch import MicroBatch
from steer_core.training.sampling import SampledRollout


def first_responses(
    tokenizer: PreTrainedTokenizerBase,
    sampled: SampledRollout,
    counts: tuple[int, int],
    advantages_B: Tensor,
    old: TokenStats,
    batches: Sequence[list[MicroBatch]],
    log: dict[str, Tensor],
) -> list[Response]:
    """Responses to the first problems of a rollout as a run keeps them: the first of its group, or the whole group.

    counts: how many problems, and of how many of these, the first, the whole group. batches, log: the mini-batches of
    its optimiser steps and their `token_log`, tokens in the same order.
    """
    rollout, problems = sampled.rollout, sampled.problems[: counts[0]]
    group = len(rollout.texts) // len(sampled.problems)
    wanted = {
        p * group + sample: (problem, sample)
        for p, problem in enumerate(problems)
        for sample in range(group if p < counts[1] else 1)
    }
    lengths = {row: n for batch in batches for part in batch for row, n in part.lengths().items()}
    tokens = sum(lengths.values())  # of the first epoch
    split = {name: log[name][:tokens].split(list(lengths.values())) for name in ("lambda", "omega")}
    rows = {}
    for k, row in enumerate(lengths):
        if row not in wanted:
            continue
        mask = rollout.response_mask_BT[row].bool()
        ids, logprob = rollout.response_ids_BT[row][mask].tolist(), old.logprob[row][mask]
        problem, sample = wanted[row]
        rows[row] = Response(
            problem=problem.id,
            prompt=problem.prompt,
            response=rollout.texts[row],
            reward=sampled.graded.rewards[row],
            advantage=float(advantages_B[row]),
            finish_reason=rollout.finish_reasons[row],
            sample=sample,
            tokens=token_texts(tokenizer, ids, rollout.finish_reasons[row] == "stop"),
            token_ids=ids,
            probability=logprob.exp().tolist(),
            logprob=logprob.tolist(),
            entropy=old.entropy[row][mask].tolist(),
            lambda_=split["lambda"][k].tolist(),
            omega=split["omega"][k].tolist(),
        )
    return [rows[row] for row in wanted]
