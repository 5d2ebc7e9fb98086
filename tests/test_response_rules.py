"""What methods make of whole responses and of the rollouts before: differential smoothing, boundary gating, REPO-R."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import cycle

import pytest
import torch
from hand import stats_of, tokens_of
from hypothesis import given
from hypothesis import strategies as st
from small import grade_by, small_config, small_trainer

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.common.files import read_json
from steer_core.interventions.base import Intervention, Responses
from steer_core.interventions.boundary_gate import BoundaryGate, slope
from steer_core.interventions.differential_smoothing import DifferentialSmoothing
from steer_core.interventions.repo import RepoR
from steer_core.rollout.rollout import Rollout
from steer_core.runs.responses import read
from steer_core.runs.rollouts import rollout_path
from steer_core.training.data_order import gathered_places, local_places
from steer_core.training.loss_terms import ActiveIntervention

SHORT = ("train.probe_sequences=0", "evaluation.every=0", "train.checkpoint_every=1")


def responses_of(rewards, logprobs=None, advantages=None, problems="ab", memory=None):
    """Responses by hand, float64; an advantage is the reward less 1/2 unless given."""
    rewards_PG = torch.tensor(rewards, dtype=torch.float64)
    advantages_PG = rewards_PG - 0.5 if advantages is None else torch.tensor(advantages, dtype=torch.float64)
    logprobs_PG = -torch.ones_like(rewards_PG) if logprobs is None else torch.tensor(logprobs, dtype=torch.float64)
    return Responses(rewards_PG, advantages_PG, logprobs_PG, list(problems)[: len(rewards)], memory or {})


def test_differential_smoothing_by_hand():
    responses = responses_of([[1, 0], [1, 0]], logprobs=[[-2, -2], [-4, -8]], advantages=[[0.5, -0.5], [0, 0]])
    found = DifferentialSmoothing(right=0.25, wrong=0.125).credit(responses)
    assert found.tolist() == [[1.0, -0.75], [1.0, -1.0]]
    assert DifferentialSmoothing(right=0.25).credit(responses).tolist() == [[1.0, -0.5], [1.0, 0.0]]


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-50, -0.01)), min_size=2, max_size=8), st.floats(0.001, 1))
def test_the_less_probable_of_two_right_responses_is_credited_with_more_and_wrong_ones_as_before(rows, gamma):
    rewards, logprobs = ([column] for column in zip(*rows, strict=True))
    responses = responses_of(rewards, logprobs, problems="a")
    found = (DifferentialSmoothing(right=gamma).credit(responses) - responses.advantages_PG)[0]
    for (reward, logprob), more in zip(rows, found.tolist(), strict=True):
        assert more == pytest.approx(-gamma * logprob if reward else 0)


def test_a_problem_that_an_earlier_rollout_solved_has_no_advantage():
    rule, advantages = BoundaryGate(), [[0.5, -0.5], [1.5, -1.5]]
    responses = responses_of([[1, 0], [1, 0]], advantages=advantages, memory={"_b": 1.0, "solved": 1.0})
    assert rule.credit(responses).tolist() == [[0.5, -0.5], [0, 0]]
    assert rule.credit(replace(responses, memory={})).tolist() == advantages


def test_the_gate_remembers_the_right_responses_to_each_problem_and_no_problem_without_any():
    rule = BoundaryGate()
    first = rule.remember({}, responses_of([[1, 1], [0, 0]]))
    assert first == {"open": 1.0, "solved": 1.0, "_a": 2.0}
    second = rule.remember(first, responses_of([[1, 0], [0, 1]], memory=first))
    assert second == {"open": 0.5, "solved": 2.0, "_a": 3.0, "_b": 1.0}
    twice = rule.remember({}, responses_of([[1, 0], [1, 1]], problems="aa"))  # where two epochs meet
    assert twice == {"open": 1.0, "solved": 1.0, "_a": 3.0}


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 40))
def test_the_slope_is_that_of_pass_at_k_in_the_mean_over_the_posterior(right, wrong, k):
    """E[k (1 - p)^(k - 1)] under Beta(m + 1, n - m + 1) is k B(m + 1, n - m + k) / B(m + 1, n - m + 1)."""

    def beta(a, b):
        return Fraction(math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1))

    expected = k * beta(right + 1, wrong + k) / beta(right + 1, wrong + 1)
    assert slope(right, right + wrong, k) == pytest.approx(float(expected), rel=1e-12)


def test_the_slopes_of_eight_responses_at_k_16_are_the_papers():
    assert slope(0, 8, 16) == pytest.approx(6)
    assert slope(1, 8, 16) == pytest.approx(2.087, abs=5e-4)


def test_the_bayesian_gate_shuts_on_groups_that_are_mostly_solved():
    """Of 8 responses, at k = 16: the slope is 0.19 with 3 right and 0.047 with 4; the bound is 9 / 100."""
    rewards = [[1] * right + [0] * (8 - right) for right in range(9)]
    rule = BoundaryGate(rule="saturated")
    responses = responses_of(rewards, problems="abcdefghi", memory={"_a": 5.0})
    assert rule.gates(responses) == [True] * 4 + [False] * 5
    assert rule.credit(responses).ne(0).any(-1).tolist() == rule.gates(responses)
    for threshold, open_gates in ((0.0210, 4), (0.0211, 3)):  # 9 of them are 0.189 and 0.190, the slope is 0.1897
        gates = replace_rule(rule, threshold=threshold).gates(responses)
        assert gates == [True] * open_gates + [False] * (9 - open_gates)
    assert replace_rule(rule, k=1).gates(responses) == [True] * 9


def replace_rule(rule, **settings):
    """The rule with other settings."""
    return BoundaryGate(**(vars(rule) | settings))


@pytest.mark.parametrize(
    ("zeta", "advantages"),
    [
        (0.5, [2.0, 3.0, -0.5, 0.0]),  # A (1 + 0.5 x 2), A (1 - 0.5 x 1 or 4): rare bad tokens are blamed less
        (-0.5, [0.0, 1.0, -1.5, -3.0]),
        (0.0, [1.0, 2.0, -1.0, -1.0]),
    ],
)
def test_repo_r_by_hand_never_turns_a_sign(zeta, advantages):
    tokens = tokens_of([-2, -1, -1, -4], [1, 2, -1, -1], memory={"zeta": zeta})
    assert RepoR().loss_terms(tokens).advantages.tolist() == advantages


@given(st.lists(st.tuples(st.floats(-9, -0.01), st.floats(-3, 3)), min_size=1, max_size=9), st.floats(-1, 1))
def test_repo_r_keeps_the_sign_and_the_zeros_of_advantages(rows, zeta):
    logprobs, advantages = ([*column] for column in zip(*rows, strict=True))
    found = RepoR(zeta=zeta).advantages(tokens_of(logprobs, advantages))
    given_ = torch.tensor(advantages, dtype=torch.float64)
    assert (found * given_ >= 0).all()
    assert found[given_ == 0].eq(0).all()


def test_repo_r_reads_the_policy_that_is_updated():
    tokens = tokens_of([-2], [1], old=stats_of([-3]))
    assert RepoR(zeta=0.5).advantages(tokens).tolist() == [2.0]


def zetas(rule, entropies, memory=None):
    """zeta after rollouts whose tokens have this entropy."""
    memory, found = memory or {}, []
    for entropy in entropies:
        memory = rule.begin_rollout(memory, tokens_of([-1], [1], entropy=[9], old=stats_of([-1], [entropy])))
        found.append(memory["zeta"])
    return found


def test_zeta_doubles_and_halves_towards_the_target_and_changes_its_sign_at_the_smallest():
    rule = RepoR(zeta=0.25, target=1.0, smallest=0.125, largest=1.0)
    assert zetas(rule, [0.5, 0.5, 0.5, 0.5]) == [0.5, 1.0, 1.0, 1.0]
    assert zetas(rule, [2, 2, 2, 2, 2, 2, 2]) == [0.125, -0.125, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert zetas(rule, [0.5, 0.5, 0.5], {"zeta": -0.5, "target": 1.0}) == [-0.25, -0.125, 0.125]
    assert zetas(rule, [1.0]) == [0.25]
    assert zetas(replace(rule, zeta=0.0), [0.5]) == [0.125]
    assert zetas(replace(rule, adapts=False), [0.5, 2]) == [0.25, 0.25]


def test_without_a_target_zeta_follows_the_entropy_of_the_first_rollout():
    rule = RepoR(zeta=0.25)
    assert zetas(rule, [0.7, 0.6, 0.8, 0.8]) == [0.25, 0.5, 0.25, 0.125]
    tokens = tokens_of([-1, -1], [1, 1], old=stats_of([-1, -1], [0.5, 1.5]))
    assert rule.begin_rollout({}, tokens) == {"zeta": 0.25, "target": 1.0}


def test_what_a_method_sees_of_responses_is_their_whole_log_prob_and_the_graders_rewards(tmp_path):
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Watcher(Intervention):
        def credit(self, responses):
            seen.append(responses)
            return 2 * responses.advantages_PG

    trainer = small_trainer(tmp_path / "a", *SHORT, "train.rollouts=1")
    trainer.update.active.method = Watcher()
    verdicts = cycle([True, False, False])
    grade_by(trainer, lambda response: next(verdicts))
    sampled = []
    sample = trainer.sample
    trainer.sample = lambda n: sampled.append(sample(n)) or sampled[-1]
    old = []
    score = trainer.score_rollout
    trainer.score_rollout = lambda rollout: old.append(score(rollout)) or old[-1]
    assert trainer.fit()
    (responses,), ((first,), (stats,)) = seen, (sampled, old)
    rollout: Rollout = first.rollout
    for b, logprob in enumerate(responses.logprobs_PG.flatten().tolist()):
        tokens = int(rollout.response_mask_BT[b].sum())
        assert logprob == pytest.approx(float(stats.logprob[b, :tokens].double().sum()), rel=1e-6)
    assert responses.problems == [problem.id for problem in trainer.problems_of(1)]
    row = trainer.run.read()[0]
    assert row["reward/mean"] == pytest.approx(float(responses.rewards_PG.mean()))
    kept = [one.advantage for one in read(rollout_path(trainer.run.path, 1))]
    assert kept == pytest.approx((2 * responses.advantages_PG[:, 0]).tolist()[: len(kept)])


@pytest.mark.parametrize("made", [math.nan, math.inf])
def test_advantages_of_responses_that_are_not_finite_are_refused(made):
    rule = type("Rule", (Intervention,), {"credit": lambda self, responses: responses.advantages_PG + made})
    active = ActiveIntervention(small_config(), None, None)
    active.method = rule(name="mine")
    with pytest.raises(
        SteerError, match=r"^intervention\.name: mine makes advantages of responses that are not finite"
    ):
        active.credit(torch.zeros(1, 2), torch.zeros(1, 2), stats_of([[-1], [-1]]), torch.ones(2, 1).bool(), ["a"])


def test_solved_problems_are_trained_no_more_and_the_log_says_how_many(tmp_path):
    """Four problems, each met in both rollouts: the first two in the order of places are solved in the first."""
    trainer = small_trainer(tmp_path / "a", *SHORT, "intervention.name=boundary-gate", "task.train_problems=4",
                            "train.rollouts=2")  # fmt: skip
    verdicts = iter([True, False, False, False] * 2 + [False] * 8 + [True, False, False, False] * 4)
    grade_by(trainer, lambda response: next(verdicts))
    assert trainer.fit()
    solved = {problem.id for problem in trainer.problems_of(1)[:2]}
    kept = [bool(one.advantage) for one in read(rollout_path(trainer.run.path, 2))]
    assert kept == [problem.id not in solved for problem in trainer.problems_of(2)][: len(kept)]
    first, second = trainer.run.read()
    assert (first["intervention/open"], first["intervention/solved"]) == (1.0, 2.0)
    assert (second["intervention/open"], second["intervention/solved"]) == (0.5, 4.0)
    assert first["reward/groups_without_signal"] == second["reward/groups_without_signal"] == 0.5
    assert (first["reward/mean"], second["reward/mean"]) == (2 / 16, 4 / 16)
    assert {name for name in second if name.startswith("intervention/")} == {"intervention/open", "intervention/solved"}
    manifest = read_json(trainer.run.checkpoints.saved()[-1] / "manifest.json", "manifest", "")
    assert {f"_{name}" for name in solved} < manifest["intervention"].keys()


def test_what_ranks_gather_lies_rank_behind_rank(monkeypatch):
    config = small_config()  # four prompts in mini-batches of two
    assert gathered_places(config) == [0, 1, 2, 3]
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    assert gathered_places(config) == [0, 2, 1, 3]
    assert local_places(config, 1) == [1, 3]


REFUSED = [
    ("repo-r", {"target": -1}, "target: -1 is not allowed"),
    ("repo-r", {"smallest": 0}, "smallest: 0 is not allowed"),
    ("repo-r", {"smallest": 0.5, "largest": 0.1}, r"smallest: 0.5 is above largest \(0.1\); lower it"),
    ("repo-r", {"zeta": -1.5}, r"zeta: -1.5 is further from 0 than largest \(1.0\)"),
    ("differential-smoothing", {"right": -1}, "right: -1 is not allowed"),
    ("differential-smoothing", {"wrong": -1}, "wrong: -1 is not allowed"),
    ("boundary-gate", {"rule": "solved"}, "rule: 'solved' is not allowed"),
    ("boundary-gate", {"k": 0}, "k: 0 is not allowed"),
    ("boundary-gate", {"threshold": -1}, "threshold: -1 is not allowed"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_settings_out_of_range_are_refused_with_the_field(name, settings, message):
    with pytest.raises(SteerError, match=rf"^intervention\.{message}"):
        small_config(f"intervention.name={name}", *(f"intervention.{key}={value}" for key, value in settings.items()))


def test_a_k_of_more_than_the_group_is_refused_for_pass_at_k_alone():
    with pytest.raises(
        SteerError, match=r"^algorithm\.pass_k: 5 is more than rollout\.responses \(4\); lower the one or"
    ):
        small_config("algorithm.advantage=pass-at-k", "algorithm.pass_k=5")
    assert small_config("algorithm.advantage=pass-at-k").algorithm.advantage_settings == {"k": 4}
    assert small_config("algorithm.pass_k=5").algorithm.advantage_settings == {}
