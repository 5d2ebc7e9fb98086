"""Sampling with Hugging Face `generate`, from the very weights that are being trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase, TopPLogitsWarper

from steer_core.common.errors import NotFiniteError, SteerError
from steer_core.common.seeding import derive_seed
from steer_core.config.sections import SamplingConfig
from steer_core.policy.model import Policy
from steer_core.rollout.rollout import Rollout


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
        check_room(self.policy, encoded["input_ids"].shape[1], sampling.max_new_tokens, "max_new_tokens")
        prompt_ids = encoded["input_ids"].repeat_interleave(responses, 0).to(model.device)
        prompt_mask = encoded["attention_mask"].repeat_interleave(responses, 0).to(model.device)
        settings = generation_settings(tokenizer, sampling)
        draws_BT = None
        if self.draws == "prompt":
            settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
            draws_BT = _draws(places or range(len(prompts)), responses, sampling.max_new_tokens, seed).to(model.device)
        torch.manual_seed(seed)
        ids = torch.full((len(prompt_ids), sampling.max_new_tokens), tokenizer.pad_token_id, device=model.device)
        for start in range(0, len(ids), sampling.batch_sequences):
            rows = slice(start, start + sampling.batch_sequences)
            try:
                full = model.generate(
                    input_ids=prompt_ids[rows],
                    attention_mask=prompt_mask[rows],
                    generation_config=settings,
                    logits_processor=None if draws_BT is None else [_Draw(draws_BT[rows], sampling)],
                    synced_gpus=self.lockstep,
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights") from error
            response = full[:, prompt_ids.shape[1] :]
            ids[rows, : response.shape[1]] = response
        mask, stopped = response_mask(ids, tokenizer.eos_token_id)
        text_length = mask.sum(-1) - stopped.long()  # other special tokens stay visible to the verifier
        return Rollout(
            prompt_ids,
            prompt_mask,
            ids,
            mask,
            tokenizer.batch_decode([row[:n] for row, n in zip(ids.tolist(), text_length.tolist(), strict=True)]),
            ["stop" if stop else "length" for stop in stopped.tolist()],
        )


def _draws(places: Sequence[int], responses: int, longest: int, seed: int) -> Tensor:
    """Uniform numbers (B, T) within [0, 1), float64; those of a prompt follow from the seed and its place alone."""
    sources = [torch.Generator().manual_seed(derive_seed(seed, "prompt", place)) for place in places]
    return torch.cat([torch.rand(responses, longest, generator=source, dtype=torch.float64) for source in sources])


class _Draw(LogitsProcessor):
    """Samples by inverse transform: of each row's logits, leaves the token that its own uniform number picks."""

    def __init__(self, draws_BT: Tensor, sampling: SamplingConfig) -> None:
        self.draws, self.sampling, self.step = draws_BT, sampling, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores / self.sampling.temperature
        if self.sampling.top_p < 1:
            scores = TopPLogitsWarper(self.sampling.top_p)(input_ids, scores)
        reached_BV = scores.double().softmax(-1).cumsum(-1)
        if not reached_BV.isfinite().all():
            raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights")
        point_B1 = self.draws[:, self.step, None] * reached_BV[:, -1:]
        self.step += 1
        chosen_B1 = torch.searchsorted(reached_BV, point_B1, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B1, 0.0)


def generation_settings(tokenizer: PreTrainedTokenizerBase, sampling: SamplingConfig) -> GenerationConfig:
    """Plain sampling from the tempered policy, and from nothing else."""
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
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


def response_mask(ids_BT: Tensor, eos_token_id: int) -> tuple[Tensor, Tensor]:
    """(mask_BT, stopped_B): True up to and including the first end token; which rows have one."""
    is_end = ids_BT == eos_token_id
    before = is_end.cumsum(-1) - is_end.long()
    return before == 0, is_end.any(-1)
