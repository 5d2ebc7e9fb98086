"""Plans and comparisons: like is compared with like, and a plan says what its arms did."""

import pytest
from small import SMALL, small_config

from steer_core.common.errors import SteerError
from steer_core.common.places import PLANS
from steer_core.common.settings import build, read_yaml, to_dict
from steer_core.compare.comparison import comparison_of, load_comparison
from steer_core.compare.plan import Arm, Plan, load_plan
from steer_core.compare.runner import start_comparison
from steer_core.config.config import Config
from steer_core.runs.folder import RunFolder

COMPARE = PLANS / "short.yaml"


def plan_of(overrides=(), **changes) -> Plan:
    """A plan of two arms, the second with these overrides."""
    arms = {"plain": {"label": "plain"}, "other": {"label": "other", "overrides": list(overrides)}}
    return build(Plan, {"arms": arms, "baseline": "plain", "seeds": [0, 1], **changes})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"arms\.other: has the same settings as arm plain; take it out"),
        (["rollout.prompts=8", "train.seed=3"], r"arms\.other: sets train\.seed=3; take it out"),
        (["train={seed: 3}", "rollout.prompts=8"], r"arms\.other: sets train\.seed=3; take it out"),
    ],
)
def test_a_plan_refuses_two_arms_that_are_one_and_an_arm_with_a_seed(overrides, message):
    with pytest.raises(SteerError, match=message):
        plan_of(overrides)


def test_a_seed_for_all_arms_is_refused_with_the_option_that_gives_seeds():
    with pytest.raises(SteerError, match=r"train\.seed: 5 is for one run; give a comparison its seeds with --seeds 5"):
        load_plan(COMPARE, ["train.seed=5"])
    assert load_plan(COMPARE, seeds=[5]).seeds == [5]


def logged_run(folder, *overrides, rollouts=2) -> RunFolder:
    """A run folder with its log, as far as `rollouts`, and no training."""
    run = RunFolder(folder, small_config("train.rollouts=2", *overrides)).start()
    for step in range(1, rollouts + 1):
        run.log(step, {"reward/mean": step / 2})
    return run


def test_runs_that_differ_in_the_seed_alone_are_one_arm(tmp_path):
    paths = [
        logged_run(tmp_path / name, *overrides).path
        for name, overrides in (
            ("a", ["train.seed=3"]),
            ("b", ["train.seed=1"]),
            ("c", ["train.seed=3", "intervention.name=steer"]),
            ("d", ["train.seed=1", "intervention.name=steer"]),
        )
    ]
    comparison = comparison_of(paths)
    assert list(comparison.plan.arms) == ["a", "c"]
    assert comparison.plan.baseline == "a"
    assert comparison.plan.seeds == [1, 3]
    ends = comparison.metrics[comparison.metrics.step == 2]
    assert sorted(zip(ends.arm, ends.seed, strict=True)) == [("a", 1), ("a", 3), ("c", 1), ("c", 3)]
    assert comparison.complete
    assert comparison.plan.config("c", 3) == RunFolder.open(paths[2]).config
    assert not comparison_of(paths[:3]).complete


def test_a_run_that_has_not_come_to_its_end_makes_a_comparison_incomplete(tmp_path):
    assert comparison_of([logged_run(tmp_path / "a").path]).complete
    assert not comparison_of([logged_run(tmp_path / "b", rollouts=1).path]).complete


