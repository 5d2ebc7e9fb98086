"""reproduce/coin.py: its plan, what it makes of rows whose truth is known, and a slice through the real trainer."""

import dataclasses
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import coin as script

from steer_core import SteerError, train
from steer_core.common.errors import INTERRUPTED
from steer_core.compare.comparison import load_comparison
from steer_core.compare.plan import load_plan, run_path
from steer_core.stats.intervals import Interval

PLAN = load_plan(script.PLAN)
JITTER = (-0.01, 0.0, 0.01)


def rows_with(ends):
    """Rows of three seeds whose entropy goes from 0.3 to 0.3 + end, give or take a seed's own jitter."""
    rest = dict.fromkeys(script.KEPT, 0.25)
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "step": step, **rest, "entropy/policy": level, "pass@1": solved}
            for arm, end in ends.items()
            for seed, jitter in enumerate(JITTER)
            for step, level, solved in ((21, 0.3 + end + jitter, 0.1), (11, 0.9, None), (1, 0.3, None))
        ]
    )


def test_every_arm_goes_by_the_coin_and_differs_in_its_clip_or_weights_alone():
    configs = {arm: PLAN.config(arm, 0) for arm in PLAN.arms}
    clips = {arm: (c.algorithm.clip_low, c.algorithm.clip_high, c.intervention.name) for arm, c in configs.items()}
    assert clips == {
        "symmetric": (0.2, 0.2, "none"),
        "tight-low": (0.05, 0.2, "none"),
        "high": (0.2, 0.5, "none"),
        "none": (1.0, 1e6, "none"),
        "steer": (0.2, 0.2, "steer"),
        "steer-strong": (0.2, 0.2, "steer"),
    }
    assert configs["steer"].intervention.lambda_min == 0.7
    assert configs["steer-strong"].intervention.lambda_min == 0.1
    shared = [(c.task.reward, c.algorithm.dual_clip, c.optimizer, c.rollout) for c in configs.values()]
    assert all(one == ("coin", None, configs["none"].optimizer, configs["none"].rollout) for one in shared)
    assert PLAN.baseline == "symmetric"
    assert len(PLAN.seeds) >= 3
    assert configs["none"].train.rollouts == 21


def test_a_change_is_the_last_rollouts_entropy_minus_the_firsts():
    found = script.changes(rows_with({"symmetric": 0.1}))
    assert found.loc["symmetric"].tolist() == pytest.approx([0.09, 0.1, 0.11])


def test_signs_differences_and_claims_follow_from_the_rows():
    found = script.results(rows_with({"symmetric": 0.1, "tight-low": 0.05, "high": 0.1, "none": 0.2, "steer": 0}), PLAN)
    assert {arm: script.word(row["change"]) for arm, row in found["arms"].items()} == {
        "symmetric": "rises",
        "tight-low": "rises",
        "high": "rises",
        "none": "rises",
        "steer": "undecided",
    }
    assert "difference" not in found["arms"]["symmetric"]
    assert found["arms"]["tight-low"]["difference"].mean == pytest.approx(-0.05)
    assert found["seeds"] == [0, 1, 2]
    gaps = [claim["found"].mean for claim in found["claims"]]
    assert gaps == pytest.approx([-0.05, 0.0, -0.1])


@pytest.mark.parametrize(
    ("low", "high", "sign", "word"),
    [
        (0.1, 0.2, 1, "held"),
        (0.1, 0.2, -1, "not held: the other way"),
        (-0.2, -0.1, -1, "held"),
        (-0.2, -0.1, 1, "not held: the other way"),
        (-0.1, 0.2, 1, "undecided"),
    ],
)
def test_a_claim_holds_where_the_whole_interval_has_its_sign(low, high, sign, word):
    assert script.held(Interval((low + high) / 2, low, high), sign) == word


def test_falling_entropy_is_called_falling_and_p_is_corrected_for_the_number_of_arms():
    jittered = rows_with({"symmetric": -0.1, "steer": -0.2, "high": -0.05})
    for arm, seed, more in (("steer", 2, 0.02), ("high", 0, 0.03)):
        jittered.loc[(jittered.arm == arm) & (jittered.seed == seed) & (jittered.step == 21), "entropy/policy"] += more
    found = script.results(jittered, PLAN)["arms"]
    assert script.word(found["steer"]["change"]) == "falls"
    smaller, larger = sorted((found[arm] for arm in ("steer", "high")), key=lambda row: row["p"])
    assert smaller["p_holm"] == pytest.approx(2 * smaller["p"])
    assert larger["p_holm"] == pytest.approx(max(larger["p"], smaller["p_holm"]))


