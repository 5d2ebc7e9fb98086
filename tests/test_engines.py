"""Local and DeepSpeed engines: one run by any of them, on one rank or two, up to rounding; and what each refuses."""

import os
import shutil
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch
from process_groups import forget_process_groups
from processes import free_port, run_two, steer
from rank_runs import work
from safetensors.torch import load_file
from small import grade_by, small_config, small_trainer, trainer_in

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import architectures

from steer_core.common.errors import SteerError
from steer_core.runs.folder import RunFolder
from steer_core.training.loop import Trainer

deepspeed = pytest.importorskip("deepspeed", reason="needs the extra deepspeed") and ["engine.name=deepspeed"]
COMMON = (
    "rollout.draws=prompt",
    "train.probe_sequences=0",
    "intervention.name=steer",
    "train.rollouts=2",
    "evaluation.problems=3",
    "optimizer.learning_rate=3e-4",
)
SPLIT = ["optimizer.micro_batch_tokens=100"]
EXACT = {
    "stage 0": ["engine.zero_stage=0"],
    "stage 1, packed": ["engine.zero_stage=1", *SPLIT, "optimizer.packing=packed"],
    "stage 2": ["engine.zero_stage=2", "optimizer.micro_batch_sequences=3"],
    "stage 3": ["engine.zero_stage=3", *SPLIT],
    "stage 2, offloaded": ["engine.zero_stage=2", "engine.offload=optimizer"],
    "stage 3, offloaded, recomputed": ["engine.zero_stage=3", "engine.offload=all", "engine.activations=recompute"],
}
BFLOAT = {f"stage {stage}, bfloat16": [f"engine.zero_stage={stage}", "model.dtype=bfloat16"] for stage in range(4)}
LOCAL = {
    "recomputed": ["engine.activations=recompute"],
    "by tokens": SPLIT,
    "packed": [*SPLIT, "optimizer.packing=packed"],
}
SUMS = {f"sum, {name}": settings for name, settings in BFLOAT.items() if "stage 0" not in name}
ON_TWO = {"local": LOCAL["by tokens"]} | {name: [*deepspeed, *EXACT[name]] for name in ("stage 2", "stage 3")}
ON_TWO["stage 3, logits in parts"] = [*ON_TWO["stage 3"], "engine.logits_mib=0.004"]  # of 50 tokens


@pytest.fixture(autouse=True, scope="module")
def no_process_group_is_left():
    yield
    forget_process_groups()


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch):
    """ZeRO-3 puts a linear map of its own, without a forward derivative, into torch, for the whole process."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


def rows_of(folder, log="metrics.jsonl"):
    """A log's rows without clock readings, and without how micro-batches were padded."""
    rows = RunFolder.open(folder).read(log)
    return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "batch/padding"} for row in rows]


