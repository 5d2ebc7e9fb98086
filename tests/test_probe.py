"""The probe reads what an optimiser step did, and changes nothing of the run."""

import math

import pytest
import torch
from small import grade_by, small_trainer, without_time

from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.ladder.passes import Lens, derivative
from steer_core.policy.score import score
from steer_core.stats.agreement import agreement
from steer_core.training.probe import Watch, watched_step


def sampled(trainer, advantages=None):
    """The mini-batches of one rollout; sequence b has advantage from -1 to 1."""
    group = trainer.config.rollout.responses
    prompts = [problem.prompt for problem in trainer.problems_of(1)]
    rollout = trainer.sampler.generate(prompts, group, trainer.config.rollout, 3)
    advantages = torch.linspace(-1, 1, len(rollout.texts)) if advantages is None else advantages
    old = trainer.score_rollout(rollout)
    advantages, old = advantages.to(trainer.model.dtype), old.map(lambda x: x.to(trainer.model.dtype))
    return list(trainer.batches(rollout, old, advantages))


def double(trainer):
    trainer.model.double()
    return trainer


def probe_of(row):
    return {name: value for name, value in row.items() if name.startswith("probe/")}


def test_a_watched_step_measures_the_difference_of_two_scoring_passes(tmp_path):
    trainer = small_trainer(tmp_path / "a")
    batch = sampled(trainer)[0]
    lens = trainer.lens_on(batch)
    mask = lens.sequences.response_mask_BT.bool()

    def entropies():
        with torch.no_grad():
            return score(trainer.model, lens.sequences, 1.0).entropy[mask]

    before = entropies()
    with watched_step(lens) as watch:
        trainer.update.step(batch, 1, 1)
    torch.testing.assert_close(watch.measured, entropies() - before, rtol=0, atol=1e-5)
    assert float(watch.measured.abs().max()) > 0.05
    assert watch.seconds > 0
    assert watch.measured.shape == watch.first_order.shape == (int(mask.sum()),)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_first_order_is_close_to_the_measured_change_of_a_small_real_step(tmp_path, optimizer):
    rate = {"adamw": 1e-6, "sgd": 1e-3}[optimizer]
    settings = (f"optimizer.name={optimizer}", f"optimizer.learning_rate={rate}")
    trainer = double(small_trainer(tmp_path / "a", *settings))
    errors = []
    for factor in (1, 0.1):
        batch = sampled(trainer)[0]
        trainer.engine.optimizer.param_groups[0]["lr"] = rate * factor
        with watched_step(trainer.lens_on(batch)) as watch:
            trainer.update.step(batch, 1, 1)
        errors.append(float((watch.first_order - watch.measured).norm() / watch.measured.norm()))
        assert agreement(watch.first_order.numpy(), watch.measured.numpy())["pearson"] > 0.999
        if optimizer == "adamw":  # its second step differs from its first; one is enough
            break
    assert errors[0] < 0.05
    assert optimizer == "adamw" or errors[1] == pytest.approx(errors[0] / 10, rel=0.5)


def test_first_order_starts_where_the_step_began(tmp_path):
    trainer = double(small_trainer(tmp_path / "a", "optimizer.learning_rate=1e-2"))
    batch = sampled(trainer)[0]
    lens = trainer.lens_on(batch)
    before = {name: p.detach().clone() for name, p in lens.parameters().items()}
    with watched_step(lens) as watch:
        trainer.update.step(batch, 1, 1)
    after = {name: p.detach().clone() for name, p in lens.parameters().items()}
    update = {name: after[name] - before[name] for name in before}
    length = torch.cat([u.flatten() for u in update.values()]).norm()
    assert watch.update_norm == pytest.approx(float(length), rel=1e-12)
    assert not torch.allclose(watch.first_order, derivative(lens, update)[1], rtol=0.01)
    trainer.model.load_state_dict(before, strict=False)
    torch.testing.assert_close(watch.first_order, derivative(lens, update)[1], rtol=1e-12, atol=1e-14)


WITH_A_PROBE = "entropy_change/exact"  # it needs sums that a run without one does not make


def test_the_probe_leaves_weights_moments_and_all_other_metrics_bit_for_bit(tmp_path):
    common = ("train.rollouts=3", "evaluation.every=0")
    trainers = [small_trainer(tmp_path / str(n), *common, f"train.probe_sequences={n}") for n in (0, 16, 3)]
    for trainer in trainers:
        assert trainer.fit()
    rows = [trainer.run.read() for trainer in trainers]
    probes = [[probe_of(row) for row in told] for told in rows]
    others = [
        [{k: v for k, v in row.items() if k not in {*probe_of(row), WITH_A_PROBE}} for row in without_time(r)]
        for r in rows
    ]
    states = [trainer.model.state_dict() for trainer in trainers]
    moments = [trainer.engine.optimizer.state_dict()["state"] for trainer in trainers]
    for other in (1, 2):
        assert others[other] == others[0]
        assert all(torch.equal(value, states[other][name]) for name, value in states[0].items())
        for key, values in moments[0].items():
            assert all(torch.equal(value, moments[other][key][name]) for name, value in values.items())
    assert any(row["grad_norm/max"] > 0 for row in rows[0])
    assert moments[0]
    assert not any(probes[0])
    assert all(probes[1])
    assert all(probes[2])
    assert probes[1] != probes[2]
    assert ["time/probe_seconds" in told[0] for told in rows] == [False, True, True]
    assert all(p.grad is None for trainer in trainers for p in trainer.model.parameters())


