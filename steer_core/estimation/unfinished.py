"""What an estimate has measured so far, kept in its folder: an estimate that was stopped goes on from there.

    unfinished/settings.json   what is estimated; another estimate does not go on from it
    unfinished/sample.*        the sampled groups with their rewards
    unfinished/mini_batch_*    what every update did to a mini-batch: a table each, and a .json once all are there

Every file is written whole or not at all, and a part's .json holds checksums of all of it: a damaged part is measured
again. The last step of an estimate is to remove the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from steer_core.common.errors import SteerError
from steer_core.common.files import PARTIAL, read_json, sha256, write_atomically, written_whole
from steer_core.ladder.attribution import Attribution
from steer_core.rollout.rollout import Rollout

_TENSORS = ("prompt_ids_BP", "prompt_mask_BP", "response_ids_BT", "response_mask_BT")
_REMEDY = "delete the folder, and begin the estimate again"
_MEASURED_AGAIN = "it is measured again"


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
        self._began = False

    def begin(self, settings: dict[str, Any], resume: bool) -> None:
        """Make the folder, or check that it holds parts of this very estimate.

        settings: all that the numbers follow from, JSON-ready. Raises SteerError where the folder holds parts and
        `resume` is off, or parts of another estimate.
        """
        if self.folder is None:
            return
        path, settings = self.folder / "settings.json", json.loads(json.dumps(settings))
        if not any(not path.name.startswith(PARTIAL) for path in self.folder.glob("*")):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._began = True
            write_atomically(path, json.dumps(settings, indent=1) + "\n")
            return
        if not resume:
            raise SteerError(
                f"--out: {self.folder} is an estimate that was stopped; add --resume, or name another --out"
            )
        kept = read_json(path, "settings of an estimate", _REMEDY)
        other = sorted(name for name in settings if kept.get(name) != settings[name])
        if other:
            raise SteerError(f"--resume: {self.folder} is of an estimate with another {other[0]}; name another --out")

    def sample(self, draw: Callable[[], Sample], device: torch.device) -> Sample:
        """The sampled groups, on a device: those that are kept, or what `draw` gives."""
        if self.folder is None:
            return draw()
        tensors = self.folder / "sample.safetensors"
        about = self._kept("sample")
        if about is not None:
            held = {name: value.to(device) for name, value in load_file(tensors).items()}
            rollout = Rollout(*(held[name] for name in _TENSORS), about["texts"], about["finish_reasons"])
            return Sample(rollout, held["rewards_PG"].cpu(), about["prompts_sampled"])
        for path in self.folder.glob("mini_batch_*"):  # of a sample that is lost
            path.unlink()
        drawn = draw()
        held = {name: getattr(drawn.rollout, name).cpu().contiguous() for name in _TENSORS}
        with written_whole(tensors) as partial:
            save_file(held | {"rewards_PG": drawn.rewards_PG.cpu()}, partial)
        told = {name: getattr(drawn.rollout, name) for name in ("texts", "finish_reasons")}
        self._keep("sample", told | {"prompts_sampled": drawn.prompts_sampled}, [tensors])
        return drawn

    def mini_batch(self, first: int, measure: Callable[[], dict[str, Attribution]]) -> dict[str, Attribution]:
        """What every update did to the mini-batch that begins with a group: as kept, or as `measure` finds."""
        if self.folder is None:
            return measure()
        name = f"mini_batch_{first:06d}"
        about = self._kept(name)
        if about is not None:
            return {
                update: Attribution(pd.read_parquet(self._table(name, i)), numbers["totals"], numbers["seconds"])
                for i, (update, numbers) in enumerate(about.items())
            }
        results = measure()
        tables = [self._table(name, i) for i in range(len(results))]
        for table, result in zip(tables, results.values(), strict=True):
            with written_whole(table) as partial:
                result.tokens.to_parquet(partial)
        numbers = {update: {"totals": one.totals, "seconds": one.seconds} for update, one in results.items()}
        self._keep(name, numbers, tables)
        return results

    def finish(self) -> None:
        """Remove what was kept of this estimate: it is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder)

    def give_up(self) -> None:
        """Remove what was kept by this very process, for an estimate that can never be; what was there before stays."""
        if self._began:
            self.finish()

    def _keep(self, name: str, about: dict[str, Any], files: list[Path]) -> None:
        """Write the .json of a part, whose files are there, with their checksums and its own."""
        sums = {path.name: sha256(path) for path in files}
        write_atomically(
            self.folder / f"{name}.json", json.dumps({"sha256": [_digest(about), sums], "about": about}) + "\n"
        )

    def _kept(self, name: str) -> dict[str, Any] | None:
        """What `_keep` wrote of a part; None where there is none, or where it is damaged, which is told."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        try:
            held = read_json(path, "part of an estimate", _MEASURED_AGAIN)
        except SteerError as error:
            print(f"warning: {error}", file=sys.stderr)
            return None
        about, found = held.get("about"), held.get("sha256")
        if isinstance(found, list) and len(found) == 2 and found[0] == _digest(about) and isinstance(found[1], dict):
            files = {self.folder / file: digest for file, digest in found[1].items()}
            if all(file.is_file() and sha256(file) == digest for file, digest in files.items()):
                return about
        print(f"warning: part of an estimate {path}: does not match its checksums; {_MEASURED_AGAIN}", file=sys.stderr)
        return None

    def _table(self, name: str, update: int) -> Path:
        return self.folder / f"{name}_{update}.parquet"


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