def trained_here(plan, folder, jobs, console):
    """What `run_comparison` does, in this process, without the base model and the report."""
    for seed in plan.seeds:
        for arm in plan.arms:
            train(plan.config(arm, seed), run_path(folder, arm, seed))
    return True


def test_a_slice_trains_reports_and_draws_the_report_again(tmp_path, monkeypatch, capsys):
    small = yaml.safe_load(script.PLAN.read_text())
    small["arms"] = {name: small["arms"][name] for name in ("symmetric", "none")}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.setattr(script, "PLAN", tmp_path / "plan.yaml")
    monkeypatch.setattr(script, "run_comparison", trained_here)
    sizes = ("rollout.prompts=4", "train.rollouts=2", "evaluation.every=2", "evaluation.problems=4")
    monkeypatch.setattr(script, "QUICK", sizes)
    out = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["reproduce/coin.py", "--quick", "--out", str(out)])
    assert script.main() == 0
    kept = json.loads((out / "results.json").read_text())
    assert kept["environment"]["command"] == f"python reproduce/coin.py --quick --out {out}"
    assert f"`{kept['environment']['command']}`" in (out / "coin.md").read_text()
    rows = pd.read_csv(out / "rows.csv.gz")
    assert len(rows) == 2 * 2 * 2
    assert rows["pass@1"].notna().sum() == 4
    first = rows[rows.step == 1].set_index(["arm", "seed"])["entropy/policy"].unstack("arm")
    assert (first["symmetric"] == first["none"]).all()  # the same policy, problems and numbers to draw from
    assert (rows["clip/low"][rows.arm == "none"] == 0).all()
    monkeypatch.setattr(script, "run_comparison", lambda *_: False)
    assert script.main() == INTERRUPTED  # a report of what is whole, and word that the rest is to come
    assert "the same command goes on" in capsys.readouterr().err
    whole = load_comparison(out)
    lost = (whole.evaluations.arm == "none") & (whole.evaluations.seed == 1)
    partial = script.rows_of(dataclasses.replace(whole, evaluations=whole.evaluations[~lost]))
    assert set(partial.seed) == {0}  # a seed counts where every arm came to its end
    assert set(partial.arm) == {"symmetric", "none"}
    page, drawn = (out / "coin.md").read_bytes(), (out / "coin.png").stat().st_size
    (out / "coin.png").unlink()
    monkeypatch.setattr(sys, "argv", ["reproduce/coin.py", "--quick", "--report", "--out", str(out)])
    assert script.main() == 0
    assert (out / "coin.md").read_bytes() == page
    assert (out / "coin.png").stat().st_size == drawn


def test_a_run_that_was_stopped_reports_its_whole_seeds_and_says_so():
    found = script.results(rows_with({"symmetric": 0.1, "none": 0.2}), PLAN)
    assert found["planned"] == PLAN.seeds
    about = {"command": "c", "cores": 2, "processor": "p", "date": "2026-11-30"}
    assert "seeds 0, 1, 2 (planned: 0, 1, 2, 3; the others had not come to their end)" in script.page(found, about)
    found["planned"] = [0, 1, 2]
    assert "seeds 0, 1, 2. " in script.page(found, about)


def test_the_kept_page_is_what_the_kept_rows_give_and_they_bear_its_words():
    rows, about = script.read_rows(script.RESULTS)
    found = script.results(rows, PLAN)
    assert (script.RESULTS / "coin.md").read_text() == script.page(found, about)
    assert len(found["seeds"]) >= 3
    arms = found["arms"]
    assert script.word(arms["symmetric"]["change"]) == "rises"
    means = [arms[arm]["change"].mean for arm in ("tight-low", "symmetric", "high", "none")]
    assert means == sorted(means)
    assert max(row["pass@1"] for row in arms.values()) < about["base pass@1"] / 4
    assert min(arms["none"]["by_seed"].values()) < 0 < max(arms["none"]["by_seed"].values())
    assert all(0.01 < row["low"] + row["high"] < 0.07 for arm, row in arms.items() if arm != "none")


def test_a_report_of_nothing_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce/coin.py", "--report", "--results", str(tmp_path)])
    with pytest.raises(SteerError, match=r"holds no results\.json; run without --report"):
        script.main()
