"""kill -9 at ten random moments: the resumed run equals the uninterrupted one, bit for bit."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

from small import SMALL, without_time

from steer_core.run import RunFolder

ROLLOUTS = 40
LENGTHEN = (f"train.rollouts={ROLLOUTS}", "evaluation.every=3", "train.checkpoint_every=2", "steer.form=paper")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}


def start(*arguments):
    command = [sys.executable, "-m", "steer_core", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def result_of(folder):
    run = RunFolder.open(folder)
    final = run.checkpoints()[-1]
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in final.glob("*.safetensors")}
    return final.name, weights, without_time(run.read()), without_time(run.read("evaluations.jsonl"))


def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    whole = start(*SMALL, *LENGTHEN, "--out", tmp_path / "whole")
    began = time.monotonic()
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    seconds_a_rollout = (time.monotonic() - began) / ROLLOUTS
    moments, kills = random.Random(0), []
    for attempt in range(10):
        folder = tmp_path / "killed"
        resume = (folder / "config.yaml").exists()
        process = start(*(["--resume", folder] if resume else [*SMALL, *LENGTHEN, "--out", folder]))
        if attempt:  # the first kill may fall anywhere, start-up included; the others once rollouts are running
            process.stdout.readline()
        time.sleep(moments.uniform(0, 6 * seconds_a_rollout))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append(process.returncode)
    assert kills == [-signal.SIGKILL] * 10
    last = start(*(["--resume", folder] if (folder / "config.yaml").exists() else [*SMALL, *LENGTHEN, "--out", folder]))
    output = last.communicate()[0]
    assert last.returncode == 0, output
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")
