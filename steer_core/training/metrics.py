"""What a rollout logs: each quantity under its full name, over the response tokens of the rollout, of all ranks.

Ranks reduce means, sums and quantiles of their own tokens; no token crosses between them for a log.

entropy/...         nats. `entropy/policy` is the Shannon entropy of the policy that sampled, mean over
                    response tokens; `entropy/sampled_nll` is the mean of -ln p of the sampled tokens,
                    another quantity with the same expectation.
entropy_change/...  change of the mean entropy over the rollout's response tokens by its optimiser
                    steps, as each single-state form predicts it for plain gradient steps of the same
                    learning rate and (weighted) loss, before gradient clipping and without an
                    intervention's extra loss term; by quadrant too. `exact` is there with a probe, and where the
                    method reads it: it needs sums that cost a little.
quadrant/...        share of response tokens in each quadrant.
lambda/...          the intervention's token weights: quantiles, mean, share within 1% of 1; and, as
                    `lambda/most_damped/...`, what the token of smallest weight in each step was like
                    (under STEER, the one that set the maximum): probability, entropy, |A| (corrected, if
                    algorithm.importance_cap is set) and ratio,
                    means over the steps that damped any.
intervention/...    what a closed loop remembers after the rollout: a coefficient, a gate, an integral; not what it
                    remembers of single problems.
clip/..., ratio/... share of tokens the clip stops, by side; tails of p_theta / p_old. Both, and all else of the
                    updates, take a response without an advantage as it was sampled (ratio 1), unless the method
                    looks at it (`Intervention.sees_without_advantage`).
probe/...           one watched optimiser step a rollout, over the tokens of a few of its sequences; absent
                    with `train.probe_sequences=0`. `probe/change/measured` is the mean change of entropy
                    in nats by the step really taken, `probe/update_norm` that step's length in all
                    parameters, `probe/change/first_order` the same along its
                    update to first order, and `probe/change/<form>` each single-state form, scaled as in
                    entropy_change/ but per token of the probe. `probe/pearson/...` and `probe/sign/...`
                    are the agreement per token with the measured change (correlation; share of equal
                    signs), absent where undefined: a constant estimate, no token with an advantage.
reward/..., response/..., grad_norm/...  mean reward, the grader's, and of an own reward every part by itself, without
                    its weight (`reward/part/NAME`); share of groups without an advantage, because their
                    rewards are all equal or the method leaves none, and of responses that
                    the grader did not judge (it timed out or crashed; their reward is 0);
                    length in tokens and share cut off, and, where there are several ends, the share that each
                    end token, or a text of rollout.stop, ended (`response/ended_by/<|im_end|>`);
                    norm before clipping, mean and largest.
loss                what the optimiser steps minimise, mean over them; its gradient is the policy gradient, its level
                    says little.
steps/skipped       optimiser steps whose gradients were not finite and that were not taken.
batch/padding       share of padding in what the forward passes of the updates read.
rollout/logprob_gap/... |log-prob of the sampler - log-prob of the trainer| over the sampled tokens, in nats: mean,
                    99.9th percentile, largest; with rollout.engine=vllm, and with rollout.old=sampler, there
                    over the first optimiser step's tokens that have an advantage, absent where none has.
learning_rate       of the last optimiser step, with a schedule. The estimates of the entropy change know it, and know
                    nothing of a KL term.
kl/k1, k2, k3       with algorithm.kl_coefficient: mean estimate of the KL to the reference over the response tokens,
                    under the policy that sampled, in nats. `reward/shaped`, `reward/overlong`: what advantages are made
                    of where rewards are changed, and what long responses lost of it.
resampled/...       with rollout.resample: tries made; responses and tokens that were sampled and thrown away; groups
                    without signal before and after.
time/...            seconds and tokens per second: the only readings that differ between two runs.
                    `time/update_seconds` includes `time/probe_seconds`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from steer_core.common import ranks, reductions
from steer_core.formulas.entropy_change import (
    ENTROPY_CHANGE,
    QUADRANTS,
    EntropyChange,
    covariance_entropy_change,
    quadrant_index,
)
from steer_core.formulas.loss import ClipRange, clipped_by, importance_ratio
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import UNLOGGED
from steer_core.training.batch import MicroBatch, flatten, padding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steer_core.interventions.base import LossTerms
    from steer_core.policy.model import Policy
    from steer_core.policy.score import Scoring
    from steer_core.rollout.rollout import Rollout
    from steer_core.training.loss_terms import ActiveIntervention
    from steer_core.training.sampling import SampledRollout

LAMBDA_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RATIO_QUANTILES = (0.0, 0.001, 0.999, 1.0)
GAP_QUANTILES = (0.999, 1.0)


class Steps(NamedTuple):
    """What the optimiser steps of a rollout did: their `token_log`s joined, gradient norms, the probe's metrics."""

    log: dict[str, Tensor]
    norms: list[float | None]
    probed: dict[str, float]


