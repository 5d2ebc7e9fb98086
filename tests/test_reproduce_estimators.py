"""The scripts behind Tables 1 and 8, and the benchmark of the ladder: cases that parse, outcomes kept, whole runs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.estimation.estimate import Update
from steer_core.formulas.entropy_change import ENTROPY_CHANGE

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "reproduce" / "estimators.py"))
CASES = SCRIPT["CASES"]
MODELS = {name: case for name, case in CASES.items() if "tabular" not in case}
ENVIRONMENT = {**os.environ, "CI": "1"}


def script(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", CASES)
def test_every_case_names_what_it_is_what_it_takes_and_updates_that_parse(name):
    case = CASES[name]
    assert case["label"]
    assert case["needs"]
    updates = [Update.parse(text) for text in case["updates"]]
    assert len(set(map(str, updates))) == len(updates) > 0
    known = {"label", "needs", "updates", "tabular", "model", "make", "settings", "with_signal"}
    assert set(case) <= known
    assert ("tabular" in case) != ("model" in case)


@pytest.mark.parametrize("name", MODELS)
def test_every_cases_settings_are_a_configuration(name):
    case = MODELS[name]
    config = load_config(None, case["settings"])
    named = [word.partition("=")[2] for word in case["settings"] if word.startswith("task.file=")]
    assert named == ([config.task.file] if config.task.name == "maths" else [])
    assert all(Path(file).name == file for file in named)


def test_labels_of_cases_are_unique_and_the_embedded_ones_are_cases():
    assert len({case["label"] for case in CASES.values()}) == len(CASES)
    assert set(SCRIPT["EMBEDDED_CASES"]) <= set(CASES)
    assert all(
        CASES[name].get("model", "embedded").startswith(("embedded", "runs/")) for name in SCRIPT["EMBEDDED_CASES"]
    )


def test_a_data_file_is_looked_for_in_the_folder_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("STEER_DATA", str(tmp_path))
    with pytest.raises(SteerError, match=r"STEER_DATA: .* holds no x.parquet; set it to the folder"):
        SCRIPT["_located"]("task.file=x.parquet")
    (tmp_path / "x.parquet").write_text("")
    key, _, file = SCRIPT["_located"]("task.file=x.parquet").partition("=")
    assert key == "task.file"
    assert Path(file).samefile(tmp_path / "x.parquet")
    assert SCRIPT["_located"]("rollout.prompts=8") == "rollout.prompts=8"


def test_a_case_is_measured_once_and_read_from_then_on(tmp_path, monkeypatch):
    monkeypatch.setitem(CASES["tabular"], "tabular", {"states": 200, "vocabulary": 20})
    first = SCRIPT["measure"]("tabular", results=tmp_path / "new")
    path = tmp_path / "new" / "tabular.json"
    assert json.loads(path.read_text()) == first
    assert first["label"] == CASES["tabular"]["label"]
    assert set(first["environment"]) >= {"command"}
    (summary,) = first["updates"].values()
    assert summary["tokens"] == 200
    assert set(summary["target"]) == set(ENTROPY_CHANGE)
    assert summary["target"]["exact"]["pearson"][0] > 1 - 1e-6
    path.write_text(json.dumps({**first, "label": "kept"}))
    assert SCRIPT["measure"]("tabular", results=tmp_path / "new")["label"] == "kept"
    assert SCRIPT["measure"]("tabular", again=True, results=tmp_path / "new")["label"] == first["label"]


def test_an_unknown_case_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SteerError, match=r"case 'qwen': unknown; known: tabular, .*smollm2-gsm8k"):
        SCRIPT["measure"]("qwen", results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_kept_outcomes_are_those_of_the_cases_as_they_stand():
    """A case that was changed after it was measured must be measured again."""
    kept = sorted((ROOT / "reproduce" / "results" / "estimators").glob("*.json"))
    assert kept
    for path in kept:
        record, case = json.loads(path.read_text()), CASES[path.stem]
        assert record["label"] == case["label"]
        assert list(record["updates"]) == [str(Update.parse(text)) for text in case["updates"]]
        assert record["environment"]["command"].startswith("python ")


@pytest.mark.parametrize("table", ["table1", "table8"])
def test_the_tables_help_lists_every_case(table, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "reproduce")
    monkeypatch.setattr(sys, "argv", [f"reproduce/{table}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(f"{ROOT}/reproduce/{table}.py", run_name="__main__")
    told = capsys.readouterr().out
    for name, case in CASES.items():
        assert f"  {name}: {case['label']} ({case['needs']})" in told


def test_the_benchmark_of_the_ladder_times_every_rung(tmp_path):
    words = [
        "--sequences",
        "2",
        "--prompt",
        "4",
        "--tokens",
        "4",
        "--repeats",
        "1",
        "--out",
        tmp_path / "new" / "l.json",
    ]
    done = script("benchmarks/ladder.py", *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert json.loads((tmp_path / "new" / "l.json").read_text()) == told
    rungs = {"forms of one state, all four", "output layer", "first order", "measured", "influence", "training step"}
    assert set(told["seconds"]) == set(told["peak_mib_added"]) == set(told["time over a training step"]) == rungs
    assert all(value > 0 for value in told["seconds"].values())
    assert (told["tokens"], told["repeats"]) == (8, 1)
    assert told["environment"]["command"].startswith("python benchmarks/ladder.py --model embedded")


@pytest.mark.parametrize(("table", "rows"), [("table1", 2), ("table8", 3)])
def test_the_kept_tables_end_with_what_the_paper_and_the_replication_report(table, rows):
    lines = (ROOT / "reproduce" / "results" / f"{table}.md").read_text().splitlines()[-rows:]
    assert "| about 0.4 | 0.6 to 0.7 |" in lines[0]
    assert "| 0.387 | 0.304 |" in lines[1]
    assert all(line.startswith("| replication, Qwen2.5-Math-1.5B") for line in lines[1:])
    assert all(row["source"] for row in SCRIPT["PUBLISHED"])
