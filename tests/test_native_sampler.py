"""The native sampler: its log-probs are the model's own, its responses those of Hugging Face's `generate`."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from random_policies import random_policy
from scipy.stats import chisquare
from small import small_config, small_trainer

from steer_core.common.errors import NotFiniteError, SteerError
from steer_core.config.sections import BenchmarkConfig, RolloutConfig
from steer_core.policy.model import Policy, load_policy
from steer_core.policy.score import score
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.native import NativeSampler, not_native
from steer_core.rollout.samplers import local_sampler, make_sampler

PROMPTS = [problem.prompt for problem in Countdown().problems("test", 6)]


@cache
def embedded() -> Policy:
    return load_policy("embedded")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6, "top_p": 0.8},
        {"batch_sequences": 7},  # which splits groups
        {"max_new_tokens": 1},
        {"stop": ("=1", "+")},
    ],
    ids=str,
)
def test_the_same_numbers_draw_the_responses_that_generate_draws(settings):
    config = RolloutConfig(**settings)
    ours, theirs = (
        one.generate(PROMPTS, 5, config, 3)
        for one in (NativeSampler(embedded()), HuggingFaceSampler(embedded(), "prompt"))
    )
    assert ours.texts == theirs.texts
    assert ours.finish_reasons == theirs.finish_reasons
    mask = theirs.response_mask_BT
    assert torch.equal(ours.response_mask_BT, mask)
    assert torch.equal(ours.response_ids_BT[mask], theirs.response_ids_BT[mask])
    assert len(set(ours.texts)) > len(PROMPTS)
    if settings.get("max_new_tokens", 40) > 1:
        assert len(mask.sum(-1).unique()) > 2  # some left the batch while others went on


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral", "phi3", "glm4"])
def test_log_probs_are_the_models_own_on_other_architectures(kind):
    more = {"sliding_window": None} if kind in ("mistral", "phi3") else {}
    policy = random_policy(kind, **more)
    assert not_native(policy) is None
    sampler = NativeSampler(policy, keep_stats=True)
    rollout = sampler.generate(["1+2", "(3*4)/5=", "7", "7"], 6, RolloutConfig(max_new_tokens=30, temperature=0.8), 0)
    mask = rollout.response_mask_BT
    with torch.no_grad():
        scored = score(policy.model, rollout, 0.8)
    for name, values in vars(scored).items():
        torch.testing.assert_close(vars(rollout.stats)[name][mask], values[mask], atol=1e-5, rtol=1e-5)
        assert not vars(rollout.stats)[name][~mask].any()


def test_a_float64_model_is_sampled_from_in_float64():
    policy = load_policy("embedded", dtype="float64")
    rollout = NativeSampler(policy, keep_stats=True).generate(PROMPTS, 2, RolloutConfig(), 0)
    mask = rollout.response_mask_BT
    with torch.no_grad():
        scored = score(policy.model, rollout, 1.0)
    assert rollout.stats.logprob.dtype is torch.float64
    torch.testing.assert_close(rollout.stats.logprob[mask], scored.logprob[mask], atol=1e-12, rtol=0)


def test_samples_follow_the_policys_distribution():
    policy, prompt = embedded(), PROMPTS[0]
    count = 6000
    rollout = NativeSampler(policy).generate([prompt], count, RolloutConfig(max_new_tokens=2, temperature=2.0), 1)
    ids = policy.tokenizer([prompt], return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        first = (policy.model(ids).logits[0, -1].double() / 2).softmax(-1)
        likeliest = int(first.argmax())
        longer = torch.cat([ids, torch.tensor([[likeliest]])], 1)
        then = (policy.model(longer).logits[0, -1].double() / 2).softmax(-1)
    after = rollout.response_ids_BT[rollout.response_ids_BT[:, 0] == likeliest, 1]
    for seen, p in ((rollout.response_ids_BT[:, 0], first), (after, then)):
        counts, common = torch.bincount(seen, minlength=len(p)), p * len(seen) >= 5
        observed, expected = counts[common].double(), (p * len(seen))[common]
        assert common.sum() > 2
        assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_greedy_decoding_takes_the_likeliest_token():
    greedy = BenchmarkConfig(temperature=0, max_new_tokens=20, top_p=1.0)
    ours, theirs = (kind(embedded()).generate(PROMPTS, 1, greedy, 0) for kind in (NativeSampler, HuggingFaceSampler))
    assert ours.texts == theirs.texts


def test_the_model_keeps_its_own_attention(monkeypatch):
    policy = embedded()
    before = policy.model.config._attn_implementation
    NativeSampler(policy).generate(PROMPTS, 2, RolloutConfig(max_new_tokens=3), 0)
    assert policy.model.config._attn_implementation == before
    monkeypatch.setattr(
        policy.model.lm_head, "forward", lambda hidden: hidden.new_full((*hidden.shape[:-1], 20), torch.nan)
    )
    with pytest.raises(NotFiniteError, match="NaN or infinite logits while sampling"):
        NativeSampler(policy).generate(PROMPTS, 2, RolloutConfig(max_new_tokens=3), 0)
    assert policy.model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("gemma2", {"sliding_window": 8}, "softcap"),
        ("mistral", {"sliding_window": 8}, "sliding_window"),
        ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}, "exchangeable"),
    ],
)
def test_models_with_more_to_their_attention_are_left_to_generate(kind, changed, reason):
    policy = random_policy(kind, **changed)
    assert reason in not_native(policy)
    sampler = local_sampler(policy)
    assert isinstance(sampler, HuggingFaceSampler)
    assert reason in sampler.told
    with pytest.raises(SteerError, match=rf"rollout\.engine: native .*{reason}.*set rollout\.engine=huggingface"):
        local_sampler(policy, "native")
    with pytest.raises(SteerError, match=r"rollout\.old=score"):
        local_sampler(policy, keep_stats=True)


def test_a_model_that_remembers_wrongly_is_found_out(monkeypatch):
    """The check compares log-probs: a cache that forgets one layer's first response token does not pass."""
    from steer_core.rollout import native

    attend = native._Cache.attend

    def forgetful(self, layer, query, key, value, scaling):
        result = attend(self, layer, query, key, value, scaling)
        if layer == 1 and self.length == 0:
            self.responses[layer][0][:, :, 0] = 0
        return result

    monkeypatch.setattr(native._Cache, "attend", forgetful)
    assert "log-probs would change by" in not_native(embedded())


