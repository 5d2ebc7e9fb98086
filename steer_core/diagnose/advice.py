"""What to try, given what was found, each with the evidence there is for it: measured here, or reported elsewhere.

Where nothing was measured here, that is said. No advice is given on what is not found or undecided, but what to write
into the dump to decide it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from steer_core.diagnose import rules
from steer_core.diagnose.findings import Finding
from steer_core.diagnose.seen import Seen


@dataclass(frozen=True)
class Advice:
    """One thing to try. because: the finding that it answers, by key; evidence: why it should help, with its source."""

    because: str
    what: str
    evidence: str


def advice(seen: Seen, found: dict[str, Finding]) -> list[Advice]:
    """What to try, in the order in which to try it: first what makes the numbers right, then what ends the trouble."""
    told = []
    for key, tips in (
        ("wrong_entropy", _wrong_entropy),
        ("gap", _gap),
        ("explosion", _explosion),
        ("collapse", _collapse),
        ("clipping", _clipping),
        ("far", _far),
        ("truncation", _truncation),
        ("silence", _silence),
        ("outliers", _outliers),
    ):
        if found[key].status == "found":
            told += [Advice(key, what, evidence) for what, evidence in tips(seen)]
    return told


Tips = list[tuple[str, str]]


def _wrong_entropy(seen: Seen) -> Tips:
    kind, divisor = seen.entropy.kind, seen.entropy.divisor
    if kind == "sampled":
        what = (
            "Do not steer by this number at single tokens, and do not add it to the loss as an entropy bonus: log "
            "Shannon's, from the logits (`steer_core.token_stats`; verl: `actor.calculate_entropy=True`)."
        )
        why = (
            "Its mean is right, so curves may stay. At a token ln p + H is then 0 by construction, so no quadrant and "
            "no estimate of the paper's can be made of it."
        )
    elif divisor:
        what = f"Undo the division ({divisor}) before comparing with targets, thresholds or other runs."
        why = "Targets of every closed loop and the side of ln p against -H are in nats a token."
    else:
        what = (
            "Compute entropies and log-probs from the same logits, at the temperature of sampling, over the whole "
            "vocabulary."
        )
        why = "E[-ln p] = H and H >= h(p) hold for one distribution, and the dump breaks one of them."
    return [(what, why)]


def _collapse(seen: Seen) -> Tips:
    tips = [
        (
            "Halve the learning rate, and compare at equal reward, not at equal steps.",
            "In this package's tournament half the rate kept +0.069 [+0.038, +0.101] pass@32 at equal pass@1, and no "
            "method was shown to do more than that (docs/tournament.md; a small model, short runs).",
        )
    ]
    known = {one.name: one for one in seen.effects if not one.why_not}
    plain = known.get("none")
    best = None
    if plain is not None and plain.change < 0:
        lifts = [one for one in known.values() if one.change > plain.change and one.mean < 1]
        best = max(lifts, key=lambda one: (one.change - plain.change) / (1 - one.mean), default=None)
    if plain is not None and best is not None:
        tips.append(
            (
                f"Of the methods that damp, {best.name} would lift the estimated change most for what it takes of the "
                f"pushes: from {plain.change:+.3g} to {best.change:+.3g} in sum, at a mean factor of {best.mean:.2f}.",
                "By the paper's estimate alone, on this dump. The estimate tells little of the change at a token's own "
                "state and more of its influence on all (docs/estimators.md); whether any method lifts what a lower "
                "rate does is open here (docs/when.md).",
            )
        )
    if seen.course.start >= rules.NOTHING_LEFT:
        tips.append(
            (
                "To hold a level, give a closed loop a target: entropic, repo-r or adaptive-entropy-loss with "
                f"`intervention.target={seen.course.start:.3g}`, where this run began.",
                "That such loops hold a level is their authors' claim (arXiv 2511.15248, 2603.11682, 2505.22312); "
                "which of them holds a chosen curve was not yet measured here (docs/when.md).",
            )
        )
    return tips


def _explosion(seen: Seen) -> Tips:
    tips = [
        (
            "Set the entropy bonus to 0 first, if there is one.",
            "verl's examples had 0.001 by default and went to 0, an "
            "explosion being the suspicion (github.com/verl-project/verl/pull/781).",
        ),
        (
            "Halve the learning rate.",
            "Twice the rate lost 0.131 [0.046, 0.216] pass@32 at equal pass@1 here (docs/tournament.md); a rate far "
            "too large takes the policy apart, with ratios far from 1 as its sign"
            + (
                f": |ln ratio| is {seen.clip.q99_log_ratio:.2g} at its 99% quantile in this dump."
                if seen.clip.known
                else ", which this dump does not tell (`old_logprob`)."
            ),
        ),
    ]
    if seen.states.clip.high > seen.states.clip.low and seen.clip.told:
        tips.append(
            (
                f"Lower the upper clip ({seen.states.clip.high:g}) to the lower one ({seen.states.clip.low:g}).",
                "Entropy that keeps rising under Clip-Higher, with accuracy falling, is reported in "
                "github.com/rllm-org/rllm/issues/116; not measured here.",
            )
        )
    if seen.truncation.known != "no" and seen.truncation.share > 0:
        tips.append(
            (
                f"Look at the {seen.truncation.share:.1%} of responses that are cut off.",
                "The one lead with a mechanism in a long thread on entropy that rises (github.com/verl-project/verl/"
                "issues/2738): responses cut off teach noise. Not measured here.",
            )
        )
    return tips


def _clipping(seen: Seen) -> Tips:
    clip, side = seen.clip, "above" if seen.clip.high >= seen.clip.low else "below"
    which = "clip_high" if side == "above" else "clip_low"
    if clip.dual > max(clip.high, clip.low):
        side, which = "stopped by the dual clip, above", "dual_clip"
    return [
        (
            f"Most of it is {side} the range: take fewer optimiser steps a rollout or a lower rate before widening "
            f"{which} ({getattr(seen.states.clip, which.replace('clip', '').strip('_')):g}).",
            f"The clip stops {clip.any:.1%} of tokens. Under extreme "
            "ranges (0.99 / 5) no method was decided to be better here (docs/tournament.md). Tokens that rise from a "
            "low probability are the first to be stopped by an upper bound on the ratio (DAPO, arXiv 2503.14476, 3.1).",
        )
    ]


def _far(seen: Seen) -> Tips:
    return [
        (
            "Take fewer optimiser steps between two rollouts, or a lower learning rate.",
            "Past a ratio of 1.65 or below 0.61 the surrogate says little of the policy's return (PPO, "
            "arXiv 1707.06347, section 3, on why it clips).",
        )
    ]


def _truncation(seen: Seen) -> Tips:
    cut = seen.truncation
    worse = cut.reward_cut < cut.reward_ended if not math.isnan(cut.reward_cut) else False
    return [
        (
            "Allow longer responses, or leave cut-off ones out of the loss, or shape their reward.",
            "DAPO (arXiv 2503.14476, 3.4) reports steadier training with either of the last two; not measured here."
            + (" Their reward is lower in this dump." if worse else ""),
        )
    ]


def _silence(seen: Seen) -> Tips:
    groups = seen.groups
    hard = groups.all_wrong > groups.all_right if not math.isnan(groups.all_right) else None
    which = {True: "easier", False: "harder", None: "other"}[hard]
    return [
        (
            f"Sample {which} problems, more responses a prompt, or resample groups without signal.",
            "DAPO (arXiv 2503.14476, 3.2) resamples them and reports fewer steps to the same score; it costs samples. "
            "In a small world of tables, sampling that fails a whole group is what loses a problem for good "
            "(docs/when.md).",
        )
    ]


def _gap(seen: Seen) -> Tips:
    return [
        (
            "Make the two agree first: the same temperature and top-p 1 on both sides, weights synchronised, the "
            "output layer in float32; then weigh by a truncated ratio (`algorithm.importance_cap`, TRL's "
            "vllm_importance_sampling_correction, verl's rollout correction).",
            "Such gaps alone can end a run (arXiv 2605.14220); truncated importance sampling helped in "
            "openreview.net/forum?id=8MHqvb4lK9. Entropy and ratio are wrong as long as they differ. Not "
            "measured here.",
        )
    ]


def _outliers(seen: Seen) -> Tips:
    return [
        (
            "With STEER, take a quantile for its normaliser (`intervention.normaliser=quantile`), or a lower "
            "lambda_min.",
            "One token sets the maximum and leaves all others near weight 1: STEER at the paper's setting had a mean "
            "weight of 0.99 here, and its difference from GRPO is undecided (docs/tournament.md).",
        )
    ]


def to_decide(seen: Seen, found: dict[str, Finding]) -> list[str]:
    """What to write into the next dump, for every finding that is undecided."""
    lacking = {
        "wrong_entropy": "`entropy`, and more tokens",
        "collapse": f"three steps or more (collapse and explosion, {rules.EXPLODED:g} times)",
        "clipping": "`old_logprob`, `clip_low` and `clip_high`",
        "truncation": "`truncated` or `max_tokens`",
        "silence": "`group` or `prompt`",
        "gap": "`sampler_logprob`",
    }
    needed = [text for key, text in lacking.items() if found[key].status == "undecided"]
    if seen.measured.why_not and seen.states.knows_entropy:
        needed.append("the same responses at two steps (estimate against measured change)")
    return needed
