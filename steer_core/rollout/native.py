"""Sampling by our own decoding loop, from the very weights that are being trained.

The model's own code computes everything but attention, one token a row at a time. Attention remembers what it needs:
keys and values of each prompt, read once for all of its responses, and those of each response, written in place.
Responses that have ended leave the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.common.errors import SteerError, one_line
from steer_core.config.sections import SamplingConfig
from steer_core.formulas.token_stats import TokenStats, token_stats
from steer_core.policy.attention import NOT_EXCHANGEABLE, attending
from steer_core.policy.head import body_of, full_precision, logits_of, taken_by
from steer_core.policy.model import Policy
from steer_core.policy.preflight import log_prob_gap, ragged_pair
from steer_core.policy.score import score
from steer_core.policy.sequences import Sequences, prompt_groups
from steer_core.rollout.local import Decoded, LocalSampler, holds_stop, pick

_SHRINK_AT = 0.8
"""Rows that have ended leave once no more than this share of the batch goes on: leaving copies the cache."""


class NativeSampler(LocalSampler):
    """Samples by our own decoding loop. keep_stats: keep the statistics of the policy at every sampled token."""

    told = "native"

    def __init__(self, policy: Policy, keep_stats: bool = False) -> None:
        super().__init__(policy)
        self.keep_stats = keep_stats

    def decode(
        self, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, draws_BT: Tensor | None, sampling: SamplingConfig
    ) -> Decoded:
        """See `LocalSampler.decode`. Raises SteerError for a model whose attention does more than the loop knows."""
        policy, device, longest = self.policy, prompt_ids_BP.device, sampling.max_new_tokens
        ends, pad = torch.tensor(policy.end_tokens, device=device), policy.tokenizer.pad_token_id
        ids_BT = torch.full((len(prompt_ids_BP), longest), pad, device=device)
        ended_B = torch.full((len(ids_BT),), longest + 1, device=device)
        real = torch.promote_types(policy.model.dtype, torch.float32)
        stats_4BT = torch.zeros(4, *ids_BT.shape, device=device, dtype=real) if self.keep_stats else None
        rows_A = torch.arange(len(ids_BT), device=device)  # in the batch
        live_A = torch.ones_like(rows_A, dtype=torch.bool)  # not ended yet
        cache = _Cache(policy.model, prompt_ids_BP, prompt_mask_BP, longest)
        logits_AV = cache.prompt_logits()
        for t in range(longest):
            chosen_A = pick(logits_AV, None if draws_BT is None else draws_BT[rows_A, t], sampling)
            ids_BT[rows_A, t] = torch.where(live_A, chosen_A, pad)
            if stats_4BT is not None:
                stats = token_stats(logits_AV, chosen_A, sampling.temperature or 1.0)
                stats_4BT[:, rows_A, t] = torch.stack([*vars(stats).values()]).to(stats_4BT) * live_A
            live_A &= ~torch.isin(chosen_A, ends)
            if sampling.stop:
                holds_A = live_A & holds_stop(policy.tokenizer, ids_BT[rows_A, : t + 1], sampling.stop)
                ended_B[rows_A[holds_A]] = t + 1
                live_A &= ~holds_A
            left = int(live_A.sum())
            if left == 0 or t + 1 == longest:
                break
            if left <= _SHRINK_AT * len(rows_A):
                cache.keep(live_A)
                rows_A, chosen_A, live_A = rows_A[live_A], chosen_A[live_A], live_A[live_A]
            logits_AV = cache.next_logits(chosen_A)
        return Decoded(ids_BT, ended_B, None if stats_4BT is None else TokenStats(*stats_4BT))


@torch.no_grad()
def not_native(policy: Policy) -> str | None:
    """Why this loop cannot sample from a model, in words; None where its log-probs are those of the scoring pass.

    A few tokens are tried, several responses to a prompt among them.
    """
    model, pair = policy.model, ragged_pair(policy)
    some = Sequences(*(x[[0, 0, 1]] for x in vars(pair).values()))
    some.response_ids_BT[1] = some.response_ids_BT[1].roll(1)
    width = some.response_ids_BT.shape[1]
    try:
        cache = _Cache(model, some.prompt_ids_BP, some.prompt_mask_BP, width)
        logits = [cache.prompt_logits(), *(cache.next_logits(some.response_ids_BT[:, t]) for t in range(width - 1))]
    except SteerError as error:
        return str(error)
    except Exception as error:  # whatever the code of a foreign architecture raises
        return f"{type(error).__name__}: {one_line(error, 120)}"
    if not cache.responses:
        return NOT_EXCHANGEABLE
    mask = some.response_mask_BT
    sampled = token_stats(torch.stack(logits, 1)[mask], some.response_ids_BT[mask]).logprob
    gap = log_prob_gap(model, score(model, some, 1.0).logprob[mask], sampled)
    return None if gap is None else f"its log-probs would change by {gap:.2g}"


class _Cache:
    """Keys and values by layer: of R prompts, each for up to G rows, and of the rows in the batch, A at present."""

    def __init__(self, model: PreTrainedModel, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, longest: int) -> None:
        self.model, self.longest, self.length = model, longest, -1  # tokens of responses in the cache, less one
        group_B = prompt_groups(prompt_ids_BP, prompt_mask_BP)
        first_B = torch.searchsorted(group_B, group_B)
        leaders = torch.unique_consecutive(first_B)
        self.group_A, self.width = group_B, int(group_B.bincount().max())
        self.slot_A = group_B * self.width + torch.arange(len(group_B), device=group_B.device) - first_B
        self.position_A = prompt_mask_BP.sum(-1)
        self.prompt_ids_RP, self.prompt_mask_RP = prompt_ids_BP[leaders], prompt_mask_BP[leaders].bool()
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self.responses: dict[int, tuple[Tensor, Tensor]] = {}

    def prompt_logits(self) -> Tensor:
        """The logits (B, V) behind every row's prompt, from one pass over the prompts."""
        positions = (self.prompt_mask_RP.cumsum(-1) - 1).clamp_min(0)
        return self._logits(self.prompt_ids_RP, positions)[self.group_A]

    def next_logits(self, chosen_A: Tensor) -> Tensor:
        """The logits (A, V) behind one more token of each row in the batch."""
        self.length += 1
        logits_AV = self._logits(chosen_A[:, None], self.position_A[:, None])
        self.position_A = self.position_A + 1
        return logits_AV

    def keep(self, live_A: Tensor) -> None:
        """Let the other rows leave the batch."""
        self.group_A, self.slot_A, self.position_A = self.group_A[live_A], self.slot_A[live_A], self.position_A[live_A]
        used = self.length + 1
        for layer, both in self.responses.items():
            fewer = [x.new_empty(len(self.slot_A), *x.shape[1:]) for x in both]
            for new, old in zip(fewer, both, strict=True):
                new[:, :, :used] = old[:, :, :used][live_A]
            self.responses[layer] = (fewer[0], fewer[1])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """A layer's attention: queries (A, H, L, d), keys and values (A, K, L, d), for L = 1 or whole prompts."""
        if self.length < 0:
            self.prompts[layer] = (key.flatten(0, 1).contiguous(), value.flatten(0, 1).contiguous())  # (R K, P, d)
            return self._attend_in_prompts(query, key, value, scaling)
        return self._attend_next(layer, query, key, value, scaling)

    def _attend_in_prompts(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        at = torch.arange(query.shape[2], device=query.device)
        sees = (at[:, None] >= at) & self.prompt_mask_RP[:, None, None, :] | (at[:, None] == at)  # no query sees none
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, sees, scale=scaling)

    def _attend_next(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        rows, heads, used = len(query), key.shape[1], self.length + 1
        if layer not in self.responses:
            shape = (rows, heads, self.longest, key.shape[-1])
            self.responses[layer] = (key.new_empty(shape), value.new_empty((*shape[:3], value.shape[-1])))
        keys, values = self.responses[layer]
        keys[:, :, self.length], values[:, :, self.length] = key[:, :, 0], value[:, :, 0]
        query = (query * scaling).view(rows, heads, -1, query.shape[-1])
        prompt_keys, prompt_values = self.prompts[layer]
        before = self._by_row(torch.bmm(self._by_prompt(query), prompt_keys.mT), heads)
        before = before.masked_fill(~self.prompt_mask_RP[self.group_A][:, None, None, :], -torch.inf)
        own = torch.bmm(query.flatten(0, 1), keys[:, :, :used].flatten(0, 1).mT).view(rows, heads, -1, used)
        weights = torch.cat([before, own], -1).softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32))
        of_prompt, of_own = weights.to(query.dtype).split([before.shape[-1], used], -1)
        result = self._by_row(torch.bmm(self._by_prompt(of_prompt), prompt_values), heads)
        own = torch.bmm(of_own.flatten(0, 1), values[:, :, :used].flatten(0, 1))
        return (result + own.view_as(result)).flatten(1, 2)[:, :, None]

    def _by_prompt(self, rows_AKQX: Tensor) -> Tensor:
        """What belongs to rows, laid out (R K, G Q, X) by their prompts; 0 where a row has left."""
        prompts, (heads, queries, size) = len(self.prompt_mask_RP), rows_AKQX.shape[1:]
        if len(rows_AKQX) != prompts * self.width:
            slots = rows_AKQX.new_zeros(prompts * self.width, heads, queries, size)
            slots[self.slot_A] = rows_AKQX
            rows_AKQX = slots
        split = rows_AKQX.view(prompts, self.width, heads, queries, size).transpose(1, 2)
        return split.reshape(prompts * heads, self.width * queries, size)

    def _by_row(self, prompts_KGX: Tensor, heads: int) -> Tensor:
        """The way back: (A, K, Q, X) of (R K, G Q, X)."""
        prompts, size = len(self.prompt_mask_RP), prompts_KGX.shape[-1]
        split = prompts_KGX.view(prompts, heads, self.width, -1, size).transpose(1, 2)
        slots = split.reshape(prompts * self.width, heads, -1, size)
        return slots if len(self.slot_A) == len(slots) else slots[self.slot_A]

    def _logits(self, ids_AL: Tensor, positions_AL: Tensor) -> Tensor:
        body = body_of(self.model)
        inputs = {"input_ids": ids_AL, "position_ids": positions_AL, "use_cache": False}
        with attending(self.model, self.attend), full_precision(self.model):
            hidden = body(**taken_by(body, inputs)).last_hidden_state[:, -1]
            return logits_of(self.model, hidden)
