"""DeepSpeed's ZeRO: ranks share out the optimiser, gradients and weights.

    pip install -c constraints.txt -e '.[deepspeed]'
    torchrun --nproc-per-node 8 -m steer_core train CONFIG engine.name=deepspeed --out RUN

Losses come in as shares of one sum, so DeepSpeed's averages over ranks are scaled back, and its own count of
micro-batches is not used: the trainer says which one is a step's last.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension
from transformers import PreTrainedModel

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.config.config import Config
from steer_core.engines.build_lock import OwnedBaton
from steer_core.engines.local import make_optimizer
from steer_core.policy.model import persistent_buffers

_FOLDER = "deepspeed"


class ZeroEngine:
    """See `TrainingEngine`. Raises SteerError where DeepSpeed is not importable."""

    def __init__(self, model: PreTrainedModel, config: Config) -> None:
        self.deepspeed = _deepspeed(config.model.device)
        self.stage, self.model = config.engine.zero_stage, model
        _meet(config)
        if self.stage == 3:  # weight by weight: no GPU ever holds all of them
            self.deepspeed.zero.Init(module=model, config_dict_or_path=settings(config), dtype=model.dtype)
            for buffer in model.buffers():
                buffer.data = buffer.data.to(config.model.device)
        self.engine, *_ = self.deepspeed.initialize(
            model=model,
            model_parameters=list(model.parameters()),
            optimizer=make_optimizer(model, config.optimizer),
            config=settings(config),
        )
        if hasattr(self.engine.optimizer, "check_grad_overflow"):  # stage 1 and 2 look in bf16 alone
            self.engine.optimizer.check_grad_overflow = True
        self.engine.checkpoint_engine.load = _load_without_code
        self.engine.checkpoint_engine.save = _keeping_disk_errors(self.engine.checkpoint_engine.save)
        self.optimizer = self.engine.basic_optimizer

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `TrainingEngine.backward`."""
        self.engine.set_gradient_accumulation_boundary(last)
        if hasattr(self.engine.optimizer, "clear_backward_seen_flag"):  # or stage 3 forgets the micro-batches before
            self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss * ranks.world_size())

    def step(self) -> float | None:
        """See `TrainingEngine.step`."""
        norm = None
        if self.stage == 0:  # every rank holds the summed gradients whole, and DeepSpeed neither looks nor tells
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                self.engine.zero_grad()
                return None
        self.engine.step()
        if getattr(self.engine.optimizer, "overflow", False):
            return None
        return float(self.engine.get_global_grad_norm()) if norm is None else norm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `TrainingEngine.weights`; under stage 3 each is gathered from all ranks."""
        for name, parameter in self.model.named_parameters():
            whole = self.deepspeed.zero.GatheredParameters([parameter]) if self.stage == 3 else nullcontext()
            with whole:
                yield name, parameter.detach()
        yield from persistent_buffers(self.model)

    def save(self, folder: Path) -> dict[str, Any]:
        """See `TrainingEngine.save`; DeepSpeed's own files, a part for every rank."""
        self.engine.save_checkpoint(str(folder), tag=_FOLDER, save_latest=False)
        return {"engine": "deepspeed", "ranks": ranks.world_size()}

    def load(self, folder: Path, about: dict[str, Any]) -> None:
        """See `TrainingEngine.load`. Raises SteerError where another number of ranks wrote it."""
        if about["ranks"] != ranks.world_size():
            raise SteerError(
                f"checkpoint {folder}: {about['ranks']} ranks wrote it, and {ranks.world_size()} read it; start as "
                "many, or train on from its weights with model.path"
            )
        try:
            self.engine.load_checkpoint(str(folder), tag=_FOLDER)
        except pickle.UnpicklingError as error:
            (found,) = re.findall(r"GLOBAL (\S+)", str(error))[:1] or ["another class"]
            raise SteerError(
                f"checkpoint {folder}: holds more than tensors and settings ({found}), which loading would execute; "
                "go on from one that this run wrote"
            ) from error


def settings(config: Config) -> dict[str, Any]:
    """DeepSpeed's configuration for ours; what a step's micro-batches are is the trainer's business.

    From stage 1 on, bfloat16 gradients are summed in float32, over micro-batches and ranks; stage 0 rounds each sum.
    """
    engine, bfloat = config.engine, config.model.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": engine.zero_stage, "overlap_comm": False}
    if engine.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16": {"enabled": bfloat, "immediate_grad_update": True},  # or stage 1 adds a micro-batch again and again
        "communication_data_type": "fp32",
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bfloat and engine.zero_stage else {}),
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": sys.maxsize,
    }


def _deepspeed(device: str) -> Any:
    """The package, told which machine it runs on before it looks for itself."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # for ninja
    try:
        import deepspeed
    except ImportError as error:
        raise SteerError(
            f"engine.name: deepspeed is asked for and is not importable ({error}); "
            "pip install -c constraints.txt -e '.[deepspeed]', or set engine.name=local"
        ) from error
    deepspeed.utils.logging.set_log_level_from_string("warning")
    cpp_extension.FileBaton = OwnedBaton
    return deepspeed


def compile_ops() -> None:
    """Compile what a run on a CPU needs of DeepSpeed's ops, so that none has to at its first use."""
    _deepspeed("cpu")
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, ShareMemCommBuilder

    for builder in (CPUAdamBuilder(), ShareMemCommBuilder()):
        builder.load(verbose=False)


def _meet(config: Config) -> None:
    """DeepSpeed wants a process group even alone."""
    if torch.distributed.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "nccl" if config.model.device == "cuda" else "gloo"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def _keeping_disk_errors(save: Callable[..., None]) -> Callable[..., None]:
    """DeepSpeed's saving of a file, with the OSError that torch makes a RuntimeError of."""

    def saved(state_dict: dict[str, Any], path: str) -> None:
        try:
            save(state_dict, path)
        except RuntimeError as error:
            raise OSError(f"{Path(path).name}: {str(error).splitlines()[0][:200]}") from error

    return saved


def _load_without_code(path: str, map_location: Any = None) -> Any:
    """DeepSpeed's files as tensors and plain values; of its own classes the three named here, all else is refused."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)
