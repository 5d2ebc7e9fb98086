"""The newcomer's path: what `steer init` writes, and every line of docs/own.md; on a tiny Llama too."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from steer_core.cli.init import COUNT, STARTER, problems
from steer_core.cli.main import main
from steer_core.common.settings import read_yaml
from steer_core.config.config import load_config
from steer_core.interventions import method
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems.countdown import CHARACTERS
from steer_core.rewards.own import judge, warm_up
from steer_core.runs.logs import read

PAGE = (Path(__file__).parents[1] / "docs" / "own.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def init(folder):
    with pytest.raises(SystemExit) as ended:
        main(["init", str(folder)])
    return ended.value.code


def run(line, folder):
    """A line of the page in a shell, as its reader types it, the package and the command found."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    given = os.pathsep.join([".", *(part for part in sys.path if part)])
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": given, "CI": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}: {done.stdout[-300:]}{done.stderr[-500:]}"
    return done.stdout


def test_init_writes_a_task_a_reward_a_method_and_a_configuration_and_replaces_nothing(tmp_path, capsys):
    assert init(tmp_path / "mine") == 0
    written = {path.name for path in (tmp_path / "mine").iterdir()}
    assert written == {"problems.jsonl", "my_reward.py", "my_method.py", "run.yaml"}
    capsys.readouterr()
    assert init(tmp_path / "mine") == 2
    assert "FOLDER: " in (error := capsys.readouterr().err)
    assert "holds my_method.py already; name another folder" in error
    assert error.count("\n") == 1


def test_the_problems_are_distinct_right_and_what_the_embedded_model_can_write():
    found = problems()
    assert len({problem["question"] for problem in found}) == len(found) == COUNT
    for problem in found:
        assert eval(problem["question"].removesuffix("=")) == int(problem["answer"]) >= 0
        assert set(problem["question"] + problem["answer"]) <= set(CHARACTERS)


def test_the_configuration_holds_settings_that_are_there_and_names_the_files():
    config = load_config(STARTER / "run.yaml")
    assert (config.task.file, config.task.reward) == ("problems.jsonl", "my_reward:reward")
    assert read_yaml(STARTER / "run.yaml")["intervention"]["name"] == config.intervention.name == "my_method:Calm"


def test_the_method_and_the_reward_are_found_and_do_what_they_say(monkeypatch):
    monkeypatch.syspath_prepend(str(STARTER))
    calm = method("my_method:Calm")()
    assert calm.touches == ("weights",)
    assert len((STARTER / "my_method.py").read_text().splitlines()) <= 40
    warm_up("my_reward:reward")
    row = {"question": "3+4=", "answer": "7"}
    assert judge(["3+4=", "7", row]) == {"right": 1.0, "near": 1.0, "number": 1.0}
    assert judge(["3+4=", "x", row]) == {"right": 0.0, "near": 0.0, "number": 0.0}
    assert 0 < judge(["3+4=", "9", row])["near"] < 1


@pytest.mark.long
def test_every_line_of_the_page_runs_in_order(tmp_path):
    folder = tmp_path
    assert [shlex.split(line)[:2] for line in LINES[:2]] == [["steer", "init"], ["cd", "mine"]]
    for line in LINES:
        words = shlex.split(line)
        if words[0] == "cd":
            folder /= words[1]
        elif words[0] != "export":
            run(line, folder)
    rows = read(folder / "run" / "metrics.jsonl")
    assert {"reward/part/right", "reward/part/near", "reward/part/number", "resampled/tries"} <= rows[-1].keys()
    assert rows[-1]["step"] == 12
    assert sum(row["reward/mean"] for row in rows[-4:]) > sum(row["reward/mean"] for row in rows[:4])
    assert min(row["lambda/q0"] for row in rows) < 1
    assert (folder / "run.html").exists()
    assert read(folder / "other" / "metrics.jsonl")[-1]["step"] == 6


@pytest.mark.long
def test_the_same_files_train_a_tiny_llama(tmp_path):
    assert init(tmp_path / "mine") == 0
    tokenizer = character_tokenizer(CHARACTERS)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=64, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "mine" / "llama")
    tokenizer.save_pretrained(tmp_path / "mine" / "llama")
    run("steer train run.yaml model.path=llama train.rollouts=2 --out run", tmp_path / "mine")
    rows = read(tmp_path / "mine" / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["reward/unjudged"] == 0
