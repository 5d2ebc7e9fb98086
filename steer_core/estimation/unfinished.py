"""What an estimate has measured so far, kept in its folder: an estimate that was stopped goes on from there.

    unfinished/settings.json   what is estimated; another estimate does not go on from it
    unfinished/sample.*        the sampled groups with their rewards
    unfinished/mini_batch_*    what every update did to a mini-batch: a table each, and a .json once all are there

Every file is written whole or not at all. The last step of an estimate is to remove the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from steer_core.common.errors import SteerError
from steer_core.common.files import read_json, write_atomically, written_whole
from steer_core.ladder.attribution import Attribution
from steer_core.rollout.rollout import Rollout

_TENSORS = ("prompt_ids_BP", "prompt_mask_BP", "response_ids_BT", "response_mask_BT")
_REMEDY = "delete the folder, and begin the estimate again"


@dataclass(frozen=True)
class Sample:
    """Sampled groups with their rewards (prompts, responses), and how many prompts were sampled to get them."""

    rollout: Rollout
    rewards_PG: torch.Tensor
    prompts_sampled: int


class Unfinished:
    """The measured parts of an estimate in the folder `out`; without a folder nothing is kept."""

    def __init__(self, out: Path | None = None) -> None:
        self.folder = None if out is None else out / "unfinished"
        self._own = False

    def begin(self, settings: dict[str, Any], resume: bool) -> None:
        """Make the folder, or check that it holds parts of this very estimate.

        settings: all that the numbers follow from, JSON-ready. Raises SteerError where the folder holds parts and
        `resume` is off, or parts of another estimate.
        """
        if self.folder is None:
            return
        path, settings = self.folder / "settings.json", json.loads(json.dumps(settings))
        self._own = not path.exists()
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(settings, indent=1) + "\n")
            return
        if not resume:
            raise SteerError(
                f"--out: {self.folder} is an estimate that was stopped; add --resume, or name another --out"
            )
        kept = read_json(path, "settings of an estimate", _REMEDY)
        other = sorted(name for name in settings if not isinstance(kept, dict) or kept.get(name) != settings[name])
        if other:
            raise SteerError(f"--resume: {self.folder} is of an estimate with another {other[0]}; name another --out")
        self._own = True

    def sample(self, draw: Callable[[], Sample], device: torch.device) -> Sample:
        """The sampled groups, on a device: those that are kept, or what `draw` gives."""
        if self.folder is None:
            return draw()
        tensors, about = self.folder / "sample.safetensors", self.folder / "sample.json"
        if about.exists():
            kept = read_json(about, "sample of an estimate", _REMEDY)
            held = {name: value.to(device) for name, value in load_file(tensors).items()}
            rollout = Rollout(*(held[name] for name in _TENSORS), kept["texts"], kept["finish_reasons"])
            return Sample(rollout, held["rewards_PG"].cpu(), kept["prompts_sampled"])
        drawn = draw()
        held = {name: getattr(drawn.rollout, name).cpu().contiguous() for name in _TENSORS}
        with written_whole(tensors) as partial:
            save_file(held | {"rewards_PG": drawn.rewards_PG.cpu()}, partial)
        told = {name: getattr(drawn.rollout, name) for name in ("texts", "finish_reasons")}
        write_atomically(about, json.dumps(told | {"prompts_sampled": drawn.prompts_sampled}) + "\n")
        return drawn

    def mini_batch(self, first: int, measure: Callable[[], dict[str, Attribution]]) -> dict[str, Attribution]:
        """What every update did to the mini-batch that begins with a group: as kept, or as `measure` finds."""
        if self.folder is None:
            return measure()
        name = f"mini_batch_{first:06d}"
        about = self.folder / f"{name}.json"
        if about.exists():
            kept = read_json(about, "mini-batch of an estimate", _REMEDY)
            return {
                update: Attribution(pd.read_parquet(self._table(name, i)), numbers["totals"], numbers["seconds"])
                for i, (update, numbers) in enumerate(kept.items())
            }
        results = measure()
        for i, result in enumerate(results.values()):
            with written_whole(self._table(name, i)) as partial:
                result.tokens.to_parquet(partial)
        numbers = {update: {"totals": one.totals, "seconds": one.seconds} for update, one in results.items()}
        write_atomically(about, json.dumps(numbers) + "\n")
        return results

    def finish(self) -> None:
        """Remove what was kept of this estimate: it is written, or can never be. What another one kept stays."""
        if self.folder is not None and self._own:
            shutil.rmtree(self.folder)

    def _table(self, name: str, update: int) -> Path:
        return self.folder / f"{name}_{update}.parquet"
