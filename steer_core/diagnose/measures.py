"""What a dump says of a run beside the kind of its entropy: numbers and small tables, each undecided where it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steer_core.diagnose import rules
from steer_core.diagnose.states import States
from steer_core.formulas.entropy_change import QUADRANTS, quadrant_index
from steer_core.formulas.loss import clipped_by
from steer_core.runs.dumps import Dump

PARTS = 10
"""Parts of a response that positions are told in: the first tenth, the second, ..."""
LISTED = 12
"""Tokens in a list of those that move most."""
AROUND = 8
"""Tokens shown on either side of one."""


@dataclass(frozen=True)
class Course:
    """Entropy by step, nats a token. start, end: means of the first and last third (of one step: both are it).

    is_mean_nll: means of -ln p under the policy that sampled stand in for entropies that are not known. unit: of steps.
    """

    steps: list[int]
    entropy: list[float]
    start: float
    end: float
    is_mean_nll: bool
    unit: str = "step"


def course_of(dump: Dump, states: States) -> Course:
    """Entropy over the run; of a longer record where the dump has one."""
    nll = not states.knows_entropy
    values = -states.old.logprob if nll else states.new.entropy
    found = {step: float(values[states.step == step].mean()) for step in dump.steps}
    known = dict(sorted(dump.course.items())) or found
    entropy = list(known.values())
    third = max(1, len(entropy) // 3)
    start, end = float(np.mean(entropy[:third])), float(np.mean(entropy[-third:]))
    return Course(list(known), entropy, start, end, nll and not dump.course, "rollout" if dump.course else "step")


@dataclass(frozen=True)
class Quadrant:
    """Of the tokens of one quadrant: their share, their mean probability, the sum of their estimated entropy changes
    (nats at unit step) and its share of the sum of sizes over all tokens."""

    share: float
    probability: float
    change: float
    share_of_size: float


def quadrants_of(states: States) -> dict[str, Quadrant]:
    """By quadrant (sign of A, side of H); empty where entropies are not known."""
    if not states.knows_entropy:
        return {}
    index, change = quadrant_index(states.new, states.advantages), states.change
    total = float(change.abs().sum())
    found = {}
    for place, name in enumerate(QUADRANTS):
        inside = index == place
        own = change[inside]
        found[name] = Quadrant(
            float(inside.double().mean()),
            _mean(states.new.logprob[inside].exp()),
            float(own.sum()),
            float(own.abs().sum()) / total if total else math.nan,
        )
    return found


@dataclass(frozen=True)
class Clip:
    """Shares of tokens whose gradient the clip removes, by side; |ln ratio|: its mean and 99% quantile.

    known: whether the dump has old log-probs. told: whether it has the clip range, which is assumed otherwise.
    position: mean place in the response, from 0 to 1, of clipped tokens; NaN without any. probability: the mean one of
    clipped tokens under the policy that sampled.
    """

    known: bool
    told: bool
    high: float
    low: float
    dual: float
    mean_log_ratio: float
    q99_log_ratio: float
    position: float
    probability: float

    @property
    def any(self) -> float:
        """Share of tokens that the clip stops."""
        return self.high + self.low + self.dual


def clip_of(dump: Dump, states: States) -> Clip:
    """What the clip does."""
    high, low, dual = clipped_by(states.ratio, states.advantages, states.clip)
    dual = dual & ~low
    stopped, size = high | low | dual, (states.new.logprob - states.old.logprob).abs()
    place = torch.from_numpy(relative_position(dump))
    shares = [float(side.double().mean()) for side in (high, low, dual)]
    return Clip(
        known="old_logprob" in dump.tokens,
        told="clip_low" in dump.settings and "clip_high" in dump.settings,
        high=shares[0],
        low=shares[1],
        dual=shares[2],
        mean_log_ratio=float(size.mean()),
        q99_log_ratio=float(np.quantile(size.numpy(), 0.99)),
        position=_mean(place[stopped]),
        probability=_mean(states.old.logprob[stopped].exp()),
    )


def relative_position(dump: Dump) -> np.ndarray:
    """Where each token stands in its response, from 0 (the first) to 1 (the last)."""
    last = np.maximum(dump.responses.written.to_numpy()[dump.tokens["row"]] - 1, 1)
    return dump.tokens["position"] / last


def by_position(dump: Dump, states: States) -> pd.DataFrame:
    """By tenth of the response: tokens, mean entropy, mean size of the estimated change, share clipped, mean gap."""
    part = np.minimum((relative_position(dump) * PARTS).astype(int), PARTS - 1)
    high, low, dual = clipped_by(states.ratio, states.advantages, states.clip)
    frame = pd.DataFrame({"part": part, "clipped": (high | low | dual).double().numpy()})
    frame["entropy"] = states.new.entropy.numpy() if states.knows_entropy else -states.new.logprob.numpy()
    if states.knows_entropy:
        frame["size"] = states.change.abs().numpy()
    table = frame.groupby("part").mean()
    table.insert(0, "tokens", frame.groupby("part").size())
    return table


@dataclass(frozen=True)
class Mover:
    """A token that is estimated to move entropy much: what it is, and what is known of it."""

    token: str
    before: str
    after: str
    where: str
    probability: float
    entropy: float
    advantage: float
    ratio: float
    change: float


@dataclass(frozen=True)
class Movers:
    """The tokens of largest estimated change. outlier: the largest size over the 90% quantile of sizes that are not 0.

    top_share: share of the sum of sizes that the top 1% of tokens carry. by_text: sums of the estimated change by token
    text, the largest first, with counts.
    """

    outlier: float
    top_share: float
    largest: list[Mover] = field(default_factory=list)
    by_text: list[tuple[str, int, float]] = field(default_factory=list)


def movers_of(dump: Dump, states: States) -> Movers | None:
    """The tokens and outliers that move entropy most, by the paper's estimate; None where entropies are not known."""
    if not states.knows_entropy:
        return None
    change = states.change
    size = change.abs()
    moving = size[size > 0].numpy()
    if not len(moving):
        return Movers(math.nan, math.nan)
    outlier = float(size.max()) / float(np.quantile(moving, 0.9))
    count = max(1, round(len(size) * 0.01))
    share = float(size.topk(count).values.sum() / size.sum())
    places = size.topk(min(LISTED, len(moving))).indices.tolist()
    texts = texts_of(dump)
    return Movers(outlier, share, [_mover(dump, states, change, texts, i) for i in places], _by_text(texts, change))


