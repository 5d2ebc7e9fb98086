"""What one step did, token by token: totals that add up, shares against brute force, and nothing left behind."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch

from steer_core.common.errors import SteerError
from steer_core.config.sections import RolloutConfig
from steer_core.formulas.entropy_change import ENTROPY_CHANGE, surrogate_slope
from steer_core.formulas.loss import ClipRange, clipped_surrogate, reduce_loss, token_coefficients
from steer_core.formulas.token_stats import TokenStats
from steer_core.ladder.attribution import RUNGS, UpdateBatch, attribute, contributions
from steer_core.ladder.passes import Lens, derivative, gradient, lens_stats
from steer_core.policy.head import full_precision
from steer_core.policy.model import load_policy
from steer_core.policy.score import hidden_states, score
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler

GROUP, SILENT_GROUP = 3, 1
MAX_NORM = 0.01
MOVED = ["measured", "first_order", "output_layer", "influence", "output_layer_influence"]


@dataclass(frozen=True)
class Scene:
    """A batch, the four optimisers of `optimizers`, and what attribute told with gradient clipping off and on."""

    batch: UpdateBatch
    optimizers: dict
    off: dict
    on: dict


def warmed(optimizer):
    """The optimiser with the state of two steps; the parameters are put back."""
    parameters = optimizer.param_groups[0]["params"]
    before, generator = [p.detach().clone() for p in parameters], torch.Generator().manual_seed(9)
    for _ in range(2):
        for p in parameters:
            p.grad = 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
            p.grad = None
    return optimizer


def optimizers_of(model):
    own = list(model.parameters())
    return {
        "sgd": torch.optim.SGD(own, lr=1e-3),
        "momentum": warmed(torch.optim.SGD(own, lr=1e-3, momentum=0.9)),
        "adamw": torch.optim.AdamW(own, lr=1e-4, weight_decay=0.0),
        "adamw, moments and decay": warmed(torch.optim.AdamW(own, lr=1e-4, weight_decay=0.1)),
    }


OPTIMIZERS = ("sgd", "momentum", "adamw", "adamw, moments and decay")


@pytest.fixture(scope="module")
def batch():
    """Nine responses to three prompts, off-policy so that the clip stops some tokens; one group teaches nothing."""
    policy = load_policy("embedded", dtype=torch.float64)
    prompts = [problem.prompt for problem in Countdown().problems("test", 3)]
    rollout = HuggingFaceSampler(policy).generate(prompts, GROUP, RolloutConfig(max_new_tokens=14), seed=1)
    lens = Lens(policy.model, rollout, temperature=0.9, micro_batch=4)
    generator, mask = torch.Generator().manual_seed(2), rollout.response_mask_BT
    rows = mask.nonzero()[:, 0]
    advantages_B = torch.randn(len(mask), generator=generator, dtype=torch.float64)
    advantages_B[rows.unique() // GROUP == SILENT_GROUP] = 0
    new = lens_stats(lens)
    noise = 0.3 * torch.randn(len(rows), generator=generator, dtype=torch.float64)
    old = TokenStats(new.logprob - noise, new.entropy + 0.1, new.sum_p2, new.sum_p2_logp)
    coefficients = token_coefficients(mask, "token-mean", len(rows), torch.float64)[mask]
    return UpdateBatch(lens, rows // GROUP, old, advantages_B[rows], coefficients, ClipRange())


@pytest.fixture(scope="module")
def scene(batch):
    optimizers = optimizers_of(batch.lens.model)
    off, on = (attribute(replace(batch, max_grad_norm=norm), optimizers) for norm in (None, MAX_NORM))
    return Scene(batch, optimizers, off, on)


def found(scene, clipping, name):
    return (scene.on if clipping else scene.off)[name]


def same(a, b):
    """Whether two nested structures are equal, their tensors bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def fresh_sgd(batch):
    return {"sgd": torch.optim.SGD(batch.lens.model.parameters(), lr=1e-3)}


def inputs_of(batch):
    """What `push` and the forms of one state take beside the statistics of the policy as it is."""
    return batch.old, batch.advantages_N, batch.clip


def scale_by_hand(batch):
    """max_norm / norm of the gradient of the batch's loss, by plain autograd."""
    model = copy.deepcopy(batch.lens.model)
    loss_of(model, batch).backward()
    return MAX_NORM / float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))


