"""The paper's runs: every file loads, holds the paper's values, fits 8 GPUs of 80 GB, and runs at scale `smoke`."""

import json
import shutil

import pandas as pd
import pytest
from problem_files import released, row, write

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.common.places import CONFIGS
from steer_core.common.settings import merged, read_extended, to_dict
from steer_core.config.config import load_config, shipped
from steer_core.config.tasks import CodeConfig, MathsConfig
from steer_core.planner.machine import Machine
from steer_core.planner.memory import fewest_gpus, memory
from steer_core.planner.shapes import shape_of
from steer_core.policy.model import EMBEDDED, load_policy, load_tokenizer, model_folder
from steer_core.policy.smoke import smoke_model
from steer_core.policy.tokenizer import check_prompt
from steer_core.problems import make_task
from steer_core.problems.prompts import render
from steer_core.problems.sets import find_file

PAPER = [name for name in shipped() if name.startswith("paper/")]
MODELS = {
    "qwen2.5-math-1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen2.5-math-7b": "Qwen/Qwen2.5-Math-7B",
    "qwen2.5-math-7b-extreme": "Qwen/Qwen2.5-Math-7B",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B",
    "llama-3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen2.5-coder-3b": "Qwen/Qwen2.5-Coder-3B",
    "qwen2.5-coder-7b": "Qwen/Qwen2.5-Coder-7B",
    "qwen2.5-coder-14b": "Qwen/Qwen2.5-Coder-14B",
}
HERE = ("engine.name=local", "rollout.engine=huggingface", "rollout.draws=batch")
SUMS = [row(f"What is {i} + {i}? Antwort, 答え:", str(2 * i)) for i in range(80)]
TESTS = json.dumps({"inputs": ["1\n", "2\n", "3\n"], "outputs": ["2\n", "4\n", "7\n"]})
PROGRAM = "```python\nprint(2 * int(input()))\n```"


def load(name, *overrides, scale=None):
    return load_config(CONFIGS / f"{name}.yaml", overrides, scale)


def differing(one, other, path=""):
    """Dotted keys at which two mappings differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [key for name in {**one, **other} for key in differing(one.get(name), other.get(name), f"{path}.{name}")]
    return [] if one == other else [path[1:]]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with small files in the place of the training sets."""
    folder = write(tmp_path / "data", SUMS, "DAPO-Math-17k.parquet")
    write(folder, [row(f"Write program {i}.", TESTS) for i in range(80)], "archercoder.parquet")
    monkeypatch.setenv("STEER_DATA", str(folder))
    return folder


def test_each_model_has_its_pair_and_nothing_else_is_there():
    assert sorted(f"paper/{model}-{method}" for model in MODELS for method in ("grpo", "steer")) == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_values_are_the_papers(name):
    config, extreme = load(name), "extreme" in name
    assert config.model.path == MODELS[name.removeprefix("paper/").rsplit("-", 1)[0]]
    assert (config.rollout.prompts, config.rollout.responses, config.optimizer.mini_batch_prompts) == (512, 8, 32)
    assert (config.rollout.max_new_tokens, config.rollout.temperature, config.rollout.top_p) == (3072, 1, 1)
    assert (config.optimizer.learning_rate, config.optimizer.learning_rate_factor) == (1e-6, 1)
    assert (config.algorithm.clip_low, config.algorithm.clip_high) == ((0.99, 5) if extreme else (0.2, 0.28))
    assert (config.algorithm.dual_clip, config.algorithm.reduction) == (10, "token-mean")
    assert (config.algorithm.advantage, config.algorithm.importance_cap) == ("grpo", None)
    assert (config.train.rollouts, config.train.checkpoint_every, config.evaluation.every) == (200, 10, 10)
    assert (config.evaluation.temperature, config.evaluation.top_p, config.evaluation.max_new_tokens) == (1, 0.7, 3072)
    assert (config.model.dtype, config.engine.name, config.rollout.engine) == ("bfloat16", "deepspeed", "vllm")
    if "coder" in name:
        assert (config.task.name, config.task.file) == ("code", "archercoder.parquet")
    else:
        assert (config.task.name, config.task.file, config.task.prompt_tokens) == (
            "maths",
            "DAPO-Math-17k.parquet",
            1024,
        )


@pytest.mark.parametrize("model", MODELS)
def test_a_pair_differs_in_the_intervention_alone(model):
    grpo, steer = (load(f"paper/{model}-{method}") for method in ("grpo", "steer"))
    assert {key.split(".")[0] for key in differing(to_dict(grpo), to_dict(steer))} == {"intervention"}
    assert grpo.intervention.name == "none"
    assert steer.intervention == load("steer").intervention
    assert (steer.intervention.form, steer.intervention.lambda_min) == ("paper", 0.7)


