"""A DeepSpeed engine alone makes a process group of one, which other tests' groups would find in their place."""

import os
import sys

import torch


def forget_process_groups() -> None:
    """Destroy torch's groups, and have DeepSpeed, where it was used, forget those that it keeps for the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.pop("LOCAL_RANK", None)
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.utils import groups

        comm.cdb = None
        for name, value in list(vars(groups).items()):
            if name.startswith("_") and name.endswith("_GROUP"):
                setattr(groups, name, {} if isinstance(value, dict) else None)
