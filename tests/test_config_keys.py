"""Unknown keys come before any value, with where other frameworks' settings are to be had; yes and no in settings."""

import re

import pytest
from pydantic.dataclasses import dataclass

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT, build, describe
from steer_core.config.config import BenchmarksConfig, Config, load_config
from steer_core.config.elsewhere import _ANSWERS, called_here
from steer_core.config.sections import BenchmarkConfig
from steer_core.interventions import METHODS, method
from steer_core.interventions.base import Intervention

SETTINGS = {name for name, *_ in [*describe(Config), *describe(BenchmarkConfig, "benchmark.")]}
OF_METHODS = {row[0] for name in METHODS for row in describe(method(name), "intervention.")}


def refused(*overrides, kind=None):
    """The message that a configuration with these overrides is refused with."""
    with pytest.raises(SteerError) as caught:
        load_config(None, overrides) if kind is None else build(kind, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.sede=-1"],
        ["rollout.prompts=0", "train.sede=1"],
        ["train.sede=1", "rollout.prompts=0"],
        ["train.rollouts=yes", "train.sede=1"],
        ["task.smallest_target=100", "train.sede=1"],
        ["task.name=chess", "train.sede=1"],
        ["optimizer.mini_batch_prompts=5", "train.sede=1"],
        ["intervention.name=steer", "intervention.quantile=5", "train.sede=1"],
        ["intervention.name=no-such", "train.sede=1"],
    ],
)
def test_an_unknown_key_is_told_before_any_value_that_is_wrong(overrides):
    assert refused(*overrides) == "train.sede: unknown key; did you mean 'seed'?"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("intervention.name=steer intervention.lamda_min=0.5 rollout.prompts=0", "intervention.lamda_min: unknown key"),
        ("task.name=maths task.fil=b", "task.fil: unknown key; did you mean 'file'?"),
        ("task.name=maths task.numbers=3", "task.numbers: unknown key"),
    ],
)
def test_keys_are_those_of_the_method_and_the_task_that_are_named(override, message):
    assert message in refused(*override.split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "seed: unknown key; did you mean train.seed?"),
        ("train.learning_rate=1", "train.learning_rate: unknown key; did you mean optimizer.learning_rate?"),
        ("temperature=1", "temperature: unknown key; did you mean rollout.temperature or evaluation.temperature?"),
        ("rollouts.temperature=1", "rollouts: unknown key; did you mean 'rollout'?"),
        ("optimiser.learning_rate=1", "optimiser: unknown key; did you mean 'optimizer'?"),
    ],
)
def test_a_key_of_another_section_is_named_in_full(override, message):
    assert refused(override) == message


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("epochs", "train.rollouts sets the length"),
        ("num_train_epochs", "train.rollouts sets the length"),
        ("trainer.total_epochs", "train.rollouts sets the length"),
        ("ppo_epochs", "how often a rollout is learnt from is optimizer.repeats"),
        ("optimizer.warmup_ratio", "optimizer.warmup_steps"),
        ("lr_warmup_steps", "optimizer.schedule"),
        ("lr_scheduler_type", "optimizer.schedule"),
        ("filter_groups", "rollout.resample"),
        ("overlong_buffer_len", "algorithm.overlong_buffer"),
        ("custom_reward_function", "task.reward=module:function"),
        ("system_prompt", "task.system"),
        ("chat_template_kwargs", "task.template.NAME"),
        ("val_files", "task.validation_file"),
        ("prompt_key", "task.question"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("kl", "algorithm.kl_coefficient"),
        ("algorithm.kl_coef", "algorithm.kl_coefficient"),
        ("actor_rollout_ref.actor.use_kl_loss", "algorithm.kl_coefficient"),
        ("beta", "the KL term's weight is algorithm.kl_coefficient"),
        ("lora.rank", "there are no adapters"),
        ("model.lora_rank", "there are no adapters"),
        ("use_peft", "there are no adapters"),
        ("rollout.eos_token_id", "a text of rollout.stop"),
        ("stop_strings", "a text of rollout.stop"),
        ("use_vllm", "rollout.engine=vllm"),
        ("vllm_mode", "rollout.engine=vllm"),
        ("gradient_accumulation_steps", "optimizer.micro_batch_sequences"),
        ("per_device_train_batch_size", "optimizer.micro_batch_sequences"),
        ("num_generations", "rollout.responses"),
        ("max_completion_length", "rollout.max_new_tokens"),
        ("bf16", "model.dtype=bfloat16"),
        ("fp16", "there is no float16"),
        ("deepspeed", "engine.name=deepspeed"),
        ("logging_steps", "every rollout is logged"),
        ("save_steps", "train.checkpoint_every"),
        ("report_to", "train.tracker=wandb"),
        ("epsilon", "algorithm.clip_low and algorithm.clip_high"),
        ("entropy_coeff", "intervention.name=entropy-loss"),
        ("output_dir", "--out"),
    ],
)
def test_a_word_of_another_framework_is_told_where_it_is_to_be_had(word, answer):
    message = refused(f"{word}=1", "train.seed=-1")
    found = re.match(r"(\S+): unknown key; (.*)", message)
    assert word.startswith(found[1])
    assert answer in found[2]
    assert "did you mean" not in message