class Clock:
    """The times at which a rollout began, had been scored, and had updated the policy."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def tick(self) -> None:
        """The next of these moments is now."""
        self.times.append(time.perf_counter())

    def metrics(self, sampled: SampledRollout) -> dict[str, float]:
        """Seconds of its parts, and tokens per second. Grading counts as scoring."""
        began, scored, updated = self.times
        tokens, sampling = int(sampled.lengths_PG.sum()), sampled.graded.sampling_seconds
        return {
            "time/rollout_seconds": sampling,
            "time/score_seconds": scored - began - sampling,
            "time/update_seconds": updated - scored,
            "time/sampling_tokens_per_second": tokens / sampling,
            "time/training_tokens_per_second": tokens / (updated - scored),
        }


def metrics_of(
    sampled: SampledRollout,
    advantages_PG: Tensor,
    old: TokenStats,
    batches: list[list[MicroBatch]],
    steps: Steps,
    active: ActiveIntervention,
    scoring: Scoring,
) -> dict[str, float]:
    """Everything that a rollout logs but clock readings, of all ranks, which all make this call.

    advantages_PG: of all ranks, (prompts, group). old: statistics (B, T) under the policy that sampled.
    scoring: how the micro-batches were scored.
    """
    mask_BT, sampler_BT = sampled.rollout.response_mask_BT.bool(), sampled.rollout.logprobs_BT
    # stacked, because the order in which float32 sums round depends on the strides
    entropy_N, logprob_N = torch.stack([old.entropy[mask_BT], old.logprob[mask_BT]], -1).unbind(-1)
    zero_variance_P = (advantages_PG == 0).all(-1)
    responses = (sampled.lengths_PG, sampled.truncated_PG, sampled.rewards_PG)
    taken = [norm for norm in steps.norms if norm is not None]
    first = None if sampled.rollout.stats is None else first_gap(steps.log, batches)
    return {
        **rollout_metrics(entropy_N, logprob_N, *responses, zero_variance_P),
        "reward/unjudged": float(sampled.unjudged_PG.mean()),
        **part_metrics([verdict.parts for verdict in sampled.graded.verdicts]),
        **({} if sampler_BT is None else gap_metrics((sampler_BT[mask_BT] - logprob_N).abs())),
        **({} if first is None or not ranks.all_reduce_sum(len(first), first.device) else gap_metrics(first)),
        **update_metrics(
            steps.log, active.clip, [f for f in ENTROPY_CHANGE if f in steps.log], active.method.logged_form
        ),
        **steps.probed,
        **{f"intervention/{name}": value for name, value in active.memory.items() if not name.startswith(UNLOGGED)},
        **({"grad_norm/mean": sum(taken) / len(taken), "grad_norm/max": max(taken)} if taken else {}),
        "steps/skipped": len(steps.norms) - len(taken),
        "loss": reductions.total(steps.log["loss"]) / len(steps.norms),
        "batch/padding": padding(batches, scoring),
    }


def token_log(
    active: ActiveIntervention,
    news: list[TokenStats],
    batch: list[MicroBatch],
    terms: list[LossTerms],
    count: int,
    rollout_tokens: int,
    losses_N: Tensor | None = None,
) -> dict[str, Tensor]:
    """What is logged of every response token of this rank's mini-batch, flat (N,); see `update_metrics`.

    news: statistics (B, T) of the policy before the step. count: the loss's denominator. rollout_tokens: response
    tokens of the whole rollout, over which the policy's mean entropy is taken. losses_N: of every token; without
    them none is told.
    """
    new, old, _ = flatten(news, batch)
    share = active.coefficients(batch, count)
    advantages = torch.cat([part.advantages for part in terms])
    weights = torch.cat([part.weights for part in terms])
    means = [reductions.mean(values) for values in (new.logprob, advantages)] if ranks.world_size() > 1 else None
    known = {name: form for name, form in ENTROPY_CHANGE.items() if name != "exact" or active.knows_square_sums}
    forms: dict[str, EntropyChange] = {**known, "covariance": partial(covariance_entropy_change, means=means)}
    changes = {name: estimate(new, old, advantages, active.clip) for name, estimate in forms.items()}
    scale = active.learning_rate * share * weights / rollout_tokens
    return {
        **{name: scale * change for name, change in changes.items()},
        **({} if losses_N is None else {"loss": share * losses_N}),
        "omega": changes[active.method.logged_form],
        "ratio": importance_ratio(new.logprob, old.logprob),
        "advantage": advantages,
        "probability": new.logprob.exp(),
        "entropy": new.entropy,
        "lambda": weights,
        "most_damped": most_damped(weights),
        "quadrant": quadrant_index(new, advantages),
    }


def most_damped(weights: Tensor) -> Tensor:
    """True at the token of smallest weight (N,) of all ranks' tokens of a step; nowhere where no weight is below 1."""
    found = torch.zeros_like(weights, dtype=torch.bool)
    own = weights.min() if len(weights) else weights.new_tensor(torch.inf)
    lowest = ranks.all_gather_rows(own[None])
    if lowest.min() < 1 and int(lowest.argmin()) == ranks.rank():
        found[weights.argmin()] = True
    return found


