"""How the scoring passes of a run are made: chosen once from the settings, the model and the machine, and told."""

from __future__ import annotations

import torch

from steer_core.common.errors import SteerError, one_line
from steer_core.config.config import Config
from steer_core.config.sections import OptimizerConfig
from steer_core.policy.head import HeadSettings, OutputLayer, in_parts, logits_at_once, read_head, stats_at
from steer_core.policy.model import Policy
from steer_core.policy.preflight import log_prob_gap, ragged_pair
from steer_core.policy.score import Layout, Scoring, hidden_states, shared_states
from steer_core.policy.sequences import Sequences


def make_scoring(policy: Policy, config: Config) -> Scoring:
    """What `score` is given in a run: `optimizer.packing`, `optimizer.shared_prompts`, `engine.logits_mib`.

    Prompts are shared where the model computes the same with them; every rank tries the same passes.
    """
    model, found = policy.model, read_head(policy.model)
    head = found if isinstance(found, OutputLayer) else None
    sums = config.train.probe_sequences > 0 or config.with_method().intervention.reads_square_sums
    unread = found if isinstance(found, str) else ""
    settings = HeadSettings(head, unread, logits_at_once(model, config.engine.logits_mib), sums)
    if packs(policy, config.optimizer):
        return Scoring("packed", settings, "optimizer.packing")
    if config.optimizer.shared_prompts == "none":
        return Scoring("padded", settings, "optimizer.shared_prompts=none")
    reason = "its engine holds weights in parts" if in_parts(model) else not_shared(policy)
    layout: Layout = "shared" if reason is None else "padded"
    return Scoring(layout, settings, reason or "")


def packs(policy: Policy, config: OptimizerConfig) -> bool:
    """Whether micro-batches are packed: as asked, or where attention finds the borders of sequences by itself."""
    if config.micro_batch_tokens is None or config.packing == "none":
        return False
    return config.packing == "packed" or "flash" in (policy.model.config._attn_implementation or "")


@torch.no_grad()
def not_shared(policy: Policy) -> str | None:
    """Why a model's scoring passes cannot share prompts, in words; None where they can."""
    model, pair = policy.model, ragged_pair(policy)
    prompt_ids, prompt_mask = pair.prompt_ids_BP[[0, 0]], pair.prompt_mask_BP[[0, 0]]
    one = Sequences(prompt_ids, prompt_mask, pair.response_ids_BT, pair.response_mask_BT)
    labels_N = one.response_ids_BT[one.response_mask_BT]
    try:
        padded, shared = (
            stats_at(model, hidden_ND, labels_N, 1.0, None).logprob
            for hidden_ND in (hidden_states(model, one), shared_states(model, one))
        )
    except SteerError as error:
        return str(error)
    except Exception as error:  # whatever the code of a foreign architecture raises
        return f"{type(error).__name__}: {one_line(error, 120)}"
    gap = log_prob_gap(model, padded, shared)
    return None if gap is None else f"its log-probs would change by {gap:.2g}"
