"""The command `steer plan CONFIG [key=value ...]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.config.config import Config


def run_plan(args: argparse.Namespace, config: Config, title: str) -> int:
    """Print what a configuration needs, write it where asked; 0 where it fits, 1 where it does not."""
    from rich.console import Console

    from steer_core.planner import tables as tables
    from steer_core.planner.machine import CPU, Machine
    from steer_core.planner.memory import memory
    from steer_core.planner.shapes import shape_of

    asked = {name: getattr(args, name) for name in Machine.__pydantic_fields__ if getattr(args, name, None) is not None}
    machine = build(Machine, {**(CPU if config.model.device == "cpu" else {}), **asked}, "plan")
    shape = shape_of(config.model.path)
    told = tables.plan(config, shape, machine)
    console = Console()
    console = Console(width=max(console.width, tables.COLUMNS))
    console.print(f"{title}: {shape.name}, {shape.parameters / 1e9:.3g} billion parameters", highlight=False)
    need = memory(config, shape, machine)
    console.print(*tables.tables(told, need, machine), sep="\n")
    if need.host:
        console.print(tables.host_line(need), highlight=False)
    console.print("assumed: " + ", ".join(f"{k} {v:g}" for k, v in told["assumptions"].items()), highlight=False)
    console.print(tables.verdict(told, machine), highlight=False)
    if args.json:
        from steer_core.common.files import write_atomically

        try:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(args.json), json.dumps(told, indent=2) + "\n")
        except OSError as error:
            raise SteerError(f"--json: {args.json} cannot be written ({error.strerror}); name another file") from error
    return 0 if told["fits"] else 1
