"""The CPU's facts on a CUDA GPU; skipped where there is none. One command: python -m pytest tests/test_gpu.py"""

import pytest
import torch
from small import small_trainer, without_time

from steer_core.config.sections import RolloutConfig
from steer_core.ladder.passes import Lens, derivative, gradient, lens_stats
from steer_core.ladder.real_step import taken_step
from steer_core.policy.model import load_policy
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


def both(dtype):
    """The same rollout seen through a lens on either device, and the same pushes."""
    policies = [load_policy("embedded", device, dtype) for device in ("cpu", "cuda")]
    prompts = [p.prompt for p in Countdown().problems("train", 4)]
    rollout = HuggingFaceSampler(policies[0]).generate(prompts, 4, RolloutConfig(), seed=1)
    lenses = []
    for policy in policies:
        rows = rollout.rows(slice(0, 16))
        tensors = {name: value.to(policy.model.device) for name, value in vars(rows).items()}
        lenses.append(Lens(policy.model, type(rows)(**tensors), micro_batch=5))
    push = torch.randn(len(lenses[0].labels_N), generator=torch.Generator().manual_seed(0), dtype=dtype) / 100
    return lenses, [push, push.cuda()]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_every_pass_of_the_ladder_gives_the_cpus_numbers(dtype, tolerance):
    lenses, pushes = both(dtype)
    cpu, gpu = (lens_stats(lens) for lens in lenses)
    for name in vars(cpu):
        torch.testing.assert_close(getattr(gpu, name).cpu(), getattr(cpu, name), rtol=tolerance, atol=tolerance)
    ascents = [gradient(lens, push) for lens, push in zip(lenses, pushes, strict=True)]
    for name in ascents[0]:
        torch.testing.assert_close(ascents[1][name].cpu(), ascents[0][name], rtol=1e-3, atol=tolerance)
    changes = [derivative(lens, ascent) for lens, ascent in zip(lenses, ascents, strict=True)]
    for cpu_values, gpu_values in zip(*changes, strict=True):
        torch.testing.assert_close(gpu_values.cpu(), cpu_values, rtol=1e-3, atol=50 * tolerance)


def test_a_step_is_taken_and_undone_bit_for_bit_and_first_order_tells_it():
    lenses, pushes = both(torch.float64)
    lens, push = lenses[1], pushes[1]
    before = lens_stats(lens)
    optimizer = torch.optim.AdamW(lens.model.parameters(), lr=1e-7)
    with taken_step(lens.model, optimizer, gradient(lens, push)) as step:
        measured = lens_stats(lens).entropy - before.entropy
    assert torch.equal(lens_stats(lens).entropy, before.entropy)
    predicted = derivative(lens, step.update)[1]
    assert float((predicted - measured).norm() / measured.norm()) < 1e-2


def test_a_run_trains_on_the_gpu_and_its_first_rollout_scores_as_on_the_cpu(tmp_path):
    runs = [small_trainer(tmp_path / name, f"model.device={name}", "train.rollouts=2") for name in ("cpu", "cuda")]
    for trainer in runs:
        assert trainer.fit()
    rows = [without_time(trainer.run.read()) for trainer in runs]
    assert set(rows[0][0]) == set(rows[1][0])
    assert 0 < rows[1][1]["entropy/policy"] < 1
    assert rows[1][0]["grad_norm/max"] >= 0