def assert_close(folder, expected, rtol=2e-4, atol=2e-6):
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        mine, theirs = rows_of(folder, log), rows_of(expected, log)
        assert [row.keys() for row in mine] == [row.keys() for row in theirs]
        for row, other in zip(mine, theirs, strict=True):
            for name, value in other.items():
                assert row[name] == pytest.approx(value, rel=rtol, abs=atol), name


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The run that every engine must repeat: local, one rank, one micro-batch a step."""
    trainer = small_trainer(tmp_path_factory.mktemp("engines") / "local", *COMMON)
    trainer.fit()
    return trainer


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.float().clone() for name, weight in trainer.engine.weights()}


def test_the_run_has_gradients_and_moves(local):
    rows = rows_of(local.run.path)
    assert all(row["grad_norm/max"] > 0 for row in rows)
    assert rows[0]["lambda/q0"] == pytest.approx(0.7)


@pytest.mark.parametrize("name", [*EXACT, *LOCAL])
def test_an_engine_repeats_the_local_run_up_to_rounding(local, tmp_path, name):
    settings = LOCAL.get(name) or [*deepspeed, *EXACT[name]]
    trainer = small_trainer(tmp_path / "run", *COMMON, *settings)
    trainer.fit()
    assert_close(tmp_path / "run", local.run.path)
    expected = weights_of(local)
    for key, value in weights_of(trainer).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", BFLOAT)
def test_bfloat16_trains_close_to_float32(local, tmp_path, name):
    trainer = small_trainer(tmp_path / "run", *COMMON, "train.rollouts=1", *deepspeed, *BFLOAT[name])
    trainer.fit()
    mine, theirs = rows_of(tmp_path / "run")[0], rows_of(local.run.path)[0]
    for metric in ("entropy/policy", "grad_norm/mean", "lambda/mean"):
        assert mine[metric] == pytest.approx(theirs[metric], rel=0.1), metric
    expected = weights_of(local)
    gaps = [float((value - expected[key]).abs().max()) for key, value in weights_of(trainer).items()]
    assert max(gaps) < 0.02


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_gradients_of_micro_batches_are_summed_in_float32(tmp_path, stage):
    """To 1, each of 64 shares of 2**-10 is too small to add in bfloat16; together they are a sixteenth."""
    settings = [*deepspeed, f"engine.zero_stage={stage}", "model.dtype=bfloat16", "optimizer.learning_rate=1e-12"]
    trainer = small_trainer(tmp_path / "run", *COMMON, *settings)

    def norm(*shares: float) -> float:
        for i, share in enumerate(shares, 1):
            logits = trainer.model(torch.ones(1, 4, dtype=torch.long)).logits
            trainer.engine.backward(share * logits.float().sum(), last=i == len(shares))
        return trainer.engine.step()

    whole = norm(1.0)
    assert norm(1.0, *[2**-10] * 64) == pytest.approx(1.0625 * whole, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_that_are_not_finite_are_skipped_by_deepspeed_too(tmp_path, stage, dtype):
    settings = [*deepspeed, f"engine.zero_stage={stage}", "train.rollouts=1", "evaluation.every=0"]
    settings.append(f"model.dtype={dtype}")
    trainer = small_trainer(tmp_path / "run", *COMMON, *settings, "optimizer.micro_batch_sequences=4")
    before, backward, calls = weights_of(trainer), trainer.engine.backward, []

    def spoilt(loss, last):
        calls.append(last)
        backward(loss * (float("nan") if len(calls) in (1, 4) else 1.0), last)

    trainer.engine.backward = spoilt
    verdicts = cycle([True, False])  # some right, some wrong in every group
    grade_by(trainer, lambda response: next(verdicts))
    trainer.fit()
    assert calls == [False, True] * 2
    assert rows_of(tmp_path / "run")[0]["steps/skipped"] == 2
    for key, value in weights_of(trainer).items():
        assert torch.equal(value, before[key]), key


RESUMED = {
    "stage 0": EXACT["stage 0"],
    "stage 1, bfloat16": BFLOAT["stage 1, bfloat16"],
    "stage 2, offloaded": EXACT["stage 2, offloaded"],
    "stage 3": EXACT["stage 3"],
    "stage 3, bfloat16": BFLOAT["stage 3, bfloat16"],
}


def whole_and_resumed(folder, settings: list[str], step: int) -> tuple[Trainer, Trainer]:
    """A run that nothing interrupted, and one that goes on from its checkpoint of a step, in `whole` and `resumed`."""
    whole = small_trainer(folder / "whole", *settings)
    whole.fit()
    resumed = trainer_in(RunFolder(folder / "resumed", whole.config).start())
    shutil.copytree(folder / "whole", folder / "resumed", dirs_exist_ok=True)
    resumed.resume(from_step=step)
    resumed.fit()
    return whole, resumed


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_deepspeed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, name):
    settings = [*COMMON, "train.rollouts=3", "train.checkpoint_every=1", *deepspeed, *RESUMED[name]]
    whole, resumed = whole_and_resumed(tmp_path, settings, 2)
    assert rows_of(tmp_path / "resumed") == rows_of(tmp_path / "whole")
    expected = weights_of(whole)
    for key, value in weights_of(resumed).items():
        assert torch.equal(value, expected[key]), key
    saved = [load_file(path / "checkpoints/step_000003/model.safetensors") for path in tmp_path.iterdir()]
    assert all(torch.equal(value, saved[1][key]) for key, value in saved[0].items())


def test_cpu_adam_resumes_to_rounding_for_its_powers_of_beta_are_made_anew(tmp_path):
    settings = [*COMMON, "train.rollouts=6", "train.checkpoint_every=3", "evaluation.every=0", "train.seed=1"]
    settings += [*deepspeed, *EXACT["stage 2, offloaded"], "optimizer.name=cpu-adam"]
    whole, resumed = whole_and_resumed(tmp_path, settings, 3)
    expected = weights_of(whole)
    for key, value in weights_of(resumed).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=5e-5, msg=key)


def test_a_full_disk_stops_a_deepspeed_run_with_one_line_and_keeps_the_finished_checkpoints(tmp_path):
    """The limit on file size lets the weights be written and cuts the optimiser's state short."""
    settings = [*COMMON, "train.checkpoint_every=1", "evaluation.every=0", *deepspeed, "engine.zero_stage=1"]
    trainer = small_trainer(tmp_path / "run", *settings)
    trainer.fit()
    first, last = trainer.run.checkpoints.saved()
    limit = 2 * (first / "model.safetensors").stat().st_size
    assert max(path.stat().st_size for path in (first / "deepspeed").iterdir()) > limit
    shutil.rmtree(last)

    full = steer("train", "--resume", tmp_path / "run", "--no-report", largest_file=limit)
    assert full.returncode == 2
    assert f"error: run folder {tmp_path / 'run'}: cannot be written (" in full.stderr
    assert "Traceback" not in full.stderr
    assert trainer.run.checkpoints.saved() == [first]
    again = steer("train", "--resume", tmp_path / "run", "--no-report")
    assert again.returncode == 0, again.stderr
    assert trainer.run.checkpoints.saved() == [first, last]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_keeps_and_restores_persistent_buffers(stage, tmp_path):
    settings = ("engine.name=deepspeed", f"engine.zero_stage={stage}", "train.rollouts=1")
    found = architectures.Examination("gemma4_text", tmp_path, settings)
    trainer = architectures.trainer_of(found.config, RunFolder(found.run, found.config).start())
    trainer.fit()
    (checkpoint,) = trainer.run.checkpoints.saved()
    scalars = {name: value.clone() for name, value in trainer.model.named_buffers() if name.endswith("layer_scalar")}
    assert len(scalars) == 2
    kept = load_file(checkpoint / "model.safetensors")
    for name, value in scalars.items():
        assert float(value) == pytest.approx(0.5)
        assert torch.equal(kept[name], value)
        trainer.model.get_buffer(name).fill_(3.0)
    trainer.resume()
    for name, value in scalars.items():
        assert torch.equal(trainer.model.get_buffer(name), value)


