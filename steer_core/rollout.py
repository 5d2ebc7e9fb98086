"""Rollouts: prompts in, sampled responses out, behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from steer_core.config import SamplingConfig
from steer_core.errors import SteerError
from steer_core.policy import Policy


@dataclass(frozen=True)
class Rollout:
    """Sampled responses; row b belongs to prompt b // group.

    prompt_ids_BP and prompt_mask_BP are padded on the left, response_ids_BT and response_mask_BT on
    the right; the end-of-sequence token is part of the response. finish_reasons: "stop" where the
    policy ended its response, "length" where it was cut off.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor
    texts: list[str]
    finish_reasons: list[str]

    def tensors(self, rows: slice | list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors of some rows, without the columns that are padding in all of them."""
        prompt_mask, response_mask = self.prompt_mask_BP[rows], self.response_mask_BT[rows]
        first = int(prompt_mask.any(0).int().argmax())
        width = max(int(response_mask.sum(-1).max()), 1)
        return (
            self.prompt_ids_BP[rows, first:],
            prompt_mask[:, first:],
            self.response_ids_BT[rows, :width],
            response_mask[:, :width],
        )


class RolloutEngine(Protocol):
    """What samples: the trainer and the evaluator know nothing more of it."""

    def generate(self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int) -> Rollout:
        """`responses` responses to each prompt; the same seed gives the same responses.

        Raises SteerError for zero prompts and for prompts that leave no room for a response.
        """
        ...


class HuggingFaceEngine:
    """Samples with Hugging Face `generate`, from the very weights that are being trained."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def generate(self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int) -> Rollout:
        """See `RolloutEngine.generate`."""
        if not prompts:
            raise SteerError("rollout: zero prompts to sample from; give at least one problem")
        model, tokenizer = self.policy.model, self.policy.tokenizer
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        room = self.policy.positions - encoded["input_ids"].shape[1]
        if sampling.max_new_tokens > room:
            raise SteerError(
                f"max_new_tokens: {sampling.max_new_tokens} is more than the {room} of the model's "
                f"{self.policy.positions} positions that the longest prompt leaves; set it to {room} or less"
            )
        prompt_ids = encoded["input_ids"].repeat_interleave(responses, 0).to(model.device)
        prompt_mask = encoded["attention_mask"].repeat_interleave(responses, 0).to(model.device)
        settings = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        ids = torch.full((len(prompt_ids), sampling.max_new_tokens), tokenizer.pad_token_id, device=model.device)
        for start in range(0, len(ids), sampling.batch_sequences):
            rows = slice(start, start + sampling.batch_sequences)
            full = model.generate(
                input_ids=prompt_ids[rows], attention_mask=prompt_mask[rows], generation_config=settings
            )
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


def response_mask(ids_BT: Tensor, eos_token_id: int) -> tuple[Tensor, Tensor]:
    """(mask_BT, stopped_B): True up to and including the first end token; which rows have one."""
    is_end = ids_BT == eos_token_id
    before = is_end.cumsum(-1) - is_end.long()
    return before == 0, is_end.any(-1)
