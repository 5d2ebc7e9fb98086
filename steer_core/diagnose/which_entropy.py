"""Which entropy a dump holds, told from its numbers alone.

Three facts decide, for a token a that was drawn from p at its state, with l = ln p_a:

- The sampled negative log-prob is -l at every token, so it can be read off token by token.
- Shannon's H = -sum_j p_j ln p_j is a number of the state, and E[-l] = H over the draw. So over many tokens -l and H
  have one mean, and regressing -l on H through the origin gives 1. If the column is H / c, it gives c. Where the
  policy has moved since the draw, each -l is weighted by p / p_sampled, which makes the equation hold again.
- Putting all outcomes but a together can only lower entropy, so H >= h(p_a) = -p_a ln p_a - (1 - p_a) ln(1 - p_a), at
  every token (Cover and Thomas 2006, problem 2.27). Where p_a is above a half, -l lies below h(p_a).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steer_core.diagnose import rules
from steer_core.runs.dumps import Dump

Kind = Literal["shannon", "sampled", "one number a response", "negative", "unknown", "undecided", "absent"]
LOGPROBS = {
    "logprob": "the policy being updated",
    "old_logprob": "the policy that sampled",
    "sampler_logprob": "the sampler",
}


@dataclass(frozen=True)
class Verdict:
    """What the column `entropy` is.

    divisor: by what it is divided, in words; empty where by nothing. factor: what makes Shannon entropies in nats of it
    (one number, or one a token); None where nothing does. slope, error: of -l on it, through the origin, with its
    standard error. below: share of tokens below h(p_a), after the factor. says: the verdict and its reasons, sentence
    by sentence.
    """

    kind: Kind
    divisor: str
    factor: float | np.ndarray | None
    slope: float
    error: float
    below: float
    says: tuple[str, ...]

    @property
    def decided(self) -> bool:
        """Whether the data tell which entropy it is."""
        return self.kind not in ("unknown", "undecided", "absent")

    @property
    def right(self) -> bool:
        """Whether it is the Shannon entropy in nats, divided by nothing."""
        return self.kind == "shannon" and not self.divisor


def identify(dump: Dump) -> Verdict:
    """What the column `entropy` of a dump is; see the facts above."""
    if "entropy" not in dump.tokens:
        return _verdict("absent", "The dump has no column `entropy`.")
    entropy = dump.tokens["entropy"]
    if entropy.min() < -rules.ENTROPY_ROUNDING:
        share = float((entropy < -rules.ENTROPY_ROUNDING).mean())
        reason = f"It is below 0 at {share:.1%} of tokens, which no entropy of a discrete distribution is."
        turned = _sampled(dump, -entropy)
        also = (f"Its negative is {turned.says[0][6:]}",) if turned else ()
        return _verdict("negative", "It is no entropy.", reason, *also)
    return _sampled(dump, entropy) or _one_a_response(dump, entropy) or _shannon(dump, entropy)


def _sampled(dump: Dump, entropy: np.ndarray) -> Verdict | None:
    """The verdict where the column is -l, or a multiple of it, token by token."""
    for name in (name for name in LOGPROBS if name in dump.tokens):
        surprise = -dump.tokens[name]
        telling = np.maximum(surprise, entropy) > rules.TELLING_NATS
        if telling.sum() < rules.FEWEST_TOKENS:
            continue
        if np.ptp(surprise[telling]) <= rules.EQUAL_WITHIN * surprise[telling].max():
            continue  # the same everywhere, as in a uniform policy: then H is -ln p too
        ratio_N = entropy[telling] / np.maximum(surprise[telling], 1e-12)
        found = _constant(ratio_N, dump.tokens["row"][telling])
        if found is None:
            continue
        divisor = _divisor(1 / found, dump, telling)
        told = f"It is the negative log-prob of the sampled token under {LOGPROBS[name]}"
        by = f", {divisor}" if divisor else ""
        reason = f"At {_share_told(ratio_N, found)} of the {telling.sum()} tokens that can tell, it is "
        reason += "-ln p itself." if not divisor else "-ln p in this proportion."
        mean = "Its mean over many tokens is that of the Shannon entropy; at a single token it is another number."
        slope = float(np.median(1 / np.maximum(ratio_N, 1e-12)))
        return Verdict("sampled", divisor, None, slope, 0.0, math.nan, (f"{told}{by}.", reason, mean))
    return None


def _constant(ratio_N: np.ndarray, row_N: np.ndarray) -> np.ndarray | None:
    """The ratio at each token, where it is one number throughout or within every response; else None."""
    middle = float(np.median(ratio_N))
    if middle > 0 and _agree(ratio_N / middle) >= rules.EQUAL_SHARE:
        return np.full(len(ratio_N), middle)
    order = np.argsort(row_N, kind="stable")
    rows, starts = np.unique(row_N[order], return_index=True)
    by_row = {row: float(np.median(part)) for row, part in zip(rows, np.split(ratio_N[order], starts[1:]), strict=True)}
    own = np.array([by_row[row] for row in row_N])
    several = len(row_N) >= 2 * len(rows)  # one token a response is constant within it whatever it is
    if several and (own > 0).all() and _agree(ratio_N / own) >= rules.EQUAL_SHARE:
        return own
    return None


def _agree(ratio_N: np.ndarray) -> float:
    return float((np.abs(ratio_N - 1) <= rules.EQUAL_WITHIN).mean())


def _share_told(ratio_N: np.ndarray, found_N: np.ndarray) -> str:
    return f"{_agree(ratio_N / found_N):.1%}"


def _divisor(by_N: np.ndarray, dump: Dump, telling: np.ndarray) -> str:
    """By what a token's number is divided, in words: the known divisor that it agrees with, or its size."""
    for name, divisor in divisors(dump).items():
        known = divisor if isinstance(divisor, float) else divisor[telling]
        if _agree(by_N / known) >= rules.EQUAL_SHARE:
            return name
    if np.ptp(by_N) <= rules.EQUAL_WITHIN * by_N.max():
        return f"divided by {by_N[0]:.4g}"
    return "divided by a number of each response"


