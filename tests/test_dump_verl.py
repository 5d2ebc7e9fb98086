"""A dump of verl's own engine on a CPU: its tokens are those of the loss, and nothing of the training changes."""

import pytest
import torch

pytest.importorskip("verl")

import torch.distributed as dist
from verl.workers.engine.base import BaseEngine
from verl_engine import PROMPT, SWITCHES, Engine, actor_config, batch, on_cpu

from steer_core.diagnose.diagnosis import diagnose
from steer_core.formulas.token_stats import token_stats
from steer_core.integrations import verl, verl_dump
from steer_core.runs import dumps


@pytest.fixture(autouse=True)
def one_rank(monkeypatch, tmp_path):
    on_cpu(monkeypatch, 0, 1, str(tmp_path / "store"))
    yield
    dist.destroy_process_group()


def train(steps=1, **settings):
    engine = Engine()
    config = actor_config("actor_rollout_ref.actor.clip_ratio_high=0.3")
    for step in range(steps):
        engine.train(batch(seed=step, **settings), config)
    return engine, config


def test_a_dump_holds_the_log_probs_entropies_and_advantages_of_the_loss(monkeypatch, tmp_path):
    monkeypatch.setenv(verl_dump.FOLDER, str(tmp_path / "dump"))
    start, data = Engine(), batch(seed=0)
    train()
    dump = dumps.read(tmp_path / "dump")
    assert dump.settings == {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}
    assert dump.steps == [1]
    assert len(dump.responses) == len(data)
    for i in range(len(data)):
        ids, count = data["input_ids"].unbind()[i], int(data["attention_mask"][i, PROMPT:].sum())
        with torch.no_grad():
            logits = start.module(ids[None]).logits[0, -count - 1 : -1]
        stats, own = token_stats(logits, ids[-count:]), dump.tokens["row"] == i
        assert dump.tokens["logprob"][own] == pytest.approx(stats.logprob.numpy(), abs=1e-5)
        assert dump.tokens["entropy"][own] == pytest.approx(stats.entropy.numpy(), abs=1e-5)
        kept = slice(0, count)
        assert dump.tokens["advantage"][own] == pytest.approx(data["advantages"][i, kept].numpy(), abs=1e-6)
        assert dump.tokens["old_logprob"][own] == pytest.approx(data["old_log_probs"][i, kept].numpy(), abs=1e-6)
        assert dump.tokens["token_ids"][own].tolist() == ids[-count:].tolist()


def test_steps_are_counted_and_without_the_variable_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv(verl_dump.FOLDER, str(tmp_path / "dump"))
    dumped, _ = train(steps=2)
    assert [path.name for path in dumps.files_of(tmp_path / "dump")] == ["step_000001.parquet", "step_000002.parquet"]
    monkeypatch.delenv(verl_dump.FOLDER)
    plain, _ = train(steps=2)
    assert len(list((tmp_path / "dump").iterdir())) == 2
    for one, other in zip(dumped.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(one, other)  # nothing of the training changes


def test_an_actor_without_entropies_and_old_log_probs_far_away_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv(verl_dump.FOLDER, str(tmp_path / "dump"))
    train(rows=16, entropy=False, drift=1.0)
    seen = diagnose(dumps.read(tmp_path / "dump"))
    assert seen.entropy.kind == "absent"
    assert seen.findings["far"].status == "found"
    assert seen.findings["clipping"].status == "found"


@pytest.mark.parametrize("dump_first", [True, False])
def test_with_steer_every_token_is_written_once_whichever_module_came_first(monkeypatch, tmp_path, dump_first):
    plain = BaseEngine.train_batch
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    wrappers = [verl_dump._listening, verl._with_entropy]
    for wrap in wrappers if dump_first else wrappers[::-1]:
        plain = wrap(plain)
    monkeypatch.setattr(BaseEngine, "train_batch", plain)
    monkeypatch.setenv(verl_dump.FOLDER, str(tmp_path / "dump"))
    data = batch(seed=0)
    Engine().train(data, actor_config(*SWITCHES))
    assert len(dumps.read(tmp_path / "dump").responses) == len(data)
