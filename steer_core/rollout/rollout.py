"""Rollouts: prompts in, sampled responses out, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from steer_core.common.errors import SteerError
from steer_core.config.sections import SamplingConfig
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.policy.sequences import Sequences


@dataclass(frozen=True)
class Rollout(Sequences):
    """Sampled responses; row b belongs to prompt b // group.

    finish_reasons: "stop" where an end token ended the response and is its last token, "text" where a text of
    `sampling.stop` did, whose tokens are its last ones and no part of its text, "length" where it was cut off.
    """

    texts: list[str]
    finish_reasons: list[str]
    logprobs_BT: Tensor | None = None
    """What the sampler says it sampled with, ln p, 0 at padding; None where it does not say."""
    stats: TokenStats | None = None
    """Statistics (B, T) at every sampled token from the logits that it was sampled from; None where not kept."""

    def take(self, rows: Sequence[int]) -> Rollout:
        """Some of the responses; padding, the sampler's log-probs and statistics are kept."""
        rows = list(rows)
        return Rollout(
            self.prompt_ids_BP[rows],
            self.prompt_mask_BP[rows],
            self.response_ids_BT[rows],
            self.response_mask_BT[rows],
            [self.texts[i] for i in rows],
            [self.finish_reasons[i] for i in rows],
            None if self.logprobs_BT is None else self.logprobs_BT[rows],
            None if self.stats is None else self.stats[rows],
        )

    def last_tokens(self) -> list[int]:
        """The last token of each response: which end it got, where its finish reason is "stop"."""
        last_B = self.response_mask_BT.long().sum(-1).sub(1).clamp_min(0)
        return self.response_ids_BT.gather(1, last_B[:, None])[:, 0].tolist()

    def sampler_logprobs(self) -> Tensor:
        """`logprobs_BT`. Raises SteerError where the sampler does not say them."""
        if self.logprobs_BT is None:
            raise SteerError(
                "rollout.engine: this sampler does not say which log-probs it sampled with; set rollout.engine=vllm"
            )
        return self.logprobs_BT


def join(parts: Sequence[Rollout], pad_token_id: int) -> Rollout:
    """Rollouts behind one another, padded to the widest: prompts on the left, responses on the right.

    The sampler's log-probs and statistics are kept where every part has them.
    """
    width_P, width_T = (
        max(getattr(part, name).shape[1] for part in parts) for name in ("prompt_ids_BP", "response_ids_BT")
    )

    def padded(name: str, value: int) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        sides = [(width_P - t.shape[1], 0) if name.endswith("BP") else (0, width_T - t.shape[1]) for t in tensors]
        return torch.cat([pad(t, side, value=value) for t, side in zip(tensors, sides, strict=True)])

    stats = [
        None if part.stats is None else part.stats.map(lambda x: pad(x, (0, width_T - x.shape[1]))) for part in parts
    ]
    return Rollout(
        padded("prompt_ids_BP", pad_token_id),
        padded("prompt_mask_BP", 0),
        padded("response_ids_BT", pad_token_id),
        padded("response_mask_BT", 0),
        [text for part in parts for text in part.texts],
        [reason for part in parts for reason in part.finish_reasons],
        None if any(part.logprobs_BT is None for part in parts) else padded("logprobs_BT", 0),
        concatenate([one for one in stats if one is not None]) if all(stats) else None,
    )


def told(
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[Sequence[int]],
    by_text: Sequence[bool],
    end_tokens: Sequence[int],
    stop: Sequence[str],
) -> tuple[list[str], list[str]]:
    """(texts, finish reasons) of responses without padding. by_text: which were ended by a text of `stop`.

    Special tokens other than the end token stay visible to the verifier.
    """
    reasons = [
        "stop" if len(ids) and ids[-1] in end_tokens else "text" if cut else "length"
        for ids, cut in zip(responses, by_text, strict=True)
    ]
    kept = [list(ids[:-1] if why == "stop" else ids) for ids, why in zip(responses, reasons, strict=True)]
    texts = tokenizer.batch_decode(kept)
    return [before(text, stop) if why == "text" else text for text, why in zip(texts, reasons, strict=True)], reasons


def before(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    return text[: min([text.find(end) for end in stop if end in text], default=None)]


class Sampler(Protocol):
    """What samples: the trainer and the evaluator know nothing more of it. told: which it is, in words."""

    told: str

    def generate(
        self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int, places: list[int] | None = None
    ) -> Rollout:
        """`responses` responses to each prompt; the same seed gives the same responses.

        places: where each prompt stands among those of all ranks (default: from 0 on), which with the seed
        sets its random numbers. Raises SteerError for zero prompts and for prompts that leave no room for a response.
        """
        ...

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Sample from these weights from now on."""
        ...