def divisors(dump: Dump) -> dict[str, float | np.ndarray]:
    """What an entropy is found divided by, in words, and the number, or one a token; nothing first."""
    found: dict[str, float | np.ndarray] = {"": 1.0, "in bits, that is divided by ln 2": math.log(2)}
    if "vocabulary" in dump.settings:
        size = dump.settings["vocabulary"]
        found[f"divided by ln V, V = {size:.0f}"] = math.log(size)
    length = dump.responses.length.to_numpy(dtype=float)[dump.tokens["row"]]
    if length.max() > 1:
        found["divided by the length of its response, so that a mean over tokens divides twice"] = length
    if "max_tokens" in dump.settings:
        found["divided by the most tokens that a response may have"] = float(dump.settings["max_tokens"])
    return found


def _one_a_response(dump: Dump, entropy: np.ndarray) -> Verdict | None:
    """The verdict where all tokens of a response have one value."""
    row, responses = dump.tokens["row"], len(dump.responses)
    lows, highs = np.full(responses, np.inf), np.full(responses, -np.inf)
    np.minimum.at(lows, row, entropy)
    np.maximum.at(highs, row, entropy)
    several = dump.responses.length.to_numpy() > 1
    if several.sum() < rules.FEWEST_RESPONSES:
        return None
    flat = highs[several] - lows[several] <= rules.ENTROPY_ROUNDING * np.maximum(highs[several], 1e-12)
    if flat.mean() < rules.EQUAL_SHARE or highs.max() <= rules.ENTROPY_ROUNDING:
        return None
    mean = np.bincount(row, -dump.tokens["logprob"]) / dump.responses.length.to_numpy()
    same = float((np.abs(highs - mean) <= rules.EQUAL_WITHIN * np.maximum(mean, rules.TELLING_NATS)).mean())
    what = "the mean of -ln p over its tokens" if same >= rules.EQUAL_SHARE else "no mean of -ln p over its tokens"
    reason = f"All tokens of a response have one value, in {flat.mean():.1%} of responses; it is {what}."
    return _verdict("one number a response", "It is one number a response, and none of a state.", reason)


