"""`steer plan CONFIG key=value ...`"""

from __future__ import annotations

import argparse
import json

from steer_core.cli.shared import path_of, take_config, wide_console, writing, yaml_path
from steer_core.common.places import CONFIGS

_EXAMPLES = """

examples:
  steer plan paper/qwen2.5-math-7b-steer
  steer plan paper/qwen2.5-14b-grpo --gpus 8 --peak-tflops 312 --bandwidth 2039 engine.offload=optimizer

exit status: 0 where the run fits, 1 where it does not"""


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes: a configuration, and the machine."""
    from steer_core.common.settings import describe
    from steer_core.planner.machine import Machine

    parser.usage = "%(prog)s [CONFIG] [key=value ...] [options]"
    take_config(parser)
    parser.epilog += _EXAMPLES
    parser.add_argument("--json", type=path_of, metavar="FILE", help="write everything to this JSON file too")
    for name, default, meaning in describe(Machine):
        if name != "on_cpu":
            kind = int if isinstance(default, int) else float
            told = "" if default is None else f" (default: {default:g})"
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{meaning}{told}".replace("%", "%%"))


def run(args: argparse.Namespace) -> int:
    """Tell whether a run fits its GPUs, how long a step takes and what bounds it, without loading anything."""
    from steer_core.common.files import write_atomically
    from steer_core.common.settings import build
    from steer_core.config.config import load_config
    from steer_core.planner import tables
    from steer_core.planner.machine import CPU, Machine
    from steer_core.planner.memory import memory
    from steer_core.planner.shapes import shape_of

    config = load_config(yaml_path(args.config, CONFIGS), args.settings, args.scale)
    asked = {name: getattr(args, name) for name in Machine.__pydantic_fields__ if getattr(args, name, None) is not None}
    machine = build(Machine, {**(CPU if config.model.device == "cpu" else {}), **asked}, "plan")
    shape = shape_of(config.model.path)
    told, need = tables.plan(config, shape, machine), memory(config, shape, machine)
    console, title = wide_console(tables.COLUMNS), args.config or "all defaults"
    console.print(tables.verdict(told, machine), highlight=False)
    console.print(f"{title}: {shape.name}, {shape.parameters / 1e9:.3g} billion parameters", highlight=False)
    console.print(*tables.tables(told, need, machine), sep="\n")
    if need.host:
        console.print(tables.host_line(need), highlight=False)
    console.print("assumed: " + ", ".join(f"{k} {v:g}" for k, v in told["assumptions"].items()), highlight=False)
    if args.json:
        with writing("--json", args.json):
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.json, json.dumps(told, indent=2) + "\n")
    return 0 if told["fits"] else 1
