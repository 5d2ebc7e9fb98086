"""Sampling with Hugging Face `generate`, from the very weights that are being trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steer_core.common.environment import memory_bytes
from steer_core.common.errors import NotFiniteError, SteerError
from steer_core.common.seeding import derive_seed
from steer_core.config.sections import SamplingConfig
from steer_core.policy.model import Policy
from steer_core.rollout.rollout import Rollout, told

_TOKEN_BYTES = 40
"""At least, of a sampled token: its id and mask, the statistics of its state, its advantage and its weight."""


class HuggingFaceSampler:
    """Samples with Hugging Face `generate`, from the very weights that are being trained."""

    def __init__(self, policy: Policy, draws: Literal["batch", "prompt"] = "batch", lockstep: bool = False) -> None:
        """draws: see `rollout.draws`. lockstep: every rank makes as many forward passes, as shared weights need."""
        self.policy, self.draws, self.lockstep = policy, draws, lockstep

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Nothing to do: these are the weights that are sampled from."""

    @torch.no_grad()
    def generate(
        self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int, places: list[int] | None = None
    ) -> Rollout:
        """See `Sampler.generate`. Raises SteerError also where the logits are not finite."""
        if not prompts:
            raise SteerError("rollout: zero prompts to sample from; give at least one problem")
        model, tokenizer = self.policy.model, self.policy.tokenizer
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        width = encoded["input_ids"].shape[1]
        check_room(self.policy, width, sampling.max_new_tokens, "max_new_tokens")
        check_memory(self.policy, len(prompts), responses, width + sampling.max_new_tokens, "responses or samples")
        prompt_ids = encoded["input_ids"].repeat_interleave(responses, 0).to(model.device)
        prompt_mask = encoded["attention_mask"].repeat_interleave(responses, 0).to(model.device)
        settings, draws_BT = generation_settings(self.policy, sampling), None
        if self.draws == "prompt" and sampling.temperature > 0:
            settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
            draws_BT = _draws(places or range(len(prompts)), responses, sampling.max_new_tokens, seed).to(model.device)
        torch.manual_seed(seed)
        ids = torch.full((len(prompt_ids), sampling.max_new_tokens), tokenizer.pad_token_id, device=model.device)
        ended_B = torch.full((len(ids),), sampling.max_new_tokens + 1, device=model.device)  # by a text, at this length
        for start in range(0, len(ids), sampling.batch_sequences):
            rows = slice(start, start + sampling.batch_sequences)
            drawn = [] if draws_BT is None else [_Draw(draws_BT[rows], sampling)]
            ended = [_StopTexts(tokenizer, sampling.stop, ended_B[rows], prompt_ids.shape[1])] if sampling.stop else []
            try:
                full = model.generate(
                    input_ids=prompt_ids[rows],
                    attention_mask=prompt_mask[rows],
                    generation_config=settings,
                    logits_processor=LogitsProcessorList(drawn),
                    stopping_criteria=StoppingCriteriaList(ended),
                    synced_gpus=self.lockstep,
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights") from error
            response = full[:, prompt_ids.shape[1] :]
            ids[rows, : response.shape[1]] = response
        mask = response_mask(ids, self.policy.end_tokens)
        by_text = (ended_B <= mask.sum(-1)).tolist()
        mask &= torch.arange(ids.shape[1], device=ids.device) < ended_B[:, None]
        found = [row[:n] for row, n in zip(ids.tolist(), mask.sum(-1).tolist(), strict=True)]
        texts, reasons = told(tokenizer, found, by_text, self.policy.end_tokens, sampling.stop)
        return Rollout(prompt_ids, prompt_mask, ids, mask, texts, reasons)


def _draws(places: Sequence[int], responses: int, longest: int, seed: int) -> Tensor:
    """Uniform numbers (B, T) within [0, 1), float64; those of a prompt follow from the seed and its place alone."""
    sources = [torch.Generator().manual_seed(derive_seed(seed, "prompt", place)) for place in places]
    return torch.cat([torch.rand(responses, longest, generator=source, dtype=torch.float64) for source in sources])


class _Draw(LogitsProcessor):
    """Samples by inverse transform: of each row's logits, leaves the token that its own uniform number picks."""

    def __init__(self, draws_BT: Tensor, sampling: SamplingConfig) -> None:
        self.draws, self.sampling, self.step = draws_BT, sampling, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tempered = scores.double() / self.sampling.temperature
        if self.sampling.top_k is not None:
            tempered = TopKLogitsWarper(self.sampling.top_k)(input_ids, tempered)
        if self.sampling.top_p < 1:
            tempered = TopPLogitsWarper(self.sampling.top_p)(input_ids, tempered)
        reached_BV = tempered.softmax(-1).cumsum(-1)
        if not reached_BV.isfinite().all():
            raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights")
        point_B1 = self.draws[:, self.step, None] * reached_BV[:, -1:]
        self.step += 1
        chosen_B1 = torch.searchsorted(reached_BV, point_B1, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B1, 0.0)


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


class _StopTexts(StoppingCriteria):
    """Ends a row once its response holds one of some texts, and writes down with how many tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], ended_B: Tensor, width: int) -> None:
        """ended_B: where the lengths go. width: tokens of the prompts."""
        self.tokenizer, self.stop, self.ended, self.width = tokenizer, stop, ended_B, width
        self.tail = 8 + max((len(text.encode()) for text in stop), default=0)  # a token may be one byte, or none

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        length = input_ids.shape[1] - self.width
        tails = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -self.tail :])
        holds_B = torch.tensor([any(text in tail for text in self.stop) for tail in tails], device=input_ids.device)
        self.ended[holds_B & (self.ended > length)] = length
        return self.ended <= length


def generation_settings(policy: Policy, sampling: SamplingConfig) -> GenerationConfig:
    """Plain sampling from the tempered policy, and from nothing else; greedy where the temperature is 0."""
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=policy.end_tokens,
        pad_token_id=policy.tokenizer.pad_token_id,
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
