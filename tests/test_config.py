"""Settings: overrides, unknown keys, ranges, types, rules across fields, broken YAML, the way there and back."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml

import steer_core
from steer_core.common.errors import SteerError
from steer_core.common.settings import apply_overrides, build, describe, read_yaml, to_dict
from steer_core.compare.plan import Plan
from steer_core.config.config import Config, load_config
from steer_core.config.tasks import CodeConfig, CountdownConfig, MathsConfig, OwnConfig
from steer_core.interventions.base import Intervention

FILES = sorted((Path(steer_core.__file__).parent / "configs").rglob("*.yaml"))
RUNS = [path for path in FILES if "arms" not in read_yaml(path)]  # the others describe comparisons of runs


def refused(*overrides):
    """The message that a configuration with these overrides is refused with."""
    with pytest.raises(SteerError) as caught:
        load_config(None, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(override):
    """The override; where it sets something of an intervention, after the name of the one it is a setting of."""
    own = override.startswith("intervention.") and not override.startswith("intervention.name")
    return ["intervention.name=steer", override] if own else [override]


def test_defaults_are_those_of_the_paper_where_it_names_them():
    config = load_config(None)
    assert (config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.dual_clip) == (0.2, 0.28, 10.0)
    assert config.algorithm.reduction == "token-mean"
    steer = load_config(None, ["intervention.name=steer"]).intervention
    assert (steer.form, steer.map, steer.sides) == ("paper", "exponential", "both")
    assert (steer.lambda_min, steer.lambda_max, steer.normaliser, steer.scope) == (0.7, 1.0, "max", "step")
    assert (config.rollout.responses, config.rollout.temperature, config.rollout.top_p) == (8, 1.0, 1.0)
    assert config.intervention == Intervention(name="none")


def test_overrides_are_read_as_yaml_and_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {seed: 3, rollouts: 5}\nintervention:\n  name: steer\n  form: exact\n")
    config = load_config(
        path,
        ["train.seed=7", "algorithm.dual_clip=null", "evaluation.pass_at=[1, 2]", "optimizer.learning_rate=3e-5"],
    )
    assert (config.train.seed, config.train.rollouts, config.intervention.form) == (7, 5, "exact")
    assert config.algorithm.dual_clip is None
    assert config.evaluation.pass_at == (1, 2)
    assert config.optimizer.learning_rate == 3e-5
    assert load_config(path, ["train.seed=7", "train.seed=9"]).train.seed == 9


def test_overrides_leave_the_data_they_are_applied_to_alone():
    data = {"train": {"seed": 1}}
    assert apply_overrides(data, ["train.seed=2", "intervention.form=exact"]) == {
        "train": {"seed": 2},
        "intervention": {"form": "exact"},
    }
    assert data == {"train": {"seed": 1}}


def test_an_override_value_may_hold_an_equals_sign():
    assert apply_overrides({}, ["model.path=/a=b"]) == {"model": {"path": "/a=b"}}


@pytest.mark.parametrize("override", ["train.seed", "=3", "train.=3", ".seed=3", "train..seed=3", ""])
def test_an_override_of_another_form_raises(override):
    assert "not of the form section.key=value" in refused(override)


def test_an_override_below_a_value_raises():
    assert "train.seed.deep=1" in refused("train.seed=1", "train.seed.deep=1")


@pytest.mark.parametrize("value", ["[1", "{", "'", "2020-13-45"])
def test_an_override_whose_value_is_not_yaml_raises(value):
    assert "not YAML" in refused(f"train.seed={value}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("intervention.lamda_min=0.5", "intervention.lamda_min: unknown key; did you mean 'lambda_min'?"),
        ("optimizer.lerning_rate=1", "optimizer.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        ("evaluation.sample=1", "did you mean 'samples'?"),
        ("evaluation.temprature=1", "did you mean 'temperature'?"),
        ("interventoin.form=paper", "interventoin: unknown key; did you mean 'intervention'?"),
    ],
)
def test_an_unknown_key_raises_with_the_nearest_known_one(override, message):
    assert message in refused(*named(override))


def test_an_unknown_key_near_nothing_lists_the_known_ones():
    message = "intervention.zzz: unknown key; known: name, coefficient"
    assert refused("intervention.name=entropy-loss", "intervention.zzz=1") == message


@pytest.mark.parametrize(
    "override",
    [
        "task.numbers=1", "task.numbers=7", "task.largest_number=1", "task.largest_number=100",
        "task.smallest_target=0", "task.largest_target=1000", "task.train_problems=0",
        "rollout.max_new_tokens=0", "rollout.temperature=0", "rollout.temperature=-1", "rollout.temperature=.inf",
        "rollout.temperature=.nan", "rollout.top_p=0", "rollout.top_p=1.1", "rollout.batch_sequences=0",
        "rollout.prompts=0", "rollout.responses=0", "evaluation.top_p=0", "evaluation.temperature=0",
        "algorithm.clip_low=-0.1", "algorithm.clip_low=1.1", "algorithm.clip_high=-0.1", "algorithm.clip_high=.inf",
        "algorithm.dual_clip=1", "algorithm.dual_clip=.nan",
        "intervention.lambda_min=0", "intervention.lambda_min=1.01", "intervention.lambda_max=.inf",
        "intervention.quantile=0", "intervention.quantile=1.01", "intervention.smallest_normaliser=-0.1",
        "optimizer.learning_rate=0", "optimizer.learning_rate=-1",
        "optimizer.betas=[1.0, 0.9]", "optimizer.betas=[0.9, -0.1]", "optimizer.eps=0", "optimizer.weight_decay=-1",
        "optimizer.momentum=1", "optimizer.momentum=-0.1", "optimizer.max_grad_norm=0",
        "optimizer.mini_batch_prompts=0", "optimizer.micro_batch_sequences=0", "evaluation.every=-1",
        "evaluation.problems=0", "evaluation.samples=0", "train.rollouts=0", "train.seed=-1",
        "train.checkpoint_every=0", "train.checkpoints_kept=0", "train.logged_responses=-1", "train.logged_groups=-1",
        "train.threads=0",
    ],
)  # fmt: skip
def test_a_value_out_of_range_raises_with_its_field(override):
    message = refused(*named(override))
    assert message.startswith(override.split("=")[0])
    assert "no method is named" not in message


@pytest.mark.parametrize(
    "override",
    [
        "task.numbers=2", "task.numbers=6", "task.largest_target=999", "rollout.top_p=1",
        "algorithm.clip_low=0", "algorithm.clip_low=1", "algorithm.clip_high=0", "algorithm.dual_clip=1.01",
        "intervention.lambda_min=1", "intervention.quantile=1", "intervention.smallest_normaliser=0",
        "optimizer.momentum=0", "optimizer.betas=[0.0, 0.5]",
        "evaluation.every=0", "train.seed=0", "train.logged_responses=0",
    ],
)  # fmt: skip
def test_the_ends_of_a_range_belong_to_it(override):
    section, key = override.split("=")[0].split(".")
    value = yaml.safe_load(override.split("=")[1])
    assert to_dict(load_config(None, named(override)))[section][key] == value


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=one", "train.seed=1.5", "train.seed=[1]", "train.seed=null", "train.rollouts={a: 1}",
        "rollout.temperature=warm", "optimizer.betas=[0.9]", "optimizer.betas=0.9", "evaluation.pass_at=[a]",
        "evaluation.pass_at=1", "model.path=3", "intervention.name=steers", "intervention.scope=batch",
        "intervention.normaliser=mean", "intervention.form=papers",
        "intervention.map=log", "intervention.sides=raising",
        "algorithm.reduction=mean", "algorithm.advantage=ppo", "optimizer.name=adam", "task.name=chess",
        "rollout.engine=vllm2", "evaluation.split=train",
    ],
)  # fmt: skip
def test_a_value_of_another_type_raises_with_its_field_and_value(override):
    field, value = override.split("=")
    message = refused(*named(override))
    assert message.startswith(field)
    assert value.strip("[]{}").split(":")[0] in message.replace("None", "null")


@pytest.mark.parametrize("value", ["3", "[1]", "text"])
def test_a_section_that_is_a_value_raises(value):
    assert re.match(r"train: .* is no section", refused(f"train={value}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.mini_batch_prompts=5"], "optimizer.mini_batch_prompts: 5 does not divide rollout.prompts (64)"),
        (["task.train_problems=63"], "rollout.prompts: 64 is more than task.train_problems (63)"),
        (["task.smallest_target=100"], "task.smallest_target: 100 is above task.largest_target (99)"),
        (["evaluation.pass_at=[1, 33]"], "evaluation.pass_at: 33 is not within 1 and evaluation.samples (32)"),
        (["evaluation.pass_at=[0]"], "evaluation.pass_at: 0 is not within 1"),
    ],
)
def test_settings_that_contradict_each_other_raise(overrides, message):
    assert message in refused(*overrides)


def test_settings_at_the_edge_of_contradiction_are_kept():
    config = load_config(None, ["task.train_problems=64", "task.smallest_target=99", "evaluation.pass_at=[32]"])
    assert (config.task.train_problems, config.task.smallest_target, config.evaluation.pass_at) == (64, 99, (32,))


BOMB = b"".join(b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 10)) for n in range(98, 110))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1", "not YAML"),
        (b"train:\n\tseed: 1", "not YAML"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"- 1\n- 2", "holds a list"),
        (b"just words", "holds a str"),
        (b"!!python/object/apply:os.getcwd []", "not YAML"),
        (b"train:\n  seed: 2020-13-45", "not YAML"),
        (b"train:\n  seed: 1\n  seed: 2", "line 3: key seed is given twice, in line 2 too"),
        (b"train: {}\nmodel: {}\ntrain: {}", "line 3: key train is given twice, in line 1 too"),
        (b"train: &a\n  seed: *a", "an alias stands within what it stands for"),
        (b"a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + BOMB, "aliases stand for more than 100000 values"),
        (b"[" * 1500, "nested too deep"),
        (b"train: !!int ", "a tag such as !!int"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_raises(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(SteerError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_raises(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SteerError, match="give the path of a YAML file"):
            read_yaml(path)


def test_a_pipe_and_a_link_to_itself_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(SteerError, match=r"pipe\.yaml: is no regular file; give the path"):
        load_config(tmp_path / "pipe.yaml")
    with pytest.raises(SteerError, match=r"loop\.yaml: Too many levels of symbolic links; give the path"):
        load_config(tmp_path / "loop.yaml")


def test_an_anchor_and_a_merge_are_read(tmp_path):
    (tmp_path / "run.yaml").write_text("rollout: &some {max_new_tokens: 9}\nevaluation: {<<: *some, every: 0}\n")
    config = load_config(tmp_path / "run.yaml")
    assert (config.rollout.max_new_tokens, config.evaluation.max_new_tokens, config.evaluation.every) == (9, 9, 0)


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n")
    assert load_config(path) == load_config(None) == Config()


def test_keys_that_are_not_text_raise():
    with pytest.raises(SteerError):
        build(Config, {1: 2})


def test_to_dict_and_build_are_inverse_through_yaml():
    config = load_config(
        None,
        [
            "intervention.name=steer",
            "intervention.form=exact",
            "algorithm.dual_clip=null",
            "optimizer.betas=[0.5, 0.6]",
            "optimizer.eps=1e-12",
        ],
    )
    written = yaml.safe_dump(to_dict(config), sort_keys=False)
    assert build(Config, yaml.safe_load(written)) == config
    assert list(yaml.safe_load(written)) == [field.name for field in dataclasses.fields(Config)]


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(None).train.seed = 3


def test_every_setting_is_described_with_its_default():
    rows = describe(Config)
    names = [name for name, _, _ in rows]
    settings = [(f"{section}.{key}", v) for section, part in to_dict(Config()).items() for key, v in part.items()]
    files = [to_dict(kind(file="x")) | {"file": None} for kind in (MathsConfig, CodeConfig)]
    files.append(to_dict(OwnConfig(file="x", reward="m:f")) | {"file": None, "reward": None})
    tasks = [(f"task.{key}", value) for one in files for key, value in one.items()]
    assert sorted(names) == sorted(name for name, _ in [*settings, *tasks])
    for name, default, meaning in rows:
        assert meaning.endswith("."), name
        assert (name, list(default) if isinstance(default, tuple) else default) in [*settings, *tasks]


def test_the_task_is_countdown_unless_it_is_named():
    assert type(load_config(None, ["task.numbers=3"]).task) is CountdownConfig
    assert load_config(None, ["task.name=countdown"]) == Config()
    config = load_config(None, ["task.name=maths", "task.file=a.parquet"])
    assert config.task == MathsConfig(file="a.parquet")
    assert build(Config, to_dict(config)) == config == Config(task=MathsConfig(file="a.parquet"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.number=3"], "task.number: unknown key; did you mean 'numbers'?"),
        (["task.file=a.parquet"], "task.file: unknown key; known: name, reward_weights, reward_seconds"),
        (["task.name=maths"], "task.file: is missing; add `file:` with its value"),
        (["task.name=maths", "task.file=a", "task.fil=b"], "task.fil: unknown key; did you mean 'file'?"),
        (
            ["task.name=maths", "task.file=a", "task.zzz=3"],
            "task.zzz: unknown key; known: name, reward_weights, reward_seconds",
        ),
        (["task.name=maths", "task.file=3"], "task.file: 3 is not allowed"),
        (["task.name=maths", "task.file=''"], "task.file: '' is not allowed"),
        (["task.name=maths", "task.file=a", "task.train_problems=0"], "task.train_problems: 0 is not allowed"),
        (["task.name=maths", "task.file=a", "task.train_problems=8"], "is more than task.train_problems (8)"),
        (["task.name=math"], "task.name: 'math' is not allowed; input should be one of 'countdown', 'maths'"),
        (["task.name=3"], "task.name: 3 is not allowed"),
        (["task.name=[1]"], "task.name: [1] is not allowed"),
        (["task.name=null"], "task.name: None is not allowed"),
        (["task=3"], "task: 3 is no section"),
        (["task=[1]"], "task: [1] is no section"),
        (["task=maths"], "task: 'maths' is no section"),
    ],
)
def test_settings_that_do_not_fit_the_named_task_raise(overrides, message):
    assert message in refused(*overrides)


def test_an_unknown_key_inside_a_mapping_of_sections_names_the_nearest_known_one():
    with pytest.raises(SteerError, match=re.escape("arms.one.labl: unknown key; did you mean 'label'?")):
        build(Plan, {"arms": {"one": {"label": "a", "labl": "b"}}, "baseline": "one", "seeds": [0]})


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(path):
    assert load_config(path)


@pytest.mark.parametrize("override", ["train.seed=true", "intervention.lambda_min=yes", "model.path=no"])
def test_yes_and_no_are_not_read_as_numbers(override):
    with pytest.raises(SteerError, match=rf"{override.split('=')[0]}: (True|False) is not allowed"):
        load_config(None, named(override))
