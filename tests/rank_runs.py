"""What one of two ranks does for `test_engines.py`: several runs, one after another; no test of its own."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from small import small_config

from steer_core.common import ranks
from steer_core.runs.folder import RunFolder
from steer_core.training.loop import Trainer


def work(rank: int, port: int, folder: Path, cases: dict[str, list[str]], sums: dict[str, list[str]]) -> None:
    """Train a small run for every case, as `torchrun` would have it: (name, settings), into a folder of its name.

    sums: settings by name with which gradients are only summed; their norms are saved under the name and rank.
    """
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    for name, settings in cases.items():
        run = RunFolder(folder / name, small_config(*settings))
        trainer = Trainer(run.config, run)
        if ranks.is_main():
            run.start()
        ranks.barrier()
        assert trainer.fit()
    for name, settings in sums.items():
        trainer = Trainer(small_config(*settings))
        norms = [norm(trainer, shares[rank]) for shares in ((1.0, 0.0), (1.0, 2**-10))]
        torch.save(norms, folder / f"{name} {rank}.pt")
    dist.destroy_process_group()


def norm(trainer: Trainer, share: float) -> float:
    """The norm of the sum over ranks of `share` times one gradient."""
    logits = trainer.model(torch.ones(1, 4, dtype=torch.long)).logits
    trainer.engine.backward(share * logits.float().sum(), last=True)
    return trainer.engine.step()
