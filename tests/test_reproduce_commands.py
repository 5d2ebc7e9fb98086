"""Results of reproduce/ name the command that made them, its arguments included."""

import json
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import engines
import smoke


def test_engines_results_name_the_command_with_its_arguments(tmp_path, monkeypatch):
    metrics = pd.DataFrame({name: [0.25, 0.5] for name in (*engines.COMPARED, "rollout/logprob_gap/max")})
    monkeypatch.setattr(engines, "train", lambda name, folder, steps: metrics)
    results = tmp_path / "two words"
    monkeypatch.setattr(sys, "argv", ["reproduce/engines.py", "--steps", "2", "--results", str(results)])
    engines.main()
    command = f"python reproduce/engines.py --steps 2 --results '{results}'"
    assert json.loads((results / "engines.json").read_text())["environment"]["command"] == command
    assert f"`{command}`" in (results / "engines.md").read_text()


def test_smokes_results_name_the_command_with_its_arguments(tmp_path, monkeypatch):
    name = "paper/qwen2.5-14b-steer"
    row = {"name": name, "seconds": 1, "error": "error: task.file: is no file here"}
    monkeypatch.setattr(smoke, "run", lambda name, folder: row)
    monkeypatch.setattr(sys, "argv", ["reproduce/smoke.py", name, "--results", str(tmp_path)])
    assert smoke.main() == 0
    command = f"python reproduce/smoke.py {name} --results {tmp_path}"
    assert json.loads((tmp_path / "smoke.json").read_text())["environment"]["command"] == command
    assert f"`{command}`" in (tmp_path / "smoke.md").read_text()
