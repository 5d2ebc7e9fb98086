"""Who holds a curve: the distance is what it says, and a slice runs, reports and goes on."""

import json
import sys
from pathlib import Path

import pytest

from steer_core.common.settings import build, read_yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import set_point as script

CHOSEN = build(script.SetPoint, read_yaml(script.PLAN))


def test_every_method_that_has_a_target_meets_every_curve():
    plan = script.plan_of(CHOSEN)
    for arm in plan.arms:
        config = plan.config(arm, 1)
        assert arm == "grpo" or str(getattr(config.intervention, "target", "")) != ""
    assert len(plan.arms) == 1 + len(CHOSEN.methods) * len(CHOSEN.curves) == 16


@pytest.mark.parametrize(
    ("entropies", "target", "skipped", "expected"),
    [
        ([0.3, 0.3], "0.3", 0, 0.0),
        ([0.3, 0.33], "0.3", 0, (0.01 / 2) ** 0.5),
        ([9.0, 0.33], "0.3", 1, 0.1),  # the first does not count
        ([0.4, 0.3, 0.2], "0.4 to 0.2 over 3", 0, 0.0),  # rollouts count from 1
        ([0.4, 0.3, 0.1], "0.4 to 0.2 over 3", 2, 0.5),
    ],
)
def test_the_distance_is_the_root_mean_square_of_what_entropy_lies_off_its_target(entropies, target, skipped, expected):
    assert script.distance(entropies, target, skipped) == pytest.approx(expected)


def test_a_slice_runs_reports_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["set_point.py", "--quick", "--out", str(tmp_path / "runs"), "--jobs", "2"])
    assert script.main() == 0
    out = tmp_path / "runs" / "results"
    table = json.loads((out / "numbers.json").read_text())
    assert {row["method"] for row in table} == {"GRPO", "adaptive entropy loss", "EntroPIC"}
    assert all(0 < distance < 1 for row in table for distance in row["distances"])
    page = (out / "set_point.md").read_text()
    assert "5 of 5 runs" in page
    assert (out / "set_point.png").stat().st_size > 5000
    assert script.main() == 0
    assert (out / "set_point.md").read_text() == page