def loss_of(model, batch):
    """The training loss of the batch, from the model's own forward pass."""
    mask = batch.lens.sequences.response_mask_BT
    with full_precision(model):
        logprob = score(model, batch.lens.sequences, batch.lens.temperature).logprob
    spread = torch.zeros_like(logprob)
    old, advantages = (spread.masked_scatter(mask, x) for x in (batch.old.logprob, batch.advantages_N))
    return reduce_loss(clipped_surrogate(logprob, old, advantages, batch.clip), mask, "token-mean", int(mask.sum()))


def test_the_batch_holds_stopped_tokens_silent_ones_and_every_quadrant(scene):
    tokens = scene.off["sgd"].tokens
    pushed = surrogate_slope(lens_stats(scene.batch.lens), *inputs_of(scene.batch)).numpy()
    assert ((pushed == 0) & (tokens["advantage"] != 0)).sum() > 5
    assert (tokens["advantage"] == 0).sum() > 10
    assert tokens["quadrant"].nunique() == 5


@pytest.mark.parametrize("clipping", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_influences_and_what_is_carried_are_the_first_order_change(scene, name, clipping):
    result = found(scene, clipping, name)
    tokens, totals = result.tokens, result.totals
    scale = tokens["influence"].abs().sum() + abs(totals["carried"])
    assert abs(tokens["first_order"].mean() - tokens["influence"].sum() - totals["carried"]) < 1e-12 * scale
    head = tokens["output_layer_influence"]
    assert abs(tokens["output_layer"].mean() - head.sum()) < 1e-12 * head.abs().sum()
    memory = name not in ("sgd", "adamw")
    assert (abs(totals["carried"]) > 1e-3 * abs(totals["first_order"])) == memory


@pytest.mark.parametrize("clipping", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_totals_are_the_means_of_targets_the_sums_of_sources_and_what_is_left(scene, name, clipping):
    tokens, totals = found(scene, clipping, name).tokens, found(scene, clipping, name).totals
    for column in ("measured", "first_order", "output_layer"):
        assert totals[column] == pytest.approx(tokens[column].mean(), rel=1e-12)
    for column in ("influence", "output_layer_influence"):
        assert totals[column] == pytest.approx(tokens[column].sum(), rel=1e-12)
    assert totals["residual"] == totals["first_order"] - totals["influence"] - totals["carried"]
    assert totals["output_layer_residual"] == totals["output_layer"] - totals["output_layer_influence"]
    assert totals["higher_order"] == totals["measured"] - totals["first_order"]


@pytest.mark.parametrize("by", ["quadrant", "group", "token"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_contributions_add_up_to_the_totals(scene, name, by):
    result = scene.on[name]
    table = contributions(result.tokens, by)
    assert table["tokens"].sum() == len(result.tokens)
    assert set(table.index) == set(result.tokens[by])
    for column in MOVED:
        assert table[column].sum() == pytest.approx(result.totals[column], rel=1e-9, abs=1e-18)
    group = table.index[0]
    rows = result.tokens[result.tokens[by] == group]
    assert table.loc[group, "tokens"] == len(rows)
    assert table.loc[group, "measured"] == pytest.approx(rows["measured"].sum() / len(result.tokens))
    assert table.loc[group, "influence"] == pytest.approx(rows["influence"].sum())


@pytest.mark.parametrize("clipping", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_measured_change_is_that_of_a_real_step_on_the_training_loss(scene, name, clipping):
    batch = scene.batch
    model, optimizer = copy.deepcopy((batch.lens.model, scene.optimizers[name]))
    loss_of(model, batch).backward()
    if clipping:
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    change = lens_stats(replace(batch.lens, model=model)).entropy - lens_stats(batch.lens).entropy
    told = found(scene, clipping, name).tokens["measured"].to_numpy()
    assert np.abs(told - change.numpy()).max() < 1e-12
    assert np.abs(told).max() > 1e-6


def test_gradient_clipping_scales_the_step_down_to_its_norm_and_never_up(scene):
    expected = scale_by_hand(scene.batch)
    assert expected < 0.5
    assert {r.totals["gradient_scale"] for r in scene.off.values()} == {1.0}
    for result in scene.on.values():
        assert result.totals["gradient_scale"] == pytest.approx(expected, rel=1e-3)
    tokens, clipped = scene.off["sgd"].tokens, scene.on["sgd"].tokens
    for column in ("first_order", "output_layer", "influence", "output_layer_influence"):
        wanted = scene.on["sgd"].totals["gradient_scale"] * tokens[column]
        np.testing.assert_allclose(clipped[column], wanted, rtol=1e-7, atol=1e-16)
    generous = attribute(replace(scene.batch, max_grad_norm=1e3), fresh_sgd(scene.batch))["sgd"]
    pd.testing.assert_frame_equal(generous.tokens, tokens, check_exact=True)


def test_policy_gradients_and_every_optimisers_state_are_as_they_were(batch):
    model = copy.deepcopy(batch.lens.model)
    own, optimizers = replace(batch, lens=replace(batch.lens, model=model)), optimizers_of(model)
    for p in list(model.parameters())[::2]:
        p.grad = torch.full_like(p, 0.5)
    gradients = [p.grad for p in model.parameters()]
    before = copy.deepcopy((model.state_dict(), {name: o.state_dict() for name, o in optimizers.items()}))
    attribute(own, optimizers)
    assert same((model.state_dict(), {name: o.state_dict() for name, o in optimizers.items()}), before)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.grad is None or (p.grad == 0.5).all() for p in model.parameters())
    assert [bool(o.state) for o in optimizers.values()] == [False, True, False, True]


def test_several_optimisers_at_once_give_what_each_gives_alone(scene):
    batch = replace(scene.batch, max_grad_norm=MAX_NORM)
    for name in ("sgd", "adamw, moments and decay"):
        alone = attribute(batch, {name: optimizers_of(batch.lens.model)[name]})[name]
        pd.testing.assert_frame_equal(alone.tokens, scene.on[name].tokens, check_exact=True)
        assert alone.totals == scene.on[name].totals
        assert alone.seconds.keys() == scene.on[name].seconds.keys()


def test_a_tokens_influence_is_what_the_mean_entropy_loses_without_its_push(scene):
    result, batch = scene.off["sgd"], scene.batch
    for s in result.tokens["influence"].abs().nlargest(2).index:
        coefficients = batch.coefficient_N.clone()
        coefficients[s] = 0
        without = attribute(replace(batch, coefficient_N=coefficients), fresh_sgd(batch))["sgd"]
        for total, share in (("first_order", "influence"), ("output_layer", "output_layer_influence")):
            lost = result.totals[total] - without.totals[total]
            assert lost == pytest.approx(result.tokens[share][s], rel=1e-7)
        assert without.tokens["influence"][s] == 0


def test_tokens_without_advantage_or_stopped_by_the_clip_have_no_influence_and_are_moved_all_the_same(scene):
    batch = scene.batch
    pushed = surrogate_slope(lens_stats(batch.lens), *inputs_of(batch)).numpy()
    for result in (*scene.off.values(), *scene.on.values()):
        tokens = result.tokens
        assert (tokens["advantage"] == 0).any()
        assert ((tokens["influence"] != 0) == (pushed != 0)).all()
        assert ((tokens["output_layer_influence"] != 0) == (pushed != 0)).all()
        assert (tokens["first_order"][pushed == 0].abs() > 0).all()


@pytest.mark.parametrize("clipping", [False, True])
def test_forms_of_one_state_are_in_nats_of_the_step(scene, clipping):
    batch, coefficient = scene.batch, float(scene.batch.coefficient_N[0])
    inputs = (lens_stats(batch.lens), *inputs_of(batch))
    for name, optimizer in scene.optimizers.items():
        result = found(scene, clipping, name)
        rate = optimizer.param_groups[0]["lr"] * coefficient * result.totals["gradient_scale"]
        for form, function in ENTROPY_CHANGE.items():
            np.testing.assert_allclose(result.tokens[form], rate * function(*inputs), rtol=1e-12)


def test_quadrants_are_those_of_the_advantage_and_of_ln_p_plus_entropy(scene):
    for row in scene.off["sgd"].tokens.itertuples():
        sign = {1: "positive", -1: "negative", 0: None}[np.sign(row.advantage)]
        likely = "likely" if row.logprob > -row.entropy else "unlikely"
        assert row.quadrant == (f"{sign}_{likely}" if sign else "no_signal")


def test_every_token_stands_where_it_was_sampled(scene):
    tokens, sequences = scene.off["sgd"].tokens, scene.batch.lens.sequences
    places = ["group", "sequence", "position", "token", "advantage", "logprob", "entropy", "quadrant"]
    assert list(tokens)[:8] == places
    assert set(tokens) == {*places, *RUNGS, *MOVED}
    assert len(tokens) == int(sequences.response_mask_BT.sum())
    for row in tokens.itertuples():
        assert row.token == int(sequences.response_ids_BT[row.sequence, row.position])
        assert bool(sequences.response_mask_BT[row.sequence, row.position])
        assert row.group == row.sequence // GROUP
    assert not tokens.duplicated(["sequence", "position"]).any()


@pytest.mark.parametrize("kind", ["tied", "untied", "untied with a bias"])
def test_output_layer_at_a_tokens_own_state_is_the_exact_form_times_the_squared_hidden_state(batch, kind):
    """dz = eta c w (e_a - p) |h|^2 where one token alone pushes, and one more for a bias."""
    model = copy.deepcopy(batch.lens.model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    if kind != "tied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if "bias" in kind:
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size, dtype=torch.float64))
    lens = replace(batch.lens, model=model, temperature=1.0)
    with torch.no_grad():
        squares = hidden_states(model, lens.sequences).square().sum(-1) + ("bias" in kind)
    new = lens_stats(lens)
    for t in batch.advantages_N.abs().topk(1).indices.tolist():
        only = replace(batch, lens=lens, old=None, coefficient_N=torch.zeros_like(batch.coefficient_N))
        only.coefficient_N[t] = 0.02
        tokens = attribute(only, fresh_sgd(only))["sgd"].tokens
        exact = float(ENTROPY_CHANGE["exact"](new, new, batch.advantages_N, batch.clip)[t])
        assert tokens["output_layer"][t] == pytest.approx(1e-3 * 0.02 * exact * float(squares[t]), rel=1e-9)
        assert tokens["exact"][t] == pytest.approx(1e-3 * 0.02 * exact, rel=1e-12)
        assert (tokens["exact"].drop(t) == 0).all()


def test_output_layer_takes_its_own_gradient_with_the_step_sizes_that_the_whole_gradient_set(scene):
    """By hand for a fresh AdamW, whose entries move by eta g / (|g| + eps), g of the whole model; weights are tied."""
    lens, batch = scene.batch.lens, scene.batch
    pushed, head = (
        batch.coefficient_N * surrogate_slope(lens_stats(lens), *inputs_of(batch)),
        replace(lens, output_layer=True),
    )
    whole, own = gradient(lens, pushed)["model.embed_tokens.weight"], gradient(head, pushed)["lm_head.weight"]
    expected = derivative(head, {"lm_head.weight": 1e-4 * own / (whole.abs() + 1e-8)})[1]
    np.testing.assert_allclose(scene.off["adamw"].tokens["output_layer"], expected, rtol=1e-7, atol=1e-15)


def test_a_batch_that_teaches_nothing_is_refused(batch):
    silent = replace(batch, advantages_N=torch.zeros_like(batch.advantages_N))
    gone = replace(batch.old, logprob=batch.old.logprob - 5)
    stopped = replace(batch, old=gone, advantages_N=torch.ones_like(batch.advantages_N))
    for nothing in (silent, stopped):
        with pytest.raises(SteerError, match="advantages: 0 at every token that the clip lets through"):
            attribute(nothing, fresh_sgd(nothing))


def test_contributions_by_another_column_are_refused_with_the_known_ones(scene):
    with pytest.raises(SteerError, match=r"'quadrants' is no column of the token table; known: group, .*quadrant"):
        contributions(scene.off["sgd"].tokens, "quadrants")


def test_weights_that_are_not_finite_are_refused(batch):
    model = copy.deepcopy(batch.lens.model)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    broken = replace(batch, lens=replace(batch.lens, model=model))
    with pytest.raises(SteerError, match=r"NaN or infinite logits at .* check its weights"):
        attribute(broken, fresh_sgd(broken))


def test_a_step_to_where_nothing_is_finite_is_refused_and_undone(batch):
    before = copy.deepcopy(batch.lens.model.state_dict())
    huge = {"sgd:1e300": torch.optim.SGD(batch.lens.model.parameters(), lr=1e300)}
    with pytest.raises(SteerError, match="update sgd:1e300: its step leads to NaN or infinite logits; take a smaller"):
        attribute(batch, huge)
    assert same(batch.lens.model.state_dict(), before)
