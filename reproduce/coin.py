"""A fair coin as reward: nothing can be learnt, so which way does entropy go under each clip range?

    python reproduce/coin.py           # trains in runs/coin, then reports: 25 minutes of one core
    python reproduce/coin.py --quick   # 2 seeds x 3 rollouts in runs/coin-quick: shows the machinery
    python reproduce/coin.py --report  # the figure and the page again, from the rows that are kept

The question is that of arXiv 2509.26114, which reports that the low side of PPO's clip raises entropy, the high side
lowers it, and that in a symmetric clip the high side weighs more, even with random rewards. The plan, with the rule by
which its settings were chosen, is coin.yaml. Interrupted at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from steer_core import SteerError
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.errors import INTERRUPTED
from steer_core.common.files import json_text, write_atomically, written_whole
from steer_core.common.plot_style import ARM_COLOURS, ARM_MARKERS, label, panels, styled
from steer_core.common.tables import markdown_table
from steer_core.compare.comparison import Comparison, load_comparison
from steer_core.compare.plan import Plan, load_plan
from steer_core.compare.runner import run_comparison, start_comparison
from steer_core.stats.intervals import Interval, holm, interval_over_seeds, paired_p_value
from steer_core.stats.pass_at_k import pass_at_k

ROOT = Path(__file__).parent.parent
PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).with_name("results") / "coin"
QUICK = ("train.rollouts=3", "evaluation.every=3", "evaluation.problems=20", "rollout.prompts=8")
KEPT = ["entropy/policy", "clip/low", "clip/high", "ratio/q0.1", "ratio/q99.9", "grad_norm/mean", "reward/mean"]
"""The metrics that are kept of every rollout."""
CLAIMS = (
    ("a tight low clip raises entropy above the symmetric clip's", "tight-low", "symmetric", 1),
    ("a wider high clip leaves more entropy than the symmetric clip", "high", "symmetric", 1),
    ("in the symmetric clip the high side weighs more: it ends below no clip", "symmetric", "none", -1),
)
"""The paper's claims as differences: in words, arm, minus which arm, sign."""


def rows_of(comparison: Comparison) -> pd.DataFrame:
    """What is kept of the seeds whose runs all came to their end: a row a rollout, with the verifier's pass@1 where it
    is known.
    """
    done = comparison.final()[["arm", "seed"]]
    done = done[done.groupby("seed")["arm"].transform("size") == len(comparison.plan.arms)]
    rows = comparison.metrics.merge(done, on=["arm", "seed"])[["arm", "seed", "step", *KEPT]].round(6)
    solved = comparison.curves()[["arm", "seed", "step", "pass@1"]]
    return rows.merge(solved.round(6), on=["arm", "seed", "step"], how="left")


def changes(rows: pd.DataFrame) -> pd.Series:
    """By (arm, seed): entropy of the policy that samples at the last rollout minus at the first, nats a token."""
    by_step = rows.sort_values("step").groupby(["arm", "seed"])["entropy/policy"]
    return by_step.last() - by_step.first()


def paired(found: pd.Series, arm: str, against: str) -> list[float]:
    """One arm's changes minus another's, for the seeds that both have."""
    return (found.loc[arm] - found.loc[against]).dropna().tolist()


def results(rows: pd.DataFrame, plan: Plan) -> dict[str, Any]:
    """By arm: the change of entropy, its difference from the symmetric clip's, how often the clip acted, pass@1."""
    found, arms = changes(rows), {}
    present = [arm for arm in plan.arms if arm in found.index.get_level_values("arm")]
    for arm in present:
        own = rows[rows.arm == arm]
        by_seed = found.loc[arm]
        arms[arm] = {
            "label": plan.arms[arm].label,
            "by_seed": by_seed.to_dict(),
            "change": interval_over_seeds(by_seed.tolist()),
            "low": own["clip/low"].mean(),
            "high": own["clip/high"].mean(),
            "pass@1": own["pass@1"].dropna().mean(),
        }
        if arm != plan.baseline and (gaps := paired(found, arm, plan.baseline)):
            arms[arm] |= {"difference": interval_over_seeds(gaps), "p": paired_p_value(gaps)}
    for arm, p in holm({arm: row["p"] for arm, row in arms.items() if "p" in row}).items():
        arms[arm]["p_holm"] = p
    claims = [
        {"claim": text, "found": (gap := interval_over_seeds(paired(found, arm, against))), "held": held(gap, sign)}
        for text, arm, against, sign in CLAIMS
        if arm in arms and against in arms
    ]
    return {
        "arms": arms,
        "claims": claims,
        "seeds": sorted(set(rows.seed)),
        "planned": list(plan.seeds),
        "rollouts": int(rows.step.max()),
    }


