"""Noise as reward on a softmax table: what each side of the clip does to entropy, and up to which step size.

    python reproduce/coin_table.py   # writes reproduce/results/coin/coin_table.md and .csv: half a minute on one core

The companion of coin.py, and exploratory. One rollout from one base: every state, a free logit for each of 17 tokens,
samples 8 tokens, a fair coin rewards them, and 8 steps are taken on GRPO's clipped surrogate, by plain gradient ascent
or AdamW. The clips see the same samples, so their differences are paired by state; entropies are exact.

What to expect of small steps (arXiv 2509.26114, in our words). Noise is independent of the token, so that without a
clip the mean gradient is 0 and entropy moves to second order alone. The high side takes A > 0 away from tokens that
rose: what is left pushes them down. Tokens that can rise by a fifth are unlikely ones, so entropy falls. The low side
takes A < 0 away from tokens that fell: what is left pushes them up, and entropy rises. Both push back to the policy
that sampled, so that large steps, whose second order is large, are a question of how far noise gets at all.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from steer_core import ADVANTAGES
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.common.files import write_atomically
from steer_core.common.tables import markdown_table
from steer_core.formulas.loss import ClipRange, clip_indicator
from steer_core.stats.intervals import Interval, interval_over_seeds

RESULTS = Path(__file__).with_name("results") / "coin"
VOCABULARY, GROUP, STEPS = 17, 8, 8
SPREADS = (3.0, 9.0)
CLIPS = {
    "symmetric, 0.2 / 0.2": ClipRange(0.2, 0.2, None),
    "tight low, 0.05 / 0.2": ClipRange(0.05, 0.2, None),
    "high, 0.2 / 0.5": ClipRange(0.2, 0.5, None),
    "tight high, 0.2 / 0.05": ClipRange(0.2, 0.05, None),
    "no clip": ClipRange(1.0, float("inf"), None),
}
RATES = {"sgd": (0.03, 0.1, 0.3, 1.0), "adamw": (0.003, 0.01, 0.03, 0.1)}


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of every state (N,), nats."""
    return torch.special.entr(logits_NV.softmax(-1)).sum(-1)


def surrogate_gradient(logits_NV: Tensor, tokens_NG: Tensor, old_NG: Tensor, advantages_NG: Tensor, clip: ClipRange):
    """What the clipped surrogate's ascent adds to the logits (N, V): mean over a state's G tokens of w (e_a - p).

    w = I_clip r A, as in `entropy_change`; old_NG: the tokens' probabilities under the policy that sampled.
    """
    policy_NV = logits_NV.softmax(-1)
    ratio_NG = policy_NV.gather(1, tokens_NG) / old_NG
    push_NG = clip_indicator(ratio_NG, advantages_NG, clip) * ratio_NG * advantages_NG / tokens_NG.shape[1]
    pushed_NV = torch.zeros_like(logits_NV).scatter_add_(1, tokens_NG, push_NG)
    return pushed_NV - policy_NV * push_NG.sum(-1, keepdim=True)


def change_by_noise(base_NV: Tensor, clip: ClipRange, optimizer: str, rate: float, seed: int) -> Tensor:
    """The change of every state's entropy (N,), nats, by STEPS steps on one rollout rewarded by a coin."""
    generator = torch.Generator().manual_seed(seed)
    policy_NV = base_NV.softmax(-1)
    tokens_NG = torch.multinomial(policy_NV, GROUP, replacement=True, generator=generator)
    coin_NG = torch.randint(2, tokens_NG.shape, generator=generator).to(base_NV.dtype)
    advantages_NG = ADVANTAGES["grpo"](coin_NG, torch.ones_like(coin_NG))
    old_NG, logits_NV = policy_NV.gather(1, tokens_NG), base_NV.clone()
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    own = {"weight_decay": 0.0, "maximize": True}
    stepper = kinds[optimizer]([logits_NV], lr=rate, **own)
    for _ in range(STEPS):
        logits_NV.grad = surrogate_gradient(logits_NV, tokens_NG, old_NG, advantages_NG, clip)
        stepper.step()
    return entropy(logits_NV) - entropy(base_NV)


