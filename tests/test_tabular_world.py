"""The tabular world: its dynamics against autograd, enumeration and closed forms; its script on a slice."""

import math
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import tabular_world as script
from tabular_dynamics import (
    World,
    bonus_gradient,
    draw_world,
    entropies,
    exact_gradient,
    measures,
    sample,
    sampled_gradient,
    sampled_visits,
    soft_optimum,
    update,
    values,
    visits,
)

from steer_core import SteerError

STEPS, STATES, ACTIONS, RUNS = 3, 4, 5, 2


def generators(count=RUNS, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def small_world(right=2, shape=(STEPS, STATES, ACTIONS), count=RUNS):
    return draw_world(shape, right, 1.0, generators(count))


def uniform(runs, group, seed=0, shape=(STEPS, STATES)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(runs, *shape, group, generator=generator, dtype=torch.float64)


def by_enumeration(policy, world, run, start):
    """(chance that all is right, entropy summed over the path) over every sequence of actions, one by one."""
    solved = entropy = 0.0
    for actions in product(range(policy.shape[-1]), repeat=policy.shape[1]):
        chance, state, right, spent = 1.0, start, True, 0.0
        for t, action in enumerate(actions):
            here = policy[run, t, state]
            spent += float(-(here * here.log()).sum())
            chance *= float(here[action])
            right = right and bool(world.right[run, t, state, action])
            state = int(world.successor[run, t, state, action])
        solved += chance * right
        entropy += chance * spent
    return solved, entropy


def test_what_a_start_is_solved_with_is_the_sum_over_all_sequences_of_actions():
    world, logits = small_world()
    policy = logits.softmax(-1)
    found = values(policy, world)[0][:, 0]
    for run, start in product(range(RUNS), range(STATES)):
        assert found[run, start].item() == pytest.approx(by_enumeration(policy, world, run, start)[0], rel=1e-12)


def test_the_measured_entropy_is_that_of_the_states_on_the_way():
    world, logits = small_world()
    policy = logits.softmax(-1)
    found = measures(logits, world, 4)["entropy"]
    for run in range(RUNS):
        whole = [by_enumeration(policy, world, run, start)[1] / STEPS for start in range(STATES)]
        assert found[run].item() == pytest.approx(sum(whole) / STATES, rel=1e-12)


def test_pass_at_k_is_taken_by_start_before_the_mean():
    world, logits = small_world()
    solved = values(logits.softmax(-1), world)[0][:, 0]
    found = measures(logits, world, 4)
    assert torch.equal(found["pass@1"], solved.mean(-1))
    assert torch.allclose(found["pass@4"], (1 - (1 - solved) ** 4).mean(-1))
    assert (found["pass@4"] < 1 - (1 - found["pass@1"]) ** 4).all()  # starts differ


def test_the_exact_gradient_is_autograds():
    world, logits = small_world()
    logits.requires_grad_()
    values(logits.softmax(-1), world)[0][:, 0].mean(-1).sum().backward()
    assert logits.grad.abs().max() > 1e-3
    assert torch.allclose(exact_gradient(logits.detach().softmax(-1), world), logits.grad, atol=1e-15)


def test_the_bonus_gradient_is_autograds_with_the_visits_held_fixed():
    world, logits = small_world()
    seen = visits(logits.softmax(-1), world)
    logits.requires_grad_()
    (seen * entropies(logits.softmax(-1))).sum().backward()
    assert torch.allclose(bonus_gradient(logits.detach().softmax(-1), seen), logits.grad, atol=1e-15)


def test_visits_add_up_to_one_at_every_step_and_fewer_are_all_right():
    world, logits = small_world()
    policy = logits.softmax(-1)
    whole, right = visits(policy, world), visits(policy, world, only_right=True)
    assert torch.allclose(whole.sum(-1), torch.ones(RUNS, STEPS, dtype=torch.float64))
    assert torch.equal(right[:, 0], whole[:, 0])
    assert (right.sum(-1)[:, 1:] < 0.9).all()


@pytest.mark.parametrize("right", [0, ACTIONS])
def test_with_every_action_right_or_none_the_gradient_is_zero(right):
    world, logits = small_world(right)
    policy = logits.softmax(-1)
    assert exact_gradient(policy, world).abs().max() < 1e-16
    sampled = sample(policy, world, uniform(RUNS, 8))
    assert torch.equal(sampled.rewards, torch.full_like(sampled.rewards, float(right > 0)))
    assert sampled_gradient(policy, sampled).abs().max() == 0


def test_where_all_responses_fail_only_a_bonus_moves_the_policy_and_it_raises_entropy():
    world, logits = small_world(0)
    rate, none, some = (torch.full((RUNS,), x, dtype=torch.float64) for x in (0.1, 0.0, 0.5))
    assert torch.equal(update(logits, world, none, rate, uniform(RUNS, 8)), logits)
    moved = update(logits, world, some, rate, uniform(RUNS, 8))
    assert (measures(moved, world, 2)["entropy"] > measures(logits, world, 2)["entropy"]).all()


def test_actions_are_sampled_with_their_probabilities_and_lead_where_the_world_says():
    world, logits = small_world()
    policy, group = logits.softmax(-1), 20_000
    sampled = sample(policy, world, uniform(RUNS, group))
    share = torch.nn.functional.one_hot(sampled.actions[:, 0], ACTIONS).double().mean(2)
    assert (share - policy[:, 0]).abs().max() < 4 * 0.5 / group**0.5
    for run, t in product(range(RUNS), range(STEPS - 1)):
        now, taken = sampled.states[run, t], sampled.actions[run, t]
        assert torch.equal(sampled.states[run, t + 1], world.successor[run, t][now, taken])
    assert (sampled.rewards.mean(-1) - values(policy, world)[0][:, 0]).abs().max() < 4 * 0.5 / group**0.5
    assert (sampled_visits(policy, sampled) - visits(policy, world)).abs().max() < 4 * 0.5 / group**0.5


def test_the_sampled_gradient_is_the_exact_one_in_the_mean():
    world, logits = small_world(count=1)
    policy, times, group = logits.softmax(-1), 4000, 8
    many = policy.expand(times, -1, -1, -1)
    sampled = sample(many, world.repeated(times), uniform(times, group))
    found = sampled_gradient(many, sampled, "rloo")
    error = found.std(0) / times**0.5
    assert ((found.mean(0) - exact_gradient(policy, world)[0]).abs() < 5 * error + 1e-12).all()
    assert (exact_gradient(policy, world)[0].abs() > 10 * error).any()


def test_a_right_response_pushes_its_own_actions_and_grpo_divides_by_the_spread():
    right = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    right[..., 0] = True
    world = World(right, torch.zeros(1, 1, 1, 3, dtype=torch.long))
    policy = torch.tensor([[[[0.5, 0.3, 0.2]]]], dtype=torch.float64)
    sampled = sample(policy, world, torch.tensor([[[[0.1, 0.6, 0.9, 0.95]]]], dtype=torch.float64))
    assert sampled.actions.flatten().tolist() == [0, 1, 2, 2]
    advantages = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64) / (0.5 + 1e-6)
    pushed = torch.tensor([advantages[0], advantages[1], advantages[2] + advantages[3]], dtype=torch.float64)
    assert torch.allclose(sampled_gradient(policy, sampled).flatten(), pushed / 4)


def test_ascent_under_a_bonus_ends_at_the_soft_optimum():
    shape, bonus = (1, 1, 8), 0.4
    world, logits = draw_world(shape, 2, 1.0, generators())
    coefficients, rate = (torch.full((RUNS,), x, dtype=torch.float64) for x in (bonus, 2.0))
    for _ in range(1000):
        logits = update(logits, world, coefficients, rate)
    assert measures(logits, world, 2)["pass@1"].tolist() == pytest.approx([soft_optimum(2, 8, bonus)] * RUNS, rel=1e-6)
    assert soft_optimum(2, 8, bonus) == pytest.approx(2 * math.exp(2.5) / (2 * math.exp(2.5) + 6))


def test_a_bonus_costs_more_the_rarer_right_actions_are_and_nothing_at_zero():
    costs = [1 - soft_optimum(right, 32, 0.3) for right in (16, 8, 4, 2, 1)]
    assert costs == sorted(costs)
    assert [soft_optimum(right, 32, 0.0) for right in (0, 1)] == [0, 1]
    assert soft_optimum(0, 32, 0.3) == 0
    assert soft_optimum(32, 32, 0.3) == 1


def test_a_step_is_per_token_and_proportional_to_its_rate():
    world, logits = small_world()
    none = torch.zeros(RUNS, dtype=torch.float64)
    one = update(logits, world, none, none + 1)
    assert torch.allclose(one - logits, exact_gradient(logits.softmax(-1), world) / STEPS, atol=1e-15)
    twice = update(logits, world, none, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert torch.allclose(twice[0] - logits[0], 2 * (one - logits)[0], atol=1e-15)
    assert torch.equal(twice[1], logits[1])


def test_every_state_has_the_right_actions_it_should_and_too_many_are_refused():
    world, logits = small_world(3)
    assert (world.right.sum(-1) == 3).all()
    assert not torch.equal(world.right[0], world.right[1])
    assert logits.std().item() == pytest.approx(1, abs=0.2)
    with pytest.raises(SteerError, match="right: 6 is not within 0 and the 5 actions"):
        small_world(6)


@pytest.mark.parametrize("gradient", script.GRADIENTS)
def test_a_seeds_run_does_not_depend_on_other_arms_and_seeds(gradient):
    whole = script.run_arms(gradient, 8, [(0.0, 64.0), (0.1, 256.0)], [5, 6], 3)
    alone = script.run_arms(gradient, 8, [(0.1, 256.0)], [6], 3)
    same = whole[(whole.bonus == 0.1) & (whole.seed == 6)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone, atol=1.1e-5)
    assert whole["pass@1"].nunique() == 4


def rows_of(means, stage="tuning", seeds=(0, 1)):
    """Rows with a given pass@1 at (bonus, rate), spread 0.02 over two seeds."""
    return pd.DataFrame(
        [
            {"bonus": bonus, "rate": rate, "seed": seed, "pass@1": mean + 0.01 * (2 * i - 1), "stage": stage}
            for (bonus, rate), mean in means.items()
            for i, seed in enumerate(seeds)
        ]
    )


def test_tuning_chooses_the_best_rate_without_a_bonus_and_the_best_pair_with_one():
    low, high = script.LOW, script.HIGH
    means = {(0.0, low): 0.3, (0.0, 256.0): 0.6, (0.0, high): 0.2, (0.01, low): 0.35, (0.03, low): 0.4}
    means |= {(0.03, 256.0): 0.5, (0.01, high): 0.7, (0.03, high): 0.1}
    assert script.chosen(rows_of(means)) == {
        "envelope": (0.0, 256.0),
        "bonus": (0.01, high),
        "low": (0.0, low),
        "low bonus": (0.03, low),
        "high": (0.0, high),
        "high bonus": (0.01, high),
    }


def test_a_contrast_is_the_bonus_minus_the_envelope_paired_by_world():
    test = rows_of({(0.1, 64.0): 0.7, (0.0, 64.0): 0.4}, "test")
    test.loc[(test.bonus == 0) & (test.seed == 1), "pass@1"] = 0.4
    gap, p = script.contrast(test, (0.1, 64.0), (0.0, 64.0))
    assert gap.mean == pytest.approx((0.30 + 0.31) / 2)
    assert 0 < p < 0.05


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.02, 0.2, 0.01, "helps"),
        (-0.2, -0.02, 0.01, "harms"),
        (0.02, 0.2, 0.2, "undecided"),
        (-0.02, 0.2, 0.01, "undecided"),
        (-0.005, 0.005, 0.9, "none"),
        (0.001, 0.005, 0.001, "none"),
        (-0.02, 0.005, 0.9, "undecided"),
    ],
)
def test_the_verdict_needs_the_interval_and_the_corrected_p(low, high, p, word):
    gap = script.Interval((low + high) / 2, low, high)
    assert script.told({"difference": gap, "p_holm": p}) == word


