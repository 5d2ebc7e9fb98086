"""When does an entropy bonus help, as right actions become rare? A small world, solved many times over.

    python reproduce/tabular_world.py            # writes reproduce/results/tabular_world: 2 minutes on one core
    python reproduce/tabular_world.py --report   # the figure and the page again, from the rows that are kept
    python reproduce/tabular_world.py --tuning-seeds 2 --test-seeds 2 --updates 5 --out runs/tabular   # a slice

The question is that of AEnt (arXiv 2509.03493), the world our own (`tabular_dynamics.py`): 3 steps, 8 states, 32
actions each, of which 1, 2, 4, 8 or 16 are right; the reward is 1 where all three steps were; a base policy that is
skewed at random. 150 updates, each of 8 starts x 8 responses with GRPO's advantage, or with the exact gradient.

The plan. Tuning seeds try every bonus at every learning rate and choose, by mean pass@1 at the end (of equals, the
first): the best rate without a bonus, the envelope; and the best bonus with a rate of its own. Test seeds, worlds that
tuning never saw, decide: best bonus minus envelope, paired by world, Student t at 95%, and Holm over the ten contrasts
(5 shares x 2 gradients); what lies within 0.01 of 0 is called none (set after a first look at the rows, in which 40
worlds that all end at 1.0000 told 0.0001 from 0). Exploratory, beside it: the best bonus at two fixed rates, a low
and a high one, which is what is seen where the rate is not tuned.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from tabular_dynamics import draw_world, measures, soft_optimum, update

from steer_core import SteerError
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.common.files import json_text, write_atomically, written_whole
from steer_core.common.plot_style import ARM_COLOURS, ARM_MARKERS, label, panels, styled
from steer_core.common.progress import Progress
from steer_core.common.tables import markdown_table
from steer_core.stats.intervals import Interval, holm, interval_over_seeds, paired_p_value

RESULTS = Path(__file__).with_name("results") / "tabular_world"
STEPS, STATES, ACTIONS, GROUP, SPREAD, UPDATES, K = 3, 8, 32, 8, 1.5, 150, 32
RIGHT = (1, 2, 4, 8, 16)
BONUSES = (0.0, 0.01, 0.03, 0.1, 0.3)
RATES = (16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)
LOW, HIGH = 64.0, 16384.0
MARGIN = 0.01
"""Differences in pass@1 that lie within this of 0 do not matter."""
GRADIENTS = ("sampled", "exact")
FIRST_TEST_SEED = 1000
Arm = tuple[float, float]
"""(bonus, learning rate)."""


def run_arms(gradient: str, right: int, arms: list[Arm], seeds: list[int], updates: int) -> pd.DataFrame:
    """What every arm reached in the world of every seed; a row each.

    A seed draws its world, its base policy and the numbers that pick actions, the same for all arms, whatever other
    arms and seeds there are.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    world, base = draw_world((STEPS, STATES, ACTIONS), right, SPREAD, generators)
    worlds, logits, times = world.repeated(len(arms)), base.repeat(len(arms), 1, 1, 1), len(seeds)
    bonus_R, rate_R = torch.tensor(arms, dtype=base.dtype).repeat_interleave(times, 0).unbind(-1)
    shape = (STEPS, STATES, GROUP)
    for _ in range(updates):
        draws = None
        if gradient == "sampled":
            own = [torch.rand(shape, generator=generator, dtype=base.dtype) for generator in generators]
            draws = torch.stack(own).repeat(len(arms), 1, 1, 1)
        logits = update(logits, worlds, bonus_R, rate_R, draws)
    found = {name: values.tolist() for name, values in measures(logits, worlds, K).items()}
    before = measures(base, world, K)["pass@1"].repeat(len(arms)).tolist()
    keys = {"bonus": bonus_R.tolist(), "rate": rate_R.tolist(), "seed": seeds * len(arms)}
    rows = pd.DataFrame(keys | {"base": before} | found).round({"base": 8, **dict.fromkeys(found, 5)})
    return rows.assign(gradient=gradient, right=right)


