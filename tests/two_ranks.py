"""What one of two data-parallel processes does, for `test_invariance.py`; no test of its own."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from scenario import equip, lengths_by_problem, micro_batches, outcome, trainer_of

from steer_core.common import ranks, reductions
from steer_core.common.errors import SteerError
from steer_core.config.sections import RolloutConfig
from steer_core.rollout.vllm import _tensor_parallel_group
from steer_core.runs.folder import RunFolder

LEVELS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.999, 1.0)
_SPREAD = torch.randn(301, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VALUES = torch.cat([_SPREAD * 10.0 ** torch.arange(-150, 151).div(20), torch.zeros(20), torch.full((9,), -0.25)])
"""Of both signs and of all sizes, some of them equal."""
ROWS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def reduced(values: torch.Tensor) -> dict[str, object]:
    """Every reduction of values of which this rank holds some."""
    whole = {"mean": reductions.mean(values), "total": reductions.total(values)}
    return whole | {str(kind): reductions.quantiles(values.to(kind), LEVELS) for kind in (torch.float32, torch.float64)}


def refusal(rank: int) -> str:
    """What a rank hears where the first one finds something wrong."""
    try:
        ranks.broadcast_from_main(lambda: RunFolder.open(f"rank{rank}"))
    except SteerError as error:
        return str(error)
    return "nothing"


def work(rank: int, folder: Path, cases: list[tuple[str, str, dict, list[list[int]]]]) -> None:
    """Take the step of every case with this rank's micro-batches of two sequences, and save what came of it.

    cases: (key, method, settings, micro-batches of each rank). What each function of `ranks` gives is
    saved too; it returns nothing.
    """
    torch.set_num_threads(1)
    place = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    mine = ROWS[:1] if rank == 0 else ROWS[1:]
    gathered, added = ranks.all_gather_rows(mine), torch.tensor([1.0, 10.0]) * (rank + 1)
    ranks.all_reduce_sum_(added)
    results = {
        "ranks": {
            "count": ranks.world_size(),
            "total": ranks.all_reduce_sum(3 + rank),
            "added": added,
            "gathered": gathered,
            "own": ranks.local_rows(gathered, mine),
            "gathered_none": ranks.all_gather_rows(mine[: rank * 2]),
            "reduced": reduced(VALUES[:17] if rank == 0 else VALUES[17:]),
            "reduced of one alone": reduced(VALUES if rank == 1 else VALUES[:0]),
            "of first": ranks.broadcast_from_main(lambda: {"path": folder / str(rank)}),
            "refused": refusal(rank),
            "shared": _tensor_parallel_group(RolloutConfig(engine="vllm", tensor_parallel=2)).share([10 + rank, 20]),
            "kept": _tensor_parallel_group(RolloutConfig(engine="vllm", tensor_parallel=2)).own(["a", "b"], 1),
        }
    }
    trainer = trainer_of(folder / f"rank{rank}", "rollout.draws=prompt")
    results["sampled"] = lengths_by_problem(trainer)
    data = torch.load(folder / "data.pt", weights_only=False)
    parts = micro_batches(trainer, data, 2)
    for key, name, settings, share in cases:
        equip(trainer, name, **settings)
        results[key] = outcome(trainer, [parts[i] for i in share[rank]])
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
