"""What samplers on the weights in training share: prompts in, room and memory, random numbers, ends, texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TopKLogitsWarper, TopPLogitsWarper

from steer_core.common.environment import memory_bytes
from steer_core.common.errors import NotFiniteError, SteerError
from steer_core.common.seeding import derive_seed
from steer_core.config.sections import SamplingConfig
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.policy.model import Policy
from steer_core.rollout.rollout import Rollout, told

_TOKEN_BYTES = 40
"""At least, of a sampled token: its id and mask, the statistics of its state, its advantage and its weight."""
_PICKED_AT_ONCE = 1 << 24
"""Most elements of logits that a token is picked from at a time, in float64."""


@dataclass(frozen=True)
class Decoded:
    """What a batch of prompts was answered with.

    ids_BT: the responses, padded with the pad token. ended_B: with how many tokens a text of `sampling.stop` ended a
    response; more than T where none did. stats: of every token, (B, T), where the sampler was to keep them.
    """

    ids_BT: Tensor
    ended_B: Tensor
    stats: TokenStats | None = None


class LocalSampler(ABC):
    """Samples from the very weights that are being trained."""

    told = ""
    """Which it is, in words."""
    draws_by_prompt = True
    """Whether the random numbers of a response follow from the seed and its prompt's place alone."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @abstractmethod
    def decode(
        self, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, draws_BT: Tensor | None, sampling: SamplingConfig
    ) -> Decoded:
        """Responses to a batch of prompts. draws_BT: uniform numbers for `pick`; None where it goes without."""

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:  # noqa: B027 - there is nothing to do
        """Leave all as it is: these are the weights that are sampled from."""

    @torch.no_grad()
    def generate(
        self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int, places: list[int] | None = None
    ) -> Rollout:
        """See `Sampler.generate`. Raises SteerError also where the logits are not finite."""
        if not prompts:
            raise SteerError("rollout: zero prompts to sample from; give at least one problem")
        model, tokenizer, longest = self.policy.model, self.policy.tokenizer, sampling.max_new_tokens
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        width = encoded["input_ids"].shape[1]
        check_room(self.policy, width, longest, "max_new_tokens")
        check_memory(self.policy, len(prompts), responses, width + longest, "responses or samples")
        prompt_ids = encoded["input_ids"].repeat_interleave(responses, 0).to(model.device)
        prompt_mask = encoded["attention_mask"].repeat_interleave(responses, 0).to(model.device)
        draws_BT = None
        if self.draws_by_prompt and sampling.temperature > 0:
            draws_BT = uniform_draws(places or range(len(prompts)), responses, longest, seed).to(model.device)
        torch.manual_seed(seed)
        found = []
        for start in range(0, len(prompt_ids), sampling.batch_sequences):
            rows = slice(start, start + sampling.batch_sequences)
            draws = None if draws_BT is None else draws_BT[rows]
            found.append(self.decode(prompt_ids[rows], prompt_mask[rows], draws, sampling))
        ids, ended_B = torch.cat([one.ids_BT for one in found]), torch.cat([one.ended_B for one in found])
        kept = [one.stats for one in found if one.stats is not None]
        mask = response_mask(ids, self.policy.end_tokens)
        by_text = (ended_B <= mask.sum(-1)).tolist()
        mask &= torch.arange(ids.shape[1], device=ids.device) < ended_B[:, None]
        tokens = [row[:n] for row, n in zip(ids.tolist(), mask.sum(-1).tolist(), strict=True)]
        texts, reasons = told(tokenizer, tokens, by_text, self.policy.end_tokens, sampling.stop)
        stats = concatenate(kept) if kept else None
        return Rollout(prompt_ids, prompt_mask, ids, mask, texts, reasons, stats=stats)


def uniform_draws(places: Sequence[int], responses: int, longest: int, seed: int) -> Tensor:
    """Uniform numbers (B, T) within [0, 1), float64; those of a prompt follow from the seed and its place alone."""
    sources = [torch.Generator().manual_seed(derive_seed(seed, "prompt", place)) for place in places]
    return torch.cat([torch.rand(responses, longest, generator=source, dtype=torch.float64) for source in sources])


def pick(logits_BV: Tensor, draws_B: Tensor | None, sampling: SamplingConfig) -> Tensor:
    """A token of each row (B,) by inverse transform: the one that its own uniform number falls on; greedy without.

    Raises NotFiniteError for logits that are not finite.
    """
    if draws_B is None:
        if not logits_BV.amax(-1).isfinite().all():
            raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights")
        return logits_BV.argmax(-1)
    rows, picked = max(1, _PICKED_AT_ONCE // logits_BV.shape[-1]), []
    for scores, draws in zip(logits_BV.split(rows), draws_B.split(rows), strict=True):
        tempered = scores.double() / sampling.temperature
        if sampling.top_k is not None:
            tempered = TopKLogitsWarper(sampling.top_k)(None, tempered)
        if sampling.top_p < 1:
            tempered = TopPLogitsWarper(sampling.top_p)(None, tempered)
        reached_BV = tempered.softmax(-1).cumsum(-1)
        point_B1 = draws[:, None] * reached_BV[:, -1:]
        if not point_B1.isfinite().all():
            raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights")
        picked.append(torch.searchsorted(reached_BV, point_B1, right=True).clamp_max(scores.shape[-1] - 1)[:, 0])
    return torch.cat(picked)


def holds_stop(tokenizer: PreTrainedTokenizerBase, ids_BT: Tensor, stop: Sequence[str]) -> Tensor:
    """Which responses so far, without padding, hold one of some texts near their end, (B,)."""
    tail = 8 + max((len(text.encode()) for text in stop), default=0)  # a token may be one byte, or none
    tails = tokenizer.batch_decode(ids_BT[:, -tail:])
    return torch.tensor([any(text in one for text in stop) for one in tails], device=ids_BT.device)


def check_memory(policy: Policy, prompts: int, responses: int, tokens: int, field: str) -> None:
    """Raise SteerError where the machine cannot hold so many responses to each prompt, each of so many tokens."""
    device = policy.model.device
    held = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
    needed = prompts * responses * tokens * _TOKEN_BYTES
    if needed > held:
        raise SteerError(
            f"{field}: {responses} to each of {prompts} prompts, of up to {tokens} tokens, take {needed >> 30} GiB at "
            f"least, and the machine has {held >> 30}; ask for {held // (needed // responses)} or fewer"
        )


def check_room(policy: Policy, prompt_tokens: int, max_new_tokens: int, field: str) -> None:
    """Raise SteerError where a prompt of so many tokens leaves no room for the longest response."""
    room = policy.positions - prompt_tokens
    if room < 1:
        raise SteerError(
            f"model.path: the longest prompt has {prompt_tokens} tokens and the model {policy.positions} positions, so "
            "there is no room for a response; give a model with more, or shorter prompts (for a task of a file: "
            f"task.prompt_tokens={max(1, policy.positions - max_new_tokens)})"
        )
    if max_new_tokens > room:
        raise SteerError(
            f"{field}: {max_new_tokens} is more than the {room} of the model's {policy.positions} positions that "
            f"the longest prompt leaves; set it to {room} or less"
        )


def response_mask(ids_BT: Tensor, end_tokens: Sequence[int]) -> Tensor:
    """True up to and including the first end token, (B, T)."""
    is_end = torch.isin(ids_BT, torch.tensor(end_tokens, device=ids_BT.device))
    return is_end.cumsum(-1) - is_end.long() == 0