def _shannon(dump: Dump, entropy: np.ndarray) -> Verdict:
    """The verdict by the equation of means and by the bound, under every divisor that is known."""
    tried = {name: _fit(dump, entropy * divisor) for name, divisor in divisors(dump).items()}
    slope, error, below = tried[""]
    if _near(dump).sum() < rules.FEWEST_TOKENS or not error <= rules.SLOPE_ERROR * slope:
        return _undecided(dump, slope, error, below)
    agreeing = {
        name: fit
        for name, fit in tried.items()
        if abs(fit[0] - 1) <= rules.SLOPE_WITHIN + rules.ERRORS * fit[1] and fit[2] <= rules.BELOW_SHARE
    }
    if not agreeing:
        surprises = int((-dump.tokens["logprob"][_near(dump)] > rules.SURPRISE).sum())
        if surprises < rules.FEWEST_SURPRISES:
            return _undecided(dump, slope, error, below, surprises)
        return _unlike(slope, error, below)
    name = next(iter(agreeing))
    told = "It is the Shannon entropy" + (f", {name}." if name else " in nats.")
    reasons = [_slope_told(slope, error) + _slope_meaning(name, agreeing[name])]
    below = agreeing[name][2]
    reasons.append(f"It lies below h(p), the least that it can be, at {below:.1%} of tokens{' then' if name else ''}.")
    return Verdict("shannon", name, divisors(dump)[name], slope, error, below, (told, *reasons))


def _undecided(dump: Dump, slope: float, error: float, below: float, surprises: int | None = None) -> Verdict:
    """What is said where too little can tell; it is taken for Shannon's in nats unless the bound speaks against it."""
    count = int(_near(dump).sum())
    if count < rules.FEWEST_TOKENS:
        few = f"of its {len(dump)} tokens {count} are of steps near the policy that sampled (mean |ln ratio| up to"
        reason = (
            f"{few[0].upper()}{few[1:]} {rules.NEAR_POLICY:g}), and the means of -ln p and H say nothing elsewhere."
        )
    elif math.isnan(slope):
        reason = "It is 0 at every token near the policy that sampled, so there is no proportion to -ln p."
    elif surprises is not None:
        reason = (
            f"{_slope_told(slope, error)}, by {surprises} tokens with -ln p above 1 nat: too few to tell 1 from it."
        )
    else:
        reason = _slope_told(slope, error) + ", which is too wide to tell 1 from another number."
    holds = below <= rules.BELOW_SHARE
    bound = f"It lies below h(p), the least that it can be, at {below:.1%} of tokens"
    bound += "; in what follows it is taken for the Shannon entropy in nats." if holds else ", so it is not used."
    says = ("The data do not tell which entropy it is.", reason, bound)
    return Verdict("undecided", "", 1.0 if holds else None, slope, error, below, says)


def _unlike(slope: float, error: float, below: float) -> Verdict:
    """What is said where no known divisor makes Shannon's entropy of it."""
    reasons = [_slope_told(slope, error) + ", and 1 for the Shannon entropy in nats."]
    reasons.append(f"It lies below h(p), the least that it can be, at {below:.1%} of tokens.")
    reasons.append(
        "Entropies at another temperature than the log-probs, of a truncated distribution (top-k, top-p) or of another "
        "policy look like this."
        if slope <= rules.LARGE_SLOPE
        else f"A Shannon entropy divided by {slope:.4g} looks like this."
    )
    first = "It is not the Shannon entropy, in nats, of the policy whose log-probs stand beside it."
    return _verdict("unknown", first, *reasons, slope=slope, error=error, below=below)


def _slope_told(slope: float, error: float) -> str:
    return f"-ln p is {slope:.3f} ± {error:.3f} times it on average over tokens"


def _slope_meaning(name: str, fit: tuple[float, float, float]) -> str:
    if not name:
        return ", and 1 for the Shannon entropy in nats."
    return f"; {fit[0]:.3f} ± {fit[1]:.3f} after the division is undone, and 1 for the Shannon entropy in nats."


def _fit(dump: Dump, entropy: np.ndarray) -> tuple[float, float, float]:
    """(slope of -l on an entropy through the origin, its standard error, share of tokens below h(p_a))."""
    logprob, near = np.minimum(dump.tokens["logprob"], 0.0), _near(dump)
    least = _binary(logprob)
    below = float((entropy < least - rules.BELOW_NATS - rules.BELOW_WITHIN * least).mean())
    surprise, known = (_weights(dump) * -logprob)[near], entropy[near]
    square = float((known**2).sum())
    if square == 0:
        return math.nan, math.inf, below
    slope = float((known * surprise).sum()) / square
    error = math.sqrt(float(((known * (surprise - slope * known)) ** 2).sum())) / square
    return slope, error, below


def _weights(dump: Dump) -> np.ndarray:
    """p / p of whoever sampled, at every token: what makes E[-l] = H hold for the policy being updated."""
    return np.exp(np.clip(_log_ratio(dump), -20, 20))