@pytest.mark.parametrize(("engine", "kind"), [("auto", NativeSampler), ("huggingface", HuggingFaceSampler)])
def test_a_run_samples_by_the_engine_it_asks_for(engine, kind):
    sampler = make_sampler(embedded(), small_config(f"rollout.engine={engine}"))
    assert type(sampler) is kind


def test_old_statistics_of_the_sampler_are_those_of_the_scoring_pass(tmp_path):
    runs = {
        old: small_trainer(tmp_path / old, f"rollout.old={old}", "train.rollouts=2") for old in ("score", "sampler")
    }
    rollout = runs["sampler"].sample(1).rollout
    scored = runs["score"].score_rollout(replace(rollout, stats=None))
    mask = rollout.response_mask_BT
    for name, values in vars(runs["sampler"].score_rollout(rollout)).items():
        torch.testing.assert_close(values[mask], vars(scored)[name][mask], atol=1e-5, rtol=1e-4)
    for run in runs.values():
        assert run.fit()
    ours, theirs = (runs[old].run.read()[0] for old in ("sampler", "score"))
    assert ours["reward/mean"] == theirs["reward/mean"]
    assert ours["entropy/policy"] == pytest.approx(theirs["entropy/policy"], abs=1e-4)
    assert 0 < ours["rollout/logprob_gap/max"] < 1e-4
    assert "rollout/logprob_gap/max" not in theirs


def test_statistics_that_are_kept_are_of_the_tokens_sampled_whatever_leaves_the_batch():
    sampler = NativeSampler(embedded(), keep_stats=True)
    rollout = sampler.generate(PROMPTS, 8, RolloutConfig(), 2)
    mask = rollout.response_mask_BT
    with torch.no_grad():
        wanted = score(embedded().model, rollout, 1.0)
    torch.testing.assert_close(rollout.stats.entropy[mask], wanted.entropy[mask], atol=1e-5, rtol=0)
    taken = rollout.take([3, 0])
    assert torch.equal(taken.stats.entropy, rollout.stats.entropy[[3, 0]])


def test_settings_that_do_not_go_together_are_refused_by_name():
    with pytest.raises(SteerError, match=r"rollout\.draws: batch is huggingface's"):
        small_config("rollout.draws=batch")
    with pytest.raises(SteerError, match=r"rollout\.old: sampler reads the logits of native"):
        small_config("rollout.old=sampler", "rollout.engine=huggingface")
