"""The ladder's passes on the Countdown model in float64: statistics, gradients and derivatives along a direction."""

import copy
from dataclasses import replace

import pytest
import torch
from countdown_lens import copies, eight_responses, lens_on, pushed_by, ratios_of
from small import small_trainer

from steer_core.common.errors import SteerError
from steer_core.formulas.entropy_change import surrogate_slope
from steer_core.formulas.loss import REDUCTIONS, denominator, token_coefficients
from steer_core.formulas.token_stats import TokenStats
from steer_core.ladder.passes import Lens, _tangents, derivative, gradient, length, lens_stats, require_finite
from steer_core.ladder.real_step import taken_step
from steer_core.policy.head import full_precision
from steer_core.policy.model import load_policy
from steer_core.policy.score import score

METHODS = ("name: none", "name: steer, form: exact, lambda_min: 0.3", "name: quadrants, negative_likely: 2")
METHODS += ("name: entropy-advantage", "name: entropy-loss, coefficient: 0.3")


@pytest.fixture(scope="module")
def rollout():
    return eight_responses()


@pytest.fixture(scope="module")
def lens(rollout):
    return lens_on(rollout)


@pytest.fixture(scope="module")
def pushed(lens):
    return pushed_by(lens)


def change_along(lens, direction, step):
    """Measured change of every entropy when the parameters move by step * direction."""
    parameters, before = lens.parameters(), lens_stats(lens).entropy
    old = copies(parameters)
    with torch.no_grad():
        for name, p in parameters.items():
            p.add_(direction[name], alpha=step)
        after = lens_stats(lens).entropy
        for name, p in parameters.items():
            p.copy_(old[name])
    return after - before


def test_the_length_of_a_direction_is_over_all_its_entries():
    assert length({"weight": torch.tensor([[2.0, 0.0], [-4.0, 5.0]]), "bias": torch.tensor([2.0])}) == 7.0


def test_a_shift_of_all_logits_costs_the_derivatives_no_digits():
    logits, tangent = torch.randn(2, 6, 400, generator=torch.Generator().manual_seed(0))
    labels, shifted = torch.arange(6), 3 * logits + 1e4
    found = _tangents(shifted, tangent, labels, 0.6)
    for value, wanted in zip(found, _tangents(shifted.double(), tangent.double(), labels, 0.6), strict=True):
        torch.testing.assert_close(value.double(), wanted, atol=5e-6, rtol=1e-5)


def test_a_float64_model_computes_in_float64(lens, pushed):
    """The error of the first order falls as the square of the step, to far below what float32 inside would leave."""
    direction = gradient(lens, pushed)
    direction = {name: g / length(direction) for name, g in direction.items()}
    first = derivative(lens, direction)[1]
    steps = [1e-3, 1e-4, 1e-5, 1e-6]
    errors = [float((change_along(lens, direction, step) - step * first).abs().max()) for step in steps]
    assert ratios_of(errors) == pytest.approx([100] * 3, rel=0.05)
    assert errors[-1] < 1e-9
    assert steps[-1] * float(first.abs().max()) > 1e-6


def test_full_precision_leaves_a_float32_model_as_it_is(rollout):
    model = load_policy("embedded").model
    lens = Lens(model, rollout)
    with torch.no_grad():
        expected = score(model, rollout, 1.0).entropy[rollout.response_mask_BT]
    assert lens_stats(lens).entropy.dtype is torch.float32
    torch.testing.assert_close(lens_stats(lens).entropy, expected, rtol=0, atol=2e-5)
    precise = Lens(load_policy("embedded").model.double(), rollout)
    torch.testing.assert_close(lens_stats(precise).entropy.float(), expected, rtol=0, atol=1e-4)
    direction = gradient(lens, torch.ones_like(expected))
    assert {g.dtype for g in direction.values()} == {torch.float32}
    wanted = derivative(precise, {name: g.double() for name, g in direction.items()})[1]
    assert float((derivative(lens, direction)[1] - wanted).norm() / wanted.norm()) < 1e-3


