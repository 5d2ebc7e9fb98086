"""docs/play.html: its formulas are the package's, its runs the committed ones, and it needs nothing from elsewhere."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_core import ClipRange, TokenStats, clip_indicator, quadrants, token_stats
from steer_core.formulas.entropy_change import exact_entropy_change, paper_entropy_change, surrogate_slope
from steer_core.formulas.tabular import measured_change

ROOT = Path(__file__).parents[1]
PLAY = runpy.run_path(str(ROOT / "reproduce" / "play.py"))
PAGE = (ROOT / "docs" / "play.html").read_text(encoding="utf-8")
FORMULAS = ROOT / "docs" / "site" / "play" / "formulas.js"
NODE = shutil.which("node")
node = pytest.mark.skipif(NODE is None, reason="no node to run the page's JavaScript with")
START = [2.0, 1.2, 0.4, -0.2, -0.9, -1.6]
CASES = st.fixed_dictionaries(
    {
        "logits": st.lists(st.floats(-8, 8), min_size=6, max_size=6),
        "token": st.integers(0, 5),
        "advantage": st.sampled_from([-2.0, -0.7, 0.0, 0.3, 1.9]),
        "ratio": st.floats(0.5, 12),
        "low": st.floats(0.05, 0.5),
        "high": st.floats(0.05, 0.5),
        "step": st.floats(0.01, 5),
    }
)
ASK = """
const f = require(FORMULAS);
const told = CASES.map(({ logits, token, advantage, ratio, low, high, step }) => {
  const clip = { low, high, dual: 10 }, slope = f.slope(ratio, advantage, clip);
  return {
    probability: f.softmax(logits)[token], entropy: f.entropy(logits),
    indicator: f.clipIndicator(ratio, advantage, clip), slope,
    omega: f.omega(logits, token, slope), first: f.firstOrder(logits, token, slope),
    measured: f.measured(logits, token, slope, step), quadrant: f.quadrant(logits, token, advantage),
  };
});
console.log(JSON.stringify(told));
"""


def javascript(code: str, **values) -> object:
    """What a program prints as JSON; its constants are given by name."""
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    done = subprocess.run([NODE, "-e", constants + code], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def python(case: dict) -> dict:
    """The same by the package, in float64."""
    logits = torch.tensor([case["logits"]], dtype=torch.float64)
    labels = torch.tensor([case["token"]])
    new, advantages = token_stats(logits, labels), torch.tensor([case["advantage"]], dtype=torch.float64)
    ratio = torch.tensor([case["ratio"]], dtype=torch.float64)
    old = TokenStats(new.logprob - ratio.log(), new.entropy, new.sum_p2, new.sum_p2_logp)
    clip = ClipRange(low=case["low"], high=case["high"], dual=10.0)
    slope = surrogate_slope(new, old, advantages, clip)
    inside = [name for name, mask in quadrants(new, advantages).items() if mask.item()]
    return {
        "probability": new.logprob.exp().item(),
        "entropy": new.entropy.item(),
        "indicator": clip_indicator(ratio, advantages, clip).item(),
        "slope": slope.item(),
        "omega": -paper_entropy_change(new, old, advantages, clip).item(),
        "first": exact_entropy_change(new, old, advantages, clip).item(),
        "measured": measured_change(logits, labels, slope, case["step"]).item(),
        "quadrant": "".join(inside),
    }


def far_from_a_bound(case: dict) -> bool:
    """Rounding decides nothing: neither the clip nor the side of the entropy."""
    new = token_stats(torch.tensor([case["logits"]], dtype=torch.float64), torch.tensor([case["token"]]))
    bounds = (1 - case["low"], 1 + case["high"], 10)
    return all(abs(case["ratio"] - bound) > 1e-9 for bound in bounds) and abs(float(new.logprob + new.entropy)) > 1e-9


@node
@settings(max_examples=5, deadline=None)
@given(st.lists(CASES.filter(far_from_a_bound), min_size=30, max_size=30))
def test_the_pages_formulas_are_the_packages(cases):
    for case, told in zip(cases, javascript(ASK, FORMULAS=str(FORMULAS), CASES=cases), strict=True):
        expected = python(case)
        assert told.pop("quadrant") == expected.pop("quadrant"), case
        assert told == pytest.approx(expected, rel=1e-8, abs=1e-10), case


@node
def test_at_the_clips_bounds_the_gradient_passes_as_in_the_package():
    cases = [
        {"logits": START, "token": 1, "advantage": a, "ratio": r, "low": 0.25, "high": 0.5, "step": 1.0}
        for a in (-1.0, 0.0, 1.0)
        for r in (0.75, 0.7499, 1.5, 1.5001, 10.0, 10.001)
    ]
    told = javascript(ASK, FORMULAS=str(FORMULAS), CASES=cases)
    assert [row["indicator"] for row in told] == [python(case)["indicator"] for case in cases]


@node
def test_what_the_page_proposes_to_try_does_what_it_says():
    told = javascript(
        """
        const f = require(FORMULAS), path = (token, steps) => {
          const told = [f.entropy(START)];
          for (let z = START, i = 0; i < steps; i++) told.push(f.entropy((z = f.stepped(z, token, 1, 10 ** -0.3))));
          return told;
        };
        const rival = START.map((z, i) => (i === 1 ? 2.3 : z));
        const stopped = f.slope(1.4, 1, { low: 0.2, high: 0.28, dual: 10 });
        console.log(JSON.stringify({ likely: path(0, 10), unlikely: path(5, 30), stopped,
          rises: f.measured(rival, 0, 1, 0.1), omega: f.omega(rival, 0, 1), excess: f.excess(rival, 0) }));
        """,
        FORMULAS=str(FORMULAS),
        START=START,
    )
    assert (round(told["likely"][0], 2), round(told["likely"][-1], 2)) == (1.25, 0.57)
    falls = [a - b for a, b in zip(told["likely"], told["likely"][1:], strict=False)]
    assert min(falls) > 0
    assert falls[1:] == sorted(falls[1:], reverse=True)
    peak = told["unlikely"].index(max(told["unlikely"]))
    assert 0 < peak < 10
    assert told["unlikely"][-1] < told["unlikely"][0]
    assert told["stopped"] == 0
    assert told["rises"] > 0.001
    assert told["omega"] > 0
    assert told["excess"] > 0
    assert "Entropy falls from 1.25 to 0.57 nats" in PAGE


@node
def test_the_nearest_runs_are_those_of_the_smallest_distance_that_reach_far_enough():
    runs = [
        {"steps": [0, 50, 100], "entropy": [0.3, 0.2, 0.1]},
        {"steps": [0, 50, 100], "entropy": [0.3, 0.3, 0.3]},
        {"steps": [0, 50], "entropy": [0.3, 0.3]},
        {"steps": [0, 50, 100, 150], "entropy": [0.3, 0.3, 0.34, 9.0]},
    ]
    ask = "const f = require(FORMULAS); console.log(JSON.stringify(f.nearest(RUNS, [0, 100], [0.3, 0.3], 100, 2)));"
    found = javascript(ask, FORMULAS=str(FORMULAS), RUNS=runs)
    assert [one["run"] for one in found] == [runs[1], runs[3]]
    assert [one["distance"] for one in found] == pytest.approx([0, 0.04 / 3**0.5])
    at = "console.log(JSON.stringify([-1, 0, 1, 3, 9].map((x) => require(FORMULAS).at([0, 2, 4], [1, 2, 6], x))));"
    assert javascript(at, FORMULAS=str(FORMULAS)) == [1, 1, 1.5, 4, 6]


def test_the_page_is_what_its_parts_and_the_committed_runs_make():
    assert PLAY["page"]() == PAGE, "run `python reproduce/play.py`"


def test_the_pages_runs_are_the_results_numbers():
    runs = json.loads(re.search(r'id="data">(.*?)</script>', PAGE)[1])["runs"]
    summary = json.loads((ROOT / "reproduce/results/collapse/summary.json").read_text())
    (grpo,) = [run for run in runs if run["source"] == "collapse" and run["label"] == summary["labels"]["grpo"]]
    kept = [one for one in summary["evaluations"] if one["arm"] == "grpo"]
    assert grpo["steps"] == [one["step"] for one in kept]
    for name, column in (("entropy", "policy_entropy"), ("pass1", "pass@1"), ("pass32", "pass@32")):
        assert grpo[name] == pytest.approx([one[column] for one in kept], abs=5e-5)
    assert len(runs) >= 15
    assert all(len(run["steps"]) <= PLAY["POINTS"] and run["steps"][0] == 0 for run in runs)


def test_thinning_keeps_the_first_and_the_last_evaluation():
    rows = [{"step": step} for step in range(40)]
    kept = [row["step"] for row in PLAY["thinned"](rows)]
    assert (kept[0], kept[-1], len(kept)) == (0, 39, PLAY["POINTS"])
    assert kept == sorted(set(kept))
    assert PLAY["thinned"](rows[:3]) == rows[:3]


def test_the_page_needs_nothing_from_another_place():
    assert "http://" not in PAGE.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in PAGE
    assert re.findall(r'\bsrc="', PAGE) == []
    assert "url(" not in PAGE
    assert "@import" not in PAGE
    assert "default-src 'none'" in PAGE


def test_every_control_of_the_page_has_a_name_for_those_who_do_not_see_it():
    for tag in re.findall(r"<input[^>]*>", PAGE):
        named = re.search(r'\bid="([^"]+)"', tag)
        place = PAGE.index(tag)
        within = PAGE.rfind("<label", 0, place) > PAGE.rfind("</label>", 0, place)
        assert "aria-label" in tag or within or (named and f'for="{named[1]}"' in PAGE), tag
