"""The policy: a Hugging Face causal model with its tokenizer, loaded strictly, and its scoring pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from steer_core.common.errors import SteerError, one_line
from steer_core.common.files import sha256
from steer_core.common.places import EMBEDDED
from steer_core.policy.folder import (
    INDEX,
    SAFE,
    check_kinds,
    check_weight_files,
    does_not_load,
    positions_of,
    read_config,
)
from steer_core.policy.smoke import SMOKE, smoke_model
from steer_core.policy.tokenizer import check_tokenizer, end_tokens

_SETTINGS = ("*.json", "*.jinja", "merges.txt", "tokenizer.model", "*.tiktoken")


@dataclass(frozen=True)
class Policy:
    """A causal language model and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def positions(self) -> int:
        """Longest prompt plus response the model has positions for."""
        return positions_of(self.model.config)

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a response; see `tokenizer.end_tokens`."""
        told = self.model.generation_config.eos_token_id
        ids = told if isinstance(told, list) else [] if told is None else [told]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *ids]))


def model_folder(path: str) -> Path:
    """The folder that `model.path` names. Raises SteerError where it holds no model."""
    if not path:
        raise SteerError("model.path: is empty; give a Hugging Face model folder, or `embedded`")
    folder = EMBEDDED if path == "embedded" else smoke_model() if path == SMOKE else Path(path)
    if not (folder / "config.json").is_file():
        raise SteerError(f"model.path: {path} holds no config.json; give a Hugging Face model folder, or `embedded`")
    check_kinds(folder, path)
    return folder


def base_digest(path: str) -> str:
    """SHA-256 over the weight files of a model folder. Raises SteerError where they are not what would be loaded."""
    folder = model_folder(path)
    check_weight_files(folder, path)
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def settings_digests(path: str) -> dict[str, str]:
    """By name the SHA-256 of the files beside the weights that make the policy: its configuration and its tokenizer."""
    folder = model_folder(path)
    found = {file for kind in _SETTINGS for file in folder.glob(kind) if file.name != INDEX}
    return {file.name: sha256(file) for file in sorted(found)}


def load_policy(
    path: str, device: str = "cpu", dtype: str | torch.dtype = "float32", attention: str = "auto"
) -> Policy:
    """The policy in a model folder; `embedded` is the Countdown model shipped here, `smoke` a tiny random one.

    The words are those of a configuration's `model` section: `load_policy(**vars(config.model))`.

    Raises SteerError for a folder that is missing, holds no causal language model, or holds weights
    of another architecture (nothing is ever initialised at random in silence), for a tokenizer that
    does not fit the model, and for a device that is not there.
    """
    check_device(device)
    model = load_model(path, getattr(torch, dtype) if isinstance(dtype, str) else dtype, attention)
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, model.config.get_text_config().vocab_size)
    # `generate` fills what a caller leaves open from here: a folder's own penalties would make the
    # sampler another policy than the one that is scored. Its end tokens stay.
    ends = end_tokens(model_folder(path), tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return Policy(model.to(device), tokenizer)


def load_model(path: str, dtype: torch.dtype, attention: str = "auto") -> PreTrainedModel:
    """The model in a folder, in evaluation mode, on the CPU, by transformers' own loader; see `load_policy`."""
    folder = model_folder(path)
    check_weight_files(folder, path)
    config = read_config(folder, path)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SteerError(
            f"model.path: {path} is of the architecture {config.model_type!r}, for which transformers has no causal "
            "language model; use one that AutoModelForCausalLM knows"
        )
    chosen: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    if dtype is torch.float64:
        chosen["experts_implementation"] = "eager"  # the grouped product of experts has no float64
    told = logging.get_verbosity()
    try:
        logging.disable_progress_bar()  # a bar for the 38 tensors of a small model says nothing
        logging.set_verbosity_error()  # what does not fit is told below, in one line
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **SAFE, **chosen
        )
    except Exception as error:  # whatever a broken or foreign folder makes the loaders raise
        if attention != "auto" and isinstance(error, ImportError | ValueError):
            raise SteerError(
                f"model.attention: {attention} does not load ({one_line(error, 300)}); install what it names, or set "
                "model.attention=auto"
            ) from error
        raise does_not_load(path, error) from error
    finally:
        logging.set_verbosity(told)
    unfit = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if unfit:
        raise SteerError(
            f"model.path: {path} holds weights that do not fit its config.json ({len(unfit)}, such as {unfit[0]}); "
            "use a folder whose weights and config.json belong together"
        )
    if dtype is torch.float64:
        for parameter in model.parameters():
            parameter.data = parameter.data.double()  # routers that transformers keeps in float32
    for module in model.modules():  # rates that no configuration sets
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.eval()


def persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint must hold besides parameters, by name: Gemma 4's `layer_scalar`, a router's correction."""
    kept = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def check_device(device: str) -> None:
    """Raise SteerError for a device that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SteerError(f"model.device: {device} is asked for and torch finds no CUDA GPU; set model.device=cpu")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder, padding on the left, by its end token where it has no other.

    Raises SteerError for a folder without one that loads.
    """
    folder = model_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **SAFE)
    except Exception as error:  # whatever a broken or foreign folder makes the loader raise
        raise does_not_load(path, error) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
