"""The ladder on the Countdown model in float64: real steps, predicted and measured, and put back."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from small import small_trainer

from steer_core.common.errors import SteerError
from steer_core.config.sections import RolloutConfig
from steer_core.formulas.entropy_change import surrogate_slope
from steer_core.formulas.loss import REDUCTIONS, ClipRange, denominator, token_coefficients
from steer_core.formulas.token_stats import TokenStats
from steer_core.ladder.attribution import influence, mean_entropy_gradient
from steer_core.ladder.passes import Lens, derivative, gradient, length, lens_stats, require_finite
from steer_core.ladder.real_step import taken_step
from steer_core.policy.model import load_policy
from steer_core.policy.score import full_precision, score
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.stats.intervals import agreement

METHODS = ("name: none", "name: steer, form: exact, lambda_min: 0.3", "name: quadrants, negative_likely: 2")
METHODS += ("name: entropy-advantage", "name: entropy-loss, coefficient: 0.3")
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "sgd, momentum and decay": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-4),
    "adam, decay": lambda p: torch.optim.Adam(p, lr=1e-4, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
    "adamw, decay": lambda p: torch.optim.AdamW(p, lr=1e-4, betas=(0.8, 0.95), weight_decay=0.1, foreach=True),
}


@pytest.fixture(scope="module")
def rollout():
    policy = load_policy("embedded")
    prompts = [problem.prompt for problem in Countdown().problems("test", 4)]
    return HuggingFaceSampler(policy).generate(prompts, 2, RolloutConfig(max_new_tokens=24), seed=1)


@pytest.fixture(scope="module")
def model():
    return load_policy("embedded").model.double()


@pytest.fixture(scope="module")
def lens(model, rollout):
    return Lens(model, rollout, temperature=0.9, micro_batch=3)


@pytest.fixture(scope="module")
def pushed(lens):
    """Factors of a clipped, off-policy mini-batch's tokens in its ascent direction, (N,)."""
    generator = torch.Generator().manual_seed(2)
    mask = lens.sequences.response_mask_BT
    new = lens_stats(lens)
    noise = 0.3 * torch.randn(len(new.logprob), generator=generator, dtype=torch.float64)
    old = TokenStats(new.logprob - noise, new.entropy, new.sum_p2, new.sum_p2_logp)
    advantages = torch.randn(len(mask), 1, generator=generator, dtype=torch.float64).expand(mask.shape)[mask]
    weights = surrogate_slope(new, old, advantages, ClipRange())
    assert 0.05 < float((weights == 0).double().mean()) < 0.5
    return weights / len(weights)


def copies(values):
    return {name: value.detach().clone() for name, value in values.items()}