def texts_of(dump: Dump) -> np.ndarray | None:
    """What each token is called: its text, or its id; None where the dump has neither."""
    if "tokens" in dump.tokens:
        return dump.tokens["tokens"]
    if "token_ids" in dump.tokens:
        return np.array([f"[{number}]" for number in dump.tokens["token_ids"]], dtype=object)
    return None


def _mover(dump: Dump, states: States, change: Tensor, texts: np.ndarray | None, i: int) -> Mover:
    row = int(states.row[i])
    own = (dump.tokens["row"] == row).nonzero()[0]
    place = int((own == i).argmax())
    words = [""] * len(own) if texts is None else [str(text) for text in texts[own]]
    return Mover(
        words[place] if texts is not None else f"token {int(dump.tokens['position'][i]) + 1}",
        "".join(words[max(0, place - AROUND) : place]),
        "".join(words[place + 1 : place + 1 + AROUND]),
        f"{str(dump.responses['where'].iloc[row]).removeprefix('DUMP ')}, token {int(dump.tokens['position'][i]) + 1}",
        float(states.new.logprob[i].exp()),
        float(states.new.entropy[i]),
        float(states.advantages[i]),
        float(states.ratio[i]),
        float(change[i]),
    )


def _by_text(texts: np.ndarray | None, change: Tensor) -> list[tuple[str, int, float]]:
    if texts is None:
        return []
    frame = pd.DataFrame({"text": texts, "change": change.numpy()})
    table = frame.groupby("text").change.agg(["size", "sum"])
    order = table["sum"].abs().sort_values(ascending=False).index[:LISTED]
    return [(str(text), int(table.loc[text, "size"]), float(table.loc[text, "sum"])) for text in order]


