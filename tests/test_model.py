"""The embedded model: small, a plain Hugging Face folder, and taught from the training split alone."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from steer_core.config.tasks import CountdownConfig
from steer_core.policy.model import EMBEDDED
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems import Countdown, split_of
from steer_core.problems.countdown import CHARACTERS
from steer_core.rewards.countdown import is_solution

MAKER = Path(__file__).parents[1] / "reproduce" / "base_model.py"


@pytest.fixture(scope="module")
def maker():
    """The script that makes the embedded model, as a module."""
    spec = importlib.util.spec_from_file_location("base_model", MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED)


def test_the_embedded_folder_is_under_four_megabytes():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 4e6


def test_the_embedded_model_is_a_qwen2_of_a_few_hundred_thousand_parameters(tokenizer, maker):
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert type(model) is Qwen2ForCausalLM
    assert 0.3e6 <= model.num_parameters() <= 0.5e6
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    made = maker.new_model(tokenizer)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (model, made)]
    assert shapes[0] == shapes[1]


def test_the_embedded_tokenizer_is_a_fast_one_and_knows_every_character_of_the_task(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert len(set(ids)) == len(ids) == len(CHARACTERS)
    assert tokenizer.decode(ids) == CHARACTERS
    assert not {tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert tokenizer.get_vocab() == character_tokenizer(CHARACTERS).get_vocab()


def test_the_base_model_learns_from_training_problems_alone_and_from_responses_alone(tokenizer, maker):
    task, seen = Countdown(), set()
    stream = maker.batches([task], tokenizer, size=64, seed=3)
    for ids, mask, labels in (next(stream) for _ in range(20)):
        assert ids.shape == mask.shape == labels.shape == (64, ids.shape[1])
        for row, kept, label in zip(ids, mask.bool(), labels, strict=True):
            assert not (label[~kept] != -100).any()
            text = tokenizer.decode(row[kept])
            prompt, colon, response = text.partition(":")
            seen.add(prompt + colon)
            learnt = label != -100
            assert torch.equal(label[learnt], row[learnt])
            assert tokenizer.decode(row[learnt]) == response
            assert response.endswith("<eos>")
            assert response.count("<eos>") == 1
            assert learnt[len(prompt) + 1 : int(kept.sum())].all()
    assert len(seen) > 1000
    assert {split_of(prompt) for prompt in seen} == {"train"}
    held_out = {problem.id for split in ("validation", "test") for problem in task.problems(split, 150)}
    assert not seen & held_out


def test_a_response_that_the_base_model_learns_from_solves_its_problem(tokenizer, maker):
    task = Countdown()
    ids, _, labels = next(maker.batches([task], tokenizer, size=32, seed=0))
    for row, label in zip(ids, labels, strict=True):
        learnt = label != -100
        prompt = tokenizer.decode(row[: int(learnt.int().argmax())])
        assert is_solution(prompt, tokenizer.decode(row[learnt]).removesuffix("<eos>"))


def test_a_base_model_of_two_tasks_learns_from_each_in_turn_and_operations_as_they_weigh(tokenizer, maker):
    tasks = [Countdown(CountdownConfig(numbers=numbers)) for numbers in (4, 5)]
    ids, mask, _ = next(maker.batches(tasks, tokenizer, 64, 0, [0.5, 0.0, 0.5, 0.0]))
    texts = [tokenizer.decode(row[kept]) for row, kept in zip(ids, mask.bool(), strict=True)]
    numbers = [text.partition("=")[0].count(",") + 1 for text in texts]
    assert {numbers.count(4) - 32, numbers.count(5) - 32} <= set(range(-12, 13))
    assert not any("-" in text or "/" in text for text in texts)
