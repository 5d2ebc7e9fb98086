"""Which of the four factors of the entropy change each known method touches, as data and checked by code.

    python reproduce/table2.py

Prints the table of table2.yaml and puts every cell to the test: in a batch of tokens one factor is changed at a time
(the ratio across the clip's bound; the advantage; the probability at fixed entropy; the entropy at fixed probability),
and what the method does to the token beyond plain GRPO responds, or it does not. Exits 1 where a cell says otherwise
and names it. A few seconds on one CPU core; the tokens come from seed 0.

The methods are the package's own interventions; `METHODS` names them as table2.yaml does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from steer_core import ClipRange, Intervention, Steer, SteerError, Tokens, TokenStats, clip_indicator, importance_ratio
from steer_core.cli.ending import end
from steer_core.common.settings import read_yaml
from steer_core.interventions.ce_gppo import CEGPPO
from steer_core.interventions.clip_higher import ClipHigher
from steer_core.interventions.covariance import ClipCov, KLCov
from steer_core.interventions.entropy_advantage import EntropyAdvantage
from steer_core.interventions.entropy_loss import EntropyLoss
from steer_core.interventions.fork_tokens import ForkTokens
from steer_core.interventions.repo import RepoR
from steer_core.interventions.w_reinforce import WReinforce

DATA = Path(__file__).with_suffix(".yaml")
FACTORS = ("clipping", "advantage", "probability", "entropy")
CLIP = ClipRange(low=0.2, high=0.2, dual=None)
"""The clip of plain GRPO here."""
TOKENS, SEED, TOLERANCE = 64, 0, 1e-6


METHODS: dict[str, Intervention] = {
    "clip-higher": ClipHigher(high=0.28),
    "entropy-loss": EntropyLoss(coefficient=0.01),
    "fork-tokens": ForkTokens(share=0.2),
    "w-reinforce": WReinforce(positive=0.1),
    "entropy-advantage": EntropyAdvantage(alpha=0.4, kappa=2.0),
    "clip-cov": ClipCov(share=1.0),
    "kl-cov": KLCov(share=0.02, coefficient=1.0),
    "ce-gppo": CEGPPO(low=0.75, high=1.0),
    "repo-r": RepoR(zeta=0.01),
    "steer": Steer(lambda_min=0.7),
}


def departure(method: Intervention, new: TokenStats, old: TokenStats, advantages: Tensor) -> Tensor:
    """What a method does to each token beyond plain GRPO, (4, tokens).

    The change of I_clip; the factor on the token's loss; what is added to its advantage; and the extra
    loss term's derivative by the logit of the sampled token, (1 - p) d/d ln p - p (ln p + H) d/dH.
    """
    clip = method.clip_range(CLIP)
    treated = method.loss_terms(Tokens(new, old, advantages, clip, draws=torch.zeros_like(advantages), memory={}))
    ratio = importance_ratio(new.logprob, old.logprob)
    passes = clip_indicator(ratio, advantages, clip) - clip_indicator(ratio, advantages, CLIP)
    extra = torch.zeros_like(advantages)
    if treated.extra is not None:
        leaves = new.logprob.detach().requires_grad_(), new.entropy.detach().requires_grad_()
        term = (treated.extra * method.extra_loss(replace(new, logprob=leaves[0], entropy=leaves[1]), old)).sum()
        by_logprob, by_entropy = torch.autograd.grad(term, leaves, allow_unused=True)
        p = new.logprob.exp()
        extra = sum(
            factor * by
            for factor, by in ((1 - p, by_logprob), (-p * (new.logprob + new.entropy), by_entropy))
            if by is not None
        )
    return torch.stack([passes, treated.weights, treated.advantages - advantages, extra])


def batch() -> tuple[TokenStats, Tensor, Tensor]:
    """(new, log-ratios, advantages) of tokens like a rollout's: float64, ratios within the clip and none of them 1."""
    draw = torch.Generator().manual_seed(SEED)
    entropy, surprise, size, side = torch.rand(4, TOKENS, generator=draw, dtype=torch.float64)
    logprob = -(0.02 + 3 * surprise)
    advantages = (0.3 + 1.7 * size) * torch.where(side < 0.5, -1.0, 1.0)
    log_ratio = torch.linspace(-0.15, 0.15, TOKENS, dtype=torch.float64)  # an even number: 0 is left out
    nothing = torch.zeros_like(logprob)
    return TokenStats(logprob, 0.05 + 1.5 * entropy, nothing, nothing), log_ratio, advantages


