"""What training asks of a model's architecture, tried on a few tokens before anything is sampled.

A policy is one distribution: the log-prob of a token may depend on the tokens before it, and on nothing else. Padding,
later tokens, the neighbours in a packed row, and training mode must leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from steer_core.common.errors import SteerError, one_line
from steer_core.formulas.token_stats import token_stats
from steer_core.policy.head import logits_of
from steer_core.policy.model import Policy
from steer_core.policy.score import PACKED, PLAIN, hidden_states, score
from steer_core.policy.sequences import Sequences

TOKENS = 14
"""Most tokens of a sequence that is tried."""
_GENERATED = 4
"""Tokens that are generated to compare them with the scoring pass."""
_TOLERANCE = {torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest mean difference of log-probs that rounding explains, by precision; 1e-3 for the others."""
_SAME_KERNELS = 0.1
"""What is left of the tolerance where both passes run the same kernels on the same shapes."""


def ragged_pair(policy: Policy) -> Sequences:
    """Two sequences of common tokens, those with the lowest ids; the second one is shorter on both sides."""
    special = set(policy.tokenizer.all_special_ids)
    ids = [i for i in sorted(policy.tokenizer.get_vocab().values()) if i not in special] or [0]
    length = min(TOKENS, policy.positions)
    row = torch.tensor((ids[:length] * length)[:length], device=policy.model.device)
    prompt = max(length // 2, 1)
    ids_BL = torch.stack([row, row.roll(1)])
    prompt_mask = torch.ones(2, prompt, dtype=torch.long, device=row.device)
    response_mask = torch.ones(2, length - prompt, dtype=torch.bool, device=row.device)
    prompt_mask[1, : prompt // 2] = 0
    response_mask[1, (length - prompt + 1) // 2 :] = False
    return Sequences(ids_BL[:, :prompt], prompt_mask, ids_BL[:, prompt:], response_mask)


def check_policy(policy: Policy, packed: bool = False, recompute: bool = False) -> None:
    """Raise SteerError, with the setting that helps, where the model is not one causal policy as it will be used.

    packed, recompute: see `check_scores`. Every rank makes the same passes; no random number is drawn.
    """
    if policy.positions < 2:
        raise SteerError(f"model.path: config.json gives the model {policy.positions} positions; use another model")
    check_scores(policy.model, ragged_pair(policy), packed, recompute)


@torch.no_grad()
def check_sampling(model: PreTrainedModel, pair: Sequences) -> None:
    """Raise SteerError unless `generate`, which keeps a cache, draws from the distribution that is scored."""
    asked = GenerationConfig(
        max_new_tokens=min(_GENERATED, pair.response_ids_BT.shape[1]),
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    prompts = {"input_ids": pair.prompt_ids_BP, "attention_mask": pair.prompt_mask_BP}
    made = _tried(model, lambda: model.generate(**prompts, generation_config=asked))
    ids_BT = made.sequences[:, pair.prompt_ids_BP.shape[1] :]
    every = torch.ones_like(ids_BT, dtype=torch.bool)
    scored = score(model, Sequences(pair.prompt_ids_BP, pair.prompt_mask_BP, ids_BT, every), 1.0).logprob
    sampled = torch.stack(made.logits, 1).to(scored).log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]
    remedy = "sample with vllm (rollout.engine, benchmark.engine), or use another model"
    _require_equal(model, scored, sampled, "are others in sampling, which keeps a cache", remedy)


def _tried(model: PreTrainedModel, run: Callable[[], Any]) -> Any:
    """What a pass over the model gives. Raises SteerError where the model's own code raises."""
    try:
        return run()
    except SteerError:
        raise
    except Exception as error:  # whatever the code of a foreign architecture raises
        raise SteerError(
            f"model.path: {type(model).__name__} cannot be scored in {str(model.dtype).removeprefix('torch.')} "
            f"({type(error).__name__}: {one_line(error, 200)}); try model.dtype=float32 or model.attention=eager, "
            "or use another model"
        ) from error


def log_prob_gap(model: PreTrainedModel, ours: Tensor, theirs: Tensor, share: float = 1.0) -> float | None:
    """The mean difference of log-probs, where rounding in the model's precision does not explain it; else None."""
    gap = float((ours - theirs).abs().mean())
    return None if gap <= share * _TOLERANCE.get(model.dtype, 1e-3) else gap


def _require_equal(
    model: PreTrainedModel, ours: Tensor, theirs: Tensor, what: str, remedy: str, share: float = 1.0
) -> None:
    gap = log_prob_gap(model, ours, theirs, share)
    if gap is not None:
        name = type(model).__name__
        raise SteerError(f"model.path: the log-probs of {name} {what} (by {gap:.2g} on average); {remedy}")


@torch.no_grad()
def check_scores(model: PreTrainedModel, pair: Sequences, packed: bool = False, recompute: bool = False) -> None:
    """Raise SteerError, with the setting that helps, unless log-probs are those of one causal policy.

    pair: see `ragged_pair`. packed, recompute: whether training packs sequences and recomputes activations (it then
    scores in training mode). Every rank makes the same passes.
    """
    name, mask = type(model).__name__, pair.response_mask_BT

    def logprobs(sequences: Sequences, packed: bool = False) -> Tensor:
        scoring = PACKED if packed else PLAIN
        return _tried(model, lambda: score(model, sequences, 1.0, scoring).logprob[sequences.response_mask_BT])

    def by_halves() -> Tensor:
        labels = pair.response_ids_BT[mask]
        return token_stats(logits_of(model, hidden_states(model, pair)), labels, 1.0).logprob

    require_equal = partial(_require_equal, model)
    both = logprobs(pair)
    if not both.isfinite().all():
        raise SteerError(f"model.path: the log-probs of {name} are NaN or infinite; check its weights")
    alone = logprobs(pair.rows([1]))
    require_equal(both[-len(alone) :], alone, "change with padding", "use a model that masks it")
    changed = pair.response_ids_BT.clone()
    changed[0, -1] = pair.prompt_ids_BP[0, 0]
    later = Sequences(pair.prompt_ids_BP, pair.prompt_mask_BP, changed, mask)
    before = torch.ones_like(mask)
    before[0, -1] = False
    require_equal(both[before[mask]], logprobs(later)[before[mask]], "change with later tokens", "use a causal model")
    another = "use another model"
    require_equal(both, _tried(model, by_halves), "are others when its output layer is run by itself", another)
    if packed:
        remedy = "set optimizer.packing=none"
        require_equal(both, logprobs(pair, packed), "change when sequences are packed into a row", remedy)
    if recompute:
        model.train()
        try:
            for _ in range(2):
                remedy = "set engine.activations=keep"
                require_equal(both, logprobs(pair), "change in training mode", remedy, _SAME_KERNELS)
        finally:
            model.eval()
