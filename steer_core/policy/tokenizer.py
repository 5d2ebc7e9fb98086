"""A character tokenizer as a real `PreTrainedTokenizerFast`, and the checks that one fits a model and a task."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from steer_core.common.errors import SteerError
from steer_core.common.files import read_json

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
_IDS = 1 << 31
"""Above every token id that there can be."""


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token a character of `characters`, after <pad> (0), <eos> (1) and <unk> (2); pads left."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> None:
    """Raise SteerError unless the tokenizer fits the model and can end a response."""
    if tokenizer.eos_token_id is None:
        raise SteerError("model.path: the tokenizer has no eos token; set eos_token in its tokenizer_config.json")
    own = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    if len(own) <= 1:  # transformers makes such a one where the files are missing
        raise SteerError(
            "model.path: the tokenizer knows no token but special ones: its tokenizer.json, or the files of its "
            "vocabulary, are missing; copy the folder again, tokenizer included"
        )
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if last >= vocabulary_size and len(tokenizer) <= vocabulary_size:
        raise SteerError(
            f"model.path: the tokenizer gives {token!r} the id {last} and the model embeds {vocabulary_size} ids, from "
            "0; use the tokenizer that was saved with this model"
        )
    if len(tokenizer) > vocabulary_size:
        raise SteerError(
            f"model.path: the tokenizer has {len(tokenizer)} tokens and the model embeds {vocabulary_size}; "
            "use the tokenizer that was saved with this model"
        )


def end_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response: the tokenizer's end token, then what the folder names as `eos_token_id`.

    Where generation_config.json says nothing config.json is asked, as in transformers. Raises SteerError for what is
    no token id.
    """
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).exists():
            continue
        told = read_json(folder / name, "model.path:", "save the model again with save_pretrained").get("eos_token_id")
        if told is not None:
            ids = told if isinstance(told, list) else [told]
            if not all(type(token) is int and 0 <= token < _IDS for token in ids):
                raise SteerError(f"model.path: {folder / name}: eos_token_id: {told!r} is no token id; mend it")
            return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))
    return [tokenizer.eos_token_id]


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    """Raise SteerError unless the tokenizer carries a task's prompt there and back."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.decode(ids) != prompt:
        raise SteerError(
            f"model.path: the tokenizer turns the prompt {prompt[:80]!r} into {tokenizer.decode(ids)[:80]!r}; "
            "use a tokenizer whose vocabulary covers the task's characters"
        )
