"""STEER in TRL: `SteerGRPOTrainer` is TRL's GRPOTrainer with a weight lambda on each token's clipped loss.

    from steer_core.integrations.trl import SteerGRPOTrainer
    trainer = SteerGRPOTrainer(..., steer=Steer(lambda_min=0.7))

How: with lambda > 0, lambda max(-A r, -A clip(r)) is the same loss at the advantage lambda A. So the
advantages handed to TRL's own loss become lambda A, one a token, and nothing else of it is touched:
KL term, entropy bonus and reduction stay as they are, and evaluation is left alone. TRL's forward
pass gives ln p and H; it is run once, and TRL's loss gets its result.

What it costs: with scope `micro`, and `step` with one micro-batch an optimiser step, no further
forward pass. With `step` over several micro-batches, a values pass over them first. With `rollout`,
the pass over the generation batch that TRL takes where a batch feeds several optimiser steps, and
otherwise one more. Form `exact` reads the logits, which TRL never holds: the output layer once more,
a chunk of rows at a time. A model with dropout draws it anew in each pass.

Not possible here, and refused: scope `step` where an optimiser step begins before all its responses
are sampled; losses other than the token-level clipped one; `delta` below 1 + epsilon_high (at or
above it, it is the dual clip; below, it is another clip); options that leave tokens out of the loss
after the weights are made; `exact` on sharded weights (FSDP, DeepSpeed ZeRO-3).

The estimate sees the token's whole factor: where TRL multiplies the loss by its vLLM correction, A
times that correction.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.common import ranks, reductions
from steer_core.common.errors import SteerError
from steer_core.formulas.loss import ClipRange, importance_ratio
from steer_core.formulas.token_stats import TokenStats, concatenate, token_stats
from steer_core.interventions.base import Memory, Tokens
from steer_core.interventions.steer import Steer
from steer_core.policy.head import logits_of
from steer_core.policy.sequences import Sequences
from steer_core.training.batch import MicroBatch, flatten, spread
from steer_core.training.metrics import most_damped, weight_metrics

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
try:
    import trl
    from trl import GRPOConfig, GRPOTrainer
except ModuleNotFoundError as error:
    raise SteerError(f"trl: not installed ({error}); {_INSTALL}") from error

OLDEST_TRL = "1.16"
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
"""TRL's `loss_type`s whose per-token loss is the clipped surrogate; they differ in the reduction."""

if Version(trl.__version__) < Version(OLDEST_TRL):
    raise SteerError(f"trl: {trl.__version__} is older than {OLDEST_TRL}; {_INSTALL}")

_OLD_ENTROPY = "steer_old_entropy"
_SCORING_ARGUMENTS = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
_CHUNK_ELEMENTS = 1 << 22

Inputs = dict[str, Any]
"""A batch of TRL: tensors by name, sequences along the first axis."""


class SteerGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, its arguments and one more: `steer`, the method with its settings.

    Logs through TRL, a value an optimiser step: lambda/... as `steer_core.training.metrics` describes it, and
    entropy/policy and entropy/sampled_nll, in nats, over the step's tokens as the policy that
    sampled saw them. Raises SteerError where TRL's settings leave STEER without meaning.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *others: Any,
        steer: Steer | None = None,
        **named: Any,
    ) -> None:
        self.steer = Steer() if steer is None else steer
        if args is not None:
            check_settings(args, self.steer)
        self._passes: list[TokenStats] = []
        self._scored: tuple | None = None
        self._planned: dict[int, Tensor] = {}
        self._rollout_memory: Memory = {}
        self._token_logs: list[dict[str, Tensor]] = []
        super().__init__(model, reward_funcs, args, *others, **named)
        check_settings(self.args, self.steer)
        self.clip = self.steer.clip_range(ClipRange(self.epsilon_low, self.epsilon_high, self.args.delta))
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if self.steer.form == "exact" and (self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)):
            raise SteerError("steer.form: exact reads the output layer, which FSDP and ZeRO-3 shard; use paper")

    def _get_per_token_logps_and_entropies(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **named: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's scoring pass, whose statistics are kept in `_passes`; a result that waits is handed out instead."""
        if self._scored is not None:
            scored, self._scored = self._scored, None
            return scored
        score = partial(
            super()._get_per_token_logps_and_entropies,
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            **named,
        )
        if model is self.ref_model or not self.model.training:  # the reference's head gives no entropies
            return score(compute_entropy=compute_entropy)
        if self.steer.form == "exact" and (compute_entropy or self.steer.scope == "rollout"):
            causal = self._causal_model(model)
            with body_outputs(causal) as hidden:
                logprob, entropy, auxiliary = score(compute_entropy=True)
            mask, labels = attention_mask[:, -logits_to_keep:].bool(), input_ids[:, -logits_to_keep:]
            rows = torch.cat([part[:, -logits_to_keep - 1 : -1] for part in hidden])[mask]
            with self.accelerator.autocast():
                stats = stats_of_rows(causal, rows, labels[mask], self.temperature)
            zeros = torch.zeros_like(entropy)
            moments = [zeros.masked_scatter(mask, values) for values in (stats.sum_p2, stats.sum_p2_logp)]
        else:
            logprob, entropy, auxiliary = score(compute_entropy=True)
            moments = [torch.full_like(entropy, torch.nan)] * 2  # read by form exact only
        self._passes.append(TokenStats(logprob, entropy, *moments))
        return logprob, entropy if compute_entropy else None, auxiliary

    def _causal_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The causal language model within wrappers for ranks and adapters."""
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        """TRL's generation batch, with the entropies of the policy that sampled and, by scope, its normaliser."""
        self._passes.clear()
        batch = super()._generate_and_score_completions(inputs)
        passes, self._passes = self._passes, []
        if not self.model.training:
            return batch
        old = None
        if "old_per_token_logps" in batch:
            old = next((stats for stats in passes if stats.logprob is batch["old_per_token_logps"]), None)
            _require(old is not None, "its old log-probs are of no pass that was seen")
            batch[_OLD_ENTROPY] = old.entropy
        if self.steer.scope == "rollout":
            if old is None:
                with torch.no_grad():
                    _, old = self._score(self.model, batch, self.args.per_device_train_batch_size)
            tokens = self._tokens([old], [self._part(batch, old)])
            self._rollout_memory = self.steer.begin_rollout({}, tokens)
        return batch

    def _score(self, model: PreTrainedModel, inputs: Inputs, batch_size: int | None = None) -> tuple[tuple, TokenStats]:
        """(what TRL's scoring pass returns, statistics (B, T)) of some sequences, as TRL's loss calls it."""
        named = {name: value for name, value in inputs.items() if name in _SCORING_ARGUMENTS}
        scored = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            batch_size=batch_size,
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **named,
        )
        return scored, self._passes.pop()

    def _part(self, inputs: Inputs, new: TokenStats) -> MicroBatch:
        """A batch of TRL as the trainer of this package has it; `new` stands in where TRL keeps no old log-probs."""
        mask_BT = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        sequences = Sequences(inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask_BT)
        old = new.detach()
        if "old_per_token_logps" in inputs:
            unread = torch.full_like(old.entropy, torch.nan)
            old = TokenStats(inputs["old_per_token_logps"], inputs[_OLD_ENTROPY], unread, unread)
        advantages_BT = _by_token(inputs["advantages"]) * inputs.get("importance_sampling_ratio", 1.0)
        return MicroBatch(sequences, old, advantages_BT.expand_as(old.entropy), torch.zeros_like(old.entropy))

    def _tokens(self, stats: list[TokenStats], parts: list[MicroBatch]) -> Tokens:
        """The tokens of some micro-batches as STEER sees them: of all ranks, unless its scope is a micro-batch."""
        new, old, advantages = flatten([values.detach() for values in stats], parts)
        columns = torch.stack([*vars(new).values(), *vars(old).values(), advantages], -1)
        if self.steer.scope != "micro":
            columns = ranks.all_gather_rows(columns)
        *both, advantages = columns.unbind(-1)
        draws = torch.zeros_like(advantages)  # STEER draws none
        return Tokens(TokenStats(*both[:4]), TokenStats(*both[4:]), advantages, self.clip, draws, self._rollout_memory)

    def _weights(self, stats: list[TokenStats], parts: list[MicroBatch]) -> list[Tensor]:
        """lambda (B, T) of each micro-batch, given all of them; 1 at padding."""
        weights = self.steer.loss_terms(self._tokens(stats, parts)).weights
        if self.steer.scope != "micro":
            weights = ranks.local_rows(weights, torch.cat([part.old.entropy[part.mask_BT] for part in parts]))
        shares = weights.split([int(part.mask_BT.sum()) for part in parts])
        return [spread(share, part, 1.0) for share, part in zip(shares, parts, strict=True)]

    def _plan(self) -> None:
        """The weights of every micro-batch of the optimiser step that begins, from a values pass over them."""
        micro_steps = range(self._step, self._step + self.current_gradient_accumulation_steps)
        sampled = self.args.steps_per_generation * self.num_iterations
        if micro_steps[0] // sampled != micro_steps[-1] // sampled:
            raise SteerError(
                "steer.scope: this optimiser step begins before all its responses are sampled (a partial step moved "
                "the boundary); use a number of prompts that fills every step, or scope micro"
            )
        buffered = [self._buffered_inputs[i % self.args.steps_per_generation] for i in micro_steps]
        with torch.no_grad():
            stats = [self._score(self.model, inputs)[1] for inputs in buffered]
        parts = [self._part(inputs, values) for inputs, values in zip(buffered, stats, strict=True)]
        self._planned = dict(zip(micro_steps, self._weights(stats, parts), strict=True))

    def _compute_loss(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """TRL's loss of a micro-batch at the advantages lambda A."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        several = self.steer.scope == "step" and self.current_gradient_accumulation_steps > 1
        if several and self._step not in self._planned:
            self._plan()
        scored, stats = self._score(model, inputs)
        stats = stats.detach()
        part = self._part(inputs, stats)
        weights_BT = self._planned.pop(self._step) if several else self._weights([stats], [part])[0]
        self._scored = scored
        loss = super()._compute_loss(model, {**inputs, "advantages": _by_token(inputs["advantages"]) * weights_BT})
        _require(self._scored is None, "its loss does not take its log-probs where this class hands them over")
        self._log_weights(stats, part, weights_BT)
        return loss

    def _log_weights(self, stats: TokenStats, part: MicroBatch, weights_BT: Tensor) -> None:
        """Keep a micro-batch's log; at the last one of an optimiser step, log the step's, of all ranks."""
        new, old, advantages = flatten([stats], [part])
        self._token_logs.append(
            {
                "lambda": weights_BT[part.mask_BT],
                "probability": new.logprob.exp(),
                "entropy": new.entropy,
                "advantage": advantages,
                "ratio": importance_ratio(new.logprob, old.logprob),
                "entropy/policy": old.entropy,
                "entropy/sampled_nll": -old.logprob,
            }
        )
        if not self.accelerator.sync_gradients:
            return
        step = {name: torch.cat([each[name] for each in self._token_logs]) for name in self._token_logs[0]}
        self._token_logs.clear()
        if not ranks.all_reduce_sum(len(step["lambda"]), stats.logprob.device):
            return
        step["most_damped"] = most_damped(step["lambda"])
        means = {name: reductions.mean(step[name]) for name in ("entropy/policy", "entropy/sampled_nll")}
        for name, value in (weight_metrics(step) | means).items():
            self._metrics["train"][name].append(value)


def check_settings(args: GRPOConfig, steer: Steer) -> None:
    """Raise SteerError where TRL's settings leave STEER without meaning: field, value, remedy."""
    if type(steer) is not Steer:
        raise SteerError(f"steer: {steer!r} is no Steer; import it from steer_core.interventions.steer")
    if args.loss_type not in LOSS_TYPES:
        raise SteerError(
            f"loss_type: {args.loss_type!r} has no token-level clipped loss to weight; use {' or '.join(LOSS_TYPES)}"
        )
    if args.importance_sampling_level != "token":
        raise SteerError(
            f"importance_sampling_level: {args.importance_sampling_level!r} gives a sequence one ratio and one clip, "
            "and STEER weights tokens; use token"
        )
    if args.use_liger_kernel:
        raise SteerError(
            "use_liger_kernel: True is untested with STEER (TRL is giving it up, and Liger's fused loss has no "
            "entropies); use False"
        )
    if args.top_entropy_quantile < 1:
        raise SteerError(
            f"top_entropy_quantile: {args.top_entropy_quantile} leaves tokens out of the loss that STEER's normaliser "
            "would count; use 1.0"
        )
    if args.off_policy_mask_threshold is not None:
        raise SteerError(
            f"off_policy_mask_threshold: {args.off_policy_mask_threshold} leaves sequences out of the loss that "
            "STEER's normaliser would count; use None"
        )
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if args.delta is not None and args.delta < 1 + high:
        raise SteerError(
            f"delta: {args.delta} is below 1 + epsilon_high ({1 + high:g}), where it is no dual clip; "
            "raise it, or use None"
        )
    sampled = args.steps_per_generation * args.num_iterations
    if steer.scope == "step" and sampled % args.gradient_accumulation_steps:
        raise SteerError(
            f"steer.scope: step needs all responses of an optimiser step before it begins, and gradient_accumulation_"
            f"steps ({args.gradient_accumulation_steps}) does not divide steps_per_generation x num_iterations "
            f"({sampled}); leave steps_per_generation at its default, or use scope micro"
        )


@contextmanager
def body_outputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within it, the last hidden states (B, L, D) of each forward pass through the model's body, without gradient."""
    outputs: list[Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda body, inputs, output: outputs.append(output.last_hidden_state.detach())
    )
    try:
        yield outputs
    finally:
        hook.remove()


@torch.no_grad()
def stats_of_rows(model: PreTrainedModel, hidden_ND: Tensor, labels_N: Tensor, temperature: float) -> TokenStats:
    """Statistics (N,) at last hidden states, `labels_N` being the sampled tokens; logits a chunk of rows at a time."""
    size = max(1, _CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)
    starts = range(0, max(len(labels_N), 1), size)
    chunks = (slice(start, start + size) for start in starts)
    return concatenate(token_stats(logits_of(model, hidden_ND[rows]), labels_N[rows], temperature) for rows in chunks)


def _by_token(advantages: Tensor) -> Tensor:
    """Advantages with a token axis: (B, 1) from (B,), (B, T) as they are."""
    return advantages[:, None] if advantages.dim() == 1 else advantages


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise SteerError(f"trl: {trl.__version__} is built otherwise than {OLDEST_TRL} ({what}); {_INSTALL}")