def rollout_metrics(
    entropy_N: Tensor,
    logprob_N: Tensor,
    lengths_PG: Tensor,
    truncated_PG: Tensor,
    rewards_PG: Tensor,
    zero_variance_P: Tensor,
) -> dict[str, float]:
    """Entropy, reward and length of the responses a rollout sampled, on all ranks.

    Of this rank's response tokens: entropy and log-prob under the policy that sampled. Of all ranks' responses:
    length in tokens, whether cut off, reward. Of all prompts: whether all advantages of the group are 0.
    """
    lengths = lengths_PG.float()
    return {
        "entropy/policy": reductions.mean(entropy_N),
        "entropy/sampled_nll": -reductions.mean(logprob_N),
        "reward/mean": float(rewards_PG.mean()),
        "reward/groups_without_signal": float(zero_variance_P.float().mean()),
        "response/length": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated": float(truncated_PG.double().mean()),
    }


def part_metrics(parts_B: Sequence[dict[str, float]]) -> dict[str, float]:
    """`reward/part/NAME`: the mean of every part of an own reward over all ranks' responses that have it, unweighted.

    parts_B: by name the parts of each of this rank's responses; nothing where no response of any rank has one.
    """
    sums: dict[str, tuple[float, int]] = {}
    for parts in (parts for own in ranks.all_gather_objects(list(parts_B)) for parts in own):
        for name, value in parts.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)
    return {f"reward/part/{name}": total / count for name, (total, count) in sorted(sums.items())}


