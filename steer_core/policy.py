"""The policy: a Hugging Face causal model with its tokenizer, loaded strictly, and its scoring pass."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging

from steer_core import ranks
from steer_core.config import ModelConfig
from steer_core.environment import sha256
from steer_core.errors import SteerError
from steer_core.smoke import SMOKE, smoke_model
from steer_core.token_stats import IGNORED_LABEL, TokenStats, concatenate, token_stats
from steer_core.tokenizer import check_tokenizer

EMBEDDED = Path(__file__).parent / "models" / "countdown"
_LOGITS_AT_ONCE = 1 << 25


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
    folder = EMBEDDED if path == "embedded" else smoke_model() if path == SMOKE else Path(path)
    if not (folder / "config.json").is_file():
        raise SteerError(f"model.path: {path} holds no config.json; give a Hugging Face model folder, or `embedded`")
    return folder


def base_digest(path: str) -> str:
    """SHA-256 over the weight files of a model folder."""
    files = sorted(model_folder(path).glob("*.safetensors"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def load_policy(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, attention: str = "auto") -> Policy:
    """The policy in a model folder; `embedded` is the Countdown model shipped here. attention: see `model.attention`.

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
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            **({} if attention == "auto" else {"attn_implementation": attention}),
        )
    except Exception as error:  # whatever a broken or foreign folder makes the loaders raise
        if attention != "auto" and isinstance(error, ImportError | ValueError):
            raise SteerError(
                f"model.attention: {attention} does not load ({_line(error)}); install what it names, or set "
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


def policy_of(config: ModelConfig, folder: str | None = None) -> Policy:
    """The policy that a configuration names, or that of another folder with the same device, precision and attention.

    Raises SteerError as `load_policy` does.
    """
    return load_policy(folder or config.path, config.device, getattr(torch, config.dtype), config.attention)


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
        f"model.path: {path} does not load as a causal language model ({type(error).__name__}: {_line(error)}); "
        "save it again with save_pretrained, tokenizer included"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


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


def score(model: PreTrainedModel, sequences: Sequences, temperature: float, packed: bool = False) -> TokenStats:
    """Statistics of the policy at every response token, from one forward pass; shape (B, T).

    Masked positions get logprob 0 and no gradient through it. Differentiable in `logprob` and
    `entropy`. Where all logits at once would be many, they exist for some rows at a time, in the
    backward pass too: memory then grows with tokens x hidden size, not tokens x vocabulary.
    packed: the sequences go behind one another in one row, without padding; the attention
    implementation must find their borders from the positions.
    """
    count, width = sequences.response_ids_BT.shape
    logits = count * (width + 1) * model.config.vocab_size
    logits = ranks.largest(logits, model.device) if shared_out(model) else logits
    if not packed and logits <= _LOGITS_AT_ONCE:
        with full_precision(model):
            logits = model(**_model_inputs(sequences), logits_to_keep=width + 1).logits
        labels = torch.nn.functional.pad(_labels(sequences), (0, 1), value=IGNORED_LABEL)  # the last predicts nothing
        return token_stats(logits, labels, temperature).map(lambda x: x[:, :width])
    mask = sequences.response_mask_BT.bool()
    hidden_ND = packed_states(model, sequences) if packed else hidden_states(model, sequences)
    flat = _stats_by_rows(model, hidden_ND, sequences.response_ids_BT[mask], temperature)
    return flat.map(lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x))


def shared_out(model: PreTrainedModel) -> bool:
    """Whether ranks hold parts of every weight (ZeRO-3), so that all must make the same forward passes."""
    return ranks.count() > 1 and hasattr(next(model.parameters()), "ds_tensor")


def _stats_by_rows(model: PreTrainedModel, hidden_ND: Tensor, labels_N: Tensor, temperature: float) -> TokenStats:
    """Statistics at last hidden states, some rows at a time; the backward pass makes their logits anew."""

    def part(hidden: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(token_stats(logits_of(model, hidden), labels, temperature)).values())

    rows = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    count = max(1, -(-len(labels_N) // rows))
    count = ranks.largest(count, hidden_ND.device) if shared_out(model) else count
    parts = []
    for hidden, labels in zip(hidden_ND.tensor_split(count), labels_N.tensor_split(count), strict=True):
        stats = checkpoint(part, hidden, labels, use_reentrant=False) if hidden.requires_grad else part(hidden, labels)
        parts.append(TokenStats(*stats))
    return concatenate(parts)


def packed_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """As `hidden_states`, from a forward pass over one row that holds every sequence and no padding."""
    mask_BL = torch.cat([sequences.prompt_mask_BP.bool(), sequences.response_mask_BT.bool()], dim=1)
    ids_BL = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], dim=1)
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp_min(0)
    inputs = {"input_ids": ids_BL[mask_BL][None], "position_ids": positions_BL[mask_BL][None]}
    with full_precision(model):
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
    is_response = torch.zeros_like(mask_BL)
    is_response[:, sequences.prompt_mask_BP.shape[1] :] = sequences.response_mask_BT.bool()
    return hidden[is_response[mask_BL].roll(-1)]  # the state before a token predicts it


def hidden_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The last hidden states (N, D) that predict the N response tokens, row by row: the body's half of a forward."""
    width = sequences.response_ids_BT.shape[1]
    with full_precision(model):
        hidden = model.base_model(**_model_inputs(sequences)).last_hidden_state
    return hidden[:, -width - 1 : -1][sequences.response_mask_BT.bool()]


def logits_of(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """The logits (N, V) of last hidden states: the output layer's half, with any cap or scale the model adds.

    It is the model's own forward with the body set aside, so `hidden_states` then `logits_of` in
    chunks of rows equals the forward pass, without all rows times V in memory. Not thread-safe.
    Raises SteerError for a model whose forward goes past its `base_model`.
    """
    body, asked = model.base_model, []

    def forward(*args, **kwargs) -> _Hidden:
        asked.append(True)
        return _Hidden(last_hidden_state=hidden_ND[None])

    body.forward = forward
    try:
        with full_precision(model):
            ids = hidden_ND.new_zeros(1, len(hidden_ND), dtype=torch.long)
            logits = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        del body.forward
    if not asked:
        raise SteerError(
            f"model: {type(model).__name__} does not take its logits from the output of its base model; "
            "the ladder cannot read it, use another model"
        )
    return logits


@dataclass
class _Hidden(BaseModelOutputWithPast):
    """A body's output that holds hidden states alone; what else a model reads of it is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Float64(TorchFunctionMode):
    """Gives float64 where model code asks for float32, as norms, softmaxes and rotary angles do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {name: torch.float64 if a is torch.float32 else a for name, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


def full_precision(model: PreTrainedModel) -> AbstractContextManager:
    """For a float64 model, a context without its roundings to float32; for any other, no change."""
    return _Float64() if model.dtype is torch.float64 else nullcontext()


def _model_inputs(sequences: Sequences) -> dict[str, Tensor | bool]:
    """Ids, mask, and positions that do not count the padding."""
    prompt_mask, response_mask = sequences.prompt_mask_BP, sequences.response_mask_BT
    mask = torch.cat([prompt_mask, response_mask.to(prompt_mask.dtype)], dim=1)
    ids = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
        "use_cache": False,
    }


def _labels(sequences: Sequences) -> Tensor:
    """The response tokens (B, T), IGNORED_LABEL where masked."""
    return sequences.response_ids_BT.masked_fill(~sequences.response_mask_BT.bool(), IGNORED_LABEL)
