"""A real optimiser step on the Countdown model in float64: taken, told in parts, and put back."""

import copy

import pytest
import torch
from countdown_lens import assert_equal_directions, copies, eight_responses, lens_on, pushed_by, ratios_of

from steer_core.common.errors import SteerError
from steer_core.ladder.attribution import influence, mean_entropy_gradient
from steer_core.ladder.passes import derivative, gradient, lens_stats
from steer_core.ladder.real_step import taken_step
from steer_core.stats.agreement import agreement

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "sgd, momentum and decay": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-4),
    "adam, decay": lambda p: torch.optim.Adam(p, lr=1e-4, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
    "adamw, decay": lambda p: torch.optim.AdamW(p, lr=1e-4, betas=(0.8, 0.95), weight_decay=0.1, foreach=True),
}


@pytest.fixture(scope="module")
def lens():
    return lens_on(eight_responses())


@pytest.fixture(scope="module")
def pushed(lens):
    return pushed_by(lens)


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