def test_an_evaluation_on_benchmarks_knows_the_same_words():
    message = refused({"benchmark": {"max_length": 3}}, kind=BenchmarksConfig)
    assert message == "benchmark.max_length: unknown key; the longest response is rollout.max_new_tokens"


def test_every_setting_that_an_answer_names_is_there():
    named = {name for answer in _ANSWERS.values() for name in re.findall(r"\b[a-z]+\.[a-z_]+\b", answer)}
    assert named - {"metrics.jsonl"} <= SETTINGS | OF_METHODS
    assert len(named) > 30
    for answer in _ANSWERS.values():
        chosen = re.findall(r"\b(?:model|rollout|algorithm|engine|train|intervention)\.[a-z_]+=[a-z0-9-]+", answer)
        assert load_config(None, [*chosen, "engine.name=deepspeed"] if "engine.offload" in answer else chosen)


def test_no_setting_of_ours_is_a_word_of_another_framework():
    assert [name for name in SETTINGS | OF_METHODS if called_here(name.rpartition(".")[2])] == []


def test_a_word_that_no_framework_uses_has_no_answer():
    assert called_here("lamda_min") is None


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Flagged(Intervention):
    """A method with settings that are a yes or a no."""

    name: str = "test_config_keys:Flagged"
    flag: bool = False
    """Whether."""
    maybe: bool | None = None
    """Whether, or not said."""
    several: tuple[bool, ...] = ()
    """Whether, each."""
    count: int = 1
    """How many."""


def flagged(*overrides):
    return load_config(None, ["intervention.name=test_config_keys:Flagged", *overrides]).with_method().intervention


def test_a_method_of_ones_own_may_have_settings_that_are_a_yes_or_a_no():
    assert flagged("intervention.flag=true").flag is True
    assert flagged("intervention.maybe=false").maybe is False
    assert flagged("intervention.several=[true, false]").several == (True, False)


@pytest.mark.parametrize("key", ["intervention.count", "train.seed", "model.path", "evaluation.every"])
def test_a_yes_is_refused_where_the_setting_is_none(key):
    with pytest.raises(SteerError, match=rf"{key}: True is not allowed; write a number or a word in quotes"):
        flagged(f"{key}=true")


def test_a_yes_is_refused_within_a_list_of_numbers():
    assert refused("evaluation.pass_at=[1, true]").startswith("evaluation.pass_at.1: True is not allowed")


def test_a_plan_may_hold_a_yes_for_a_method_and_no_other():
    from steer_core.compare.comparison import Plan

    arms = {"one": {"label": "one", "overrides": ["intervention.name=test_config_keys:Flagged"]}}
    plan = {"arms": arms, "baseline": "one", "seeds": [0]}
    assert (
        build(Plan, plan | {"common": {"intervention": {"flag": True}}})
        .config("one", 0)
        .with_method()
        .intervention.flag
    )
    assert "train.threads: True is not allowed" in refused(plan | {"common": {"train": {"threads": True}}}, kind=Plan)
    assert refused(plan | {"seeds": [True]}, kind=Plan).startswith("seeds.0: True is not allowed")
