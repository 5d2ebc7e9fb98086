"""What `steer COMMAND --help` and `--settings` tell, without torch, and that words may stand in any order."""

import os
import subprocess
import sys

import pytest

from steer_core.cli import compare, data, estimate, evaluate, report, train
from steer_core.cli.main import COMMANDS, main

HELPS = [[], *([name] for name in COMMANDS), ["data", "list"], ["data", "audit"]]
WITH_SETTINGS = ["compare", "train", "plan", "evaluate", "estimate"]
EVERY_HELP = """
import contextlib, io, sys
from steer_core.cli.main import main
for words in {helps}:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            main([*words, "--help"])
        except SystemExit as ended:
            assert ended.code == 0, words
    assert told.getvalue().startswith("usage: " + " ".join(["steer", *words])), words
print(*{{"torch", "transformers", "datasets", "pandas"}} & set(sys.modules))
"""


@pytest.fixture
def without_torch(tmp_path):
    """An environment where importing torch or transformers raises."""
    for name in ("torch", "transformers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this one is broken')\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def run(code: str, environment: dict) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def told(capsys, *words) -> str:
    """What a command prints that ends well."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_help_needs_neither_torch_nor_transformers_even_where_they_are_broken(without_torch):
    done = run(EVERY_HELP.format(helps=HELPS), without_torch)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"


def test_settings_of_a_run_are_listed_where_torch_is_broken_and_those_of_methods_are_said_to_be_missing(without_torch):
    done = run("from steer_core.cli.main import main; main(['train', '--settings'])", without_torch)
    assert done.returncode == 0, done.stderr
    assert "train.seed=0" in done.stdout
    assert "settings of methods: RuntimeError at their import; see `steer doctor`" in done.stdout


def test_help_lists_every_command_with_what_it_does(capsys):
    text = told(capsys, "--help")
    assert all(f"\n    {name} " in text for name in COMMANDS)
    assert "Train one run" in text


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_help_fits_two_screens_and_leaves_the_settings_one_flag_away(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = told(capsys, command, "--help")
    examples = text.partition("\nexamples:")[0]
    assert len(text.splitlines()) <= 80
    assert max(map(len, examples.splitlines())) <= 80
    assert "--settings [WORD]" in text
    assert "intervention.lambda_min" not in text


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_settings_lists_every_setting_and_every_methods_own_with_its_meaning(capsys, command):
    text = told(capsys, command, "--settings")
    for line in ("  train.seed=0", "  intervention.lambda_min=0.7", "with intervention.name=steer:"):
        assert f"\n{line}" in text
    assert "Weight of the token at the normaliser" in text
    assert ("  benchmark.style=shipped" in text) is (command == "evaluate")


@pytest.mark.parametrize(
    ("word", "section", "there", "not_there"),
    [
        ("rollout.", "settings (section.key=value)", "  rollout.prompts=64", "  train.rollouts"),
        ("rollout", "settings (section.key=value)", "  train.rollouts=48", "  train.seed"),
        ("steer", "with intervention.name=steer:", "  intervention.form=paper", "  train.seed"),
        ("lambda_min", "with intervention.name=steer:", "  intervention.lambda_min=0.7", "  intervention.form"),
    ],
)
def test_settings_with_a_word_lists_those_whose_key_or_method_has_it(capsys, word, section, there, not_there):
    text = told(capsys, "train", "--settings", word)
    assert section in text
    assert there in text
    assert not_there not in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("zzz", "no setting has 'zzz' in its name; `--settings` without zzz"),
        ("epochs", "train.rollouts sets the length"),
    ],
)
def test_settings_with_a_word_that_no_setting_has_says_so(capsys, word, message):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--settings", word])
    error = capsys.readouterr().err
    assert error.startswith("error: --settings: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def parsed(monkeypatch):
    """parsed(command, *words): the arguments that a command is run with."""

    def of(command, *words):
        seen = {}

        def note(args):
            """Note the arguments."""
            seen.update(vars(args))

        monkeypatch.setattr(command, "run", note)
        with pytest.raises(SystemExit):
            main([command.__name__.rpartition(".")[2], *words])
        return seen

    return of


@pytest.mark.parametrize(
    "words",
    [
        "grpo train.seed=1 rollout.prompts=4 --out x --no-report",
        "train.seed=1 --out x rollout.prompts=4 grpo --no-report",
        "--out x --no-report grpo train.seed=1 rollout.prompts=4",
        "--no-report train.seed=1 rollout.prompts=4 --out x grpo",
        "train.seed=1 grpo --out=x rollout.prompts=4 --no-rep",
    ],
)
def test_a_configuration_its_settings_and_options_may_stand_in_any_order(parsed, words):
    seen = parsed(train, *words.split())
    assert (seen["config"], str(seen["out"]), seen["no_report"]) == ("grpo", "x", True)
    assert seen["settings"] == ["train.seed=1", "rollout.prompts=4"]


def test_of_a_setting_given_twice_the_last_on_the_line_comes_last(parsed):
    assert parsed(train, "train.seed=1", "--no-report", "train.seed=2")["settings"] == ["train.seed=1", "train.seed=2"]


@pytest.mark.parametrize("words", [["--out", "lr=1"], ["--ou", "lr=1"], ["--out=lr=1"]])
def test_the_value_of_an_option_is_no_setting(parsed, words):
    seen = parsed(train, *words, "train.seed=1")
    assert (str(seen["out"]), seen["settings"]) == ("lr=1", ["train.seed=1"])


@pytest.mark.parametrize(
    ("command", "words", "key", "value"),
    [
        (compare, "--methods stare kl-cov train.rollouts=2 --out x", "methods", ["stare", "kl-cov"]),
        (compare, "--methods stare train.rollouts=2 kl-cov", "methods", ["stare", "kl-cov"]),
        (compare, "--seeds 0 1 train.rollouts=2", "seeds", [0, 1]),
        (compare, "train.rollouts=2 --jobs 1 quick", "plan", "quick"),
        (evaluate, "embedded --benchmarks aime24 math500 train.rollouts=2", "benchmarks", ["aime24", "math500"]),
        (evaluate, "train.rollouts=2 --out x embedded", "model", "embedded"),
        (
            estimate,
            "embedded --update sgd:0.1 adamw:1 train.rollouts=2 --with-signal",
            "update",
            ["sgd:0.1", "adamw:1"],
        ),
    ],
)
def test_settings_may_stand_behind_options_that_take_several_words(parsed, command, words, key, value):
    seen = parsed(command, *words.split())
    assert (seen[key], seen["settings"]) == (value, ["train.rollouts=2"])


@pytest.mark.parametrize(
    "words", ["audit a --out x b", "audit --out x a b", "audit a b --out x", "--out x audit a b", "--out=x a audit b"]
)
def test_sets_to_audit_may_stand_on_both_sides_of_an_option(parsed, words):
    seen = parsed(data, *words.split())
    assert (seen["action"], seen["names"], str(seen["out"])) == ("audit", ["a", "b"], "x")


def test_runs_to_report_may_stand_on_both_sides_of_an_option(parsed):
    assert [str(path) for path in parsed(report, "a", "--out", "x", "b")["runs"]] == ["a", "b"]
