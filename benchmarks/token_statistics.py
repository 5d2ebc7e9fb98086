"""Time and memory of token statistics from hidden states, beside the bare product of the logits and the peers.

    python benchmarks/token_statistics.py --out benchmarks/results/token_statistics.json
    python benchmarks/token_statistics.py --quick                 # two minutes, small shapes
    python benchmarks/token_statistics.py --device cuda           # adds a 7B model's head in bfloat16

`forward` makes values without a graph, `step` the values and the gradients of the hidden states and the matrix from
sum ln p_a. The unit is one product h W^T in the same dtype: a step needs three of them, and four where the logits
are made again. Every arm's values and gradients are compared with ours first. `values` says what an arm gives: ln p_a,
H, and the two sums of p^2. Memory is what one call adds at its peak, gradients included, each arm in a process of its
own (Linux; on CUDA what torch allocates). Peers are timed as their packages ship them (TRL, verl; Liger and
cut-cross-entropy where they are installed); one that does not run has a row that says why. On a CPU, bfloat16
products may be slow without instructions for them. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import about, added, in_own_process, rounds, show, spread, timed
from rich.console import Console
from rich.table import Table

from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.formulas.linear_stats import linear_token_stats

Tensor = torch.Tensor
Values = tuple[Tensor, Tensor | None]
SHAPES = {"qwen2.5-0.5b": (1024, 896, 151936), "smollm2-135m": (4096, 576, 49152), "embedded": (8192, 128, 100)}
QUICK = {"small": (256, 256, 16384), "embedded": (8192, 128, 100)}
CUDA = {"qwen2.5-7b": (16384, 3584, 152064)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = ("forward", "step")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Nats by which an arm's values may differ from ours: logits in bfloat16 are off by up to a part in 256."""


def product(hidden: Tensor, weight: Tensor, labels: Tensor) -> Values:
    """The logits alone: what every arm needs at least once."""
    logits = hidden @ weight.t()
    return logits[:, 0], None


def ours(hidden: Tensor, weight: Tensor, labels: Tensor, **how: bool) -> Values:
    """This package's."""
    stats = linear_token_stats(hidden, weight, labels, **how)
    return stats.logprob, stats.entropy


def naive(hidden: Tensor, weight: Tensor, labels: Tensor) -> Values:
    """All logits, their log-softmax in float32, and the entropy from it."""
    logp = torch.log_softmax((hidden @ weight.t()).float(), -1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, labels[:, None]).squeeze(-1), entropy


def trl(hidden: Tensor, weight: Tensor, labels: Tensor) -> Values:
    """TRL's two functions on all logits; its trainer takes no gradient of the entropy here either."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits = hidden @ weight.t()
    with torch.no_grad():
        entropy = entropy_from_logits(logits)
    return selective_log_softmax(logits, labels), entropy


def verl(hidden: Tensor, weight: Tensor, labels: Tensor, backend: str = "torch") -> Values:
    """verl's fused layer, in blocks of 512 rows."""
    from verl.utils.experimental import torch_functional

    if backend == "liger" and torch_functional._LIGER_FUSED_LINEAR_SCALED_CROSS_ENTROPY is None:
        raise ImportError("verl finds no such kernel of Liger and would fall back in silence")
    return torch_functional.FusedLinearForPPO(impl_backend=backend)(hidden, weight, labels)


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Values:
    """The log-probabilities within Liger's fused GRPO loss, which has no entropy."""
    from liger_kernel.chunked_loss import fused_linear_ppo as module

    chunk = module._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
    return module._ChunkedSelectiveLogProbFunction.apply(hidden, weight, labels, None, 1.0, chunk), None


def cut_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Values:
    """Apple's loss by token, without an entropy; its kernels run on CUDA, its other form through torch.compile."""
    from cut_cross_entropy import linear_cross_entropy

    how = "cce" if hidden.is_cuda else "torch_compile"
    return -linear_cross_entropy(hidden, weight, labels, reduction="none", impl=how), None


