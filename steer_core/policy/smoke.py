"""A tiny language model with random weights that reads any text: what `--scale smoke` puts in a real model's place.

It is a Qwen2 of 0.4M parameters with one token a byte and Qwen's chat template, made where it is first asked for.
It knows nothing, so its rewards are almost always 0; what it shows is that a configuration runs from end to end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from steer_core.common.errors import SteerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SMOKE = "smoke"
"""The `model.path` that names this model."""
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""The model's shape: several heads that share keys, of a size (32) that every attention kernel takes."""
_VERSION, _SEED = 1, 20251010
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def smoke_model(folder: str | Path | None = None) -> Path:
    """The folder of the smoke model, which is made there at the first call; the same weights everywhere.

    folder: where; by default below XDG_CACHE_HOME or ~/.cache. Several processes may call at once. Raises SteerError
    where the folder cannot be written.
    """
    folder = cache_folder() if folder is None else Path(folder)
    if all((folder / name).is_file() for name in _NEEDED):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise SteerError(
            f"model.path: smoke is made in {folder}, which cannot be written ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can"
        ) from error
    try:
        _make(aside)
        try:
            aside.rename(folder)
        except OSError:  # another process was first, or an incomplete folder is in the way
            if not all((folder / name).is_file() for name in _NEEDED):
                shutil.rmtree(folder)
                aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """Where the smoke model is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "steer-core" / f"smoke-{_VERSION}"


def _make(folder: Path) -> None:
    """Write model and tokenizer; torch's own random numbers stay where they were."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = byte_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SIZES, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, then Qwen's three special tokens; a response ends with <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, START, STOP])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