def chosen(tuning: pd.DataFrame) -> dict[str, Arm]:
    """Of one gradient and number of right actions: what the tuning seeds chose, by name.

    `envelope`: no bonus, its best rate. `bonus`: the best bonus and rate. `low`, `low bonus`, `high` and `high bonus`:
    at the rate LOW or HIGH, no bonus and the best one.
    """
    mean = tuning.groupby(["bonus", "rate"])["pass@1"].mean()
    bonus, rate = (mean.index.get_level_values(name) for name in ("bonus", "rate"))
    arms = {"envelope": mean[bonus == 0].idxmax(), "bonus": mean[bonus > 0].idxmax()}
    for name, fixed in (("low", LOW), ("high", HIGH)):
        arms |= {name: (0.0, fixed), f"{name} bonus": mean[(bonus > 0) & (rate == fixed)].idxmax()}
    return arms


def experiment(tuning_seeds: int, test_seeds: int, updates: int) -> pd.DataFrame:
    """All rows, of tuning and of test, by the plan."""
    parts, grid, cases = [], list(product(BONUSES, RATES)), list(product(GRADIENTS, RIGHT))
    to_test = list(range(FIRST_TEST_SEED, FIRST_TEST_SEED + test_seeds))
    with Progress() as shown:
        for i, case in enumerate(cases):
            tuning = run_arms(*case, grid, list(range(tuning_seeds)), updates)
            test = run_arms(*case, list(dict.fromkeys(chosen(tuning).values())), to_test, updates)
            parts += [tuning.assign(stage="tuning"), test.assign(stage="test")]
            shown.show(i + 1, len(cases), line=f"{i + 1} of {len(cases)} worlds", every=True)
    order = ["gradient", "right", "stage", "bonus", "rate", "seed", "base", "pass@1", f"pass@{K}", "entropy"]
    return pd.concat(parts)[order]


def contrast(test: pd.DataFrame, arm: Arm, against: Arm) -> tuple[Interval, float]:
    """Pass@1 of one arm minus another's, paired by world: the interval, and p of Student's t."""
    by_arm = test.set_index(["bonus", "rate", "seed"])["pass@1"].sort_index()
    gaps = (by_arm.loc[arm] - by_arm.loc[against]).tolist()
    return interval_over_seeds(gaps), paired_p_value(gaps)


def contrasts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """For every gradient and number of right actions: what was chosen, what it reached, the differences."""
    found = []
    for (gradient, right), part in rows.groupby(["gradient", "right"], sort=False):
        arms, test = chosen(part[part.stage == "tuning"]), part[part.stage == "test"]
        means = test.groupby(["bonus", "rate"])[["pass@1", f"pass@{K}", "entropy"]].mean()
        difference, p = contrast(test, arms["bonus"], arms["envelope"])
        fixed = {name: contrast(test, arms[f"{name} bonus"], arms[name])[0] for name in ("low", "high")}
        levels = {name: means.loc[arm].to_dict() for name, arm in arms.items()}
        first = {"gradient": gradient, "right": int(right), "base": test.groupby("seed")["base"].first().mean()}
        found.append(first | {"arms": arms, "levels": levels, "difference": difference, "p": p, "fixed": fixed})
    corrected = holm({f"{row['gradient']}/{row['right']}": row["p"] for row in found})
    return [row | {"p_holm": corrected[f"{row['gradient']}/{row['right']}"]} for row in found]


def told(row: dict[str, Any]) -> str:
    """What the test says of the bonus against the envelope of learning rates, in one word."""
    gap = row["difference"]
    if max(abs(gap.low), abs(gap.high)) < MARGIN:
        return "none"
    if row["p_holm"] >= 0.05:
        return "undecided"
    return {"higher": "helps", "lower": "harms", "undecided": "undecided"}[gap.verdict]


def _text(interval: Interval) -> str:
    mean, low, high = (round(x, 3) + 0.0 for x in (interval.mean, interval.low, interval.high))  # no -0.000
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(p: float) -> str:
    return f"{p:.2g}" if p == p else "-"  # NaN: all worlds alike


def _arm(arm: Arm) -> str:
    edge = " (the largest tried)" if arm[1] == RATES[-1] else ""
    return (f"{arm[0]:g} at {arm[1]:g}" if arm[0] else f"{arm[1]:g}") + edge


def answer(found: list[dict[str, Any]]) -> str:
    """What the contrasts say, in words that follow from them."""
    said = []
    for gradient in GRADIENTS:
        of = {word: [row for row in found if row["gradient"] == gradient and told(row) == word] for word in TOLD}
        parts = [f"{TOLD[word]} {_shares(rows)}" for word, rows in of.items() if rows]
        said.append(f"With the {gradient} gradient, {'; '.join(parts)}.")
    return " ".join(said)