ARMS: dict[str, tuple[Callable[..., Values], str]] = {
    "product": (product, "none"),
    "ours": (ours, "ln p, H, p^2"),
    "ours, without p^2": (partial(ours, sums=False), "ln p, H"),
    "ours, logits kept": (partial(ours, keep_logits=True), "ln p, H, p^2"),
    "naive": (naive, "ln p, H"),
    "TRL": (trl, "ln p, H"),
    "verl": (verl, "ln p, H"),
    "verl, Liger's kernel": (partial(verl, backend="liger"), "ln p, H"),
    "Liger, fused GRPO": (liger, "ln p"),
    "cut-cross-entropy": (cut_cross_entropy, "ln p"),
}


def inputs(shape: tuple[int, int, int], dtype: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a matrix whose logits spread by about 3 nats, and labels."""
    rows, width, size = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(device, DTYPES[dtype])
    weight = (torch.randn(size, width, generator=generator) * (3 / width**0.5)).to(device, DTYPES[dtype])
    return hidden, weight, torch.randint(size, (rows,), generator=generator).to(device)


def run(arm: str, which: str, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Values, tuple[Tensor, ...]]:
    """One call of an arm: its values, and the two gradients of a step."""
    hidden, weight, labels = given
    if which == "forward":
        with torch.no_grad():
            return ARMS[arm][0](hidden, weight, labels), ()
    if arm == "product":  # the three of a step, with any matrix in the place of dL/dz
        logits = hidden @ weight.t()
        return (logits[:, 0], None), (logits @ weight, logits.t() @ hidden)
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    values = ARMS[arm][0](hidden, weight, labels)
    return values, torch.autograd.grad(values[0].sum(), (hidden, weight))


def compared(arm: str, given: tuple[Tensor, Tensor, Tensor], wanted: tuple, dtype: str) -> dict:
    """How far an arm is from ours at most (of gradients: relative to the largest), or why it has no figures."""
    try:
        values, gradients = run(arm, "step", given)
    except Exception as error:  # a peer's own failure is a row of the table
        return {"not_run": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:160]}
    names = ("logprob", "entropy", "hidden_gradient", "weight_gradient")
    off = {}
    for name, found, ours in zip(names, (*values, *gradients), (*wanted[0], *wanted[1]), strict=True):
        if found is not None:
            scale = 1.0 if name in ("logprob", "entropy") else float(ours.detach().abs().max())
            off[name] = float((found.detach().float() - ours.detach().float()).abs().max()) / scale
    beyond = [name for name, value in off.items() if not value <= TOLERANCE[dtype]]
    return {"differs_by": off} | ({"not_run": f"differs from ours in {', '.join(beyond)}"} if beyond else {})


def measured(shape: tuple[int, int, int], dtype: str, args: argparse.Namespace) -> dict:
    """Every arm's row at one shape and dtype."""
    given = inputs(shape, dtype, args.device)
    wanted = run("ours", "step", given)
    rows = {arm: {} if arm == "product" else compared(arm, given, wanted, dtype) for arm in ARMS}
    del wanted
    able = [arm for arm in ARMS if "not_run" not in rows[arm]]
    for arm in able:
        rows[arm]["values"] = ARMS[arm][1]
    for which in PASSES:
        work = {arm: partial(run, arm, which, given) for arm in able}
        unit = {} if which == "forward" else {"one product": partial(run, "product", "forward", given)}
        seconds = rounds(work | unit, args.repeats, f"{dtype} {'x'.join(map(str, shape))} {which}", limit=args.limit)
        one = seconds["one product" if unit else "product"]
        for arm in able:
            rows[arm][which] = {"seconds": spread(seconds[arm]), "over_product": spread(seconds[arm] / one)}
            if args.device == "cuda":
                products = {"forward": 1, "step": 3}[which]
                flops = 2 * products * shape[0] * shape[1] * shape[2]
                rows[arm][which]["share_of_peak"] = flops / float(spread(seconds[arm])["median"]) / peak(dtype)
    if not args.no_memory:
        for arm in able:
            for which in PASSES:
                words = ("--memory-of", arm, which, dtype, args.device, "x".join(map(str, shape)))
                rows[arm][which]["peak_mib"] = round(float(in_own_process(__file__, *words)), 1)
    return rows


def peak(dtype: str, size: int = 8192) -> float:
    """Operations a second of this GPU's best large product."""
    if dtype not in PEAKS:
        a, b = torch.randn(2, size, size, device="cuda", dtype=DTYPES[dtype])
        PEAKS[dtype] = 2 * size**3 / min(timed(lambda: a @ b) for _ in range(10))
    return PEAKS[dtype]


PEAKS: dict[str, float] = {}


def add_memory(arm: str, which: str, dtype: str, device: str, shape: str) -> None:
    """Print the MiB that one call of an arm adds at its peak."""
    tiny = inputs((2, 64, 64), dtype, device)
    run(arm, which, tiny)  # its imports, and what its libraries keep
    given = inputs(tuple(map(int, shape.split("x"))), dtype, device)
    print(added(lambda: run(arm, which, given), device))


def table(result: dict) -> Table:
    """The figures as a table: medians, with the smallest and the largest ratio."""
    columns = ("shape", "dtype", "arm", "values", "pass", "ms", "products (smallest-largest)", "MiB")
    drawn = Table(*columns)
    for shape, by_dtype in result["shapes"].items():
        for dtype, rows in by_dtype.items():
            for arm, row in rows.items():
                if "not_run" in row:
                    drawn.add_row(shape, dtype, arm, row["not_run"])
                for which in PASSES if "not_run" not in row else ():
                    cell = row[which]
                    ratio, ms = cell["over_product"], cell["seconds"]["median"] * 1000
                    text = f"{ratio['median']:.2f} ({ratio['smallest']:.2f}-{ratio['largest']:.2f})"
                    memory = f"{cell['peak_mib']:.0f}" if "peak_mib" in cell else ""
                    drawn.add_row(shape, dtype, arm, row["values"], which, f"{ms:.1f}", text, memory)
    return drawn


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default %(default)s)")
    parser.add_argument("--shape", action="append", help="a name, or NxDxV; may be repeated (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be repeated (default: both)")
    parser.add_argument("--repeats", type=at_least(1), default=7, help="rounds of each pass (default %(default)s)")
    parser.add_argument(
        "--limit", type=at_least(0, float), default=600, help="seconds after which a pass begins no new round"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, a process for each arm")
    parser.add_argument("--quick", action="store_true", help="small shapes in float32, 3 rounds, no memory")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--memory-of", nargs=5, metavar=("ARM", "PASS", "DTYPE", "DEVICE", "SHAPE"), help="(internal)")
    args = parser.parse_args()
    if args.memory_of:
        return add_memory(*args.memory_of)
    known = SHAPES | QUICK | CUDA
    shapes = QUICK if args.quick else SHAPES | (CUDA if args.device == "cuda" else {})
    if args.shape:
        shapes = {name: known.get(name) or tuple(map(int, name.split("x"))) for name in args.shape}
    if args.quick:
        args.repeats, args.no_memory = min(args.repeats, 3), True
    dtypes = args.dtype or (["float32"] if args.quick else list(DTYPES))
    found: dict = {}
    for name, shape in shapes.items():
        heavy = name in CUDA  # all its logits in float32 are 10 GB, and a step's several times that
        for dtype in ["bfloat16"] if heavy and not args.dtype else dtypes:
            found.setdefault(name, {})[dtype] = measured(shape, dtype, args)
    result = {"shapes": found, "sizes": shapes, "repeats": args.repeats, "environment": about()}
    if PEAKS:
        result["peak_operations_per_second"] = PEAKS
    show(result, args.out)
    Console(width=150).print(table(result))


if __name__ == "__main__":
    end(main)
