"""Sample and grade, and what an evaluation on held-out problems reports."""

import pytest
import torch

from steer_core.common import ranks
from steer_core.config.sections import SamplingConfig
from steer_core.evaluation.held_out import Evaluation, padded_share
from steer_core.evaluation.sample_and_grade import sample_and_grade
from steer_core.evaluation.tables import evaluation_table
from steer_core.problems import Problem
from steer_core.rewards import Verdict
from steer_core.rollout.rollout import Rollout

PROBLEMS = [Problem("a", "ask a", "1"), Problem("b", "ask b", "2")]


class Sampler:
    """Says each prompt's last letter and the response's number; keeps what it was asked."""

    def generate(self, *asked):
        self.asked = asked
        texts = [f"{prompt[-1]}{i}" for prompt in asked[0] for i in range(asked[1])]
        tokens = torch.ones(len(texts), 1, dtype=torch.long)
        return Rollout(tokens, tokens, tokens, tokens, texts, ["stop"] * len(texts))


class Grader:
    """Finds the responses right that are named; keeps the references it was given."""

    def __init__(self, name, *right):
        self.name, self.right = name, right

    def grade(self, references, responses):
        self.references = references
        return [Verdict("right" if text in self.right else "wrong") for text in responses]


def test_each_response_is_graded_by_the_reference_of_its_problem():
    sampler, grader, sampling = Sampler(), Grader("exact", "a1", "b0"), SamplingConfig()
    found = sample_and_grade(sampler, PROBLEMS, 2, sampling, 7, [grader], [4, 9])
    assert sampler.asked == (["ask a", "ask b"], 2, sampling, 7, [4, 9])
    assert found.rollout.texts == ["a0", "a1", "b0", "b1"]
    assert [problem.id for problem in found.problems] == ["a", "a", "b", "b"]
    assert grader.references == ["1", "1", "2", "2"]
    assert found.correct == [False, True, True, False]


def test_the_first_of_several_graders_is_the_one_to_go_by():
    found = sample_and_grade(
        Sampler(), PROBLEMS, 1, SamplingConfig(), 0, [Grader("strict"), Grader("loose", "a0", "b0")]
    )
    assert {name: [one.correct for one in verdicts] for name, verdicts in found.graded.items()} == {
        "strict": [False, False],
        "loose": [True, True],
    }
    assert found.verdicts == found.graded["strict"]
    assert found.correct == [False, False]


def test_ranks_share_problems_in_order_equally_many_each_and_the_last_one_fills_up(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(padded_share(7))
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]


def test_the_table_shows_each_pass_at_k_with_its_interval_and_what_else_was_measured():
    evaluation = Evaluation(correct=[0, 1, 4], samples=4, policy_entropy=0.5, truncated=0.25, length=7.0)
    table = evaluation_table(evaluation, "title", (1, 4))
    names, values, intervals = (list(column.cells) for column in table.columns)
    assert names[:2] == ["pass@1", "pass@4"]
    assert values == ["0.417", "0.667", "0.500", "7.0", "25.0%"]
    assert [" to " in text for text in intervals] == [True, True, False, False, False]


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
