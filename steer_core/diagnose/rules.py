"""Every threshold of a diagnosis, with its reason, and the findings that they make of the measures.

A finding is `found`, `not found`, or `undecided` where the dump lacks what it needs or holds too little of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from steer_core.diagnose.diagnosis import Diagnosis

# ---- which entropy
TELLING_NATS = 0.01
"""Entropies and surprisals below this are left out of token-by-token comparisons: near p = 1 all of them are near 0."""
EQUAL_WITHIN = 0.01
"""Two numbers are one where they differ by this share: bfloat16 keeps 8 bits, so it rounds by up to 0.4%."""
EQUAL_SHARE = 0.99
"""A token-by-token identity holds where this share of tokens agrees; the others are room for rounding near 0."""
FEWEST_TOKENS = 50
"""Fewer tokens decide nothing: a mean of 50 numbers that spread as widely as their mean is off by 14%."""
FEWEST_RESPONSES = 4
"""Fewer responses of several tokens do not show that a number belongs to the response."""
ENTROPY_ROUNDING = 1e-3
"""An entropy may lie this far below 0 by half-precision rounding, nats."""
SLOPE_ERROR = 0.08
"""The regression decides where its standard error is below this share of the slope: then ln 2 (0.69) and 1 are more
than 3 standard errors apart."""
NEAR_POLICY = 0.05
"""Steps whose mean |ln ratio| is above this say nothing of the means of -ln p and H: weights p / p_sampled bring back
what the policy does now only where the one that sampled still drew it often enough."""
SLOPE_WITHIN, ERRORS = 0.03, 3.0
"""A slope is 1 within three standard errors, and 3% for what sampling with top-p near 1 takes away."""
BELOW_NATS, BELOW_WITHIN = 0.02, 0.02
"""How far below h(p) an entropy may lie by rounding: of ln p in bfloat16, and of the entropy itself."""
BELOW_SHARE = 0.02
"""A Shannon entropy lies below h(p) nowhere; this share of tokens is left for rounding."""
LARGE_SLOPE = 2.0
"""Above this a slope is told as a divisor: no usual temperature or top-p halves an entropy on average."""
LOGGED_EXACT, LOGGED_WITHIN = 2e-4, 0.005
"""A logged mean is one of the dump's where it agrees to this at every step: to float32, or where none does, to bfloat16
(it rounds by up to 0.4%)."""

# ---- what happened
FEWEST_STEPS = 3
"""Fewer steps show no course."""
COLLAPSED = 0.5
"""Entropy has collapsed where its last third is below this share of its first. GRPO's runs here lose three quarters on
their way to the plateau (docs/when.md); a run in balance stays well above half."""
NOTHING_LEFT = 0.02
"""Below this, nats a token, a policy samples the same token some 997 times in 1000: little is left to explore with."""
EXPLODED = 1.5
"""Entropy has exploded where its last third is above this times its first: no reward teaches a policy that."""
CLIPPED = 0.05
"""Share of tokens that the clip stops from which it shapes the update: at a range of 0.2 and the learning rates of this
package's runs it stops fewer than 1 in 100 (docs/when.md)."""
FAR = 0.5
"""99% quantile of |ln ratio| above which the policy has left the one that sampled: a ratio of 1.65, twice a clip of
0.28."""
OUTLIER = 20.0
"""Largest estimated change over the 90% quantile from which one token sets STEER's normaliser: the others' weights are
then above 0.7^(1/20) = 0.98."""
TRUNCATED = 0.1
"""Share of responses cut off from which it is told: their reward says how long they were, not whether they
were right."""
SILENT = 0.5
"""Share of groups without signal from which it is told: half of what was sampled teaches nothing."""
RARE = 0.1
"""Tokens below this probability under the sampler; ratios are least reliable there."""
GAP = 0.02
"""Mean |ln p of the trainer - ln p of the sampler| from which it is told, nats. bfloat16 rounds by up to 0.4%, which is
0.01 of ln p = -2.5; above twice that it is more than rounding: temperature, top-p, weights or kernels differ."""
GAP_PAST = 0.01
"""Share of tokens that start outside the clip range, by the gap alone, from which it is told: as many as the clip
usually stops."""
DOMINANT = 0.5
"""A quadrant moves entropy where it carries this share of the sum of sizes: more than the other three together."""

