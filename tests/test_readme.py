"""The README's commands and code run as they are written, on a run small enough for a test."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import SMALL

from steer_core.problems.sets import data_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "HF_HUB_OFFLINE": "1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def shortened(words: list[str]) -> list[str]:
    """The command with the small settings added where settings go."""
    if words[1] in ("train", "compare") and "--resume" not in words:
        at = next((i for i in range(2, len(words)) if words[i].startswith("--")), len(words))
        if words[1] == "compare":
            return [*words[:2], "--seeds", "0", *words[2:], *SMALL, "train.rollouts=2"]
        return [*words[:at], *SMALL, *words[at:]]
    if words[1] == "estimate":  # enough groups for some with differing rewards
        return [*words, "rollout.prompts=16", "rollout.responses=8", "optimizer.mini_batch_prompts=8"]
    if "--benchmarks" in words:
        return [*words, "benchmark.problems=4", "benchmark.samples=2", "benchmark.threads=1"]
    if words[1:3] == ["data", "audit"]:
        return [*words, "aime24", "math500"]
    return words


def test_every_steer_command_of_the_readme_runs_in_order(tmp_path):
    told = commands("steer")
    assert {words[1] for words in told} == {
        "compare", "train", "evaluate", "paired", "estimate", "report", "data", "doctor", "show", "plan"
    }  # fmt: skip
    if data_folder() is None:  # an audit needs the files
        told = [words for words in told if words[1:3] != ["data", "audit"]]
    for words in told:
        command = [sys.executable, "-m", "steer_core", *shortened(words)[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-500:]}"
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    told = {words[1] for words in commands("make")} | set(re.findall(r"`make (\w+)", README))
    assert {"run", "test"} <= told
    for target in told:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("code", [code for code in blocks("python") if "integrations" not in code])
def test_the_readmes_code_runs(code):
    from steer_core.formulas.token_stats import token_stats

    logits, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    names = {
        "logits": logits,
        "tokens": tokens,
        "old": token_stats(logits + 0.01, tokens),
        "advantages": torch.randn(2, 5),
        "mask": torch.ones(2, 5),
        "clipped_loss": torch.ones(2, 5),
    }
    exec(code, names)
    assert names["weights"].min() == pytest.approx(0.7)
    assert names["loss"].shape == (2, 5)


def test_the_readmes_two_lines_make_a_trainer_of_trl_with_these_weights(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from steer_core.policy.model import EMBEDDED

    (code,) = (code for code in blocks("python") if "integrations.trl" in code)
    settings = {"num_generations": 2, "per_device_train_batch_size": 2, "report_to": []}
    names = {
        "model": str(EMBEDDED),
        "reward_funcs": lambda completions, **_: [0.0 for _ in completions],
        "args": GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings),
        "dataset": Dataset.from_dict({"prompt": ["1,2,3,4=10:"]}),
    }
    exec(code, names)
    assert isinstance(names["trainer"], GRPOTrainer)
    assert names["trainer"].steer.lambda_min == 0.7


def test_the_method_of_the_page_on_adding_one_trains_from_the_folder_it_lies_in(tmp_path):
    page = (ROOT / "steer_core" / "interventions" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "calm_module.py").write_text(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1])
    line = next(line for line in page.splitlines() if line.startswith("steer train intervention.name=calm_module:Calm"))
    program = Path(sys.executable).with_name("steer")  # the installed command, which does not look in the folder itself
    words = [str(program), *shortened(shlex.split(line))[1:], "--no-report", "train.rollouts=1", "evaluation.every=0"]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "runs" / "calm" / "metrics.jsonl").exists()


def test_the_readmes_settings_of_verl_name_what_is_there():
    pytest.importorskip("verl")
    from importlib import import_module

    (lines,) = blocks("text")
    pairs = (line.split("=") for line in lines.splitlines())
    settings = {key.rsplit(".", 1)[1]: value for key, value in pairs}
    integration = import_module(settings["external_lib"])
    assert settings["loss_mode"] == integration.LOSS_MODE


def test_every_file_that_the_readme_names_exists():
    table = re.findall(r"`([\w/]+\.(?:py|ipynb|md|yml|yaml|txt))`", README)
    linked = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(table) > 15
    for name in [*table, *linked]:
        places = (ROOT / name, ROOT / "steer_core" / name, ROOT / "notebooks" / name, ROOT / "reproduce" / name)
        assert any(place.exists() for place in places), name
