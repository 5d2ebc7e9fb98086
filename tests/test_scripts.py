"""The scripts of reproduce/ and benchmarks/ have the commands' manners: checked options, one line, status 2."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from steer_core.cli.ending import end

ROOT = Path(__file__).parents[1]
SCRIPTS = [path for folder in ("reproduce", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]
SCRIPTS = [path for path in SCRIPTS if '__name__ == "__main__"' in path.read_text()]


class Parsed(Exception):
    """Carries a script's parser out of its main."""


def module_of(path: Path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def parser_of(module, monkeypatch) -> argparse.ArgumentParser:
    def carry(parser, *_):
        raise Parsed(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", carry)
        with pytest.raises(Parsed) as carried:
            module.main()
    return carried.value.args[0]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_refuses_every_number_that_makes_no_sense_by_its_option(path, monkeypatch, capsys):
    module = module_of(path, monkeypatch)
    assert "end(main)" in path.read_text()
    for action in parser_of(module, monkeypatch)._actions:
        if action.type in (None, Path) or action.choices:
            continue
        option, needed = action.option_strings[0], ["--out", "x"] if path.stem == "base_model" else []
        for word in ("-5", "nan", "many"):
            monkeypatch.setattr(sys, "argv", [path.name, *needed, f"{option}={word}"])
            with pytest.raises(SystemExit) as ended:
                end(module.main)
            assert ended.value.code == 2
            assert f"error: argument {option}: {word} is no" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        ("base_model", ["--numbers", "99"], "numbers"),
        ("base_model", ["--out", "taken/model"], "taken"),
        ("base_model", ["--operations", "1", "2"], "--operations: [1.0, 2.0]"),
        ("base_model", ["--operations", "0", "0", "0", "0"], "--operations"),
        ("base_model", ["--operations", "0", "1", "0", "1"], "--operations"),  # no target can be reached
        ("smoke", ["qwen"], "names: qwen is no shipped configuration"),
    ],
)
def test_a_script_tells_bad_input_in_one_line_before_it_works(script, words, told, tmp_path, monkeypatch, capsys):
    module = module_of(ROOT / "reproduce" / f"{script}.py", monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    where = [] if "--out" in words else ["--out", "made"] if script == "base_model" else ["--results", "made"]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words, *where])
    with pytest.raises(SystemExit) as ended:
        end(module.main)
    line = capsys.readouterr().err.splitlines()[-1]
    assert (ended.value.code, line[:6]) == (2, "error:")
    assert told in line
    assert not (tmp_path / "made").exists()
