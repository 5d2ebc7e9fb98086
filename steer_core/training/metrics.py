"""What a rollout logs: each quantity under its full name, over the response tokens of the rollout.

entropy/...         nats. `entropy/policy` is the Shannon entropy of the policy that sampled, mean over
                    response tokens; `entropy/sampled_nll` is the mean of -ln p of the sampled tokens,
                    another quantity with the same expectation.
entropy_change/...  change of the mean entropy over the rollout's response tokens by its optimiser
                    steps, as each single-state form predicts it for plain gradient steps of the same
                    learning rate and (weighted) loss, before gradient clipping and without an
                    intervention's extra loss term; by quadrant too.
quadrant/...        share of response tokens in each quadrant.
lambda/...          the intervention's token weights: quantiles, mean, share within 1% of 1; and, as
                    `lambda/most_damped/...`, what the token of smallest weight in each step was like
                    (under STEER, the one that set the maximum): probability, entropy, |A| (corrected, if
                    algorithm.importance_cap is set) and ratio,
                    means over the steps that damped any.
intervention/...    what a closed loop remembers after the rollout: a coefficient, a gate, an integral.
clip/..., ratio/... share of tokens the clip stops, by side; tails of p_theta / p_old.
probe/...           one watched optimiser step a rollout, over the tokens of a few of its sequences; absent
                    with `train.probe_sequences=0`. `probe/change/measured` is the mean change of entropy
                    in nats by the step really taken, `probe/update_norm` that step's length in all
                    parameters, `probe/change/first_order` the same along its
                    update to first order, and `probe/change/<form>` each single-state form, scaled as in
                    entropy_change/ but per token of the probe. `probe/pearson/...` and `probe/sign/...`
                    are the agreement per token with the measured change (correlation; share of equal
                    signs), absent where undefined: a constant estimate, no token with an advantage.
reward/..., response/..., grad_norm/...  mean reward, share of groups whose rewards are all equal and of responses that
                    the grader did not judge (it timed out or crashed; their reward is 0);
                    length in tokens and share cut off; norm before clipping, mean and largest.
loss                what the optimiser steps minimise, mean over them; its gradient is the policy gradient, its level
                    says little.
steps/skipped       optimiser steps whose gradients were not finite and that were not taken.
batch/padding       share of padding in what the forward passes of the updates read.
rollout/logprob_gap/... |log-prob of the sampler - log-prob of the trainer| over the sampled tokens, in nats: mean,
                    99.9th percentile, largest; with rollout.engine=vllm.
time/...            seconds and tokens per second: the only readings that differ between two runs.
                    `time/update_seconds` includes `time/probe_seconds`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steer_core.formulas.entropy_change import QUADRANTS
from steer_core.formulas.loss import ClipRange, clipped_by

LAMBDA_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RATIO_QUANTILES = (0.0, 0.001, 0.999, 1.0)


def rollout_metrics(
    entropy_N: Tensor, logprob_N: Tensor, lengths_PG: Tensor, truncated_PG: Tensor, rewards_PG: Tensor, silent_P: Tensor
) -> dict[str, float]:
    """Entropy, reward and length of the responses a rollout sampled, on all ranks.

    Of the response tokens: entropy and log-prob under the policy that sampled. Of the responses: length in tokens,
    whether cut off, reward. Of the prompts: whether all advantages of the group are 0.
    """
    lengths = lengths_PG.float()
    return {
        "entropy/policy": float(entropy_N.mean()),
        "entropy/sampled_nll": float(-logprob_N.mean()),
        "reward/mean": float(rewards_PG.mean()),
        "reward/groups_without_signal": float(silent_P.float().mean()),
        "response/length": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated": float(truncated_PG.double().mean()),
    }


def gap_metrics(sampler_N: Tensor, policy_N: Tensor) -> dict[str, float]:
    """How far the sampler's log-probs of the sampled tokens lie from the trainer's, in nats."""
    gap = (sampler_N - policy_N).abs().sort().values
    return {
        "rollout/logprob_gap/mean": float(gap.mean()),
        "rollout/logprob_gap/q99.9": float(gap[round(0.999 * (len(gap) - 1))]),
        "rollout/logprob_gap/max": float(gap[-1]),
    }


def update_metrics(
    tokens: dict[str, Tensor], clip: ClipRange, forms: list[str], quadrant_form: str
) -> dict[str, float]:
    """Entropy change, weights, clip and ratio over every response token that the updates of a rollout saw.

    tokens: flat tensors of one length: ratio, advantage, probability, entropy, lambda, and by form the
    predicted change of the mean entropy that each token contributes (already scaled); `quadrant` is
    an index into QUADRANTS, or -1 where the advantage is 0; `most_damped` is True at one token a step.
    """
    high, low, dual = clipped_by(tokens["ratio"], tokens["advantage"], clip)
    return {
        **{f"entropy_change/{form}": float(tokens[form].sum(dtype=torch.float64)) for form in forms},
        **{
            f"entropy_change/{quadrant_form}/{name}": float(
                tokens[quadrant_form][tokens["quadrant"] == i].sum(dtype=torch.float64)
            )
            for i, name in enumerate(QUADRANTS)
        },
        **{f"quadrant/{name}": float((tokens["quadrant"] == i).float().mean()) for i, name in enumerate(QUADRANTS)},
        **weight_metrics(tokens),
        "clip/high": float(high.float().mean()),
        "clip/low": float(low.float().mean()),
        "clip/dual": float(dual.float().mean()),
        **_quantiles("ratio", tokens["ratio"], RATIO_QUANTILES),
    }


def weight_metrics(tokens: dict[str, Tensor]) -> dict[str, float]:
    """The distribution of the token weights, and what the tokens of smallest weight were like.

    tokens: flat tensors of one length, not empty: lambda, most_damped, probability, entropy, advantage
    and ratio, as `update_metrics` takes them.
    """
    weights = tokens["lambda"]
    return {
        **_quantiles("lambda", weights, LAMBDA_QUANTILES),
        "lambda/mean": float(weights.mean()),
        "lambda/share_within_1pct_of_1": float(((weights - 1).abs() <= 0.01).float().mean()),
        **{
            f"lambda/most_damped/{name}": float(tokens[name][tokens["most_damped"]].abs().mean())
            for name in ("probability", "entropy", "advantage", "ratio")
            if tokens["most_damped"].any()
        },
    }


def _quantiles(name: str, values: Tensor, levels: tuple[float, ...]) -> dict[str, float]:
    ordered = values.sort().values
    return {f"{name}/q{100 * q:g}": float(ordered[round(q * (len(ordered) - 1))]) for q in levels}