def end_metrics(rollout: Rollout, policy: Policy, stop: Sequence[str]) -> dict[str, float]:
    """Share of all ranks' responses that each end token ended, and a text of `stop`; nothing where there is one end."""
    ends, rows, device = policy.end_tokens, len(rollout.texts), rollout.response_ids_BT.device
    if len(ends) + len(stop) == 1:
        return {}
    last = zip(rollout.last_tokens(), rollout.finish_reasons, strict=True)
    ended = [token if why == "stop" else why for token, why in last]
    names = {token: policy.tokenizer.convert_ids_to_tokens(token) or str(token) for token in ends}
    wanted = names | ({"text": "text"} if stop else {})
    every = ranks.all_reduce_sum(rows, device)
    return {
        f"response/ended_by/{name}": ranks.all_reduce_sum(ended.count(end), device) / every
        for end, name in wanted.items()
    }


def first_gap(log: dict[str, Tensor], batches: list[list[MicroBatch]]) -> Tensor:
    """|ln ratio| at this rank's tokens of the first optimiser step that have an advantage; there may be none.

    The policy is then still the one that sampled, so it is the gap between its sampler and its scoring pass.
    """
    count = sum(int(part.mask_BT.sum()) for part in batches[0])
    return log["ratio"][:count].log().abs()[log["advantage"][:count] != 0]


def gap_metrics(gap: Tensor) -> dict[str, float]:
    """How far the sampler's log-probs lie from the trainer's, in nats, over all ranks; gap: of this rank's tokens."""
    tail, largest = reductions.quantiles(gap, GAP_QUANTILES)
    return {
        "rollout/logprob_gap/mean": reductions.mean(gap),
        "rollout/logprob_gap/q99.9": tail,
        "rollout/logprob_gap/max": largest,
    }


def update_metrics(
    tokens: dict[str, Tensor], clip: ClipRange, forms: list[str], quadrant_form: str
) -> dict[str, float]:
    """Entropy change, weights, clip and ratio over every response token that the updates of a rollout saw.

    tokens: this rank's, flat tensors of one length: ratio, advantage, probability, entropy, lambda, and by form the
    predicted change of the mean entropy that each token contributes (already scaled); `quadrant` is
    an index into QUADRANTS, or -1 where the advantage is 0; `most_damped` is True at one token a step.
    """
    inside = {name: tokens["quadrant"] == i for i, name in enumerate(QUADRANTS)}
    clipped = zip(("high", "low", "dual"), clipped_by(tokens["ratio"], tokens["advantage"], clip), strict=True)
    changes = tokens[quadrant_form]
    return {
        **{f"entropy_change/{form}": reductions.total(tokens[form]) for form in forms},
        **{f"entropy_change/{quadrant_form}/{name}": reductions.total(changes[q]) for name, q in inside.items()},
        **{f"quadrant/{name}": reductions.mean(q.float()) for name, q in inside.items()},
        **weight_metrics(tokens),
        **{f"clip/{side}": reductions.mean(mask.float()) for side, mask in clipped},
        **_quantiles("ratio", tokens["ratio"], RATIO_QUANTILES),
    }


def weight_metrics(tokens: dict[str, Tensor]) -> dict[str, float]:
    """The distribution of the token weights, and what the tokens of smallest weight were like.

    tokens: this rank's, flat tensors of one length: lambda, most_damped, probability, entropy, advantage
    and ratio, as `update_metrics` takes them. Some rank holds a token.
    """
    weights, damped = tokens["lambda"], tokens["most_damped"]
    any_damped = ranks.all_reduce_sum(int(damped.sum()), weights.device) > 0
    return {
        **_quantiles("lambda", weights, LAMBDA_QUANTILES),
        "lambda/mean": reductions.mean(weights),
        "lambda/share_within_1pct_of_1": reductions.mean(((weights - 1).abs() <= 0.01).float()),
        **{
            f"lambda/most_damped/{name}": reductions.mean(tokens[name][damped].abs())
            for name in ("probability", "entropy", "advantage", "ratio")
            if any_damped
        },
    }


def _quantiles(name: str, values: Tensor, levels: tuple[float, ...]) -> dict[str, float]:
    found = reductions.quantiles(values, levels)
    return {f"{name}/q{100 * q:g}": value for q, value in zip(levels, found, strict=True)}
