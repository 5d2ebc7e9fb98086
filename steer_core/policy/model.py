"""The policy: a Hugging Face causal model with its tokenizer, loaded strictly, and its scoring pass."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
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
from steer_core.policy.smoke import SMOKE, smoke_model
from steer_core.policy.tokenizer import check_tokenizer


@dataclass(frozen=True)
class Policy:
    """A causal language model and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def positions(self) -> int:
        """Longest prompt plus response the model has positions for."""
        return self.model.config.max_position_embeddings


def model_folder(path: str) -> Path:
    """The folder that `model.path` names. Raises SteerError where it holds no model."""
    if not path:
        raise SteerError("model.path: is empty; give a Hugging Face model folder, or `embedded`")
    folder = EMBEDDED if path == "embedded" else smoke_model() if path == SMOKE else Path(path)
    if not (folder / "config.json").is_file():
        raise SteerError(f"model.path: {path} holds no config.json; give a Hugging Face model folder, or `embedded`")
    return folder


def base_digest(path: str) -> str:
    """SHA-256 over the weight files of a model folder."""
    files = sorted(model_folder(path).glob("*.safetensors"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


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
    folder = model_folder(path)
    try:
        logging.disable_progress_bar()  # a bar for the 38 tensors of a small model says nothing
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            local_files_only=True,
            output_loading_info=True,
            **({} if attention == "auto" else {"attn_implementation": attention}),
        )
    except Exception as error:  # whatever a broken or foreign folder makes the loaders raise
        if attention != "auto" and isinstance(error, ImportError | ValueError):
            raise SteerError(
                f"model.attention: {attention} does not load ({one_line(error, 300)}); install what it names, or set "
                "model.attention=auto"
            ) from error
        raise _does_not_load(path, error) from error
    tokenizer = load_tokenizer(path)
    unfit = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if unfit:
        raise SteerError(
            f"model.path: {path} holds weights that do not fit its config.json ({len(unfit)}, such as {unfit[0]}); "
            "use a folder whose weights and config.json belong together"
        )
    check_tokenizer(tokenizer, model.config.vocab_size)
    # `generate` fills what a caller leaves open from here: a folder's own penalties would make the
    # sampler another policy than the one that is scored.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    for module in model.modules():  # a policy is one distribution, in training mode too
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return Policy(model.eval().to(device), tokenizer)


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
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    except Exception as error:  # whatever a broken or foreign folder makes the loader raise
        raise _does_not_load(path, error) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _does_not_load(path: str, error: Exception) -> SteerError:
    return SteerError(
        f"model.path: {path} does not load as a causal language model "
        f"({type(error).__name__}: {one_line(error, 300)}); save it again with save_pretrained, tokenizer included"
    )
