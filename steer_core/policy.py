"""The policy: a Hugging Face causal model with its tokenizer, loaded strictly, and its scoring pass."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from steer_core.environment import sha256
from steer_core.errors import SteerError
from steer_core.token_stats import IGNORED_LABEL, TokenStats, token_stats
from steer_core.tokenizer import check_tokenizer

EMBEDDED = Path(__file__).parent / "models" / "countdown"


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
    folder = EMBEDDED if path == "embedded" else Path(path)
    if not (folder / "config.json").is_file():
        raise SteerError(f"model.path: {path} holds no config.json; give a Hugging Face model folder, or `embedded`")
    return folder


def base_digest(path: str) -> str:
    """SHA-256 over the weight files of a model folder."""
    files = sorted(model_folder(path).glob("*.safetensors"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def load_policy(path: str, prompt: str | None = None) -> Policy:
    """The policy in a model folder, in float32; `embedded` is the Countdown model shipped here.

    Raises SteerError for a folder that is missing, holds no causal language model, or holds weights
    of another architecture (nothing is ever initialised at random in silence). With `prompt`, also
    for a tokenizer that does not fit the model or cannot carry that prompt.
    """
    folder = model_folder(path)
    try:
        logging.disable_progress_bar()  # a bar for the 38 tensors of a small model says nothing
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    except Exception as error:  # whatever a broken or foreign folder makes the loaders raise
        reason = " ".join(str(error).split())[:300]
        raise SteerError(
            f"model.path: {path} does not load as a causal language model ({type(error).__name__}: {reason}); "
            "save it again with save_pretrained, tokenizer included"
        ) from error
    unfit = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if unfit:
        raise SteerError(
            f"model.path: {path} holds weights that do not fit its config.json ({len(unfit)}, such as {unfit[0]}); "
            "use a folder whose weights and config.json belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # `generate` fills what a caller leaves open from here: a folder's own penalties would make the
    # sampler another policy than the one that is scored.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    if prompt is not None:
        check_tokenizer(tokenizer, model.config.vocab_size, prompt)
    return Policy(model.eval(), tokenizer)


@dataclass(frozen=True)
class Sequences:
    """Prompts padded on the left and responses padded on the right.

    The masks are 1 (or True) at tokens; the end-of-sequence token is part of the response.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor

    def rows(self, rows: slice | list[int]) -> Sequences:
        """Some of the sequences, without the columns that are padding in all of them."""
        prompt_mask, response_mask = self.prompt_mask_BP[rows], self.response_mask_BT[rows]
        first = int(prompt_mask.any(0).int().argmax())
        width = max(int(response_mask.sum(-1).max()), 1)
        return Sequences(
            self.prompt_ids_BP[rows, first:],
            prompt_mask[:, first:],
            self.response_ids_BT[rows, :width],
            response_mask[:, :width],
        )


def score(model: PreTrainedModel, sequences: Sequences, temperature: float) -> TokenStats:
    """Statistics of the policy at every response token, from one forward pass; shape (B, T).

    Masked positions get logprob 0 and no gradient through it. Differentiable in `logprob` and
    `entropy`.
    """
    response_ids_BT, response_mask_BT = sequences.response_ids_BT, sequences.response_mask_BT
    mask = torch.cat([sequences.prompt_mask_BP, response_mask_BT.to(sequences.prompt_mask_BP.dtype)], dim=1)
    width = response_ids_BT.shape[1]
    logits = model(
        input_ids=torch.cat([sequences.prompt_ids_BP, response_ids_BT], dim=1),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
        logits_to_keep=width + 1,
        use_cache=False,
    ).logits
    labels = response_ids_BT.masked_fill(~response_mask_BT.bool(), IGNORED_LABEL)
    labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)  # the last row predicts nothing
    return token_stats(logits, labels, temperature).map(lambda x: x[:, :width])