class Planted:
    """What a foreign checkpoint may hold: unpickling it would run code."""

    def __reduce__(self):
        return os.system, ("touch planted",)


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [*COMMON, "train.rollouts=1", "evaluation.every=0", *deepspeed, "engine.zero_stage=1"]
    trainer = small_trainer(tmp_path / "run", *settings)
    trainer.fit()
    (folder,) = trainer.run.checkpoints.saved()
    for part in (folder / "deepspeed").iterdir():
        torch.save({"module": Planted()}, part)
    with pytest.raises(SteerError, match=r"checkpoint .*does not match its checksum"):
        trainer.resume()
    with pytest.raises(SteerError, match=r"checkpoint .*holds more than tensors and settings .*posix.system"):
        trainer.engine.load(folder, {"ranks": 1})
    assert not (tmp_path / "planted").exists()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """The same runs on two ranks each, one pair of processes after another's run; the folders by name."""
    folder = tmp_path_factory.mktemp("two")
    cases = {name: [*COMMON, *settings] for name, settings in ON_TWO.items()}
    sums = {name: [*COMMON, *deepspeed, *settings, "optimizer.learning_rate=1e-12"] for name, settings in SUMS.items()}
    run_two(work, free_port(), folder, cases, sums, seconds=400)
    return folder


