"""What the rules find in a dump: `found`, `not found`, or `undecided` where it holds too little."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from steer_core.diagnose import rules
from steer_core.diagnose.seen import Seen

Status = Literal["found", "not found", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What a rule finds. name: of the rule, in words; says: the numbers it rests on."""

    name: str
    status: Status
    says: str


def findings(seen: Seen) -> dict[str, Finding]:
    """Every rule on a diagnosis, by its key."""
    checks = (_wrong_entropy, _collapse, _explosion, _clipping, _far, _outliers, _quadrant, _truncation, _silence, _gap)
    return {rule.__name__.strip("_"): rule(seen) for rule in checks}


_NO_GAP = (
    "The dump has no log-probs of the sampler (`sampler_logprob`), none of the trainer from before the update "
    "(`old_logprob`), or the one copied from the other"
)


def _wrong_entropy(seen: Seen) -> Finding:
    name, verdict = "The entropy is another number than it seems", seen.entropy
    if verdict.kind in ("absent", "undecided"):
        return Finding(name, "undecided", " ".join(verdict.says))
    return Finding(name, "not found" if verdict.right else "found", " ".join(verdict.says))


def _collapse(seen: Seen) -> Finding:
    name, course = "Entropy collapses", seen.course
    nothing = course.end < rules.NOTHING_LEFT and course.end <= course.start
    if len(course.steps) < rules.FEWEST_STEPS and not nothing:
        return Finding(name, "undecided", _few(seen))
    falls = len(course.steps) >= rules.FEWEST_STEPS and course.end < rules.COLLAPSED * course.start
    told = f"{_course(seen)}{', next to nothing' if nothing else ''}."
    return Finding(name, "found" if falls or nothing else "not found", told)


def _explosion(seen: Seen) -> Finding:
    name, course = "Entropy explodes", seen.course
    if len(course.steps) < rules.FEWEST_STEPS:
        return Finding(name, "undecided", _few(seen))
    rises = course.end > rules.EXPLODED * course.start and course.end - course.start > rules.RISEN
    return Finding(name, _found(rises), f"{_course(seen)}.")


def _clipping(seen: Seen) -> Finding:
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
    return Finding(name, _found(clip.any > rules.CLIPPED), told)


def _far(seen: Seen) -> Finding:
    name, clip = "The policy has left the one that sampled", seen.clip
    if not clip.known:
        return Finding(name, "undecided", "The dump has no old log-probs (`old_logprob`).")
    told = f"|ln ratio| is {clip.mean_log_ratio:.3g} on average and {clip.q99_log_ratio:.3g} at its 99% quantile."
    return Finding(name, _found(clip.q99_log_ratio > rules.FAR), told)


def _outliers(seen: Seen) -> Finding:
    name, movers = "A few tokens carry the estimated change", seen.movers
    if movers is None:
        return Finding(name, "undecided", "The entropies of states are not known.")
    if math.isnan(movers.outlier):
        return Finding(name, "not found", "No token is estimated to move entropy.")
    told = (
        f"The largest estimated change is {movers.outlier:.1f} times the 90% quantile, and 1% of tokens carry "
        f"{movers.top_share:.0%} of the sum of sizes."
    )
    return Finding(name, _found(movers.outlier > rules.OUTLIER), told)


def _quadrant(seen: Seen) -> Finding:
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
    return Finding(name, _found(own.share_of_size > rules.DOMINANT), told)


def _truncation(seen: Seen) -> Finding:
    name, cut = "Responses are cut off", seen.truncation
    if cut.known == "no":
        return Finding(name, "undecided", "The dump tells neither `truncated` nor `max_tokens`.")
    reward = (
        ""
        if math.isnan(cut.reward_cut)
        else f"; mean reward {cut.reward_cut:.3f}, of the others {cut.reward_ended:.3f}"
    )
    told = f"{cut.share:.1%} of responses{reward}."
    return Finding(name, _found(cut.share > rules.TRUNCATED), told)


def _silence(seen: Seen) -> Finding:
    name, groups = "Groups are without signal", seen.groups
    if not groups.known:
        return Finding(name, "undecided", "The dump does not tell prompts apart (`group` or `prompt`).")
    rewards = (
        ""
        if math.isnan(groups.all_right)
        else f" ({groups.all_right:.1%} all best, {groups.all_wrong:.1%} all worst by reward)"
    )
    told = f"In {groups.no_signal:.1%} of {groups.count} groups every advantage is 0{rewards}."
    return Finding(name, _found(groups.no_signal > rules.SILENT), told)


def _gap(seen: Seen) -> Finding:
    name, gap = "Sampler and trainer disagree", seen.gap
    if gap is None:
        return Finding(name, "undecided", f"{_NO_GAP}.")
    rare = "" if math.isnan(gap.rare) else f", {gap.rare:.3g} at tokens of p below {rules.RARE:g}"
    told = (
        f"|ln p of the trainer - of the sampler| is {gap.mean_size:.3g} on average{rare}, {gap.q999:.3g} at its 99.9% "
        f"quantile, {gap.largest:.3g} at most; {gap.share_past:.2%} of tokens start outside the clip range."
    )
    return Finding(name, _found(gap.mean_size > rules.GAP or gap.share_past > rules.GAP_PAST), told)


QUADRANT_WORDS = {
    "positive_likely": "Likely tokens of good responses (A > 0, ln p > -H)",
    "positive_unlikely": "Unlikely tokens of good responses (A > 0, ln p <= -H)",
    "negative_likely": "Likely tokens of bad responses (A < 0, ln p > -H)",
    "negative_unlikely": "Unlikely tokens of bad responses (A < 0, ln p <= -H)",
}
"""What a quadrant's tokens are."""


def _found(holds: bool) -> Status:
    return "found" if holds else "not found"


def _few(seen: Seen) -> str:
    return f"The dump holds {len(seen.course.steps)} of the {rules.FEWEST_STEPS} steps that show a course."


def _course(seen: Seen) -> str:
    what = "The mean of -ln p" if seen.course.is_mean_nll else "Entropy"
    return (
        f"{what} goes from {seen.course.start:.3f} to {seen.course.end:.3f} nats a token (first and last third of "
        f"{len(seen.course.steps)} {seen.course.unit}s)"
    )