def test_extreme_differs_from_the_plain_run_in_the_clip_range_alone():
    for method in ("grpo", "steer"):
        plain, extreme = (to_dict(load(f"paper/qwen2.5-math-7b{word}-{method}")) for word in ("", "-extreme"))
        assert sorted(differing(plain, extreme)) == ["algorithm.clip_high", "algorithm.clip_low"]


@pytest.mark.parametrize("name", PAPER)
def test_it_fits_eight_gpus_of_80_gb_and_the_models_positions(name):
    config = load(name)
    shape = shape_of(config.model.path)
    assert memory(config, shape, Machine()).fits
    assert fewest_gpus(config, shape, Machine()) <= 8
    assert config.task.prompt_tokens + config.rollout.max_new_tokens <= shape.positions


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("scale", [[], ["--scale", "smoke"]])
def test_plan_takes_every_file_at_both_scales(name, scale, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", name, *scale])
    assert ended.value.code == 0
    assert "fits: " in capsys.readouterr().out


SIZES = {"model.path", "model.device", "model.dtype", "task.train_problems", "train.rollouts", "train.checkpoint_every",
         "train.threads"}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_smoke_swaps_model_and_sizes_and_nothing_of_the_method(name):
    changed = set(differing(to_dict(load(name)), to_dict(load(name, scale="smoke"))))
    sampling = {"max_new_tokens", "batch_sequences", "prompts", "responses", "tensor_parallel", "logprob_tolerance"}
    evaluation = {"every", "problems", "samples", "batch_sequences", "max_new_tokens", "pass_at"}
    allowed = SIZES | {f"rollout.{key}" for key in sampling} | {f"evaluation.{key}" for key in evaluation}
    allowed |= {f"optimizer.{key}" for key in ("mini_batch_prompts", "micro_batch_sequences", "micro_batch_tokens")}
    assert changed <= allowed


def test_settings_win_over_the_scale_and_the_scale_over_the_file():
    assert load("paper/qwen2.5-14b-steer", "rollout.prompts=8", scale="smoke").rollout.prompts == 8
    assert load("paper/qwen2.5-14b-steer", scale="smoke").rollout.prompts == 4
    assert load_config(None, (), "smoke").model.path == "smoke"


@pytest.mark.parametrize("name", ["paper/qwen2.5-math-7b-extreme-steer", "paper/qwen2.5-coder-3b-grpo"])
def test_train_runs_from_end_to_end_at_scale_smoke(name, data, tmp_path):
    settings = [*HERE, *(["task.sandbox=limits"] if "coder" in name else [])]
    with pytest.raises(SystemExit) as ended:
        main(["train", name, *settings, "--scale", "smoke", "--no-report", "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert 5 < rows[0]["entropy/policy"] < 5.6  # of 259 tokens, by a model that knows nothing
    assert len((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()) == 2


def test_an_absent_data_file_is_told_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEER_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["train", "paper/qwen2.5-coder-3b-grpo", *HERE, "--scale", "smoke", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert f"task.file: archercoder.parquet is no file here or in {tmp_path}" in capsys.readouterr().err


# extends


def test_a_file_extends_others_in_their_order_and_wins(tmp_path):
    (tmp_path / "one.yaml").write_text("train: {seed: 1, rollouts: 1}\nrollout: {prompts: 8}")
    (tmp_path / "two.yaml").write_text("train: {seed: 2}")
    (tmp_path / "three.yaml").write_text("extends: [one, two]\ntrain: {threads: 3}")
    (tmp_path / "four.yaml").write_text("extends: three\nrollout: {prompts: 4}")
    assert read_extended(tmp_path / "four.yaml") == {
        "train": {"seed": 2, "rollouts": 1, "threads": 3}, "rollout": {"prompts": 4},
    }  # fmt: skip
    assert load_config(tmp_path / "four.yaml").train.threads == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: self", "extends itself"),
        ("extends: 3", "extends: 3 is no name"),
        ("extends: gone", "gone.yaml: No such"),
    ],
)
def test_what_cannot_be_extended_is_told(tmp_path, text, message):
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(SteerError, match=message):
        read_extended(tmp_path / "self.yaml")


def test_merging_changes_neither_part():
    base, top = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "d": {"e": 1}}
    assert merged(base, top) == {"a": {"b": 9, "c": 2}, "d": {"e": 1}}
    assert (base, top) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "d": {"e": 1}})