@dataclass(frozen=True)
class Truncation:
    """Responses that were cut off: their share, and mean reward of these and of the others.

    known: `told` by the dump, `length` where responses of the longest length are taken for cut off, or `no`.
    """

    known: str
    share: float
    reward_cut: float
    reward_ended: float


def truncation_of(dump: Dump) -> Truncation:
    """How many responses were cut off."""
    frame = dump.responses
    if "truncated" in frame:
        known, cut = "told", frame.truncated.to_numpy(dtype=bool)
    elif "max_tokens" in dump.settings:
        known, cut = "length", frame.written.to_numpy() >= dump.settings["max_tokens"]
    else:
        return Truncation("no", math.nan, math.nan, math.nan)
    reward = frame.reward.to_numpy(dtype=float) if "reward" in frame else np.full(len(frame), np.nan)
    return Truncation(known, float(cut.mean()), _mean(reward[cut]), _mean(reward[~cut]))


@dataclass(frozen=True)
class Groups:
    """Groups of responses to one prompt at one step: how many, and the shares without signal.

    no_signal: share of groups in which no token has an advantage. all_right, all_wrong: shares of groups in which all
    rewards are the largest or the smallest of the dump; NaN without rewards. by_step: no_signal at each step.
    """

    known: bool
    count: int
    no_signal: float
    all_right: float
    all_wrong: float
    by_step: Mapping[int, float]


def groups_of(dump: Dump) -> Groups:
    """The groups, by `group` or by the prompt's text; without either, responses stand for themselves."""
    frame = dump.responses.copy()
    key = next((name for name in ("group", "prompt") if name in frame), None)
    frame["key"] = frame[key] if key else np.arange(len(frame))
    silent = np.ones(len(frame), dtype=bool)
    np.logical_and.at(silent, dump.tokens["row"], dump.tokens["advantage"] == 0)
    frame["silent"] = silent
    by_group = frame.groupby(["step", "key"], sort=False)
    quiet = by_group.silent.all()
    right = wrong = math.nan
    if "reward" in frame and key:
        least, most = frame.reward.min(), frame.reward.max()
        if least < most:
            right = float((by_group.reward.min() == most).mean())
            wrong = float((by_group.reward.max() == least).mean())
    by_step = {int(step): float(share) for step, share in quiet.groupby("step").mean().items()}
    return Groups(key is not None, len(quiet), float(quiet.mean()), right, wrong, by_step)


@dataclass(frozen=True)
class Gap:
    """ln p of the trainer (of the policy that sampled) minus ln p of the sampler, nats: mean, mean size, 99.9% quantile
    of sizes and the largest; `rare`: the mean size at tokens of p below 0.1, and share_past: of tokens whose ratio
    trainer to sampler is outside the clip range before any update."""

    mean: float
    mean_size: float
    q999: float
    largest: float
    rare: float
    share_past: float


def gap_of(dump: Dump, states: States) -> Gap | None:
    """How far the sampler's log-probs lie from the trainer's, under the policy that sampled.

    None where the dump has none of the sampler, none of the trainer from before the update, or the one as the other
    (verl's bypass mode).
    """
    if "sampler_logprob" not in dump.tokens or "old_logprob" not in dump.tokens:
        return None
    sampled = dump.tokens["sampler_logprob"]
    if np.array_equal(sampled, dump.tokens["old_logprob"]):
        return None
    gap = states.old.logprob.numpy() - sampled
    size, clip = np.abs(gap), states.clip
    past = (gap > math.log1p(clip.high)) | (gap < math.log(max(1 - clip.low, 1e-12)))
    return Gap(
        float(gap.mean()),
        float(size.mean()),
        float(np.quantile(size, 0.999)),
        float(size.max()),
        _mean(size[np.exp(sampled) < rules.RARE]),
        float(past.mean()),
    )


def drift_of(dump: Dump, states: States) -> float:
    """Mean entropy of the states now minus under the policy that sampled, nats; NaN where one of them is not known."""
    if "old_entropy" not in dump.tokens or not states.knows_entropy:
        return math.nan
    return float((states.new.entropy - states.old.entropy).mean())


def _mean(values: Tensor | np.ndarray) -> float:
    return float(values.mean()) if len(values) and not np.isnan(np.asarray(values)).all() else math.nan
