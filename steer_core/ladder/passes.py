"""From one state to all of them: what an update does to entropy through shared parameters.

The truth is dH_t = -sum_j p_tj u_tj dz_tj with dz_t = J_t dtheta, and dtheta made by every token of the
batch. Above the forms of one state (`entropy_change.py`, rung a) stand three rungs:

    b  output layer: only the unembedding moves, by its own gradient; hidden states stay.
    c  first order: every parameter moves; one forward-mode pass along any update.
    d  measured: the step is taken, the entropies are read again, everything is put back bit for bit.

All of it is made of three passes over a batch, `lens_stats`, `gradient` and `derivative`, for any
Hugging Face causal model. Per-token tensors are flat: (N,), the response tokens row by row. Logits
exist for a chunk of rows at a time, hidden states for a micro-batch of sequences at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from steer_core.common.errors import NotFiniteError, SteerError, one_line
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.policy.head import body_of, logits_of, stats_at
from steer_core.policy.score import PLAIN, Scoring, hidden_states, states
from steer_core.policy.sequences import Sequences

Direction = dict[str, Tensor]
"""A vector in parameter space: parameter name to a tensor of its shape."""

_CHUNK_ELEMENTS = 1 << 23


def length(direction: Direction) -> float:
    """Euclidean length of a direction: the root of the sum of squares over all its entries."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in direction.values()])))