def test_runs_of_arms_with_one_folder_name_stay_apart(tmp_path):
    paths = [
        logged_run(tmp_path / side / "run", f"intervention.name={name}").path
        for side, name in (("l", "none"), ("r", "steer"))
    ]
    assert list(comparison_of(paths).plan.arms) == ["run", "run-1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"b: has the settings and seed of .*a; give each run once"),
        (("train.rollouts=3",), r"the runs differ in train\.rollouts or evaluation"),
        (("evaluation.samples=8",), r"the runs differ in train\.rollouts or evaluation"),
        (("task.largest_number=9", "train.seed=1"), r"differs from a in model, task, evaluation or train\.rollouts"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, overrides, message):
    paths = [logged_run(tmp_path / "a").path, logged_run(tmp_path / "b", *overrides).path]
    with pytest.raises(SteerError, match=message):
        comparison_of(paths)


@pytest.mark.parametrize(
    "override",
    [
        "train.rollouts=7",
        "evaluation.samples=64",
        "evaluation.every=3",
        "task.largest_number=9",
        "model.path=elsewhere",
    ],
)
def test_a_plan_refuses_arms_that_are_not_alike_in_what_is_measured(override):
    with pytest.raises(SteerError, match=r"arms\.other: differs from plain in model, task, evaluation or train"):
        plan_of([override])


@pytest.mark.parametrize("override", ["rollout.prompts=8", "algorithm.clip_high=0.2", "train.checkpoint_every=1"])
def test_arms_may_differ_in_how_they_train(override):
    plan = plan_of([override])
    assert plan.config("other", 1) != plan.config("plain", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a/b": {"label": "x"}}, "baseline": "a/b"}, r"arms.*a/b"),
        ({"arms": {"": {"label": "x"}}, "baseline": ""}, "arms"),
        ({"arms": {"..": {"label": "x"}}, "baseline": ".."}, "arms"),
        ({"arms": {}}, "arms"),
        ({"seeds": [0, -1]}, r"seeds\.1: -1 is not allowed"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 1, 0]}, r"seeds: \[0, 1, 0\] repeats a seed"),
        ({"baseline": "nobody"}, "baseline: 'nobody' is no arm; choose one of plain, other"),
        ({"common": {"train": {"rollouts": 0}}}, r"train\.rollouts: 0 is not allowed"),
        ({"sedes": [0]}, "sedes: unknown key; did you mean 'seeds'?"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_with_the_field(changes, message):
    with pytest.raises(SteerError, match=message):
        plan_of(**changes)


@pytest.mark.parametrize("override", ["intervention.lambda_min=0.5", "intervention={lambda_min: 0.5}"])
def test_a_setting_that_an_arm_makes_itself_is_refused_for_all_arms(override):
    with pytest.raises(SteerError, match=r"intervention\.\w+: arm 'steer' of .*short\.yaml sets it itself"):
        load_plan(COMPARE, [override])


def test_a_learning_rate_for_all_arms_leaves_the_half_rate_control_at_half():
    plan = load_plan(COMPARE, ["optimizer.learning_rate=5e-5"])
    rates = {arm: plan.config(arm, 0).optimizer.step_size for arm in plan.arms}
    assert rates == {arm: pytest.approx(2.5e-5 if arm == "grpo-half-lr" else 5e-5) for arm in rates}
    assert plan.controls == ["grpo-half-lr"]


@pytest.mark.parametrize(
    ("overrides", "control"),
    [
        (["optimizer.learning_rate=5e-5"], True),
        (["optimizer.learning_rate_factor=0.9"], True),
        (["optimizer.learning_rate_factor=2"], False),
        (["optimizer.learning_rate=5e-5", "optimizer.learning_rate_factor=2"], False),
        (["optimizer.learning_rate_factor=0.5", "optimizer.weight_decay=0.1"], False),
        (["optimizer.learning_rate_factor=0.5", "intervention.name=steer"], False),
    ],
)
def test_a_control_learns_more_slowly_and_differs_in_nothing_else(overrides, control):
    assert plan_of(overrides).controls == ["other"] * control


def test_seeds_on_the_command_line_replace_those_of_the_plan():
    assert load_plan(COMPARE, seeds=[7, 8]).seeds == [7, 8]
    assert load_plan(COMPARE).config("steer", 7).train.seed == 7


def test_a_plan_on_disk_holds_every_setting_and_reads_back_the_same(tmp_path):
    plan = load_plan(COMPARE, SMALL)
    start_comparison(plan, tmp_path / "out", resume=False)
    saved = read_yaml(tmp_path / "out" / "plan.yaml")
    defaults = to_dict(Config())
    assert {name: part.keys() for name, part in saved["common"].items()} == {
        name: part.keys() for name, part in defaults.items()
    }
    assert saved["common"] == to_dict(small_config())
    loaded = load_comparison(tmp_path / "out")
    assert loaded.plan == plan
    assert not loaded.complete
    for arm in plan.arms:
        config = build(Config, read_yaml(tmp_path / "out" / "configs" / f"{arm}.yaml"))
        assert config == plan.config(arm, plan.seeds[0])


def test_a_shared_setting_reaches_every_arm_and_an_arms_own_wins():
    arms = {"a": Arm(label="a"), "b": Arm(label="b", overrides=["intervention.lambda_min=0.4"])}
    plan = Plan(
        arms=arms,
        baseline="a",
        seeds=[5],
        common={"intervention": {"name": "steer", "form": "exact", "lambda_min": 0.9}},
    )
    assert [plan.config(arm, 5).intervention.lambda_min for arm in arms] == [0.9, 0.4]
    assert {plan.config(arm, 5).intervention.form for arm in arms} == {"exact"}


@pytest.mark.parametrize("name", ["my run", ".hidden", "a=b, c"])
def test_a_run_in_a_folder_of_any_name_can_be_reported(tmp_path, name):
    RunFolder(tmp_path / name, small_config()).start()
    assert len(comparison_of([tmp_path / name]).plan.arms) == 1