def test_a_slice_writes_rows_figure_and_page_and_makes_them_again_from_the_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "RIGHT", (4, 16))
    monkeypatch.setattr(script, "RATES", (64.0, 16384.0))
    words = ["--tuning-seeds", "2", "--test-seeds", "3", "--updates", "4", "--out", str(tmp_path / "two words")]
    monkeypatch.setattr(sys, "argv", ["reproduce/tabular_world.py", *words])
    script.main()
    out = tmp_path / "two words"
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"rows.csv.gz", "environment.json", "tabular_world.png", "tabular_world.md"}
    rows = pd.read_csv(out / "rows.csv.gz")
    tuned = rows[rows.stage == "tuning"]
    assert len(tuned) == 2 * 2 * len(script.BONUSES) * 2 * 2
    assert set(rows.seed[rows.stage == "test"]) == {1000, 1001, 1002}
    command = f"python reproduce/tabular_world.py {' '.join(words[:-1])} '{out}'"
    assert f"`{command}`" in (out / "tabular_world.md").read_text()
    monkeypatch.setattr(sys, "argv", ["reproduce/tabular_world.py", "--report", "--out", str(out)])
    script.main()
    for name in ("rows.csv.gz", "environment.json", "tabular_world.md"):
        assert (out / name).read_bytes() == first[name]


