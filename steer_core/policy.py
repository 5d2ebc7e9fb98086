"""The policy: a Hugging Face causal model with its tokenizer, loaded strictly, and its scoring pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

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


def load_policy(path: str, prompt: str | None = None) -> Policy:
    """The policy in a model folder, in float32; `embedded` is the Countdown model shipped here.

    Raises SteerError for a folder that is missing, holds no causal language model, or holds weights
    of another architecture (nothing is ever initialised at random in silence). With `prompt`, also
    for a tokenizer that does not fit the model or cannot carry that prompt.
    """
    folder = EMBEDDED if path == "embedded" else Path(path)
    if not (folder / "config.json").is_file():
        raise SteerError(f"model.path: {path} holds no config.json; give a Hugging Face model folder, or `embedded`")
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
    if prompt is not None:
        check_tokenizer(tokenizer, model.config.vocab_size, prompt)
    return Policy(model.eval(), tokenizer)


def score(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    response_ids_BT: Tensor,
    response_mask_BT: Tensor,
    temperature: float,
) -> TokenStats:
    """Statistics of the policy at every response token, from one forward pass; shape (B, T).

    Prompts are padded on the left and responses on the right. Masked positions get logprob 0 and no
    gradient. Differentiable in `logprob` and `entropy`.
    """
    mask = torch.cat([prompt_mask_BP, response_mask_BT.to(prompt_mask_BP.dtype)], dim=1)
    width = response_ids_BT.shape[1]
    logits = model(
        input_ids=torch.cat([prompt_ids_BP, response_ids_BT], dim=1),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
        logits_to_keep=width + 1,
        use_cache=False,
    ).logits
    labels = response_ids_BT.masked_fill(~response_mask_BT.bool(), IGNORED_LABEL)
    labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)  # the last row predicts nothing
    return token_stats(logits, labels, temperature).map(lambda x: x[:, :width])