Status = Literal["found", "not found", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What a rule finds. name: of the rule, in words; says: the numbers it rests on."""

    name: str
    status: Status
    says: str


def findings(seen: Diagnosis) -> dict[str, Finding]:
    """Every rule on a diagnosis, by its key."""
    rules = (_wrong_entropy, _collapse, _explosion, _clipping, _far, _outliers, _quadrant, _truncation, _silence, _gap)
    return {rule.__name__.strip("_"): rule(seen) for rule in rules}


def _wrong_entropy(seen: Diagnosis) -> Finding:
    name, verdict = "The entropy is another number than it seems", seen.entropy
    if verdict.kind in ("absent", "undecided"):
        return Finding(name, "undecided", " ".join(verdict.says))
    return Finding(name, "not found" if verdict.right else "found", " ".join(verdict.says))


def _collapse(seen: Diagnosis) -> Finding:
    name, course = "Entropy collapses", seen.course
    nothing = course.end < NOTHING_LEFT
    if len(course.steps) < FEWEST_STEPS and not nothing:
        return Finding(name, "undecided", _few(seen))
    falls = len(course.steps) >= FEWEST_STEPS and course.end < COLLAPSED * course.start
    told = f"{_course(seen)}{', next to nothing' if nothing else ''}."
    return Finding(name, "found" if falls or nothing else "not found", told)


def _explosion(seen: Diagnosis) -> Finding:
    name, course = "Entropy explodes", seen.course
    if len(course.steps) < FEWEST_STEPS:
        return Finding(name, "undecided", _few(seen))
    return Finding(name, _found(course.end > EXPLODED * course.start), f"{_course(seen)}.")


def _clipping(seen: Diagnosis) -> Finding:
    name, clip = "The clip shapes the update", seen.clip
    if not clip.known:
        return Finding(name, "undecided", "The dump has no old log-probs (`old_logprob`), so no ratio is known.")
    if not clip.told and clip.mean_log_ratio > 0:
        bounds = f"{seen.states.clip.low:g} and {seen.states.clip.high:g}"
        assumed = f" (a range of {bounds} is assumed: give `clip_low`, `clip_high`)"
    else:
        assumed = ""
    where = (
        ""
        if math.isnan(clip.position)
        else f", on average {clip.position:.0%} into the response, at p = {clip.probability:.2f}"
    )
    sides = f"{clip.high:.2%} above, {clip.low:.2%} below, {clip.dual:.2%} by the dual clip"
    told = f"It stops {clip.any:.2%} of tokens: {sides}{where}{assumed}."
    return Finding(name, _found(clip.any > CLIPPED), told)


def _far(seen: Diagnosis) -> Finding:
    name, clip = "The policy has left the one that sampled", seen.clip
    if not clip.known:
        return Finding(name, "undecided", "The dump has no old log-probs (`old_logprob`).")
    told = f"|ln ratio| is {clip.mean_log_ratio:.3g} on average and {clip.q99_log_ratio:.3g} at its 99% quantile."
    return Finding(name, _found(clip.q99_log_ratio > FAR), told)


def _outliers(seen: Diagnosis) -> Finding:
    name, movers = "A few tokens carry the estimated change", seen.movers
    if movers is None:
        return Finding(name, "undecided", "The entropies of states are not known.")
    if math.isnan(movers.outlier):
        return Finding(name, "not found", "No token is estimated to move entropy.")
    told = (
        f"The largest estimated change is {movers.outlier:.1f} times the 90% quantile, and 1% of tokens carry "
        f"{movers.top_share:.0%} of the sum of sizes."
    )
    return Finding(name, _found(movers.outlier > OUTLIER), told)


def _quadrant(seen: Diagnosis) -> Finding:
    name = "One quadrant moves entropy"
    if not seen.quadrants:
        return Finding(name, "undecided", "The entropies of states are not known.")
    most = max(seen.quadrants, key=lambda key: seen.quadrants[key].share_of_size or 0.0)
    own = seen.quadrants[most]
    if math.isnan(own.share_of_size):
        return Finding(name, "not found", "No token is estimated to move entropy.")
    way = "lower" if own.change < 0 else "raise"
    share = f"{own.share_of_size:.0%} of the sum of sizes"
    told = f"{QUADRANT_WORDS[most]} carry {share}, and {way} entropy by the paper's form."
    return Finding(name, _found(own.share_of_size > DOMINANT), told)


def _truncation(seen: Diagnosis) -> Finding:
    name, cut = "Responses are cut off", seen.truncation
    if cut.known == "no":
        return Finding(name, "undecided", "The dump tells neither `truncated` nor `max_tokens`.")
    reward = (
        ""
        if math.isnan(cut.reward_cut)
        else f"; mean reward {cut.reward_cut:.3f}, of the others {cut.reward_ended:.3f}"
    )
    told = f"{cut.share:.1%} of responses{reward}."
    return Finding(name, _found(cut.share > TRUNCATED), told)


def _silence(seen: Diagnosis) -> Finding:
    name, groups = "Groups are without signal", seen.groups
    if not groups.known:
        return Finding(name, "undecided", "The dump does not tell prompts apart (`group` or `prompt`).")
    rewards = (
        ""
        if math.isnan(groups.all_right)
        else f" ({groups.all_right:.1%} all best, {groups.all_wrong:.1%} all worst by reward)"
    )
    told = f"In {groups.no_signal:.1%} of {groups.count} groups every advantage is 0{rewards}."
    return Finding(name, _found(groups.no_signal > SILENT), told)


def _gap(seen: Diagnosis) -> Finding:
    name, gap = "Sampler and trainer disagree", seen.gap
    if gap is None:
        return Finding(name, "undecided", "The dump has no log-probs of the sampler (`sampler_logprob`).")
    rare = "" if math.isnan(gap.rare) else f", {gap.rare:.3g} at tokens of p below {RARE:g}"
    told = (
        f"|ln p of the trainer - of the sampler| is {gap.mean_size:.3g} on average{rare}, {gap.q999:.3g} at its 99.9% "
        f"quantile, {gap.largest:.3g} at most; {gap.share_past:.2%} of tokens start outside the clip range."
    )
    return Finding(name, _found(gap.mean_size > GAP or gap.share_past > GAP_PAST), told)


QUADRANT_WORDS = {
    "positive_likely": "Likely tokens of good responses (A > 0, ln p > -H)",
    "positive_unlikely": "Unlikely tokens of good responses (A > 0, ln p <= -H)",
    "negative_likely": "Likely tokens of bad responses (A < 0, ln p > -H)",
    "negative_unlikely": "Unlikely tokens of bad responses (A < 0, ln p <= -H)",
}
"""What a quadrant's tokens are."""


def _found(holds: bool) -> Status:
    return "found" if holds else "not found"


def _few(seen: Diagnosis) -> str:
    return f"The dump holds {len(seen.course.steps)} of the {FEWEST_STEPS} steps that show a course."


def _course(seen: Diagnosis) -> str:
    what = "The mean of -ln p" if seen.course.is_mean_nll else "Entropy"
    return (
        f"{what} goes from {seen.course.start:.3f} to {seen.course.end:.3f} nats a token (first and last third of "
        f"{len(seen.course.steps)} {seen.course.unit}s)"
    )
