"""Sampling by engine, batch and model: response tokens a second, and which engine is the faster.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py --out benchmarks/results/sampling.json

Engines: `native` (this package's own decoding), `huggingface` (`generate`), what else transformers offers (`static`:
`generate` with a cache that is allocated once, not compiled; `continuous`: its continuous batching, on the embedded
model alone) and `vllm` (in this process, as the package sets it for training beside it; on a CPU eager). Batches: 8, 64
and 512 sequences in groups of 8. Models: the embedded one, whose responses end by themselves; a random Qwen2 of 28M
parameters; one of Qwen2.5-0.5B's shape, at 8 sequences alone on a CPU. Random models hardly ever end a response, so
theirs have full length. In every cell the engines take
turns, in another order each round, after one group each that is not counted; a cell that takes long gets fewer rounds,
two at least. Each model runs in a process of its own. An engine that is missing, or that refuses a model, is a row with
the reason. One thread on a CPU. About 8 minutes there; with --quick, which leaves out the largest cells, about 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from measure import about, in_own_process, interval, rounds, show, spread
from training import make_model
from transformers import GenerationConfig

from steer_core import SteerError, load_config, load_policy, make_sampler
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import gpu_name
from steer_core.config.sections import SamplingConfig
from steer_core.planner.shapes import Shape, shape_of
from steer_core.rollout.huggingface import HuggingFaceSampler

ENGINES = ("native", "huggingface", "static", "continuous", "vllm")
OF_TRANSFORMERS = ("huggingface", "static", "continuous")
GROUP = 8
BATCHES = (8, 64, 512)
LIMIT = 30.0
"""Seconds after which a cell begins no further round, once it has two."""
SMALL = Shape("28M", 8, 512, 8, 2, 64, 1536, 8192, 1024, 1, 1)


class Model(NamedTuple):
    """A model to sample from: None for the embedded one; most tokens of a response; the largest batch on a CPU.

    quick: the largest with --quick; 0 leaves the model out.
    """

    shape: str | Shape | None
    tokens: int
    largest: int
    quick: int


MODELS = {
    "embedded": Model(None, 40, 512, 512),
    "28M": Model(SMALL, 16, 512, 64),
    "0.5B": Model("Qwen/Qwen2.5-0.5B", 8, 8, 0),
}


class StaticCache(HuggingFaceSampler):
    """`generate` with a cache that is allocated once."""

    def settings(self, sampling: SamplingConfig) -> GenerationConfig:
        """What `generate` is told."""
        told = super().settings(sampling)
        told.cache_implementation, told.disable_compile = "static", True
        return told


class ContinuousBatching(HuggingFaceSampler):
    """The continuous batching of transformers: responses join and leave the batch one by one."""

    def generate(self, prompts: list[str], responses: int, sampling: SamplingConfig, seed: int) -> SimpleNamespace:
        """Responses, of which only the number of tokens is told."""
        torch.manual_seed(seed)
        encoded = self.policy.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        asked, told = [ids for ids in encoded for _ in range(responses)], self.settings(sampling)
        found = self.policy.model.generate_batch(inputs=asked, generation_config=told, progress_bar=False)
        tokens = sum(len(answer.generated_tokens) for answer in found.values())
        return SimpleNamespace(response_mask_BT=torch.ones(tokens))


def samplers(args: argparse.Namespace, folder: str, longest: int) -> tuple[dict, dict[str, str]]:
    """(sampler and its settings by engine, reason by engine that is not there)."""
    found, missing, policy = {}, {}, None
    for engine in args.engines:
        try:
            config = load_config(
                None,
                [
                    f"model.path={folder}",
                    f"model.device={args.device}",
                    f"model.dtype={args.dtype}",
                    *(["engine.name=deepspeed"] if args.dtype == "bfloat16" else []),  # as bfloat16 is trained
                    f"rollout.engine={'huggingface' if engine in OF_TRANSFORMERS else engine}",
                    *(["rollout.draws=batch"] if engine in OF_TRANSFORMERS else []),  # its own way to draw
                    f"rollout.max_new_tokens={args.tokens or MODELS[args.model].tokens}",
                    "evaluation.max_new_tokens=8",
                ],
            )
            policy = policy or load_policy(**vars(config.model))
            sampler = make_sampler(policy, config, longest)
            if engine == "static":
                sampler = StaticCache(policy)
            if engine == "continuous":
                if args.model != "embedded" or args.device != "cpu":
                    missing[engine] = "on the embedded model and a CPU alone"
                    continue
                sampler = ContinuousBatching(policy)
            found[engine] = sampler, config.rollout
        except SteerError as error:
            missing[engine] = str(error)
    return found, missing


def prompts_of(count: int) -> list[str]:
    """The first prompts of the embedded task: any model here reads them."""
    from steer_core.problems.countdown import Countdown

    return [problem.prompt for problem in Countdown().problems("train", count)]


def measure(args: argparse.Namespace) -> dict:
    """A model's cells: by batch and engine, tokens a second; in every cell the engines take turns."""
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    model, prompts = MODELS[args.model], prompts_of(max(BATCHES) // GROUP)
    with tempfile.TemporaryDirectory() as folder:
        if model.shape is not None:
            shape = model.shape if isinstance(model.shape, Shape) else shape_of(model.shape)
            make_model(shape, Path(folder), getattr(torch, args.dtype))
        path = "embedded" if model.shape is None else folder
        made = shape_of(path)
        found, missing = samplers(args, path, 128)
        cells = {}
        for batch in args.batches:
            if args.device == "cuda" or batch <= (model.quick if args.quick else model.largest):
                cells[str(batch)] = cell(found, prompts[: batch // GROUP], args)
    return {"parameters": made.parameters, "batches": cells, "missing": missing, "gpu": gpu_name()}


def cell(found: dict, prompts: list[str], args: argparse.Namespace) -> dict:
    """Tokens a second of each engine at one batch, and the faster engine with its lead over the next."""
    lengths: dict[str, list[int]] = {engine: [] for engine in found}

    def take(engine: str) -> None:
        sampler, settings = found[engine]
        rollout = sampler.generate(prompts, GROUP, settings, seed=len(lengths[engine]))
        lengths[engine].append(int(rollout.response_mask_BT.sum()))

    for sampler, settings in found.values():
        sampler.generate(prompts[:1], GROUP, settings, seed=0)
    turns = {engine: partial(take, engine) for engine in found}
    times = rounds(turns, args.rounds, f"{args.model}, {len(prompts) * GROUP}", limit=LIMIT)
    speeds = {engine: np.array(lengths[engine]) / seconds for engine, seconds in times.items()}
    order = sorted(speeds, key=lambda engine: -np.median(speeds[engine]))
    return {
        "tokens_a_second": {engine: spread(values) for engine, values in speeds.items()},
        "rounds": len(next(iter(lengths.values()))),
        "response_tokens": {engine: float(np.mean(values)) for engine, values in lengths.items()},
        "faster": order[0],
        "over_the_next": interval(speeds[order[0]] / speeds[order[1]]) if len(order) > 1 else None,
    }


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=5, help="counted turns of each engine (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which models (all)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="which engines (all)")
    parser.add_argument(
        "--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES), help="sequences (all)"
    )
    parser.add_argument("--quick", action="store_true", help="on a CPU, without the cells that take minutes")
    parser.add_argument("--tokens", type=at_least(1), help="most tokens of a response (40, 16, 8 by model)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--model", choices=MODELS, help="only print the figures of one model, on one line")
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args)), flush=True)
        return
    asked = [name for name in args.models if args.device == "cuda" or MODELS[name].quick or not args.quick]
    models = {name: json.loads(in_own_process(__file__, *sys.argv[1:], "--model", name)) for name in asked}
    gpu = max((model.pop("gpu") or "" for model in models.values()), default="") or None
    result = {"models": models, "group": GROUP, "repeats": args.rounds, "environment": about() | {"gpu": gpu}}
    show(result, args.out)


if __name__ == "__main__":
    end(main)