TOLD = {
    "helps": "a bonus ends above the best learning rate without one where the share of right actions is",
    "harms": "it ends below where the share is",
    "none": f"it makes no difference above {MARGIN:g} where the share is",
    "undecided": "it is undecided where the share is",
}


def _shares(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['right']}/{ACTIONS} ({_text(row['difference'])})" for row in rows)


def page(found: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The result as Markdown."""
    seeds = about["seeds"]
    lines = [
        "# When does an entropy bonus help, as right actions become rare?",
        "",
        f"`{about['command']}`, {about['cores']} cores of an {about['processor']} (one thread), {about['date'][:10]}; "
        f"{seeds['tuning']} tuning seeds (from 0), {seeds['test']} test seeds (from {FIRST_TEST_SEED}), "
        f"{about['updates']} updates. The plan and the world: [tabular_world.py](../../tabular_world.py), "
        "[tabular_dynamics.py](../../tabular_dynamics.py); every run: rows.csv.gz.",
        "",
        answer(found),
        "",
        READING,
        "",
        "![pass@1 by learning rate and bonus; the differences](tabular_world.png)",
        "",
        "Means over the test worlds. Tuning chose rates and bonuses; differences in pass@1 are paired by "
        "world, 95% Student t; p by Holm over the ten.",
        "",
    ]
    head = ["gradient", "right", "base pass@1", "best rate, no bonus", f"pass@1, pass@{K}", "best bonus at its rate"]
    head += [f"pass@1, pass@{K}", "difference in pass@1", "p", "verdict"]
    head += [f"best bonus at rate {rate:g} minus none there" for rate in (LOW, HIGH)]
    table = []
    for row in found:
        arms, levels = row["arms"], (row["levels"][name] for name in ("envelope", "bonus"))
        reached = [f"{level['pass@1']:.3f}, {level[f'pass@{K}']:.3f}" for level in levels]
        cells = [row["gradient"], f"{row['right']}/{ACTIONS}", f"{row['base']:.2g}", _arm(arms["envelope"]), reached[0]]
        cells += [_arm(arms["bonus"]), reached[1], _text(row["difference"]), _p(row["p_holm"]), told(row)]
        table.append([*cells, *(f"{arms[f'{name} bonus'][0]:g}: {_text(gap)}" for name, gap in row["fixed"].items())])
    lines += [
        markdown_table(head, table),
        "",
        "What a bonus costs for good: pass@1 of the best policy of one step.",
        "",
    ]
    head = ["right", *(f"bonus {bonus:g}" for bonus in BONUSES)]
    table = [[f"{n}/{ACTIONS}", *(f"{soft_optimum(n, ACTIONS, bonus):.3f}" for bonus in BONUSES)] for n in RIGHT]
    return "\n".join([*lines, markdown_table(head, table), ""])


READING = (
    "How to read it. A start ends solved or lost: pass@32 is hardly above pass@1. Sampling is what loses it: a "
    "response that fails at its last step pushes down the right actions before it too, and once all 8 responses of a "
    "start fail, their advantage is 0 and only a bonus still moves the policy. So with sampled gradients, where 2 or 4 "
    "of 32 actions are right, a bonus ends above every learning rate; where 8 or 16 are, nothing is lost and there is "
    "nothing to gain; where 1 is, most starts are never solved, with a bonus or without. The exact gradient loses "
    "nothing but time: what a bonus seems to give there at one rate, a higher rate without one gives too. And sampled "
    "at the fixed high rate a bonus seems to help where 8 of 32 are right as well: a better rate without one does the "
    "same. AEnt reports that the advantage of a bonus goes away as optimal actions get fewer; here it is largest "
    "between the extremes. The two worlds are not the same (the settings of theirs were not at hand). What a bonus "
    "costs for good, the bias that AEnt bounds, is the last table: small, for the bonuses that were chosen where one "
    "helps. A learning rate is the factor on the ascent of a mean over all tokens, of which a state has about 1 in 24, "
    "hence its size. The two largest rates were added after a first run on the same worlds, whose best rate with the "
    "exact gradient was the largest tried: with rates up to 16384 alone a bonus came out as a help there with 2 of 32 "
    "(+0.022, p 0.039), and with 1 of 32 it was undecided."
)


@styled
def figure(rows: pd.DataFrame, found: list[dict[str, Any]]) -> Figure:
    """By share of right actions: pass@1 in tuning against the learning rate; below, the test's differences."""
    drawn, axes = panels(3, len(RIGHT), 1.9, width=8.4, sharey=False)
    for line, gradient in enumerate(GRADIENTS):
        for axis, right in zip(axes[line], RIGHT, strict=True):
            part = rows[(rows.gradient == gradient) & (rows.right == right) & (rows.stage == "tuning")]
            for i, (bonus, own) in enumerate(part.groupby("bonus")):
                mean = own.groupby("rate")["pass@1"].mean()
                style = {"color": ARM_COLOURS[i], "marker": ARM_MARKERS[i], "ms": 3, "lw": 1.2}
                axis.plot(mean.index, mean, label=f"bonus {bonus:g}" if bonus else "no bonus", **style)
            axis.set_xscale("log")
            axis.set_ylim(-0.04, 1.04)
            label(
                axis, f"{right}/{ACTIONS} right" if line == 0 else "", "learning rate" if line else "", "", whole=False
            )
        axes[line, 0].set_ylabel(f"pass@1, {gradient}")
    whole = axes[2, 0].get_gridspec()
    for axis in axes[2]:
        axis.remove()
    forest = drawn.add_subplot(whole[2, :])
    for i, gradient in enumerate(GRADIENTS):
        own = [row for row in found if row["gradient"] == gradient]
        gaps, places = [row["difference"] for row in own], [k + 0.16 * (i - 0.5) for k in range(len(own))]
        means = [gap.mean for gap in gaps]
        sides = [[gap.mean - gap.low for gap in gaps], [gap.high - gap.mean for gap in gaps]]
        style = {"color": ARM_COLOURS[i + 1], "fmt": ARM_MARKERS[i], "ms": 4, "lw": 1.2}
        forest.errorbar(places, means, yerr=sides, label=f"{gradient} gradient", **style)
    forest.axhline(0, color=ARM_COLOURS[0], lw=0.8)
    forest.set_xticks(range(len(RIGHT)), [f"{right}/{ACTIONS}" for right in RIGHT])
    label(forest, "best bonus minus best rate without one, test worlds, 95%", "share of right actions", "pass@1", False)
    forest.legend(loc="best")
    handles, names = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside upper center", ncols=len(names))
    return drawn


def read_rows(out: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The kept rows and how they were made. Raises SteerError where there are none."""
    try:
        about = json.loads((out / "environment.json").read_text(encoding="utf-8"))
        return pd.read_csv(out / "rows.csv.gz"), about
    except OSError as error:
        raise SteerError(f"--report: {out} holds no {Path(error.filename).name}; run without --report") from error


def write_results(rows: pd.DataFrame, about: dict[str, Any], out: Path) -> str:
    """Write rows, figure and page; the page. Raises SteerError where the folder cannot be written."""
    found = contrasts(rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        rows.to_csv(buffer, index=False, compression={"method": "gzip", "mtime": 0})
        with written_whole(out / "rows.csv.gz") as partial:
            partial.write_bytes(buffer.getvalue())
        write_atomically(out / "environment.json", json_text(about))
        figure(rows, found).savefig(out / "tabular_world.png", dpi=150)
        write_atomically(out / "tabular_world.md", page(found, about))
    except OSError as error:
        raise SteerError(f"--out: {out} cannot be written ({error.strerror}); name another folder") from error
    return page(found, about)


def main() -> None:
    """Run and write, or only write; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tuning-seeds", type=at_least(2), default=10, help="worlds to choose on (default: %(default)s)"
    )
    parser.add_argument("--test-seeds", type=at_least(2), default=40, help="worlds to decide on (default: %(default)s)")
    parser.add_argument("--updates", type=at_least(1), default=UPDATES, help="of every run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="run nothing; write figure and page from the kept rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.report:
        rows, about = read_rows(args.out)
    else:
        rows = experiment(args.tuning_seeds, args.test_seeds, args.updates)
        command = shlex.join(["python", "reproduce/tabular_world.py", *sys.argv[1:]])
        seeds = {"tuning": args.tuning_seeds, "test": args.test_seeds}
        about = environment() | {"command": command, "seeds": seeds, "updates": args.updates}
    print(write_results(rows, about, args.out))


if __name__ == "__main__":
    end(main)