def assert_equal_directions(a, b):
    assert list(a) == list(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def ratios_of(values):
    return [a / b for a, b in itertools.pairwise(values)]


def warmed(make, lens):
    """An optimiser over the lens's parameters that has already taken two steps; the parameters are put back."""
    parameters = lens.parameters()
    before, optimizer = copies(parameters), make(list(parameters.values()))
    generator = torch.Generator().manual_seed(9)
    for _ in range(2):
        for p in parameters.values():
            p.grad = 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(before[name])
            p.grad = None
    return optimizer


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


def test_statistics_are_flat_over_the_response_tokens_row_by_row(lens, model):
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


@pytest.mark.parametrize(("name", "rate"), [("sgd", 1e-3), ("adamw", 3e-6)])
def test_first_order_tells_the_measured_change_and_its_error_falls_with_the_step(lens, pushed, name, rate):
    ascent, before = gradient(lens, pushed), lens_stats(lens).entropy
    errors, relative = [], []
    for factor in (1.0, 0.5, 0.25):
        optimizer = OPTIMIZERS[name](list(lens.parameters().values()))
        optimizer.param_groups[0]["lr"] = rate * factor
        with taken_step(lens.model, optimizer, ascent) as step:
            measured = lens_stats(lens).entropy - before
        first = derivative(lens, step.update)[1]
        scores = agreement(first.numpy(), measured.numpy())
        assert scores["pearson"] > 0.999
        assert scores["slope"] == pytest.approx(1, abs=0.03)
        errors.append(float((first - measured).norm()))
        relative.append(errors[-1] / float(measured.norm()))
    assert 1e-3 < relative[0] < 0.05
    assert ratios_of(errors) == pytest.approx([4, 4], rel=0.1)
    assert ratios_of(relative) == pytest.approx([2, 2], rel=0.1)


def test_derivative_starts_from_other_parameter_values_where_it_is_told_to(lens, pushed):
    direction, old = gradient(lens, pushed), copies(lens.parameters())
    expected = derivative(lens, direction)
    optimizer = torch.optim.SGD(lens.parameters().values(), lr=0.3)
    with taken_step(lens.model, optimizer, direction):
        actual, elsewhere = derivative(lens, direction, at=old), derivative(lens, direction)
    for a, b, c in zip(actual, expected, elsewhere, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(c, b, rtol=1e-2)


def test_frozen_parameters_take_no_part(model, rollout, pushed):
    lens = Lens(model, rollout, temperature=0.9)
    frozen = Lens(copy.deepcopy(model), rollout, temperature=0.9)
    for name, p in frozen.model.named_parameters():
        p.requires_grad_("layers.1." in name)
    whole, part = gradient(lens, pushed), gradient(frozen, pushed)
    assert list(part) == [name for name in whole if "layers.1." in name]
    for name, g in part.items():
        torch.testing.assert_close(g, whole[name], rtol=1e-9, atol=1e-14)
    padded = {name: part.get(name, torch.zeros_like(g)) for name, g in whole.items()}
    torch.testing.assert_close(derivative(frozen, part), derivative(lens, padded), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("raises", [False, True], ids=["", "raises"])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_taken_step_is_the_optimisers_own_and_leaves_no_trace(lens, pushed, name, warm, raises):
    parameters = lens.parameters()
    optimizer = warmed(OPTIMIZERS[name], lens) if warm else OPTIMIZERS[name](list(parameters.values()))
    assert bool(optimizer.state) == (warm and name != "sgd")
    ascent = gradient(lens, pushed)
    for p in list(parameters.values())[::2]:
        p.grad = torch.full_like(p, 0.5)
    before, gradients = copies(parameters), {n: p.grad for n, p in parameters.items()}
    state = copy.deepcopy(optimizer.state_dict())
    twin, twin_optimizer = copy.deepcopy((lens.model, optimizer))
    for n, p in twin.named_parameters():
        p.grad = -ascent[n]
    twin_optimizer.step()

    try:
        with taken_step(lens.model, optimizer, ascent) as step:
            assert_equal_directions(parameters, dict(twin.named_parameters()))
            assert_equal_directions(step.update, {n: p.detach() - before[n] for n, p in parameters.items()})
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert raises
    assert_equal_directions(parameters, before)
    assert all(p.grad is gradients[n] for n, p in parameters.items())
    assert all(p.grad is None or (p.grad == 0.5).all() for p in parameters.values())
    assert_same_state(optimizer.state_dict(), state)
    for n, p in parameters.items():  # and its next step is the one it would have taken
        p.grad = -ascent[n]
    optimizer.step()
    assert_equal_directions(parameters, dict(twin.named_parameters()))
    with torch.no_grad():
        for n, p in parameters.items():
            p.copy_(before[n])
            p.grad = None


def assert_same_state(a, b):
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, values in b["state"].items():
        assert a["state"][key].keys() == values.keys()
        for name, value in values.items():
            same = (
                torch.equal(a["state"][key][name], value) if torch.is_tensor(value) else a["state"][key][name] == value
            )
            assert same, (key, name)


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_its_preconditioned_ascent_and_what_momentum_and_decay_carry(lens, pushed, name, warm):
    parameters = lens.parameters()
    optimizer = warmed(OPTIMIZERS[name], lens) if warm else OPTIMIZERS[name](list(parameters.values()))
    (group,) = optimizer.param_groups
    state = {n: copy.deepcopy(optimizer.state.get(p, {})) for n, p in parameters.items()}
    before, ascent = copies(parameters), gradient(lens, pushed)
    with taken_step(lens.model, optimizer, ascent) as step:
        pass
    for n, old in before.items():
        scale, zero = step.preconditioner[n], torch.zeros(())
        torch.testing.assert_close(scale * ascent[n] + step.carried[n], step.update[n], rtol=0, atol=1e-15)
        assert scale.shape == old.shape
        assert (scale > 0).all()
        decay = group["weight_decay"]
        if "sgd" in name:
            assert (scale == group["lr"]).all()
            wanted = -group["lr"] * (group["momentum"] * state[n].get("momentum_buffer", zero) + decay * old)
        else:  # m = b1 m_old + (1 - b1) g, and g is 0 - ascent (plus decay p, in Adam)
            beta1 = group["betas"][0]
            wanted = -scale * beta1 / (1 - beta1) * state[n].get("exp_avg", zero)
            wanted = wanted - (group["lr"] if "adamw" in name else scale) * decay * old
        torch.testing.assert_close(step.carried[n], wanted.expand_as(old), rtol=1e-7, atol=1e-14)
        if not warm and not decay:
            assert float(step.carried[n].abs().max()) < 1e-15


@pytest.mark.parametrize("name", ["adam, decay", "adamw"])
def test_adams_preconditioner_is_the_rate_over_the_root_of_its_second_moment(lens, pushed, name):
    """By hand at the first step: m = (1 - b1) g, v = (1 - b2) g^2, so it is eta / (|g| + eps), g with any L2 decay."""
    optimizer = OPTIMIZERS[name](list(lens.parameters().values()))
    (group,), ascent = optimizer.param_groups, gradient(lens, pushed)
    with taken_step(lens.model, optimizer, ascent) as step:
        pass
    for n, p in lens.parameters().items():
        g = group["weight_decay"] * p.detach() - ascent[n]
        torch.testing.assert_close(step.preconditioner[n], group["lr"] / (g.abs() + group["eps"]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_influences_and_what_is_carried_add_up_to_the_first_order_change(lens, pushed, name):
    optimizer = warmed(OPTIMIZERS[name], lens)
    with taken_step(lens.model, optimizer, gradient(lens, pushed)) as step:
        pass
    slope = mean_entropy_gradient(lens)
    shares = influence(lens, pushed, step, slope)
    carried = sum(float((slope[n] * c).sum()) for n, c in step.carried.items())
    total = float(derivative(lens, step.update)[1].mean())
    assert float(shares.sum()) + carried == pytest.approx(total, rel=1e-9)
    assert (abs(carried) > 1e-3 * abs(total)) == (name != "sgd")
    assert not shares[pushed == 0].any()


@pytest.mark.parametrize("name", ["sgd", "adamw, decay"])
def test_a_tokens_influence_is_what_its_own_push_does_to_the_mean_entropy(lens, pushed, name):
    optimizer = warmed(OPTIMIZERS[name], lens)
    with taken_step(lens.model, optimizer, gradient(lens, pushed)) as step:
        pass
    shares = influence(lens, pushed, step, mean_entropy_gradient(lens))
    for s in pushed.abs().topk(3).indices.tolist():
        alone = gradient(lens, torch.zeros_like(pushed).index_fill(0, torch.tensor(s), float(pushed[s])))
        moved = {n: step.preconditioner[n] * g for n, g in alone.items()}
        assert float(shares[s]) == pytest.approx(float(derivative(lens, moved)[1].mean()), rel=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.RMSprop(p, lr=1e-3), "RMSprop is not known.*SGD, Adam or AdamW"),
        (lambda p: torch.optim.SGD(p, lr=0.0), r"learning_rate: 0.0 is not above 0"),
        (lambda p: torch.optim.AdamW(p, lr=0.0), r"learning_rate: 0.0 is not above 0"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "optimizer.nesterov: True"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), "optimizer.dampening: 0.5"),
        (lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True), "optimizer.amsgrad: True"),
        (lambda p: torch.optim.Adam(p, lr=0.1, maximize=True), "optimizer.maximize: True"),
    ],
)
def test_an_optimiser_whose_step_is_not_accounted_for_is_refused_before_it_moves(lens, make, message):
    before = copies(lens.parameters())
    ascent = {name: torch.ones_like(p) for name, p in before.items()}
    with (
        pytest.raises(SteerError, match=message),
        taken_step(lens.model, make(list(lens.parameters().values())), ascent),
    ):
        pass
    assert_equal_directions(before, lens.parameters())


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