def test_statistics_are_flat_over_the_response_tokens_row_by_row(lens):
    model = lens.model
    mask = lens.sequences.response_mask_BT
    with torch.no_grad(), full_precision(model):
        expected = score(model, lens.sequences, 0.9).map(lambda x: x[mask])
    actual = lens_stats(lens)
    assert len(actual.entropy) == int(mask.sum()) == len(lens.labels_N)
    for name, value in vars(actual).items():
        torch.testing.assert_close(value, vars(expected)[name], rtol=0, atol=1e-12)
    assert torch.equal(
        lens.labels_N, torch.cat([ids[m] for ids, m in zip(lens.sequences.response_ids_BT, mask, strict=True)])
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_gradient_with_the_tokens_pushes_is_minus_that_of_the_training_loss(tmp_path, reduction, method):
    """The trainer's own step with SGD at rate 1: what it subtracts is the gradient of its loss."""
    settings = ("optimizer.name=sgd", "optimizer.learning_rate=1", "optimizer.max_grad_norm=1e9")
    settings += (f"algorithm.reduction={reduction}", f"intervention={{{method}}}")
    trainer = small_trainer(tmp_path / "a", *settings)
    model = trainer.model.double()
    sampled = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    generator = torch.Generator().manual_seed(4)
    with full_precision(model):
        old = trainer.score_rollout(sampled)
        noise = 0.3 * torch.randn(old.logprob.shape, generator=generator, dtype=torch.float64)
        old = TokenStats(old.logprob - noise, old.entropy, old.sum_p2, old.sum_p2_logp)
        advantages = torch.randn(len(noise), generator=generator, dtype=torch.float64)
        batch = next(trainer.batches(sampled, old, advantages))
        (part,) = batch
        lens = Lens(model, part.sequences)
        new, mask = trainer.update.score(part).detach(), part.mask_BT
        count = denominator(mask, reduction, trainer.config.rollout.max_new_tokens)
        share = token_coefficients(mask, reduction, count).double()[mask]
        treated = trainer.update.active.loss_terms([new], [part], count)[0]
        at = [stats.map(lambda x: x[mask]) for stats in (new, part.old)]
        pushes = share * treated.weights * surrogate_slope(*at, treated.advantages, trainer.update.active.clip)
        actual = gradient(lens, pushes, None if treated.extra is None else share * treated.extra)
        before = copies(lens.parameters())
        trainer.update.step(batch, int(mask.sum()), 1)
    step = {name: p.detach() - before[name] for name, p in lens.parameters().items()}
    error = {name: actual[name] - step[name] for name in step}
    assert length(step) > 1e-2
    assert length(error) < 1e-10 * length(step)


def test_derivative_starts_from_other_parameter_values_where_it_is_told_to(lens, pushed):
    direction, old = gradient(lens, pushed), copies(lens.parameters())
    expected = derivative(lens, direction)
    optimizer = torch.optim.SGD(lens.parameters().values(), lr=0.3)
    with taken_step(lens.model, optimizer, direction):
        actual, elsewhere = derivative(lens, direction, at=old), derivative(lens, direction)
    for a, b, c in zip(actual, expected, elsewhere, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(c, b, rtol=1e-2)


def test_frozen_parameters_take_no_part(rollout, lens, pushed):
    frozen = Lens(copy.deepcopy(lens.model), rollout, temperature=0.9)
    for name, p in frozen.model.named_parameters():
        p.requires_grad_("layers.1." in name)
    whole, part = gradient(lens, pushed), gradient(frozen, pushed)
    assert list(part) == [name for name in whole if "layers.1." in name]
    for name, g in part.items():
        torch.testing.assert_close(g, whole[name], rtol=1e-9, atol=1e-14)
    padded = {name: part.get(name, torch.zeros_like(g)) for name, g in whole.items()}
    torch.testing.assert_close(derivative(frozen, part), derivative(lens, padded), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_from_the_statistics(rollout, value):
    model = load_policy("embedded").model
    lens = Lens(model, rollout)
    stats = lens_stats(lens)
    assert require_finite(stats) is stats
    with torch.no_grad():
        model.model.norm.weight[0] = value
    count = len(stats.entropy)
    with pytest.raises(SteerError, match=f"NaN or infinite logits at {count} of {count} response tokens"):
        require_finite(lens_stats(lens))


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_one_statistic_that_is_not_finite_is_enough(lens, value):
    stats = lens_stats(lens)
    for name in ("entropy", "logprob"):
        spoilt = vars(stats)[name].clone()
        spoilt[3] = value
        with pytest.raises(SteerError, match=f"at 1 of {len(spoilt)} response"):
            require_finite(replace(stats, **{name: spoilt}))


def test_a_direction_of_other_parameters_is_refused(lens, pushed):
    direction = {name: torch.ones_like(p) for name, p in lens.parameters().items()}
    lacking = {name: value for name, value in direction.items() if name != "model.norm.weight"}
    with pytest.raises(SteerError, match=r"parameter model\.norm\.weight is on one side only"):
        derivative(lens, lacking)
    with pytest.raises(SteerError, match="parameter lm_head is on one side only"):
        derivative(lens, {**direction, "lm_head": torch.ones(1)})
    with pytest.raises(SteerError, match=r"lens\.parameters\(\)"):
        derivative(replace(lens, output_layer=True), direction)
