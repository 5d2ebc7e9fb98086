"""What one of two ranks does for `test_engines.py`: several runs, one after another; no test of its own."""

import os
from pathlib import Path

import torch.distributed as dist
from small import small_config

from steer_core import policy, ranks
from steer_core.run import RunFolder
from steer_core.trainer import Trainer

IN_PARTS, AT_ONCE = "logits in parts", policy._LOGITS_AT_ONCE
"""What a case's name ends with where logits are to be made for a few rows at a time."""


def work(rank: int, port: int, folder: Path, cases: dict[str, list[str]]) -> None:
    """Train a small run for every case, as `torchrun` would have it: (name, settings), into a folder of its name."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    for name, settings in cases.items():
        policy._LOGITS_AT_ONCE = 1000 if name.endswith(IN_PARTS) else AT_ONCE
        run = RunFolder(folder / name, small_config(*settings))
        trainer = Trainer(run)
        if ranks.first():
            run.start()
        ranks.wait()
        assert trainer.fit()
    dist.destroy_process_group()
