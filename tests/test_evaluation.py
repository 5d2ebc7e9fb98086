"""What an evaluation on held-out problems reports."""

import pytest

from steer_core.evaluation.held_out import Evaluation


def test_evaluation_reports_the_mean_over_problems():
    evaluation = Evaluation(correct=[0, 1, 4], samples=4, policy_entropy=0.5, truncated=0.25, length=7.0)
    assert evaluation.pass_at(1) == pytest.approx((0 + 1 / 4 + 1) / 3)
    assert evaluation.pass_at(2) == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert evaluation.to_dict((2,)) == {
        "pass@2": evaluation.pass_at(2),
        "correct": [0, 1, 4],
        "samples": 4,
        "policy_entropy": 0.5,
        "truncated": 0.25,
        "length": 7.0,
    }