@pytest.mark.parametrize("name", SUMS)
def test_bfloat16_gradients_of_ranks_are_summed_in_float32(on_two, name):
    """2**-10 of a gradient is too small to add to it in bfloat16."""
    for rank in range(2):
        alone, both = torch.load(on_two / f"{name} {rank}.pt")
        assert both == pytest.approx((1 + 2**-10) * alone, rel=1e-4)


@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_make_the_run_of_one_up_to_rounding(local, on_two, name):
    assert_close(on_two / name, local.run.path)
    assert len(RunFolder.open(on_two / name).checkpoints.saved()) == 1


def test_two_ranks_log_what_one_logs_and_nothing_twice(local, on_two):
    for name in ON_TWO:
        assert {p.name for p in (on_two / name).iterdir()} == {p.name for p in local.run.path.iterdir()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.dtype=bfloat16"], r"model.dtype: bfloat16 .*set engine.name=deepspeed"),
        (["optimizer.name=cpu-adam"], r"optimizer.name: cpu-adam is DeepSpeed's"),
        (["model.attention=flash_attention_2"], r"model.attention: flash_.*not float32 on cpu; set model.device"),
        ([*deepspeed, "model.dtype=float64"], r"model.dtype: float64 .*engine.name=local"),
        ([*deepspeed, "intervention.name=influence"], r"intervention.name: influence .*engine.name=local"),
        ([*deepspeed, "engine.offload=all"], r"engine.offload: all needs engine.zero_stage=3, not 2"),
        ([*deepspeed, "engine.zero_stage=0", "engine.offload=optimizer"], r"engine.offload: optimizer .*not 0"),
        ([*deepspeed, "engine.zero_stage=3"], r"train.probe_sequences: 16 .*set it to 0"),
        (["engine.zero_stage=3"], r"engine.zero_stage: 3 is DeepSpeed's; set engine.name=deepspeed, or 2"),
        (["engine.offload=all"], r"engine.offload: all is DeepSpeed's; set engine.name=deepspeed, or none"),
        (["rollout.tensor_parallel=2"], r"rollout.tensor_parallel: 2 is vLLM's; set rollout.engine=vllm, or 1"),
        (["algorithm.importance_cap=2"], r"algorithm.importance_cap: 2.* needs .*rollout.engine=vllm"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_remedy(settings, message):
    with pytest.raises(SteerError, match=message):
        small_config(*settings)


def test_deepspeed_that_is_not_installed_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    with pytest.raises(SteerError, match=r"engine.name: deepspeed .*pip install .*engine.name=local"):
        small_trainer(tmp_path / "run", *COMMON, *deepspeed)


def test_ranks_that_do_not_divide_the_prompts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("steer_core.common.ranks.world_size", lambda: 3)
    with pytest.raises(SteerError, match=r"optimizer.mini_batch_prompts: 2 prompts do not divide among 3 ranks"):
        small_trainer(tmp_path / "run", *COMMON)
    monkeypatch.setattr("steer_core.common.ranks.world_size", lambda: 2)
    with pytest.raises(SteerError, match=r"rollout.draws: batch .*set rollout.draws=prompt"):
        small_trainer(tmp_path / "other", "rollout.engine=huggingface", "rollout.draws=batch")
    assert "WORLD_SIZE" not in os.environ