def held(gap: Interval, sign: int) -> str:
    """What a difference says of a claim about its sign."""
    if gap.verdict == "undecided":
        return "undecided"
    return "held" if (gap.verdict == "higher") == (sign > 0) else "not held: the other way"


def word(change: Interval) -> str:
    """Which way entropy went."""
    return {"higher": "rises", "lower": "falls", "undecided": "undecided"}[change.verdict]


def _text(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _seeds(found: dict[str, Any]) -> str:
    own, planned = (", ".join(map(str, found[name])) for name in ("seeds", "planned"))
    return own if own == planned else f"{own} (planned: {planned}; the others had not come to their end)"


def answer(found: dict[str, Any]) -> str:
    """The result in words that follow from the numbers."""
    arms = found["arms"]
    parts = [f"{row['label']}: {word(row['change'])}, {_text(row['change'])}" for row in arms.values()]
    told = [f"{claim['claim']}: {claim['held']} ({_text(claim['found'])})" for claim in found["claims"]]
    return (
        f"Change of entropy by {found['rollouts'] - 1} rollouts of noise, nats a token, mean and 95% over "
        f"{len(found['seeds'])} seeds. {'; '.join(parts)}. The paper's claims here: {'; '.join(told)}."
    )


def page(found: dict[str, Any], about: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = [
        "arm",
        "change of entropy",
        "sign",
        "minus the symmetric clip",
        "p",
        "clipped low",
        "clipped high",
        "pass@1",
    ]
    base = f" (before: {about['base pass@1']:.3f})" if "base pass@1" in about else ""
    table = []
    for row in found["arms"].values():
        against = [_text(row["difference"]), f"{row['p_holm']:.2g}"] if "difference" in row else ["", ""]
        shares = [f"{row[side]:.2%}" for side in ("low", "high")]
        table.append(
            [row["label"], _text(row["change"]), word(row["change"]), *against, *shares, f"{row['pass@1']:.3f}"]
        )
    return "\n".join(
        [
            "# Noise as reward: which way does entropy go?",
            "",
            f"`{about['command']}`, {about['cores']} cores of an {about['processor']} (one run, of one thread, at a "
            f"time), {about['date'][:10]}, seeds {_seeds(found)}. "
            "The plan, and how its settings were chosen: [coin.yaml](../../coin.yaml); every rollout: rows.csv.gz.",
            "",
            answer(found),
            "",
            READING,
            "",
            "![entropy by rollout; change by arm; differences from the symmetric clip](coin.png)",
            "",
            markdown_table(head, table),
            "",
            "Intervals: Student t over seeds, 95%; differences paired by seed, p by Holm over the arms. pass@1 by the "
            f"verifier, at the end, on 100 held-out problems x 8 samples{base}: what noise destroys.",
            "",
        ]
    )


READING = (
    "Noise raises entropy here, under the symmetric clip too, where the paper reports that it falls. Why it can: "
    "what a clip leaves is a bias of first order in the steps, from the few percent of tokens that it stops; "
    "noise itself acts to second order, and AdamW makes steps of about the learning rate in every weight out of "
    "gradients of any size. So the shared weights of a trained policy take a random walk, its sharp predictions "
    "blur, and hardly a problem is solved any more. The means have the order that a brake would give, lowest "
    "under the tighter clip, then symmetric, wider and none, where a run went up or down by its seed. On a table "
    "that shares no weights, with small plain steps, all of the paper's signs are there, and with large steps or "
    "AdamW they are not (coin_table.md). So the sign belongs to the clip together with step size and optimiser. "
    "What this does not say: one learning rate, twice the usual, one model of 0.36M weights, 20 rollouts; at the "
    "usual rate the pilot's one seed moved by less than 0.02 in 10 rollouts, of either sign."
)


@styled
def figure(rows: pd.DataFrame, found: dict[str, Any]) -> Figure:
    """Entropy by rollout, mean and range over seeds; the changes; their differences from the symmetric clip's."""
    drawn, axes = panels(1, 3, 2.6, width=9.0)
    arms = found["arms"]
    for i, (arm, row) in enumerate(arms.items()):
        by_step = rows[rows.arm == arm].groupby("step")["entropy/policy"]
        mean, low, high = by_step.mean(), by_step.min(), by_step.max()
        axes[0, 0].fill_between(mean.index, low, high, color=ARM_COLOURS[i], alpha=0.12, lw=0)
        axes[0, 0].plot(mean.index, mean, color=ARM_COLOURS[i], lw=1.4, label=row["label"])
        for axis, gap in ((axes[0, 1], row["change"]), (axes[0, 2], row.get("difference"))):
            if gap is not None:
                sides = [[gap.mean - gap.low], [gap.high - gap.mean]]
                axis.errorbar([gap.mean], [-i], xerr=sides, color=ARM_COLOURS[i], fmt=ARM_MARKERS[i], ms=4, lw=1.2)
    for axis in axes[0, 1:]:
        axis.axvline(0, color=ARM_COLOURS[0], lw=0.8)
        axis.set_yticks([-i for i in range(len(arms))], [""] * len(arms))
    label(axes[0, 0], "entropy under noise", "rollout", "policy entropy (nats / token)")
    label(axes[0, 1], "change, 95% over seeds", "nats a token", "", whole=False)
    label(axes[0, 2], "minus the symmetric clip, paired", "nats a token", "", whole=False)
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def read_rows(out: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The kept rows and how they were made. Raises SteerError where there are none."""
    try:
        about = json.loads((out / "results.json").read_text(encoding="utf-8"))["environment"]
        return pd.read_csv(out / "rows.csv.gz"), about
    except OSError as error:
        raise SteerError(f"--report: {out} holds no {Path(error.filename).name}; run without --report") from error


def write_results(rows: pd.DataFrame, about: dict[str, Any], plan: Plan, out: Path) -> str:
    """Write rows, results.json, figure and page; the page. Raises SteerError where the folder cannot be written."""
    found = results(rows, plan)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with written_whole(out / "rows.csv.gz") as partial:
            rows.to_csv(partial, index=False, compression={"method": "gzip", "mtime": 0})
        write_atomically(out / "results.json", json_text({"environment": about} | found))
        figure(rows, found).savefig(out / "coin.png", dpi=150)
        write_atomically(out / "coin.md", page(found, about))
    except OSError as error:
        raise SteerError(f"--results: {out} cannot be written ({error.strerror}); name another folder") from error
    return page(found, about)


def main() -> int:
    """Train what is not trained yet, then report; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/coin, or runs/coin-quick)")
    parser.add_argument("--results", type=Path, help="folder of the results (default: reproduce/results/coin, or OUT)")
    parser.add_argument("--quick", action="store_true", help="2 seeds x 3 short rollouts; decides nothing")
    parser.add_argument("--report", action="store_true", help="train nothing; figure and page from the kept rows")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs at a time (default: %(default)s)")
    args = parser.parse_args()
    folder = args.out or ROOT / "runs" / ("coin-quick" if args.quick else "coin")
    out = args.results or (folder if args.quick else RESULTS)
    plan = load_plan(PLAN, QUICK, seeds=[0, 1]) if args.quick else load_plan(PLAN)
    complete = True
    if args.report:
        rows, about = read_rows(out)
    else:
        start_comparison(plan, folder, resume=True)
        complete = run_comparison(plan, folder, args.jobs, Console())
        comparison = load_comparison(folder)
        rows = rows_of(comparison)
        about = comparison.environment | {"command": shlex.join(["python", "reproduce/coin.py", *sys.argv[1:]])}
        if comparison.base is not None:
            base = comparison.base
            about["base pass@1"] = float(pass_at_k(base["correct"], base["samples"], 1).mean())
        if rows["seed"].nunique() < 2:
            print("stopped with fewer than two whole seeds; the same command goes on", file=sys.stderr)
            return INTERRUPTED
    print(write_results(rows, about, plan, out))
    if not complete:
        print("stopped; that is of the seeds that are whole, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    end(main)