# the smoke model


def test_the_smoke_model_is_the_same_wherever_it_is_made(tmp_path):
    one, two = (smoke_model(tmp_path / name) for name in "ab")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    before = (one / "config.json").stat().st_mtime_ns
    assert smoke_model(one) == one
    assert (one / "config.json").stat().st_mtime_ns == before


def test_a_half_written_smoke_model_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = model_folder("smoke")
    (folder / "model.safetensors").unlink()
    assert load_policy("smoke").model.num_parameters() == shape_of("smoke").parameters
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SteerError, match="set XDG_CACHE_HOME"):
        model_folder("smoke")


@pytest.mark.parametrize("text", ["plain", "Ärger, 答え\n\t$\\frac{1}{2}$ 🙂", "<|im_end|> inside"])
def test_the_smoke_tokenizer_carries_any_text_through_its_chat_template(text):
    tokenizer = load_tokenizer("smoke")
    prompt = render([{"role": "system", "content": "be brief"}, {"role": "user", "content": text}], tokenizer)
    assert prompt == (
        f"<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    check_prompt(tokenizer, prompt)
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(text.replace("<|im_end|>", ".").encode())


# tasks on files


def test_a_bare_name_is_found_here_then_in_the_data_folder_and_a_path_is_left_alone(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("archercoder.parquet") == data / "archercoder.parquet"
    shutil.copy(data / "archercoder.parquet", tmp_path / "archercoder.parquet")
    assert str(find_file("archercoder.parquet")) == "archercoder.parquet"
    assert str(find_file("elsewhere/archercoder.parquet")) == "elsewhere/archercoder.parquet"


def test_long_prompts_are_left_out(tmp_path):
    write(tmp_path, [row("1" * n, "1") for n in range(1, 60)], "sums.parquet")
    tokenizer = load_tokenizer(str(EMBEDDED))
    everything, short = (
        make_task(MathsConfig(file=str(tmp_path / "sums.parquet"), prompt_tokens=most), tokenizer)
        for most in (None, 20)
    )
    assert len(everything.fitting) == 59
    assert max(len(problem.id) for problem in short.fitting) == 20
    with pytest.raises(SteerError, match="problems of at most 20 tokens where 50 are asked"):
        short.problems("train", 50)


def test_the_released_training_set_has_as_many_short_problems_as_the_configurations_ask_for():
    released("dapo-math-17k")
    config = load("paper/qwen2.5-math-7b-grpo").task
    bytes_ = 2 * config.prompt_tokens  # a token of a language model's tokenizer is two bytes or more of such text
    task = make_task(MathsConfig(file=config.file, prompt_tokens=bytes_), load_tokenizer("smoke"))
    assert len(task.problems("train", config.train_problems)) == config.train_problems


def code(folder, **settings):
    return make_task(
        CodeConfig(file=str(folder / "archercoder.parquet"), sandbox="limits", **settings), load_tokenizer("smoke")
    )


def test_a_program_is_right_where_it_passes_every_test_that_counts(data):
    for tests, right in ((None, False), (2, True)):
        task = code(data, tests=tests)
        problems = task.problems("train", 2)
        wrong = "```python\nprint(1)\n```"
        asked, texts = [problems[0]] * 3 + [problems[1]], [PROGRAM, wrong, "no program", PROGRAM]
        assert [verdict.correct for verdict in task.grade(asked, texts)] == [right, False, False, right]
        assert problems[0].prompt.startswith("<|im_start|>user\nWrite program")


def test_a_program_that_a_limit_ended_was_judged_and_is_wrong(data):
    task = code(data, tests=2)
    (problem,) = task.problems("train", 1)
    (verdict,) = task.grade([problem], ["```python\nx = bytearray(1 << 40)\n```"])
    assert verdict.status == "wrong"
    assert "memory" in verdict.detail


def test_problems_whose_tests_cannot_be_run_are_left_out_with_a_warning(tmp_path):
    functional = json.dumps({"functional": "assert f(1) == 2"})
    rows = [row("good", TESTS), row("asserts", functional), row("broken", "no tests")]
    pd.DataFrame(rows).to_parquet(tmp_path / "archercoder.parquet")
    with pytest.warns(UserWarning, match="left out 2 of 3 problems"):
        assert list(code(tmp_path).rows) == ["good"]
    pd.DataFrame(rows[1:]).to_parquet(tmp_path / "archercoder.parquet")
    with pytest.raises(SteerError, match="no problem with tests that can be run"):
        code(tmp_path)