def test_a_report_of_nothing_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce/tabular_world.py", "--report", "--out", str(tmp_path)])
    with pytest.raises(SteerError, match=r"holds no environment\.json; run without --report"):
        script.main()


KEPT = script.RESULTS / "rows.csv.gz"


def test_the_kept_page_is_what_the_kept_rows_give():
    rows, about = script.read_rows(script.RESULTS)
    assert (script.RESULTS / "tabular_world.md").read_text() == script.page(script.contrasts(rows), about)


def test_what_the_page_says_in_words_is_in_the_rows():
    found = {(row["gradient"], row["right"]): row for row in script.contrasts(pd.read_csv(KEPT))}
    words = {case: script.told(row) for case, row in found.items()}
    assert [words["sampled", right] for right in (2, 4, 8, 16)] == ["helps", "helps", "none", "none"]
    assert "helps" not in {words["exact", right] for right in script.RIGHT}
    assert all(row["levels"]["bonus"]["pass@1"] < 0.5 for case, row in found.items() if case == ("sampled", 1))
    assert found["sampled", 8]["fixed"]["high"].low > 0.01
    assert found["exact", 2]["fixed"]["high"].low > 0
    levels = [row["levels"][name] for row in found.values() for name in ("envelope", "bonus")]
    assert all(level["pass@32"] - level["pass@1"] < 0.01 for level in levels)
    assert max(row["arms"]["bonus"][0] for case, row in found.items() if words[case] == "helps") <= 0.1