def test_the_probe_names_every_form_and_the_first_order(tmp_path):
    trainer = small_trainer(tmp_path / "a", "train.rollouts=1", "rollout.prompts=8", "optimizer.learning_rate=1e-5")
    trainer.fit()
    row = trainer.run.read()[0]
    forms = {*ENTROPY_CHANGE, "first_order"}
    assert set(probe_of(row)) == {
        "probe/change/measured",
        "probe/update_norm",
        *(f"probe/{kind}/{form}" for kind in ("change", "pearson", "sign") for form in forms),
    }
    assert all(math.isfinite(value) for value in probe_of(row).values())
    assert row["probe/pearson/first_order"] > 0.95
    assert row["time/probe_seconds"] > 0


def test_where_all_advantages_are_zero_undefined_agreements_are_left_out(tmp_path):
    trainer = small_trainer(tmp_path / "a", "train.rollouts=2", "intervention.name=steer")
    grade_by(trainer, lambda response: False)
    trainer.fit()
    for row in trainer.run.read():
        assert {name.split("/")[1] for name in probe_of(row)} == {"change", "update_norm"}
        assert len(probe_of(row)) == len(ENTROPY_CHANGE) + 3
        assert not any(probe_of(row).values())


def test_metrics_of_a_watch_by_hand():
    watch = Watch(
        torch.tensor([1.0, -2.0, 0.0, 4.0]), torch.tensor([2.0, -4.0, 1.0, 8.0]), update_norm=0.5, seconds=0.25
    )
    told = watch.metrics({"paper": torch.tensor([1.0, 1.0, -1.0, 0.0, 9.0]), "exact": torch.zeros(5)})  # 4 are its own
    expected = {
        "probe/change/measured": 0.75,
        "probe/update_norm": 0.5,
        "probe/change/first_order": 1.75,
        "probe/change/paper": 0.25,
        "probe/change/exact": 0.0,
        "probe/pearson/first_order": 36.75 / math.sqrt(72.75 * 18.75),
        "probe/sign/first_order": 1.0,
        "probe/pearson/paper": -1.75 / math.sqrt(2.75 * 18.75),
        "probe/sign/paper": 0.5,
        "time/probe_seconds": 0.25,
    }
    assert told == pytest.approx(expected)


def test_the_probe_watches_another_mini_batch_each_rollout(tmp_path):
    trainer = small_trainer(tmp_path / "a", "optimizer.mini_batch_prompts=1")
    batches = sampled(trainer)
    assert len(batches) == 4
    seen = []
    trainer.lens_on = lambda batch: (
        seen.append(next(i for i, b in enumerate(batches) if b is batch))
        or Lens(trainer.model, batch[0].sequences.rows(slice(0, 1)))
    )
    for step in range(1, 7):
        _, _, probed = trainer.optimizer_steps(batches, step)
        assert probed["probe/change/measured"] != 0
    assert seen == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("step", [1, 2])
def test_probed_predictions_are_the_readings_of_the_probes_own_tokens(tmp_path, step):
    """A form's change is that of its token's state: rate x coefficient x weight x form, without the rollout's mean."""
    settings = ("train.probe_sequences=3", "intervention.name=steer", "intervention.form=exact")
    trainer = small_trainer(tmp_path / "a", *settings, "optimizer.learning_rate_factor=0.5", "optimizer.name=sgd")
    batches = sampled(trainer)
    readings, _, probed = trainer.optimizer_steps(batches, step)
    counts = [int(part.mask_BT.sum()) for batch in batches for part in batch]
    begin = sum(counts[: step - 1])
    count = int(batches[step - 1][0].mask_BT[:3].sum())
    own = {name: values[begin : begin + count] for name, values in readings.items()}
    for form in ENTROPY_CHANGE:
        assert probed[f"probe/change/{form}"] == pytest.approx(float(sum(counts) * own[form].mean()), rel=1e-5)
    if step == 1:  # the first step is on policy: ratio 1, nothing clipped
        part, rate = batches[0][0], 1e-3 * 0.5 / counts[0]
        new = part.old.map(lambda x: x[:3][part.mask_BT[:3]])
        values = ENTROPY_CHANGE["exact"](new, new, part.advantages_BT[:3][part.mask_BT[:3]], trainer.update.active.clip)
        assert probed["probe/change/exact"] == pytest.approx(float((rate * own["lambda"] * values).mean()), rel=1e-3)


def test_the_probe_reads_the_first_sequences_at_the_sampling_temperature(tmp_path):
    trainer = small_trainer(tmp_path / "a", "train.probe_sequences=3", "rollout.temperature=0.7")
    batch = sampled(trainer)[1]
    lens = trainer.lens_on(batch)
    assert len(lens.sequences.response_ids_BT) == 3
    assert lens.temperature == 0.7
    first = batch[0].sequences.response_ids_BT[:3][batch[0].mask_BT[:3]]
    assert torch.equal(lens.labels_N, first)


def test_a_step_that_fails_is_not_swallowed_by_the_watch(tmp_path):
    trainer = small_trainer(tmp_path / "a")
    lens = trainer.lens_on(sampled(trainer)[0])
    with pytest.raises(ZeroDivisionError), watched_step(lens) as watch:
        raise ZeroDivisionError
    assert watch.measured is None
    with pytest.raises(ValueError, match="the watched step is not over"):
        watch.metrics({})