def rows_of(states: int, seed: int) -> pd.DataFrame:
    """For every base, optimiser, rate and clip: the change of entropy and its difference from the first clip's."""
    rows = []
    for spread, optimizer in product(SPREADS, RATES):
        generator = torch.Generator().manual_seed(seed)
        base_NV = spread * torch.randn(states, VOCABULARY, generator=generator, dtype=torch.float64)
        key = {"spread": spread, "entropy": entropy(base_NV).mean().item(), "optimizer": optimizer}
        for rate in RATES[optimizer]:
            found = {name: change_by_noise(base_NV, clip, optimizer, rate, seed + 1) for name, clip in CLIPS.items()}
            first = next(iter(found.values()))
            for name, change in found.items():
                gaps = {"change": interval_over_seeds(change.tolist())}
                gaps["difference"] = interval_over_seeds((change - first).tolist())
                columns = {f"{kind}_{part}": x for kind, gap in gaps.items() for part, x in vars(gap).items()}
                rows.append(key | {"rate": rate, "clip": name} | columns)
    return pd.DataFrame(rows).round(6)


def _text(row: pd.Series, kind: str) -> str:
    gap = Interval(*(row[f"{kind}_{part}"] for part in ("mean", "low", "high")))
    return f"{gap.mean:+.4f} +- {(gap.high - gap.low) / 2:.4f}"


def page(rows: pd.DataFrame, states: int, about: dict) -> str:
    """The result as Markdown."""
    lines = [
        "# Noise as reward on a softmax table",
        "",
        f"`{about['command']}`, {about['cores']} cores of an {about['processor']} (one thread), {about['date'][:10]}. "
        f"One rollout of {GROUP} tokens a state and {STEPS} steps on it, {states} states of {VOCABULARY} tokens; nats, "
        "mean and 95% over states. The symmetric clip's change, and every other's minus it, paired by state.",
        "",
        READING,
        "",
    ]
    names = list(CLIPS)
    head = ["base's entropy", "optimiser", "rate", names[0], *(f"{name}, minus it" for name in names[1:])]
    table = []
    for (_, optimizer, rate), part in rows.groupby(["spread", "optimizer", "rate"], sort=False):
        by_clip = part.set_index("clip")
        cells = [f"{part['entropy'].iloc[0]:.2f}", optimizer, f"{rate:g}", _text(by_clip.loc[names[0]], "change")]
        table.append([*cells, *(_text(by_clip.loc[name], "difference") for name in names[1:])])
    return "\n".join([*lines, markdown_table(head, table), ""])


READING = (
    "What to expect of small steps, and why: [coin_table.py](../../coin_table.py). Plain steps at rate 0.1 have "
    "all the signs that the paper reports, at both bases: a tighter low side ends above the symmetric clip, a "
    "tighter high side below it, a wider high side and no clip above it, so that of its two sides the high one "
    "weighs more; and the symmetric clip itself lowers entropy. In large plain steps, rate 1, the order turns "
    "round: a tighter high side ends above the symmetric clip, a tighter low side below it, and no clip far "
    "below. There noise itself moves entropy, to second order, and a clip is what stops noise. AdamW makes large "
    "steps of small gradients: entropy falls before any clip acts (rate 0.003), a tighter low side still ends "
    "above at rates 0.01 and 0.03, but at 0.03 so does a tighter high one, and no clip ends below the symmetric "
    "clip at 0.03 and 0.1. So the signs are those of small plain steps, and not of the clip in general. A table's "
    "states do not share weights; a network's do: coin.md."
)


def main() -> None:
    """Measure and write; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=at_least(2), default=5000, help="of each base (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_of(args.states, seed=0)
    command = shlex.join(["python", "reproduce/coin_table.py", *sys.argv[1:]])
    text = page(rows, args.states, environment() | {"command": command})
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "coin_table.csv", rows.to_csv(index=False))
    write_atomically(args.out / "coin_table.md", text)
    print(text)


if __name__ == "__main__":
    end(main)
