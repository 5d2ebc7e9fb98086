"""Sampling with Hugging Face `generate`, from the very weights that are being trained: for any model."""

from __future__ import annotations

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
)

from steer_core.common.errors import NotFiniteError
from steer_core.config.sections import SamplingConfig
from steer_core.policy.model import Policy
from steer_core.rollout.local import Decoded, LocalSampler, holds_stop, pick


class HuggingFaceSampler(LocalSampler):
    """Samples with Hugging Face `generate`."""

    def __init__(
        self, policy: Policy, draws: Literal["batch", "prompt"] = "batch", lockstep: bool = False, reason: str = ""
    ) -> None:
        """draws: see `rollout.draws`. lockstep: every rank makes as many forward passes, as shared weights need.

        reason: why it takes the place of native, in words.
        """
        super().__init__(policy)
        self.told = f"huggingface{f' ({reason})' if reason else ''}"
        self.draws_by_prompt, self.lockstep = draws == "prompt", lockstep

    def settings(self, sampling: SamplingConfig) -> GenerationConfig:
        """What `generate` is told."""
        return generation_settings(self.policy, sampling)

    def decode(
        self, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, draws_BT: Tensor | None, sampling: SamplingConfig
    ) -> Decoded:
        """See `LocalSampler.decode`."""
        tokenizer, width, longest = self.policy.tokenizer, prompt_ids_BP.shape[1], sampling.max_new_tokens
        settings = self.settings(sampling)
        if draws_BT is not None:
            settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
        ids_BT = torch.full((len(prompt_ids_BP), longest), tokenizer.pad_token_id, device=prompt_ids_BP.device)
        ended_B = torch.full((len(ids_BT),), longest + 1, device=ids_BT.device)
        try:
            full = self.policy.model.generate(
                input_ids=prompt_ids_BP,
                attention_mask=prompt_mask_BP,
                generation_config=settings,
                logits_processor=LogitsProcessorList([] if draws_BT is None else [_Draw(draws_BT, sampling)]),
                stopping_criteria=StoppingCriteriaList(
                    [_StopTexts(tokenizer, sampling.stop, ended_B, width)] if sampling.stop else []
                ),
                synced_gpus=self.lockstep,
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise NotFiniteError("model: NaN or infinite logits while sampling; check its weights") from error
        response = full[:, width:]
        ids_BT[:, : response.shape[1]] = response
        return Decoded(ids_BT, ended_B)


class _Draw(LogitsProcessor):
    """Of each row's logits, leaves the token that `pick` picks with the row's own number."""

    def __init__(self, draws_BT: Tensor, sampling: SamplingConfig) -> None:
        self.draws, self.sampling, self.step = draws_BT, sampling, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_B = pick(scores, self.draws[:, self.step], self.sampling)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen_B[:, None], 0.0)


class _StopTexts(StoppingCriteria):
    """Ends a row once its response holds one of some texts, and writes down with how many tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], ended_B: Tensor, width: int) -> None:
        """ended_B: where the lengths go. width: tokens of the prompts."""
        self.tokenizer, self.stop, self.ended, self.width = tokenizer, stop, ended_B, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        length = input_ids.shape[1] - self.width
        holds_B = holds_stop(self.tokenizer, input_ids[:, self.width :], self.stop)
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