def perturbed(factor: str, i: int) -> list[tuple[TokenStats, TokenStats, Tensor]]:
    """The batch with one factor of token i at several values; the other three factors stay what they are.

    Clipping: the ratio just within and just beyond the bound that the token's sign of A brings into play.
    Where p moves, the old log-prob moves along, so that the ratio stays.
    """
    new, log_ratio, advantages = batch()
    bound = 1 + CLIP.high if advantages[i] > 0 else 1 - CLIP.low
    values = {
        "clipping": [torch.tensor(bound * x).log() for x in (0.99, 1.01)],
        "advantage": [-2.0, -0.5, -0.1, 0.1, 0.5, 2.0],
        "probability": torch.tensor([0.01, 0.1, 0.3, 0.6, 0.9]).log(),
        "entropy": [0.01, 0.3, 0.6, 1.0, 1.7],
    }[factor]
    changed = {"clipping": log_ratio, "advantage": advantages, "probability": new.logprob, "entropy": new.entropy}
    made = []
    for value in values:
        parts = changed | {factor: changed[factor].clone()}
        parts[factor][i] = value
        stats = replace(new, logprob=parts["probability"], entropy=parts["entropy"])
        made.append((stats, replace(stats, logprob=stats.logprob - parts["clipping"]), parts["advantage"]))
    return made


def responds(method: Intervention, factor: str) -> bool:
    """Whether what a method does beyond plain GRPO to some token depends on that factor of the token."""
    for i in range(TOKENS):
        at_token = torch.stack([departure(method, *tokens)[:, i] for tokens in perturbed(factor, i)])
        if float((at_token.amax(0) - at_token.amin(0)).max()) > TOLERANCE:
            return True
    return False


def load(path: Path = DATA) -> dict[str, Any]:
    """The table's data. Raises SteerError where a method has no function and no reason, or misses a factor."""
    data = read_yaml(path)
    for name, row in data["methods"].items():
        if name not in METHODS and "unchecked" not in row:
            raise SteerError(f"methods.{name}: no method of table2.py; add it to METHODS, or say `unchecked: why`")
        if not isinstance(row.get("touched"), dict) or set(row["touched"]) != set(FACTORS):
            wanted = ", ".join(FACTORS)
            raise SteerError(f"methods.{name}.touched: {row.get('touched')}; give true or false to {wanted}")
    return data


def check(data: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """By method and factor, what the check found; methods that cannot be checked are left out."""
    return {
        name: {factor: responds(METHODS[name], factor) for factor in FACTORS}
        for name in data["methods"]
        if name in METHODS
    }


def disagreements(data: dict[str, Any], found: dict[str, dict[str, bool]]) -> list[str]:
    """The cells whose claim the check contradicts, in words."""
    words = {True: "touched", False: "not touched"}
    return [
        f"{name}, {factor}: the table says {words[data['methods'][name]['touched'][factor]]}, the check {words[value]}"
        for name, row in found.items()
        for factor, value in row.items()
        if value is not data["methods"][name]["touched"][factor]
    ]


def table(data: dict[str, Any], found: dict[str, dict[str, bool]]) -> Table:
    """The table, a row a method: touched or not, and a star where that is not checked."""
    drawn = Table(title="Which factor of the entropy change each method touches", caption="every cell is checked but *")
    for name in ("method", *FACTORS):
        drawn.add_column(name)
    for name, row in data["methods"].items():
        mark = "" if name in found else " *"
        drawn.add_row(row["label"], *(("touched" if row["touched"][factor] else "-") + mark for factor in FACTORS))
    return drawn


def remarks(row: dict[str, Any]) -> str:
    """What a method does, where it comes from, and what a reader of its row should know."""
    lines = [f"{row['label']} [{row['source']}]: {row['does']}.", row.get("note")]
    lines += [f"* Not checked: {row['unchecked']}."] if "unchecked" in row else []
    return "\n  ".join(line for line in lines if line)


def main() -> int:
    """Print the table and what the check says; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the table (default: table2.yaml beside this file)")
    args = parser.parse_args()
    data = load(args.data)
    found = check(data)
    Console().print(table(data, found))
    for row in data["methods"].values():
        print(remarks(row))
    wrong = disagreements(data, found)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    cells = sum(map(len, found.values()))
    print(f"{cells - len(wrong)} of {cells} checked cells hold")
    return 1 if wrong else 0


if __name__ == "__main__":
    end(main)
