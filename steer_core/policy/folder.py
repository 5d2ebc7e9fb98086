"""A model folder before anything of it is loaded: its configuration, and the files that hold its weights.

Nothing in a folder is executed: code that comes with a model (`auto_map` in its config.json) is not run, and weights
are read from safetensors alone, which are what `base_digest` hashes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from steer_core.common.errors import SteerError, one_line
from steer_core.common.files import read_json

SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""For every loader of transformers: fetch nothing, and run no code of the folder."""
UNLIMITED = 1 << 30
"""Positions of a model without a longest sequence (ALiBi, state spaces)."""
_WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.safetensors", "*.npz")
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Ends of the names of files that loaders read."""
_RANDOM = re.compile("drop|jitter")


def read_config(folder: Path, path: str) -> PreTrainedConfig:
    """The configuration in a folder, without any randomness of training mode; path: what errors call the folder.

    A policy is one distribution, so whatever drops or jitters (dropout, layerdrop, router jitter) is set to 0 before
    a model is built from it. Raises SteerError for a file that is damaged, for an architecture whose code is not in
    transformers, and for quantised weights.
    """
    file = folder / "config.json"
    held = read_json(file, "model.path:", "save the model again with save_pretrained")
    if not isinstance(held.get("model_type"), str):
        raise SteerError(
            f"model.path: {file} is no model's configuration, for it has no `model_type`; save the model again with "
            "save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(folder, **SAFE)
    except Exception as error:  # whatever a foreign configuration makes the loader raise
        if "auto_map" in held:
            raise SteerError(
                f"model.path: {path} is of the architecture {held['model_type']!r}, whose code comes with the folder "
                "and is not run; use a model whose architecture is in transformers"
            ) from error
        raise does_not_load(path, error) from error
    for key, remedy in (("quantization_config", "save it dequantised"), ("transformers_weights", "save it again")):
        if getattr(config, key, None):
            raise SteerError(f"model.path: {path} has {key} in its config.json, which is not supported; {remedy}")
    config._attn_implementation = None  # a folder could name a kernel that is fetched; model.attention decides
    without_randomness(config)
    return config


def without_randomness(config: PreTrainedConfig | dict[str, Any]) -> None:
    """Set every rate of dropout, layerdrop and jitter to 0, in configurations within it too."""
    values = config if isinstance(config, dict) else vars(config)
    for name, value in list(values.items()):
        if isinstance(value, PreTrainedConfig | dict):
            without_randomness(value)
        elif isinstance(value, float) and _RANDOM.search(name):
            values[name] = 0.0


def check_kinds(folder: Path, path: str) -> None:
    """Raise SteerError for a file that a loader would wait at for ever, or not find: a pipe, a link to nothing."""
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ and not file.is_file() and not file.is_dir():
            raise SteerError(
                f"model.path: {path}: {file.name} is no regular file, or a link to nothing; copy the folder again"
            )


def positions_of(config: PreTrainedConfig) -> int:
    """Longest prompt plus response that a model has positions for, `UNLIMITED` where there is no such limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len"):
        if isinstance(getattr(text, name, None), int):
            return getattr(text, name)
    return UNLIMITED


def check_weight_files(folder: Path, path: str) -> None:
    """Raise SteerError unless a folder's weights are model.safetensors, or all the parts that its index names."""
    if (folder / "adapter_config.json").exists():
        raise SteerError(
            f"model.path: {path} holds an adapter, not a model; merge it into its base model "
            "(peft's merge_and_unload) and save_pretrained the result"
        )
    if (folder / _WHOLE).is_file():
        return
    if (folder / INDEX).is_file():
        _check_index(folder, path)
        return
    others = sorted({file.name for kind in _OTHER_WEIGHTS for file in folder.glob(kind) if file.is_file()})
    if others:
        raise SteerError(
            f"model.path: {path} holds its weights as {others[0]}, and only {_WHOLE} (or its parts with {INDEX}) is "
            f'read; convert it: python -c "from transformers import AutoModelForCausalLM as A; '
            f"A.from_pretrained('{path}', dtype='auto').save_pretrained('{path}')\""
        )
    raise SteerError(f"model.path: {path} holds no weights ({_WHOLE}); copy the folder again, weights included")


def _check_index(folder: Path, path: str) -> None:
    parts = read_json(folder / INDEX, "model.path:", "copy it again").get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise SteerError(f"model.path: {folder / INDEX}: weight_map names no files; copy it again")
    names = sorted(set(parts.values()))
    strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    lost = [name for name in names if not (folder / name).is_file()]
    for found, what in ((strange, "is no safetensors file beside it"), (lost, "is not there")):
        if found:
            raise SteerError(
                f"model.path: {path}: {found[0]}, which {INDEX} names, {what}; copy the folder again, all its parts"
            )
    if not names:
        raise SteerError(f"model.path: {path}: {INDEX} names no file; copy the folder again")


def does_not_load(path: str, error: Exception) -> SteerError:
    """What a folder's loader raised, on one line with the remedy."""
    return SteerError(
        f"model.path: {path} does not load as a causal language model "
        f"({type(error).__name__}: {one_line(error, 300)}); save it again with save_pretrained, tokenizer included"
    )
