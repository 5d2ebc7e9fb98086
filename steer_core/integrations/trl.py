"""Any method in TRL: `InterventionGRPOTrainer` is TRL's GRPOTrainer with a method of this package in its loss.

    from steer_core.integrations.trl import InterventionGRPOTrainer
    trainer = InterventionGRPOTrainer(..., intervention=KLCov(share=0.002))

`SteerGRPOTrainer(..., steer=Steer(lambda_min=0.7))` is the same for STEER.

How: with lambda > 0, lambda max(-A r, -A clip(r)) is the same loss at the advantage lambda A. So the advantages
handed to TRL's own loss become lambda A, one a token; a method that makes other advantages, or masks tokens, is
handed over the same way. Its clip range stands in for epsilon, epsilon_high and delta while TRL computes the loss of
a training step. Its extra term is added to that loss under TRL's own reduction. Nothing else of TRL's loss is
touched: KL term, entropy bonus and reduction stay as they are, and evaluation is left alone. TRL's forward pass gives
ln p and H; it is run once, and TRL's loss gets its result. A rollout is TRL's generation batch: what a method credits
its responses with, what it learns from them, and what follows a schedule is looked at once each. Its memory is kept
in TRL's checkpoints.

What it costs: with scopes `token` and `micro`, and `step` with one micro-batch an optimiser step, no further forward
pass. With `step` over several micro-batches, a values pass over them first. A method that looks at rollouts or
responses reads the pass over the generation batch that TRL takes where a batch feeds several optimiser steps, and
otherwise one more. Form `exact` reads the logits, which TRL never holds: the output layer once more, a chunk of rows
at a time. A model with dropout draws it anew in each pass.

Not possible here, and refused: methods that differentiate the step; scope `step` where an optimiser step begins
before all its responses are sampled; losses other than the token-level clipped one; `delta` below 1 + epsilon_high
(at or above it, it is the dual clip; below, it is another clip); options that leave tokens out of the loss after the
method has seen them; `exact` on sharded weights (FSDP, DeepSpeed ZeRO-3); methods that look at responses where an
environment makes the prompts.

A method sees the token's whole factor: where TRL multiplies the loss by its vLLM correction, A times that correction.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from steer_core.common import ranks, reductions
from steer_core.common.errors import SteerError
from steer_core.common.files import json_text, read_json, write_atomically
from steer_core.common.seeding import derive_seed
from steer_core.formulas.loss import importance_ratio
from steer_core.formulas.token_stats import TokenStats
from steer_core.integrations.trl_checks import check_settings, clip_range_of
from steer_core.integrations.trl_parts import body_outputs, by_token, moments, problem_ids, reduced
from steer_core.interventions.base import UNLOGGED, Intervention, LossTerms
from steer_core.interventions.steer import Steer
from steer_core.policy.sequences import Sequences
from steer_core.training.batch import MicroBatch, flatten, spread
from steer_core.training.in_force import MethodInForce
from steer_core.training.metrics import most_damped, weight_metrics

INSTALL = "pip install -c constraints.txt -e '.[parity]'"
try:
    import trl
    from trl import GRPOConfig, GRPOTrainer
except ModuleNotFoundError as error:
    raise SteerError(f"trl: not installed ({error}); {INSTALL}") from error

OLDEST_TRL = "1.16"
if Version(trl.__version__) < Version(OLDEST_TRL):
    raise SteerError(f"trl: {trl.__version__} is older than {OLDEST_TRL}; {INSTALL}")

_OLD_ENTROPY, _DRAWS = "steer_old_entropy", "steer_draws"
_SCORING_ARGUMENTS = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
_MEMORY_FILE = "intervention.json"

Inputs = dict[str, Any]
"""A batch of TRL: tensors by name, sequences along the first axis."""


class InterventionGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, its arguments and one more: `intervention`, a method with its settings.

    Logs through TRL, a value an optimiser step: lambda/... as `steer_core.training.metrics` describes it,
    entropy/policy and entropy/sampled_nll, in nats, over the step's tokens as the policy that sampled saw them, and
    intervention/..., what the method remembers. Raises SteerError where TRL cannot give what the method needs, and
    where TRL's settings leave it without meaning.
    """

    ARGUMENT = "intervention"
    """The argument that names the method, for errors."""

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *others: Any,
        intervention: Intervention | None = None,
        **named: Any,
    ) -> None:
        self.intervention = Intervention() if intervention is None else intervention
        if args is not None:
            check_settings(args, self.intervention, self.ARGUMENT)
        self._passes: list[TokenStats] = []
        self._scored: tuple | None = None
        self._planned: dict[int, LossTerms] = {}
        self._rollouts = 0
        self._rewards: Tensor | None = None
        self._seen: list[tuple[TokenStats, MicroBatch, LossTerms]] = []
        super().__init__(model, reward_funcs, args, *others, **named)
        check_settings(self.args, self.intervention, self.ARGUMENT)
        self.active = MethodInForce(self.intervention, clip_range_of(self.args))
        self._check_structure()

    def _check_structure(self) -> None:
        method, told = self.intervention, f"{self.ARGUMENT}.name: {self.intervention.name}"
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if method.reads_square_sums and (self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)):
            raise SteerError(
                f"{self.ARGUMENT}.form: exact reads the output layer, which FSDP and ZeRO-3 shard; use paper"
            )
        if method.sees_responses and getattr(self, "environment_factories", None) is not None:
            raise SteerError(
                f"{told} looks at the responses to each problem, and an environment_factory makes prompts that are in "
                "no dataset; give prompts as a column of the dataset"
            )

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
        if self.intervention.reads_square_sums and (compute_entropy or self.intervention.sees_rollouts):
            causal = self._causal_model(model)
            with body_outputs(causal) as hidden:
                logprob, entropy, auxiliary = score(compute_entropy=True)
            mask, labels = attention_mask[:, -logits_to_keep:].bool(), input_ids[:, -logits_to_keep:]
            with self.accelerator.autocast():
                sums = moments(causal, hidden, labels, mask, self.temperature)
        else:
            logprob, entropy, auxiliary = score(compute_entropy=True)
            sums = [torch.full_like(entropy, torch.nan)] * 2  # not read
        self._passes.append(TokenStats(logprob, entropy, *sums))
        return logprob, entropy if compute_entropy else None, auxiliary

    def _causal_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The causal language model within wrappers for ranks and adapters."""
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> Tensor:
        """TRL's rewards (responses of all ranks, functions); their weighted sum is kept for the method."""
        rewards = super()._calculate_rewards(*arguments, **named)
        self._rewards = (rewards * self.reward_weights.to(rewards)).nansum(dim=1)
        return rewards

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        """TRL's generation batch, once the method has looked at it, with what TRL does not keep of it."""
        self._passes.clear()
        batch = super()._generate_and_score_completions(inputs)
        passes, self._passes = self._passes, []
        if not self.model.training:
            return batch
        self._rollouts += 1
        old = None
        if "old_per_token_logps" in batch:
            old = next((stats for stats in passes if stats.logprob is batch["old_per_token_logps"]), None)
            _require(old is not None, "its old log-probs are of no pass that was seen")
            batch[_OLD_ENTROPY] = old.entropy
        method = self.intervention
        if old is None and (method.sees_rollouts or method.sees_responses):
            with torch.no_grad():
                _, old = self._score(self.model, batch, self.args.per_device_train_batch_size)
        batch[_DRAWS] = self._draws(batch["completion_ids"])
        if method.sees_responses:
            batch["advantages"] = self._credited(batch["advantages"], self._part(batch, old), inputs)
        parts = [] if old is None else [replace(self._part(batch, old), old=old.detach())]
        self.active.begin_rollout([parts], self._rollouts)
        return batch

    def _draws(self, ids_BT: Tensor) -> Tensor:
        """Uniform draws (B, T) for methods that choose tokens at random, from TRL's seed; of each rank its own."""
        purpose = f"intervention/{self.accelerator.process_index}"
        source = torch.Generator().manual_seed(derive_seed(self.args.seed, purpose, self._rollouts))
        return torch.rand(ids_BT.shape, generator=source).to(ids_BT.device)

    def _credited(self, advantages_B: Tensor, part: MicroBatch, inputs: list[Inputs]) -> Tensor:
        """The advantages (B,) of this rank's responses, as the method leaves them."""
        _require(self._rewards is not None, "its rewards are made elsewhere")
        group = self.num_generations
        advantages_PG = ranks.all_gather_rows(advantages_B).view(-1, group)
        problems = problem_ids(inputs)[::group]
        rewards_PG = self._rewards.view(-1, group).to(advantages_PG)
        credited_PG = self.active.credit(advantages_PG, rewards_PG, part.old, part.mask_BT, problems, self._rollouts)
        return ranks.local_rows(credited_PG.flatten(), advantages_B)

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
        advantages_BT = by_token(inputs["advantages"]) * inputs.get("importance_sampling_ratio", 1.0)
        return MicroBatch(sequences, old, advantages_BT.expand_as(old.entropy), inputs[_DRAWS].to(old.entropy))

    def _plan(self) -> None:
        """What enters the loss of every micro-batch of the step that begins, from a values pass over them."""
        micro_steps = range(self._step, self._step + self.current_gradient_accumulation_steps)
        sampled = self.args.steps_per_generation * self.num_iterations
        if micro_steps[0] // sampled != micro_steps[-1] // sampled:
            raise SteerError(
                f"{self.ARGUMENT}.scope: this optimiser step begins before all its responses are sampled (a partial "
                "step moved the boundary); use a number of prompts that fills every step, or a method of scope token "
                "(STEER: scope micro)"
            )
        buffered = [self._buffered_inputs[i % self.args.steps_per_generation] for i in micro_steps]
        with torch.no_grad():
            stats = [self._score(self.model, inputs)[1] for inputs in buffered]
        parts = [self._part(inputs, values) for inputs, values in zip(buffered, stats, strict=True)]
        self._planned = dict(zip(micro_steps, self.active.terms(stats, parts), strict=True))

    def _compute_loss(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """TRL's loss of a micro-batch at the method's advantages and clip range, and the method's own term."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        several = self.intervention.scope == "step" and self.current_gradient_accumulation_steps > 1
        if several and self._step not in self._planned:
            self._plan()
        scored, stats = self._score(model, inputs)
        new = stats.detach()
        part = self._part(inputs, new)
        terms = self._planned.pop(self._step) if several else self.active.terms([new], [part])[0]
        self._scored = scored
        with self._clip_in_force():
            loss = super()._compute_loss(model, {**inputs, "advantages": self._advantages(inputs, part, terms)})
        _require(self._scored is None, "its loss does not take its log-probs where this class hands them over")
        if terms.extra is not None:
            extra_BT = spread(terms.extra, part, 0.0) * self.intervention.extra_loss(stats, part.old)
            loss = loss + reduced(self, extra_BT, part.mask_BT, inputs)
        self._end_micro_batch(new, part, terms)
        return loss

    def _advantages(self, inputs: Inputs, part: MicroBatch, terms: LossTerms) -> Tensor:
        """lambda A (B, T) for TRL's loss, which multiplies it by its vLLM correction later."""
        if "advantages" not in self.intervention.touches:
            return by_token(inputs["advantages"]) * spread(terms.weights, part, 1.0)
        changed_BT = spread((terms.advantages * terms.weights).to(part.old.entropy), part, 0.0)
        correction = inputs.get("importance_sampling_ratio")
        return changed_BT if correction is None else torch.where(correction != 0, changed_BT / correction, 0.0)

    @contextmanager
    def _clip_in_force(self) -> Iterator[None]:
        """Within it, TRL clips as the method has it."""
        clip, configured = self.active.clip, (self.epsilon_low, self.epsilon_high, self.args.delta)
        self.epsilon_low, self.epsilon_high, self.args.delta = clip.low, clip.high, clip.dual
        try:
            yield
        finally:
            self.epsilon_low, self.epsilon_high, self.args.delta = configured

    def _end_micro_batch(self, new: TokenStats, part: MicroBatch, terms: LossTerms) -> None:
        """Keep what a micro-batch was; at the last one of an optimiser step, tell the method and the log."""
        self._seen.append((new, part, terms))
        if not self.accelerator.sync_gradients:
            return
        news, parts, taken = map(list, zip(*self._seen, strict=True))
        self._seen.clear()
        if ranks.all_reduce_sum(sum(int(part.mask_BT.sum()) for part in parts), new.logprob.device):
            self.active.end_step(news, parts)
            self._log_step(news, parts, torch.cat([each.weights for each in taken]))

    def _log_step(self, news: list[TokenStats], parts: list[MicroBatch], weights: Tensor) -> None:
        """Log a step's weights and entropies, over all ranks, and what the method remembers after it."""
        new, old, advantages = flatten(news, parts)
        step = {
            "lambda": weights,
            "most_damped": most_damped(weights),
            "probability": new.logprob.exp(),
            "entropy": new.entropy,
            "advantage": advantages,
            "ratio": importance_ratio(new.logprob, old.logprob),
        }
        means = {
            "entropy/policy": reductions.mean(old.entropy),
            "entropy/sampled_nll": reductions.mean(-old.logprob),
        }
        known = {name: value for name, value in self.active.memory.items() if not name.startswith(UNLOGGED)}
        means |= {f"intervention/{name}": value for name, value in known.items()}
        for name, value in (weight_metrics(step) | means).items():
            self._metrics["train"][name].append(value)

    def _save_checkpoint(self, model: PreTrainedModel, trial: Any) -> None:
        """TRL's checkpoint, with what the method remembers."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            kept = {"name": self.intervention.name, "rollouts": self._rollouts, "memory": self.active.memory}
            write_atomically(folder / _MEMORY_FILE, json_text(kept))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """TRL's, and the memory of the method, where the checkpoint is of this method; else it begins anew."""
        super()._load_optimizer_and_scheduler(checkpoint)
        path = None if checkpoint is None else Path(checkpoint) / _MEMORY_FILE
        if path is not None and path.is_file():
            kept = read_json(path, "checkpoint", "resume from another one")
            if kept.get("name") == self.intervention.name:
                self._rollouts, self.active.memory = kept["rollouts"], kept["memory"]


class SteerGRPOTrainer(InterventionGRPOTrainer):
    """TRL's GRPOTrainer, its arguments and one more: `steer`, STEER with its settings."""

    ARGUMENT = "steer"

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
        if type(self.steer) is not Steer:
            raise SteerError(f"steer: {steer!r} is no Steer; import it from steer_core.interventions.steer")
        super().__init__(model, reward_funcs, args, *others, intervention=self.steer, **named)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise SteerError(f"trl: {trl.__version__} is built otherwise than {OLDEST_TRL} ({what}); {INSTALL}")
