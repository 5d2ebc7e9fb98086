"""No memory setting and no number of processes changes a step: weights, loss, gradient and parameters stay."""

from dataclasses import replace

import pytest
import torch
from processes import run_two
from scenario import ACTING, equip, lengths_by_problem, micro_batches, outcome, sampled, trainer_of
from two_ranks import LEVELS, ROWS, VALUES, reduced, work

from steer_core.common import ranks
from steer_core.formulas.loss import REDUCTIONS
from steer_core.interventions.steer import Steer

CASES = {name: (name, settings) for name, settings in ACTING.items()}
CASES |= {
    "steer, rollout": ("steer", {"scope": "rollout"}),
    "steer, quantile": ("steer", {"normaliser": "quantile", "form": "exact"}),
    "steer, covariance": ("steer", {"form": "covariance", "sides": "lowering"}),
    "steer-control, uniform": ("steer-control", {"control": "uniform"}),
}
"""Every method, and the ways of STEER that read more than a token."""
EVEN, UNEVEN = [[0, 1], [2, 3]], [[0], [1, 2, 3]]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return trainer_of(tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def data(trainer):
    return sampled(trainer)


@pytest.fixture(scope="module")
def whole(trainer, data):
    """What one process with one micro-batch does, by case."""
    parts = micro_batches(trainer, data, 8)
    return {key: outcome(equip(trainer, name, **settings), parts) for key, (name, settings) in CASES.items()}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_the_scenario_has_clipped_tokens_and_every_method_but_none_changes_it(whole):
    ratio, advantages = whole["none"]["ratio"], whole["none"]["advantages"]
    assert ((ratio > 1.28) & (advantages > 0)).any()
    assert ((ratio < 0.8) & (advantages < 0)).any()
    for key, result in whole.items():
        assert result["norm"] > 1e-3
        assert torch.equal(result["parameters"], whole["none"]["parameters"]) == (key == "none")


@pytest.mark.parametrize("key", CASES)
@pytest.mark.parametrize("size", [3, 1])
def test_a_step_does_not_depend_on_its_micro_batches(trainer, data, whole, key, size):
    name, settings = CASES[key]
    parts = micro_batches(trainer, data, size)
    assert len(parts) == -(-8 // size)
    assert_same(outcome(equip(trainer, name, **settings), parts), whole[key])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["none", "steer"])
def test_under_no_reduction_does_a_step_depend_on_its_micro_batches(tmp_path, data, reduction, name):
    trainer = trainer_of(tmp_path / "run", f"algorithm.reduction={reduction}")
    results = [outcome(equip(trainer, name), micro_batches(trainer, data, size)) for size in (8, 3, 1)]
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("name", ["steer", "steer-control"])
def test_scope_micro_depends_on_the_split(trainer, data, name):
    weights = [
        outcome(equip(trainer, name, scope="micro"), micro_batches(trainer, data, size))["weights"] for size in (8, 2)
    ]
    assert float((weights[0] - weights[1]).abs().max()) > 1e-3


@pytest.fixture(scope="module")
def both(trainer, data, tmp_path_factory):
    """What each of two ranks did, by case; each holds half of the sequences, or a quarter and the rest."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(data, folder / "data.pt")
    cases = [(key, *CASES[key], EVEN) for key in CASES]
    cases += [(f"{key}, uneven", *CASES[key], UNEVEN) for key in ("steer", "steer, rollout", "entropy-loss", "stare")]
    cases.append(("micro", "steer", {"scope": "micro"}, UNEVEN))
    run_two(work, folder, cases, seconds=240)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize(
    "key", [*CASES, "steer, uneven", "steer, rollout, uneven", "entropy-loss, uneven", "stare, uneven"]
)
def test_a_step_of_two_ranks_is_that_of_one(both, whole, key):
    first, second = (result[key] for result in both)
    expected = whole[key.removesuffix(", uneven")]
    together = {
        name: torch.cat([first[name], second[name]]) for name in ("weights", "advantages", "ratio", "predicted")
    }
    together["loss"] = first["loss"] + second["loss"]
    assert_same(first | together, expected)
    assert_same(second | together, expected)


def test_scope_micro_takes_its_maximum_over_a_micro_batch_of_one_rank(trainer, data, both):
    alone = []
    for part in micro_batches(trainer, data, 2):
        equip(trainer, "steer", scope="micro")
        tokens = replace(trainer.update.active.tokens([trainer.update.score(part).detach()], [part]), memory={})
        alone.append(Steer().loss_terms(tokens).weights)
    torch.testing.assert_close(both[0]["micro"]["weights"], alone[0])
    torch.testing.assert_close(both[1]["micro"]["weights"], torch.cat(alone[1:]))


def test_two_ranks_know_whose_responses_they_gathered(trainer, both):
    alone = lengths_by_problem(trainer)
    assert len(alone) == 4
    assert all(found["sampled"] == alone for found in both)
    assert list(both[0]["sampled"]) != list(alone)  # rank behind rank


def test_what_two_ranks_tell_one_another(both):
    for rank, found in enumerate(result["ranks"] for result in both):
        assert (found["count"], found["total"]) == (2, 7)
        assert found["added"].tolist() == [3, 30]
        assert torch.equal(found["gathered"], ROWS)
        assert torch.equal(found["own"], ROWS[:1] if rank == 0 else ROWS[1:])
        assert torch.equal(found["gathered_none"], ROWS[1:])
        assert found["shared"] == [10, 20, 11, 20]
        assert found["kept"] == [["a"], ["b"]][rank]
        assert found["of first"]["path"].name == "0"
        assert found["refused"].startswith("run folder rank0: holds no config.yaml")


@pytest.mark.parametrize("key", ["reduced", "reduced of one alone"])
def test_reductions_over_ranks_are_those_of_all_values_though_none_is_gathered(both, key):
    alone = reduced(VALUES)
    assert alone["torch.float64"] == [float(VALUES.sort().values[round(q * (len(VALUES) - 1))]) for q in LEVELS]
    for found in (result["ranks"][key] for result in both):
        assert {name: found[name] for name in ("torch.float32", "torch.float64")} == {
            name: alone[name] for name in ("torch.float32", "torch.float64")
        }
        assert (found["mean"], found["total"]) == pytest.approx((alone["mean"], alone["total"]), rel=1e-12)


def test_one_process_has_nothing_to_tell():
    values = torch.tensor([1.0, 2.0])
    ranks.all_reduce_sum_(values)
    assert values.tolist() == [1, 2]
    assert (ranks.world_size(), ranks.all_reduce_sum(5)) == (1, 5)
    assert ranks.all_gather_rows(values) is values
    assert ranks.local_rows(values, values) is values
    assert ranks.broadcast_from_main(lambda: values) is values