@dataclass(frozen=True)
class Lens:
    """A model, the sequences whose states are looked at, and how: the argument all rungs share.

    output_layer: only the output layer counts as parameters (rung b). micro_batch: sequences a
    forward pass. scoring: how the passes of a run are made; `derivative` has its own. Raises
    SteerError for a model without logits and for a batch without response tokens.
    """

    model: PreTrainedModel
    sequences: Sequences
    temperature: float = 1.0
    output_layer: bool = False
    micro_batch: int = 8
    scoring: Scoring = PLAIN

    def __post_init__(self) -> None:
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None or body_of(self.model) is self.model:
            raise SteerError(
                f"model: {type(self.model).__name__} has no output layer, so no logits; "
                "load it with AutoModelForCausalLM"
            )
        if self.micro_batch < 1:
            raise SteerError(f"micro_batch: {self.micro_batch} is below 1; give the sequences of a forward pass")
        if not self.sequences.response_mask_BT.any():
            raise SteerError("sequences: no response token among them; sample responses first")

    @property
    def labels_N(self) -> Tensor:
        """The sampled tokens."""
        return self.sequences.response_ids_BT[self.sequences.response_mask_BT.bool()]

    def parameters(self) -> dict[str, Tensor]:
        """What may move: every trainable parameter once, or those of the output layer under their own names."""
        if not self.output_layer:
            return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        head = self.model.get_output_embeddings()
        prefix = next(name for name, module in self.model.named_modules() if module is head)
        return {f"{prefix}.{name}": p for name, p in head.named_parameters()}

    def micro_batches(self) -> Iterator[tuple[Sequences, slice]]:
        """(sequences, where their tokens lie among the N) of each forward pass."""
        mask, start = self.sequences.response_mask_BT.bool(), 0
        for first in range(0, len(mask), self.micro_batch):
            count = int(mask[first : first + self.micro_batch].sum())
            if count:
                yield self.sequences.rows(slice(first, first + self.micro_batch)), slice(start, start + count)
            start += count

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices of the rows whose logits exist at once."""
        size = max(1, _CHUNK_ELEMENTS // self.model.config.get_text_config().vocab_size)
        return (slice(i, min(i + size, rows)) for i in range(0, rows, size))


@torch.no_grad()
def lens_stats(lens: Lens) -> TokenStats:
    """Statistics (N,) of the policy at every response token."""
    parts, labels_N = [], lens.labels_N
    for sequences, tokens in lens.micro_batches():
        hidden = states(lens.model, sequences, lens.scoring.layout)
        parts.append(stats_at(lens.model, hidden, labels_N[tokens], lens.temperature, lens.scoring.head))
    return concatenate(parts)


def require_finite(stats: TokenStats) -> TokenStats:
    """The statistics. Raises SteerError where one is not finite."""
    bad = int((~(stats.entropy.isfinite() & stats.logprob.isfinite())).sum())
    if bad:
        raise NotFiniteError(
            f"model: NaN or infinite logits at {bad} of {len(stats.entropy)} response tokens; check its weights"
        )
    return stats


def gradient(lens: Lens, on_logprob_N: Tensor | None = None, on_entropy_N: Tensor | None = None) -> Direction:
    """Gradient of sum_t (on_logprob_t ln p_t + on_entropy_t H_t); weights (N,), in the model's dtype.

    With on_logprob the push c lambda w of every token (its coefficient in the loss, its weight, and
    `entropy_change.surrogate_slope`), this is minus the gradient of the training loss. Logits keep to the budget of
    `stats_at`; hidden states take part once per micro-batch.
    """
    parameters = lens.parameters()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    head = [p for p in lens.model.get_output_embeddings().parameters() if any(p is q for q in parameters.values())]
    names = {id(p): name for name, p in parameters.items()}
    labels_N = lens.labels_N
    for sequences, tokens in lens.micro_batches():
        with torch.set_grad_enabled(not lens.output_layer):
            hidden = states(lens.model, sequences, lens.scoring.layout)
        leaf = hidden.detach().requires_grad_()
        stats = stats_at(lens.model, leaf, labels_N[tokens], lens.temperature, lens.scoring.head)
        value = stats.logprob.new_zeros(())
        if on_logprob_N is not None:
            value = value + (on_logprob_N[tokens] * stats.logprob).sum()
        if on_entropy_N is not None:
            value = value + (on_entropy_N[tokens] * stats.entropy).sum()
        pulled, *heads = torch.autograd.grad(value, [leaf, *head])
        for p, g in zip(head, heads, strict=True):
            total[names[id(p)]] += g
        if not lens.output_layer:
            values = list(parameters.values())
            for name, g in zip(parameters, torch.autograd.grad(hidden, values, pulled, allow_unused=True), strict=True):
                if g is not None:
                    total[name] += g
    return total


@torch.no_grad()
def derivative(lens: Lens, direction: Direction, at: Direction | None = None) -> tuple[Tensor, Tensor]:
    """(d ln p_N, dH_N): first-order change of every log-prob and entropy along a direction of parameters.

    at: parameter values to start from, where they are not the model's present ones.

    Forward-mode differentiation, exact up to rounding: about two to three forward passes. With
    `lens.output_layer`, hidden states stay and the direction holds the output layer's parameters.
    Raises SteerError for a direction of other parameters, or an operator without a forward derivative.
    """
    parameters = at or lens.parameters()
    if set(direction) != set(parameters):
        odd = sorted(set(direction) ^ set(parameters))[0]
        raise SteerError(f"direction: parameter {odd} is on one side only; make it from lens.parameters()")
    body, head = _Half(lens.model, hidden_states), _Half(lens.model, logits_of)
    labels_N, out = lens.labels_N, []
    with sdpa_kernel(SDPBackend.MATH), _experts_one_by_one(lens.model), forward_ad.dual_level():
        dual = {f"model.{n}": forward_ad.make_dual(p.detach(), direction[n]) for n, p in parameters.items()}
        for sequences, tokens in lens.micro_batches():
            try:
                hidden = functional_call(body, {} if lens.output_layer else dual, (sequences,))
            except NotImplementedError as error:
                attention = lens.model.config._attn_implementation
                eager = "set model.attention=eager" if attention not in ("eager", "sdpa") else "use another model"
                raise SteerError(
                    f"model: {type(lens.model).__name__} uses an operator without a forward derivative "
                    f"({one_line(error, 160)}); {eager}, or train with train.probe_sequences=0"
                ) from error
            for rows in lens.chunks(len(hidden)):
                logits = forward_ad.unpack_dual(functional_call(head, dual, (hidden[rows],)))
                out.append(_tangents(logits.primal, logits.tangent, labels_N[tokens][rows], lens.temperature))
    return torch.cat([part[0] for part in out]), torch.cat([part[1] for part in out])


def check_ladder(model: PreTrainedModel, sequences: Sequences) -> None:
    """Raise SteerError, with the setting that helps, where the passes do not run on a model.

    sequences: a few tokens.
    """
    lens = Lens(model, sequences)
    gradient(lens, torch.ones_like(lens.labels_N, dtype=model.dtype))
    derivative(lens, {name: torch.zeros_like(p) for name, p in lens.parameters().items()})


@contextmanager
def _experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """A mixture of experts without its grouped product, which has no forward derivative."""
    chosen = model.config._experts_implementation
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


def _tangents(logits: Tensor, tangent: Tensor | None, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """d ln p_a = dz_a - sum_j p_j dz_j and dH = -sum_j p_j u_j dz_j, rows of one chunk."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if tangent is None:
        zero = torch.zeros(len(logits), dtype=dtype, device=logits.device)
        return zero, zero
    logits = logits.to(dtype)
    centred = (logits - logits.amax(-1, keepdim=True)).div_(temperature)  # as `token_stats` does
    logp = torch.log_softmax(centred, -1).clamp_min(torch.finfo(dtype).min)
    p, dz = logp.exp(), tangent.to(dtype) / temperature
    mean = (p * dz).sum(-1)
    entropy = -(p * logp).sum(-1, keepdim=True)
    return dz.gather(-1, labels[:, None]).squeeze(-1) - mean, -(p * (logp + entropy) * dz).sum(-1)


class _Half(torch.nn.Module):
    """One half of a model's forward as a module, so that `functional_call` can swap its parameters."""

    def __init__(self, model: PreTrainedModel, function: Callable[[PreTrainedModel, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, argument: Any) -> Tensor:
        return self.function(self.model, argument)
