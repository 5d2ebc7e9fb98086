"""Settings that follow a schedule: what they are at each rollout, how they are written, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import small_config, small_trainer

from steer_core.common.errors import SteerError
from steer_core.common.schedules import MOST_POINTS, Schedule, highest, may_be_scheduled, scheduled, value_at
from steer_core.common.settings import build, to_dict
from steer_core.config.config import Config
from steer_core.interventions import METHODS, method
from steer_core.interventions.entropic import EntroPIC
from steer_core.runs.folder import RunFolder

values = st.floats(0, 10)
points = st.lists(st.tuples(st.integers(0, 10_000), values), min_size=1, max_size=20, unique_by=lambda p: p[0])
schedules = points.map(lambda found: Schedule(tuple(sorted(found))))


def targeted(target, *more, name="entropic"):
    """A small configuration whose method has this target."""
    return small_config(f"intervention.name={name}", f"intervention.target={target}", *more)


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("0.3", {1: 0.3, 2: 0.3, 10**9: 0.3}),
        (0, {1: 0.0}),
        ("0.3 to 0.15 over 4", {1: 0.3, 2: 0.25, 3: 0.2, 4: 0.15, 5: 0.15, 1000: 0.15}),
        ("0.1 to 0.2 over 2", {1: 0.1, 2: 0.2, 3: 0.2}),
        ("0.3 at 3, 0.1 at 5, 0.5 at 6", {1: 0.3, 3: 0.3, 4: 0.2, 5: 0.1, 6: 0.5, 7: 0.5}),
        ("0.4 at 0, 0.2 at 2", {1: 0.3, 2: 0.2}),
        ("  0.25 at 7 ", {1: 0.25, 7: 0.25, 9: 0.25}),
    ],
)
def test_what_a_setting_is_at_each_rollout(written, at):
    setting = scheduled(written)
    for rollout, value in at.items():
        assert value_at(setting, rollout) == pytest.approx(value, rel=1e-12), rollout


@given(schedules)
def test_a_schedule_is_read_back_from_its_text_bit_for_bit(schedule):
    assert scheduled(str(schedule)) == schedule
    assert scheduled(schedule) is schedule


@given(schedules, st.integers(0, 11_000))
def test_a_schedule_goes_through_its_points_and_stays_between_neighbours(schedule, rollout):
    for n, value in schedule.points:
        assert schedule.at(n) == value
    lower = [value for n, value in schedule.points if n <= rollout][-1:] or [schedule.points[0][1]]
    upper = [value for n, value in schedule.points if n >= rollout][:1] or [schedule.points[-1][1]]
    low, high = sorted([*lower, *upper])
    assert low - 1e-12 <= schedule.at(rollout) <= high + 1e-12
    assert schedule.at(rollout) <= highest(schedule) + 1e-12
    assert highest(schedule) in [value for _, value in schedule.points]


def test_a_constant_stays_the_number_it_was():
    config = targeted(0.25)
    assert config.intervention.target == 0.25
    assert isinstance(config.intervention.target, float)
    assert to_dict(config)["intervention"]["target"] == 0.25
    assert highest(0.25) == 0.25


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("0.3 to 0.15 over 200", "0.3 to 0.15 over 200"),
        ("'0.3 to 0.15 over 200'", "0.3 to 0.15 over 200"),
        ("0.3 at 2, 0.25 at 50", "0.3 at 2, 0.25 at 50"),
        ("0.3 at 1, 0.25 at 50, 0.2 at 60", "0.3 at 1, 0.25 at 50, 0.2 at 60"),
    ],
)
def test_a_schedule_goes_to_yaml_and_back(written, kept):
    config = targeted(written)
    assert to_dict(config)["intervention"]["target"] == kept
    assert build(Config, to_dict(config)) == config


@pytest.mark.parametrize("header", ["", "rollout,entropy\n", "step, H\n\n"])
def test_a_file_gives_its_rows_and_the_configuration_keeps_them_and_no_path(tmp_path, header):
    curve = tmp_path / "curve.csv"
    curve.write_text(f"{header}1,0.3\n\n3, 0.2\n10,0.25\n")
    config = targeted(f"file:{curve}")
    assert config.intervention.settings_at(2) == {"target": 0.25}
    assert to_dict(config)["intervention"]["target"] == "0.3 at 1, 0.2 at 3, 0.25 at 10"


def test_a_run_keeps_the_curve_it_began_with_whatever_becomes_of_the_file(tmp_path):
    curve = tmp_path / "curve.csv"
    curve.write_text("1,0.3\n3,0.2\n")
    run = RunFolder(tmp_path / "run", targeted(f"file:{curve}")).start()
    curve.write_text("1,9\n3,9\n")
    again = RunFolder.open(run.path)
    assert again.config == run.config
    assert again.config.intervention.target == Schedule(((1, 0.3), (3, 0.2)))
    assert "curve.csv" not in (run.path / "config.yaml").read_text()
    curve.unlink()
    assert RunFolder.open(run.path).config == run.config


REFUSED = [
    ("soon", "write a number, "),
    ("0.3 to 0.15", "write a number, "),
    ("0.3 to 0.15 over 200 rollouts", "write a number, "),
    ("0.3 at 1; 0.2 at 2", "write a number, "),
    ("[1, 2]", "write a number, "),
    ("null", "write a number, "),
    ("-0.1", "-0.1 is below 0; write 0 or more"),
    ("0.3 to -0.1 over 9", "-0.1 is below 0; write 0 or more"),
    (".nan", "'nan' is no finite number"),
    ("0.3 to inf over 9", "'inf' is no finite number"),
    ("0.3 to few over 9", "'few' is no finite number"),
    ("0.3 to 0.1 over 1", "rollout 1 does not come after rollout 1; give rollouts that rise"),
    ("0.3 to 0.1 over 0", "rollout 0 does not come after rollout 1"),
    ("0.3 to 0.1 over 9.5", "'9.5' is no rollout; write whole numbers, counted from 1"),
    ("0.3 at -1", "'-1' is no rollout"),
    ("0.3 at 1e300", "'1e300' is no rollout"),
    ("0.3 at 5, 0.2 at 4", "rollout 4 does not come after rollout 5"),
]


@pytest.mark.parametrize(("written", "told"), REFUSED)
def test_what_is_no_schedule_is_refused_with_field_value_and_remedy(written, told):
    with pytest.raises(SteerError, match=r"^intervention\.target: .* is not allowed; ") as caught:
        targeted(written)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,0.3\n2\n", "line 2 of {} is '2'; write two columns"),
        ("a,b\n1,2,3\n", "line 2 of {} is '1,2,3'; write two columns"),
        ("1;0.3\n", "line 1 of {} is '1;0.3'; write two columns"),
        ("rollout,entropy\n", "{} holds no point"),
        ("\n", "{} holds no point"),
        ("a,b\nc,d\n", "'c' is no rollout"),
        ("1,x\n", "'x' is no finite number"),
        ("2,0.3\n1,0.2\n", "rollout 1 does not come after rollout 2"),
        ("".join(f"{n},1\n" for n in range(MOST_POINTS + 1)), f"there are {MOST_POINTS + 1} points; give at most"),
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path, text, told):
    curve = tmp_path / "curve.csv"
    curve.write_text(text)
    with pytest.raises(SteerError) as caught:
        targeted(f"file:{curve}")
    assert str(caught.value).startswith("intervention.target: ")
    assert told.format(curve) in str(caught.value)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(SteerError, match=r"^intervention\.target: .*: No such file or directory; give a file"):
        targeted(f"file:{tmp_path}/curve.csv")


def test_the_methods_with_an_entropy_target_take_a_schedule():
    named = {
        name
        for name in METHODS
        if any(may_be_scheduled(field.annotation) for field in method(name).__pydantic_fields__.values())
    }
    assert named >= {"adaptive-entropy-loss", "entropic", "stare", "entrocraft", "influence"}
    for name in named - {"influence"}:
        line = method(name)(target="0.4 to 0.2 over 3")
        assert [line.settings_at(n) for n in (1, 2, 9)] == [
            {"target": pytest.approx(value)} for value in (0.4, 0.3, 0.2)
        ]
        assert line.in_force("target", {"target": 7.0}) == 7.0
        assert line.in_force("target", {}) == 0.4
    assert method("influence")().settings_at(1) == {}
    assert method("influence")(target=0.2).settings_at(1) == {"target": 0.2}
    assert method("steer")().settings_at(1) == {}


@pytest.mark.parametrize("name", ["adaptive-entropy-loss", "entropic", "stare", "entrocraft", "influence"])
def test_a_run_logs_the_target_in_force_at_every_rollout(tmp_path, name):
    config = ("rollout.prompts=2", "evaluation.every=0", "train.probe_sequences=0", "train.rollouts=4")
    target = "intervention.target=0.4 to 0.2 over 3"
    trainer = small_trainer(tmp_path / "run", f"intervention.name={name}", target, *config)
    assert trainer.fit()
    logged = [row["intervention/target"] for row in trainer.run.read()]
    assert logged == pytest.approx([0.4, 0.3, 0.2, 0.2])


def test_a_method_does_each_rollout_what_it_does_at_that_rollouts_target(tmp_path):
    """A schedule that is 0.5 at rollout 1 and 2 and jumps to 0.1 by rollout 3: integrals of the error tell."""
    settings = ("rollout.prompts=2", "optimizer.mini_batch_prompts=2", "evaluation.every=0", "train.rollouts=3")
    trainer = small_trainer(
        tmp_path / "run", "intervention.name=entropic", "intervention.target=0.5 at 2, 0.1 at 3", *settings
    )
    assert trainer.fit()
    rows = trainer.run.read()
    entropies = [row["entropy/policy"] for row in rows]  # one step a rollout, which sees the policy that sampled
    integral = 0.0
    for row, entropy, target in zip(rows, entropies, (0.5, 0.5, 0.1), strict=True):
        integral += entropy - target
        assert row["intervention/integral"] == pytest.approx(integral, abs=1e-5)


def test_a_schedule_that_is_everywhere_one_number_trains_as_that_number(tmp_path):
    weights = []
    for i, target in enumerate(["0.25", "0.25 to 0.25 over 3"]):
        trainer = small_trainer(
            tmp_path / str(i), "intervention.name=entropic", f"intervention.target={target}", "train.rollouts=2"
        )
        assert trainer.fit()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all((a == b).all() for a, b in zip(*weights, strict=True))


def test_a_field_default_may_be_a_number_and_a_method_made_in_python_takes_text():
    assert EntroPIC().target == 0.3
    assert EntroPIC(target="0.3 to 0.2 over 5").target == Schedule(((1, 0.3), (5, 0.2)))
