"""Influence weights: the plan by hand and by its conditions, every token's share, and what a step then does."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hand import tokens_of
from hypothesis import assume, given
from hypothesis import strategies as st
from scenario import equip, micro_batches, sampled, trainer_of

from steer_core.common.errors import SteerError
from steer_core.engines import make_optimizer
from steer_core.formulas.entropy_change import surrogate_slope
from steer_core.formulas.loss import token_coefficients
from steer_core.interventions.influence import Influence, planned_weights, weights_towards
from steer_core.ladder.influence import entropy_influence, step_size
from steer_core.ladder.passes import Lens, gradient, length, lens_stats
from steer_core.training.batch import flatten

size = st.floats(1e-6, 1e3)
shares = st.lists(st.one_of(st.just(0.0), size, size.map(lambda x: -x)), min_size=1, max_size=20)
strengths, bounds = st.floats(0.01, 2), st.floats(0.05, 1)


def planned(values, strength=0.5, bound=1.0):
    """(influence, weights) in float64."""
    influence = torch.tensor(values, dtype=torch.float64)
    return influence, planned_weights(influence, strength, bound)


@pytest.mark.parametrize(
    ("values", "strength", "bound", "weights"),
    [
        ([-2, 1], 0.5, 1.0, [0.8, 1.1]),  # -1 + 5 mu = -0.5
        ([-2, 1], 1.0, 1.0, [0.6, 1.2]),  # -1 + 5 mu = 0
        ([-2, 1], 2.0, 1.0, [0.2, 1.4]),  # -1 + 5 mu = 1
        ([-2, 1], 0.5, 0.05, [0.95, 1.05]),  # out of reach
        ([-4, -1], 0.48, 0.5, [0.5, 0.6]),  # the first at its bound: -2 - 1 + mu = -2.6
        ([-2, 0, 1], 0.5, 1.0, [0.8, 1.0, 1.1]),
        ([-2, 1], 0.0, 1.0, [1.0, 1.0]),
        ([2, -1], 0.5, 1.0, [1.0, 1.0]),
        ([1, -1], 0.5, 1.0, [1.0, 1.0]),
        ([0, 0], 0.5, 1.0, [1.0, 1.0]),
        ([], 0.5, 1.0, []),
    ],
)
def test_planned_weights_by_hand(values, strength, bound, weights):
    assert planned(values, strength, bound)[1].tolist() == pytest.approx(weights, abs=1e-12)


def test_influence_without_a_step_to_differentiate_is_refused_with_a_remedy():
    with pytest.raises(SteerError, match=r"intervention\.name: influence .* take another method"):
        Influence().loss_terms(tokens_of([-1.0, -2.0], [1.0, -1.0]))


def test_a_step_of_size_0_as_a_warm_up_begins_with_is_left_as_it_is():
    tokens = tokens_of([-1.0, -2.0], [1.0, -1.0])
    step = SimpleNamespace(coefficients=torch.ones(2), entropy_influence=lambda: torch.ones(2), step_size=0.0)
    method = Influence(target=0.5)
    weights = method.weights(replace(tokens, step=step, memory={"target": 0.5}))
    assert weights.tolist() == [1.0, 1.0]


@given(shares, strengths, bounds)
def test_the_plan_takes_its_share_of_the_fall_away_or_as_much_as_the_bound_lets_it(values, strength, bound):
    influence, weights = planned(values, strength, bound)
    total, tolerance = influence.sum(), 1e-9 * influence.abs().sum()
    if total >= 0:
        assert (weights == 1).all()
        return
    within = torch.finfo(torch.float64).eps
    assert ((weights >= 1 - bound - within) & (weights <= 1 + bound + within)).all()
    best = total + bound * influence.abs().sum()
    assert (weights * influence).sum() == pytest.approx(float(min(best, (1 - strength) * total)), abs=float(tolerance))


@given(shares, strengths, bounds)
def test_the_plan_is_the_nearest_to_1(values, strength, bound):
    """Lagrange: lambda - 1 is mu I with one mu >= 0 where no bound holds it, and less than mu I where one does."""
    influence, weights = planned(values, strength, bound)
    assume(influence.sum() < 0)
    free = ((weights - 1).abs() < bound * (1 - 1e-9)) & (influence.abs() > 1e-3 * influence.abs().max())
    assert torch.equal(weights[influence == 0], torch.ones_like(weights[influence == 0]))
    assert ((weights - 1) * influence >= 0).all()
    if free.any():
        mu = (weights[free] - 1) / influence[free]
        torch.testing.assert_close(mu, mu[:1].expand(len(mu)), rtol=1e-6, atol=1e-12)
        held = (weights - 1).abs() >= bound * (1 - 1e-9)
        assert (mu[0] * influence[held].abs() >= bound * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    ("values", "change", "bound", "weights"),
    [
        ([-2, 1], 0.0, 1.0, [0.6, 1.2]),  # -1 + 5 mu = 0
        ([-2, 1], 1.0, 1.0, [0.2, 1.4]),
        ([-2, 1], -1.0, 1.0, [1.0, 1.0]),  # the change that comes by itself
        ([-2, 1], -1.5, 1.0, [1.2, 0.9]),  # further down: mu = -0.1
        ([2, -1], 0.5, 1.0, [0.8, 1.1]),  # less of a rise
        ([2, -1], 2.0, 1.0, [1.4, 0.8]),  # more of one
        ([-2, 1], -9.0, 0.25, [1.25, 0.75]),  # out of reach, either way
        ([-2, 1], 9.0, 0.25, [0.75, 1.25]),
        ([0, 0], 1.0, 1.0, [1.0, 1.0]),
        ([], 1.0, 1.0, []),
    ],
)
def test_weights_towards_a_change_by_hand(values, change, bound, weights):
    found = weights_towards(torch.tensor(values, dtype=torch.float64), change, bound)
    assert found.tolist() == pytest.approx(weights, abs=1e-12)


@given(shares, st.floats(-1e3, 1e3), bounds)
def test_weights_reach_the_change_or_as_near_as_the_bound_lets_them(values, change, bound):
    influence = torch.tensor(values, dtype=torch.float64)
    weights, size = weights_towards(influence, change, bound), influence.abs().sum()
    within = torch.finfo(torch.float64).eps
    assert ((weights >= 1 - bound - within) & (weights <= 1 + bound + within)).all()
    total = float(influence.sum())
    nearest = min(max(change, total - bound * float(size)), total + bound * float(size))
    assert float((weights * influence).sum()) == pytest.approx(nearest, abs=1e-9 * max(float(size), 1e-12))


@given(shares, strengths, bounds)
def test_a_share_of_a_fall_is_a_change_to_go_towards(values, strength, bound):
    influence, weights = planned(values, strength, bound)
    assume(influence.sum() < 0)
    torch.testing.assert_close(weights_towards(influence, (1 - strength) * float(influence.sum()), bound), weights)


@given(shares, strengths, st.integers(-30, 30))
def test_the_plan_does_not_depend_on_the_unit_of_the_influences(values, strength, power):
    influence, weights = planned(values, strength)
    assert torch.equal(planned_weights(influence * 2.0**power, strength, 1.0), weights)


def test_tokens_of_next_to_no_influence_do_not_spoil_the_search():
    for tiny in (1e-12, 1e-30, 5e-324):
        influence, weights = planned([-1.0, -0.5, 0.2, tiny, -tiny])
        assert float((weights * influence).sum()) == pytest.approx(-0.65, rel=1e-9)


def test_influences_that_are_not_finite_give_weights_that_are_not():
    for bad in (math.nan, math.inf, -math.inf):
        assert not planned([-1.0, bad])[1].isfinite().all()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return trainer_of(tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def data(trainer):
    return sampled(trainer, noise=0.05)


def copies(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def put(trainer, values):
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            p.copy_(values[name])


def mean_entropies(trainer, lenses):
    return float(torch.cat([lens_stats(lens).entropy for lens in lenses]).mean())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_tokens_share_is_what_its_own_push_does_to_the_mean_entropy(trainer, data, optimizer):
    """Finite differences: move the parameters by +-e P grad ln p_s and read the mean entropy over all states."""
    lenses = [Lens(trainer.model, part.sequences, 0.8) for part in micro_batches(trainer, data, 4)]
    made = make_optimizer(trainer.model, equip(trainer, "none").config.optimizer)
    scale = {name: torch.ones_like(p) for name, p in trainer.model.named_parameters()}
    if optimizer == "adamw":
        made = torch.optim.AdamW(trainer.model.parameters(), lr=1.0, eps=1e-3)
        source = torch.Generator().manual_seed(3)
        for name, p in trainer.model.named_parameters():
            moment = 0.05 * torch.rand(p.shape, generator=source, dtype=p.dtype)
            made.state[p] = {"step": torch.tensor(4.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": moment}
            scale[name] = 1 / (moment.sqrt() + 1e-3)
    states = sum(len(lens.labels_N) for lens in lenses)
    found = entropy_influence(lenses, made, states)
    assert found.shape == (states,)
    before, first = copies(trainer), len(lenses[0].labels_N)
    for s in (0, first - 1, first, states - 1):
        of, at = (0, s) if s < first else (1, s - first)
        one = torch.zeros(len(lenses[of].labels_N), dtype=torch.float64)
        one[at] = 1.0
        direction = {name: scale[name] * g for name, g in gradient(lenses[of], one).items()}
        step = 1e-4 / length(direction)
        read = []
        for sign in (1, -1):
            put(trainer, {name: value + sign * step * direction[name] for name, value in before.items()})
            read.append(mean_entropies(trainer, lenses))
        put(trainer, before)
        assert float(found[s]) == pytest.approx((read[0] - read[1]) / (2 * step), rel=1e-4)


def test_weights_are_the_plan_over_coefficient_times_push_times_share(trainer, data):
    parts = micro_batches(trainer, data, 4)
    reduction = "seq-mean-token-mean"
    equip(trainer, "influence", strength=0.7, bound=0.6)
    news = [trainer.update.score(part).detach() for part in parts]
    count = 8
    coefficients = torch.cat([token_coefficients(part.mask_BT, reduction, count)[part.mask_BT] for part in parts])
    lenses = [Lens(trainer.model, part.sequences) for part in parts]
    share = entropy_influence(lenses, trainer.engine.optimizer, len(coefficients))
    step = SimpleNamespace(coefficients=coefficients, entropy_influence=lambda: share)
    tokens = trainer.update.active.tokens(news, parts, step)
    influence = coefficients * surrogate_slope(*flatten(news, parts), trainer.update.active.clip) * share
    found = trainer.update.active.method.loss_terms(tokens).weights
    torch.testing.assert_close(found, planned_weights(influence, 0.7, 0.6))
    assert float(found.min()) < 0.99
    assert float(found.max()) > 1.01


@pytest.mark.parametrize(("target", "goes"), [(0.9, 1), (0.1, -1)])
def test_with_a_target_the_plan_is_its_share_of_the_distance_over_the_steps_size(target, goes):
    tokens = tokens_of([-1.0, -1.0, -1.0], [1.0, 1.0, -1.0], entropy=[0.4, 0.5, 0.6])
    influence = torch.tensor([-2.0, 1.0, 0.5], dtype=torch.float64)
    slope = surrogate_slope(tokens.new, tokens.old, tokens.advantages, tokens.clip)
    step = SimpleNamespace(
        coefficients=torch.full_like(influence, 0.5), step_size=0.1, entropy_influence=lambda: 2 * influence / slope
    )
    rule, planned_step = Influence(target=target, strength=0.25), replace(tokens, step=step)
    expected = weights_towards(influence, 0.25 * goes * 0.4 / 0.1, 1.0)
    torch.testing.assert_close(rule.loss_terms(planned_step).weights, expected)
    assert float(((expected - 1) * influence).sum()) * goes > 0.1
    moved = rule.loss_terms(replace(planned_step, memory={"target": 0.5 - 0.2 * goes})).weights
    torch.testing.assert_close(moved, weights_towards(influence, 0.25 * -goes * 0.2 / 0.1, 1.0))


def test_a_steps_size_is_the_learning_rate_and_under_adam_the_correction_that_influence_leaves_out():
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], lr=0.3)
    adam = torch.optim.AdamW([weight], lr=0.3, betas=(0.9, 0.99), weight_decay=0.0)
    assert step_size(sgd) == step_size(adam) == 0.3
    for t in (1, 2, 3):
        weight.grad = torch.full_like(weight, 2.0)
        adam.step()
        assert step_size(adam) == pytest.approx(0.3 * math.sqrt(1 - 0.99**t))
        moment = adam.state[weight]["exp_avg_sq"].sqrt()  # gradients are all 2: corrected, v is 4
        torch.testing.assert_close(step_size(adam) * 2.0 / moment, torch.full_like(weight, 0.3))


@pytest.mark.parametrize("way", [1, -1])
def test_a_small_step_moves_the_mean_entropy_towards_the_target_by_its_share(trainer, data, way):
    """Under SGD at a learning rate so small that the plan is exact: the share of the distance, either way."""
    parts, rate = micro_batches(trainer, data, 4), 1e-4
    lenses = [Lens(trainer.model, part.sequences) for part in parts]
    before, start = copies(trainer), mean_entropies(trainer, lenses)
    distance = 1e-4 * way  # within reach of the bound
    equip(trainer, "influence", strength=0.5, target=start + distance)
    trainer.engine.optimizer.param_groups[0]["lr"] = rate
    trainer.update.engine.config = replace(trainer.config.optimizer, max_grad_norm=1e9)
    trainer.optimizer_steps([parts], 1)
    moved = mean_entropies(trainer, lenses) - start
    put(trainer, before)
    assert moved == pytest.approx(0.5 * distance, rel=0.05)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_small_step_lowers_the_mean_entropy_by_the_share_that_is_left(trainer, data, strength):
    def change(name, **settings):
        rate = 1e-4
        before = copies(trainer)
        equip(trainer, name, **settings)
        trainer.engine.optimizer.param_groups[0]["lr"] = rate
        start = mean_entropies(trainer, lenses)
        _, norms, _ = trainer.optimizer_steps([parts], 1)
        moved = mean_entropies(trainer, lenses) - start
        put(trainer, before)
        return moved * max(1.0, norms[0]) / rate  # gradients above norm 1 are scaled down

    parts = micro_batches(trainer, data, 4)
    lenses = [Lens(trainer.model, part.sequences) for part in parts]
    plain = change("none")
    if plain > 0:  # the plan acts on a fall
        parts = micro_batches(trainer, replace(data, advantages=-data.advantages), 4)
        plain = change("none")
    assert plain < 0
    assert change("influence", strength=strength) == pytest.approx((1 - strength) * plain, abs=0.02 * abs(plain))
