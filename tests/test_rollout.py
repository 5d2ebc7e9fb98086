"""The sampler draws from the policy that is scored, and says how each response ended."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from small import small_trainer
from transformers import Qwen2Config, Qwen2ForCausalLM

from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.config.sections import BenchmarkConfig, EvaluationConfig, RolloutConfig
from steer_core.policy.head import full_precision
from steer_core.policy.model import EMBEDDED, Policy, load_policy
from steer_core.policy.score import score
from steer_core.policy.sequences import Sequences
from steer_core.policy.tokenizer import character_tokenizer, end_tokens
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler, generation_settings
from steer_core.rollout.local import pick, response_mask
from steer_core.rollout.rollout import join
from steer_core.training.metrics import end_metrics


@pytest.fixture(scope="module")
def embedded():
    return load_policy("embedded")


@pytest.fixture(scope="module")
def prompts():
    return [problem.prompt for problem in Countdown().problems("test", 6)]


def tiny_policy() -> Policy:
    torch.manual_seed(0)
    tokenizer = character_tokenizer("ab=")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8,
        initializer_range=1.0,
        bos_token_id=None,
    )
    return Policy(Qwen2ForCausalLM(config).eval(), tokenizer)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_log_probs_equal_the_scoring_pass(embedded, prompts, temperature):
    encoded = embedded.tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    settings = generation_settings(embedded, RolloutConfig(temperature=temperature, max_new_tokens=30))
    with torch.no_grad():
        out = embedded.model.generate(
            **encoded, generation_config=settings, return_dict_in_generate=True, output_scores=True
        )
        response = out.sequences[:, encoded["input_ids"].shape[1] :]
        mask = response_mask(response, embedded.end_tokens)
        sequences = Sequences(encoded["input_ids"], encoded["attention_mask"], response, mask)
        scored = score(embedded.model, sequences, temperature).logprob
    sampled = torch.stack(out.scores, dim=1).log_softmax(-1).gather(-1, response[..., None]).squeeze(-1)
    assert mask.sum() > 60
    torch.testing.assert_close(scored[mask], sampled[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_policys_distribution(temperature):
    policy = tiny_policy()
    settings = RolloutConfig(max_new_tokens=1, temperature=temperature, batch_sequences=5000)
    rollout = HuggingFaceSampler(policy).generate(["ab="], 20000, settings, seed=1)
    ids = policy.tokenizer("ab=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (policy.model(ids).logits[0, -1] / temperature).softmax(-1).double().numpy()
        other = (policy.model(ids).logits[0, -1] / (temperature * 1.1)).softmax(-1).double().numpy()
    counts = torch.bincount(rollout.response_ids_BT[:, 0], minlength=len(expected)).numpy()
    assert chisquare(counts, 20000 * expected / expected.sum()).pvalue > 1e-3
    assert chisquare(counts, 20000 * other / other.sum()).pvalue < 1e-6


def test_score_does_not_depend_on_padding(embedded, prompts):
    rollout = HuggingFaceSampler(embedded).generate(prompts, 2, RolloutConfig(), seed=0)
    padded = Sequences(
        torch.nn.functional.pad(rollout.prompt_ids_BP, (5, 0), value=7),
        torch.nn.functional.pad(rollout.prompt_mask_BP, (5, 0)),
        torch.nn.functional.pad(rollout.response_ids_BT, (0, 3), value=7),
        torch.nn.functional.pad(rollout.response_mask_BT, (0, 3)),
    )
    with torch.no_grad():
        plain, extra = score(embedded.model, rollout, 1.0), score(embedded.model, padded, 1.0)
        for row in range(len(rollout.texts)):
            alone = score(embedded.model, rollout.rows(slice(row, row + 1)), 1.0)
            length = int(rollout.response_mask_BT[row].sum())
            torch.testing.assert_close(alone.logprob[0], plain.logprob[row, :length], atol=1e-5, rtol=0)
            torch.testing.assert_close(alone.entropy[0], plain.entropy[row, :length], atol=1e-5, rtol=0)
    mask = rollout.response_mask_BT.bool()
    width = mask.shape[1]
    torch.testing.assert_close(extra.entropy[:, :width][mask], plain.entropy[mask], atol=1e-5, rtol=0)


def test_rows_are_grouped_by_prompt_and_texts_match_ids(embedded, prompts):
    rollout = HuggingFaceSampler(embedded).generate(prompts, 3, RolloutConfig(batch_sequences=4), seed=0)
    for row, text in enumerate(rollout.texts):
        prompt = rollout.prompt_ids_BP[row][rollout.prompt_mask_BP[row].bool()]
        assert embedded.tokenizer.decode(prompt) == prompts[row // 3]
        kept = rollout.response_ids_BT[row][rollout.response_mask_BT[row].bool()]
        ended = rollout.finish_reasons[row] == "stop"
        assert embedded.tokenizer.decode(kept) == text + "<eos>" * ended
        assert (kept == embedded.tokenizer.eos_token_id).sum() == ended


def test_responses_cut_at_the_limit_finish_by_length(embedded, prompts):
    rollout = HuggingFaceSampler(embedded).generate(prompts, 2, RolloutConfig(max_new_tokens=5), seed=0)
    assert set(rollout.finish_reasons) == {"length"}
    assert rollout.response_mask_BT.sum() == 5 * 12


def test_special_tokens_inside_a_response_stay_visible_to_the_verifier():
    policy = tiny_policy()
    texts = HuggingFaceSampler(policy).generate(["ab="], 300, RolloutConfig(max_new_tokens=3), seed=0).texts
    assert any("<unk>" in text or "<pad>" in text for text in texts)


def test_same_seed_same_responses_and_another_seed_others(embedded, prompts):
    engine = HuggingFaceSampler(embedded)
    first, again, other = (engine.generate(prompts, 4, RolloutConfig(), seed=seed).texts for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_nucleus_below_one_is_passed_to_the_sampler():
    rollout = HuggingFaceSampler(tiny_policy()).generate(["ab="], 500, RolloutConfig(max_new_tokens=1, top_p=0.01), 0)
    assert len(rollout.response_ids_BT[:, 0].unique()) == 1


def test_a_model_folders_own_generation_settings_do_not_reach_the_sampler(embedded, prompts, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    own = {"repetition_penalty": 1.5, "top_k": 3, "temperature": 0.3, "do_sample": True, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(own))
    policies = (embedded, load_policy(str(folder)))
    plain, other = (HuggingFaceSampler(policy).generate(prompts, 4, RolloutConfig(), seed=0) for policy in policies)
    assert other.texts == plain.texts
    assert torch.equal(other.response_ids_BT, plain.response_ids_BT)


def test_a_folders_every_end_token_ends_a_response_and_a_checkpoint_keeps_them(embedded, prompts, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [15, 1]}))
    policy = load_policy(str(folder))
    assert policy.end_tokens == [1, 15]
    assert embedded.end_tokens == [1]
    draws = (HuggingFaceSampler(one, "prompt").generate(prompts, 4, RolloutConfig(), 0) for one in (policy, embedded))
    ended, whole = draws
    assert ended.texts == [text.partition("*")[0] for text in whole.texts] != whole.texts
    assert set(ended.last_tokens()) == {1, 15}
    assert (ended.response_ids_BT[ended.response_mask_BT] == 15).sum() == ended.last_tokens().count(15)
    shares = end_metrics(ended, policy, ())
    assert list(shares) == ["response/ended_by/<eos>", "response/ended_by/*"]
    assert shares["response/ended_by/*"] == ended.last_tokens().count(15) / 24
    assert sum(shares.values()) == 1
    assert end_metrics(whole, embedded, ()) == {}
    policy.model.save_pretrained(tmp_path / "saved")
    assert end_tokens(tmp_path / "saved", policy.tokenizer) == [1, 15]


@pytest.mark.parametrize("told", ["[1, 5", '{"eos_token_id": [1, "five"]}', '{"eos_token_id": true}'])
def test_end_tokens_that_are_none_are_refused(embedded, tmp_path, told):
    (tmp_path / "generation_config.json").write_text(told)
    with pytest.raises(SteerError, match=r"model\.path: .*generation_config\.json"):
        end_tokens(tmp_path, embedded.tokenizer)


def test_a_text_ends_a_response_with_the_token_that_completes_it(embedded, prompts):
    greedy = BenchmarkConfig(max_new_tokens=40, temperature=0)
    whole, ended = (
        HuggingFaceSampler(embedded).generate(prompts, 1, replace(greedy, stop=stop), 0) for stop in ((), ("=1", "+"))
    )
    at = [min([text.find(end) for end in ("=1", "+") if end in text], default=len(text)) for text in whole.texts]
    assert ended.texts == [text[:place] for text, place in zip(whole.texts, at, strict=True)]
    assert ended.finish_reasons == [
        why if len(text) == len(before) else "text"
        for why, text, before in zip(whole.finish_reasons, whole.texts, ended.texts, strict=True)
    ]
    assert "text" in ended.finish_reasons
    for row, why in enumerate(ended.finish_reasons):
        kept = embedded.tokenizer.decode(ended.response_ids_BT[row][ended.response_mask_BT[row]])
        assert kept.endswith({"text": ("=1", "+"), "stop": "<eos>", "length": ""}[why])


def test_greedy_takes_the_likeliest_token_and_top_k_none_below(embedded, prompts):
    settings = {"max_new_tokens": 40, "top_p": 1.0}
    greedy = HuggingFaceSampler(embedded).generate(prompts, 2, BenchmarkConfig(temperature=0, **settings), 0)
    mask = greedy.response_mask_BT
    with torch.no_grad():
        stats = score(embedded.model, greedy, 1.0)
    assert float(stats.logprob[mask].exp().max()) > 0.9 > float(stats.logprob[mask].exp().min())
    assert greedy.texts[::2] == greedy.texts[1::2]
    for draws in ("batch", "prompt"):
        one, two = (
            HuggingFaceSampler(embedded, draws).generate(prompts, 8, BenchmarkConfig(top_k=k, **settings), 0)
            for k in (1, 2)
        )
        assert one.texts[::8] == greedy.texts[::2]
        assert len(set(two.texts[:8])) > 1
        allowed = first_choices(embedded, prompts, 2)
        assert all(int(two.response_ids_BT[row, 0]) in allowed[row // 8] for row in range(8 * len(prompts)))


def first_choices(policy: Policy, prompts: list[str], k: int) -> list[list[int]]:
    """The k likeliest first tokens of each prompt."""
    found = []
    for prompt in prompts:
        ids = policy.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(policy.model(ids).logits[0, -1].topk(k).indices.tolist())
    return found


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            BenchmarkConfig,
            {"samples": 2},
            r"benchmark.temperature: 0 is greedy.* all 2 samples; set benchmark.samples=1",
        ),
        (EvaluationConfig, {}, r"evaluation.temperature: 0 .*32 samples; set evaluation.samples=1 and .*pass_at=\[1\]"),
    ],
)
def test_several_greedy_samples_of_a_problem_are_refused_for_they_are_one(kind, settings, message):
    with pytest.raises(SteerError, match=message):
        kind(temperature=0, **settings)
    assert BenchmarkConfig(temperature=0).samples_of(32) == 1
    assert BenchmarkConfig().samples_of(32) == 32
    assert EvaluationConfig(temperature=0, samples=1, pass_at=(1,)).temperature == 0


@pytest.mark.parametrize("setting", ["temperature=0", "top_k=3"])
def test_training_from_another_distribution_than_the_one_that_is_scored_is_refused(setting):
    with pytest.raises(SteerError, match=r"the policy that is scored and trained is another distribution"):
        load_config(None, [f"rollout.{setting}"])


def test_a_float64_policy_samples_and_scores_in_float64(embedded, prompts):
    policy = load_policy("embedded", dtype=torch.float64)
    rollout = HuggingFaceSampler(policy).generate(prompts, 2, RolloutConfig(), seed=0)
    with torch.no_grad():
        fine, coarse = score(policy.model, rollout, 1.0), score(embedded.model, rollout, 1.0)
    assert fine.logprob.dtype == policy.model.dtype == torch.float64
    torch.testing.assert_close(fine.logprob, coarse.logprob.double(), atol=1e-4, rtol=0)
    assert not torch.equal(fine.logprob, coarse.logprob.double())


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SteerError, match=r"model.device: cuda is asked for .* set model.device=cpu"):
        load_policy("embedded", device="cuda")


def test_the_implementation_of_attention_is_the_one_asked_for_and_one_that_is_not_there_is_refused(embedded, prompts):
    eager = load_policy("embedded", attention="eager")
    assert eager.model.config._attn_implementation == "eager" != embedded.model.config._attn_implementation
    rollout = HuggingFaceSampler(embedded).generate(prompts, 2, RolloutConfig(), seed=0)
    with torch.no_grad():
        one, other = (score(policy.model, rollout, 1.0) for policy in (eager, embedded))
    torch.testing.assert_close(one.logprob, other.logprob, atol=1e-4, rtol=0)
    with pytest.raises(SteerError, match=r"model.attention: flash_attention_2 does not load .*model.attention=auto"):
        load_policy("embedded", attention="flash_attention_2")


def test_zero_prompts_are_refused(embedded):
    with pytest.raises(SteerError, match="zero prompts"):
        HuggingFaceSampler(embedded).generate([], 4, RolloutConfig(), seed=0)


def test_a_response_longer_than_the_models_positions_is_refused_with_the_room_left(embedded, prompts):
    longest = max(map(len, prompts))
    with pytest.raises(SteerError, match=rf"max_new_tokens: 128 .* set it to {128 - longest} or less"):
        HuggingFaceSampler(embedded).generate(prompts, 1, RolloutConfig(max_new_tokens=128), seed=0)


@pytest.mark.parametrize("responses", [10**9, 10**30])
def test_responses_that_no_memory_holds_are_refused_before_it_is_asked_for(embedded, prompts, tmp_path, responses):
    with pytest.raises(SteerError, match=rf"{responses} to each of 6 prompts, of up to \d+ tokens, take \d+ GiB"):
        HuggingFaceSampler(embedded).generate(prompts, responses, RolloutConfig(), seed=0)
    for field in ("rollout.responses", "evaluation.samples"):
        with pytest.raises(SteerError, match=rf"{field}: {responses} for each of .*, and no memory holds more than"):
            small_trainer(tmp_path / field, f"{field}={responses}")


@pytest.mark.parametrize("field", ["rollout.responses", "evaluation.samples"])
def test_responses_that_this_machine_does_not_hold_are_refused_at_the_start(tmp_path, monkeypatch, field):
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 10)
    with pytest.raises(SteerError, match=rf"{field}: 200 to each of .* GiB at least, and the machine has 0; ask for"):
        small_trainer(tmp_path / "run", f"{field}=200", "train.probe_sequences=0")


@pytest.mark.parametrize(("ends", "second"), [([1], [1, 1, 1, 1]), ([1, 7], [1, 1, 1, 0])])
def test_response_mask_ends_at_the_first_end_token_of_any(ends, second):
    mask = response_mask(torch.tensor([[5, 1, 1, 4], [5, 6, 7, 4], [1, 5, 5, 5]]), ends)
    assert mask.int().tolist() == [[1, 1, 0, 0], second, [1, 0, 0, 0]]


@pytest.fixture(scope="module")
def parts():
    """Rollouts of one prompt each, their prompts and responses of other widths, and the policy that sampled them."""
    policy = load_policy("embedded", dtype=torch.float64)
    found = {len(problem.prompt): problem.prompt for problem in Countdown().problems("test", 60)}
    widths, engine = (min(found), max(found), sorted(found)[1]), HuggingFaceSampler(policy)
    settings = [RolloutConfig(max_new_tokens=longest) for longest in (5, 30, 24)]
    rollouts = [engine.generate([found[w]], 3, s, seed=1) for w, s in zip(widths, settings, strict=True)]
    assert len({part.prompt_ids_BP.shape[1] for part in rollouts}) == 3
    assert [part.finish_reasons[0] for part in rollouts] == ["length", "stop", "stop"]
    return policy, rollouts


def scored(policy, sequences):
    """(ln p, H) of every response token, flat."""
    with torch.no_grad(), full_precision(policy.model):
        stats, mask = score(policy.model, sequences, 1.0), sequences.response_mask_BT
    return torch.stack([stats.logprob[mask], stats.entropy[mask]])


def test_joined_rollouts_score_as_each_part_alone(parts):
    policy, rollouts = parts
    joined = join(rollouts, policy.tokenizer.pad_token_id)
    alone = torch.cat([scored(policy, part) for part in rollouts], dim=1)
    torch.testing.assert_close(scored(policy, joined), alone, rtol=0, atol=1e-12)
    assert joined.texts == [text for part in rollouts for text in part.texts]
    assert joined.finish_reasons == [reason for part in rollouts for reason in part.finish_reasons]
    assert joined.response_mask_BT.dtype is torch.bool
    for i, row in enumerate(joined.prompt_ids_BP):
        part = rollouts[i // 3]
        assert torch.equal(row[joined.prompt_mask_BP[i].bool()], part.prompt_ids_BP[i % 3])
        padding = joined.response_ids_BT[i][~joined.response_mask_BT[i]]
        assert (padding == policy.tokenizer.pad_token_id).all()


def test_taking_rows_of_a_joined_rollout_and_joining_them_again_changes_nothing(parts):
    policy, rollouts = parts
    joined = join(rollouts, policy.tokenizer.pad_token_id)
    taken = joined.take([4, 0, 8])
    assert taken.texts == [joined.texts[i] for i in (4, 0, 8)]
    assert taken.finish_reasons == [joined.finish_reasons[i] for i in (4, 0, 8)]
    alone = torch.cat([scored(policy, joined.take([i])) for i in (4, 0, 8)], dim=1)
    torch.testing.assert_close(scored(policy, taken), alone, rtol=0, atol=1e-12)
    again = join([joined.take(range(i, i + 1)) for i in range(9)], policy.tokenizer.pad_token_id)
    for name, value in vars(joined).items():
        assert torch.equal(vars(again)[name], value) if torch.is_tensor(value) else vars(again)[name] == value, name


def test_the_samplers_log_probs_go_with_their_rows_and_are_none_where_a_part_has_none(parts):
    policy, rollouts = parts
    told = [replace(part, logprobs_BT=-torch.rand(part.response_ids_BT.shape)) for part in rollouts]
    joined = join(told, policy.tokenizer.pad_token_id)
    assert joined.logprobs_BT.shape == joined.response_ids_BT.shape
    for i, row in enumerate(joined.logprobs_BT):
        own = told[i // 3].logprobs_BT[i % 3]
        assert torch.equal(row[: len(own)], own)
        assert not row[len(own) :].any()
    assert torch.equal(joined.take([4, 0, 8]).logprobs_BT, joined.logprobs_BT[[4, 0, 8]])
    assert joined.sampler_logprobs() is joined.logprobs_BT
    assert rollouts[0].take([0]).logprobs_BT is None
    with pytest.raises(SteerError, match=r"set rollout\.engine=vllm"):
        rollouts[0].sampler_logprobs()
    assert join([*told[:2], rollouts[2]], policy.tokenizer.pad_token_id).logprobs_BT is None


def test_a_draw_picks_by_probabilities_that_a_shift_of_all_logits_does_not_move():
    logits = (torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) * 2 + 1e4).float()
    exact = (logits.double() / 0.6).softmax(-1).cumsum(-1)
    edges = torch.cat([exact[:200, 19] - 1e-6, exact[200:, 19] + 1e-6])[:, None]  # just on each side of an edge
    chosen = pick(logits, edges[:, 0], RolloutConfig(temperature=0.6))
    assert (chosen[:200] <= 19).all()
    assert (chosen[200:] >= 20).all()