def _near(dump: Dump) -> np.ndarray:
    """Whether each token is of a step in which the policy is still near the one that sampled."""
    step = dump.responses.step.to_numpy()[dump.tokens["row"]]
    place = np.unique(step, return_inverse=True)[1]
    size = np.bincount(place, np.abs(_log_ratio(dump))) / np.bincount(place)
    return (size <= rules.NEAR_POLICY)[place]


def _log_ratio(dump: Dump) -> np.ndarray:
    """ln p minus ln p of whoever sampled; 0 where the dump has none of these."""
    sampled = next((dump.tokens[name] for name in ("sampler_logprob", "old_logprob") if name in dump.tokens), None)
    return np.zeros(len(dump)) if sampled is None else dump.tokens["logprob"] - sampled


def _binary(logprob: np.ndarray) -> np.ndarray:
    """h(p) = -p ln p - (1 - p) ln(1 - p), nats."""
    p = np.exp(logprob)
    rest = -np.expm1(logprob)
    safe = np.where(rest > 0, rest, 1.0)
    return -p * logprob - rest * np.log(safe)


def logged_mean(dump: Dump, verdict: Verdict) -> tuple[str, ...]:
    """Which mean of the dump's tokens the logged entropy is, in sentences; none where it is not in the dump."""
    if "logged_entropy" not in dump.responses:
        return ()
    steps = dump.steps
    parts = [dump.of_step(step) for step in steps]
    logged_S = np.array([float(part.responses.logged_entropy.iloc[0]) for part in parts])
    agreeing: list[str] = []
    for within in (rules.LOGGED_EXACT, rules.LOGGED_WITHIN):
        agreeing = agreeing or _agreeing(dump, parts, logged_S, within)
    told = f"The logged entropy ({logged_S[0]:.4g} at step {steps[0]})"
    if not agreeing:
        return (f"{told} is no mean of this dump that is known here: of other tokens, or of another number.",)
    if len(agreeing) > 1:
        return (f"{told} is undecided between: {'; '.join(agreeing)}.",)
    return (f"{told} is {agreeing[0]}.",)


def _agreeing(dump: Dump, parts: list[Dump], logged_S: np.ndarray, within: float) -> list[str]:
    """The means, in words, that logged numbers agree with at every step; divided ones where no plain one does.

    (A mean over responses of sums, divided by the mean length, is the plain mean over tokens.)
    """
    plain: list[str] = []
    divided: list[str] = []
    for what, mean in _means(dump).items():
        own_S = np.array([mean(part) for part in parts])
        for name, divisor in divisors(dump).items():
            by = divisor if isinstance(divisor, float) else np.array([part.responses.length.mean() for part in parts])
            if (np.abs(logged_S * by - own_S) <= within * np.maximum(own_S, 1e-12)).all():
                told = f"{what}, {name.replace('its response', 'a mean response')}" if name else what
                (divided if name else plain).append(told)
    return plain or divided


def _means(dump: Dump) -> dict[str, Callable[[Dump], float]]:
    """Means of a step's tokens that trainers log, in words."""

    def by_token(name: str, sign: float) -> Callable[[Dump], float]:
        return lambda part: sign * float(part.tokens[name].mean())

    def by_response(name: str, sign: float) -> Callable[[Dump], float]:
        return lambda part: (
            sign * float((np.bincount(part.tokens["row"], part.tokens[name]) / part.responses.length.to_numpy()).mean())
        )

    def by_sum(name: str, sign: float) -> Callable[[Dump], float]:
        return lambda part: sign * float(np.bincount(part.tokens["row"], part.tokens[name]).mean())

    kinds = [("the column `entropy`", "entropy", 1.0)] if "entropy" in dump.tokens else []
    kinds.append(("-ln p of the sampled tokens", "logprob", -1.0))
    return {
        f"the mean over {over} of {what}": make(name, sign)
        for what, name, sign in kinds
        for over, make in (
            ("tokens", by_token),
            ("responses of the mean", by_response),
            ("responses of the sum", by_sum),
        )
    }


def _verdict(
    kind: Kind, *says: str, slope: float = math.nan, error: float = math.nan, below: float = math.nan
) -> Verdict:
    """A verdict from which no Shannon entropy can be made."""
    return Verdict(kind, "", None, slope, error, below, says)
