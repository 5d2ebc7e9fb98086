"""The options of the `steer` command, and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from steer_core.common.environment import cores
from steer_core.common.places import CONFIGS, PLANS, SCALES
from steer_core.common.settings import describe
from steer_core.config.config import Config
from steer_core.config.sections import BenchmarkConfig
from steer_core.interventions import METHODS, catalogue, method
from steer_core.planner.machine import Machine


class _Command(argparse.ArgumentParser):
    """A command's parser; an epilog that is a function is called when help is asked for, and not before."""

    def format_help(self) -> str:
        if callable(self.epilog):
            self.epilog = self.epilog()
        return super().format_help()


def _settings_help() -> str:
    """Every setting of a run, and of every intervention."""

    text = ["settings (section.key=value), with their defaults:", *_lines(describe(Config))]
    for name, meaning, _ in catalogue():
        own = [row for row in describe(method(name), "intervention.") if row[0] != "intervention.name"]
        text += [f"\nwith intervention.name={name}: {meaning}", *_lines(own)]
    return "\n".join(text)


def _lines(rows: list) -> list[str]:
    return [f"  {key}={'' if value is None else value}\n      {meaning}" for key, value, meaning in rows]


def parser_of(functions: dict[str, Callable]) -> argparse.ArgumentParser:
    """The parser of the commands that `functions` carry out, by name; their docstrings are the help."""
    parser = argparse.ArgumentParser(
        prog="steer",
        description="Understand, control and reproduce entropy dynamics in RLVR (STEER, arXiv 2510.10150).",
        epilog="`steer COMMAND --help` tells a command's options; docs and numbers: README.md.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    configs, plans = ", ".join(shipped()), ", ".join(sorted(path.stem for path in PLANS.glob("*.yaml")))

    def add(name: str, epilog: str = "", settings: bool = False) -> argparse.ArgumentParser:
        function = functions[name]
        command = commands.add_parser(
            name,
            help=function.__doc__.rstrip("."),
            description=function.__doc__,
            epilog=(lambda: "\n\n".join([epilog] * bool(epilog) + [_settings_help()])) if settings else epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        return command

    command = add(
        "compare",
        f"shipped plans: {plans}\n\nexamples:\n  steer compare --out runs/compare\n"
        f"  steer compare --quick --out runs/sgd optimizer.name=sgd optimizer.learning_rate=0.1\n"
        "  steer compare --methods stare kl-cov --out runs/others",
        settings=True,
    )
    command.add_argument(
        "settings",
        nargs="*",
        metavar="PLAN key=value",
        help="a plan's YAML file or shipped name (default: compare), then settings for all arms",
    )
    command.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="folder of the comparison (default: %(default)s)"
    )
    command.add_argument("--seeds", type=int, nargs="+", help="replace the plan's seeds")
    command.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"compare these with GRPO, at their defaults, in place of the plan's arms: {', '.join(METHODS)}, "
        "or module:Class for your own",
    )
    command.add_argument(
        "--quick", action="store_true", help="the shipped plan `quick`: fewer seeds and rollouts, under 5 minutes"
    )
    command.add_argument("--resume", action="store_true", help="go on with the comparison in --out if there is one")
    command.add_argument(
        "--jobs",
        type=int,
        default=cores(),
        help="runs at a time, one core each (default: %(default)s)",
    )

    command = add("train", f"shipped configurations: {configs}", settings=True)
    command.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG key=value",
        help="a YAML file or shipped name (default: all defaults), then settings",
    )
    command.add_argument("--out", type=Path, help="folder of the run (default: runs/CONFIG)")
    command.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with the run in this folder from its last checkpoint"
    )
    command.add_argument(
        "--auto-resume",
        action="store_true",
        help="begin the run in --out, or go on from its last whole checkpoint: the same command after any end",
    )
    command.add_argument("--no-report", action="store_true", help="write no report.html at the end")
    command.add_argument(
        "--from-step", type=int, metavar="N", help="with --resume: from the checkpoint taken after rollout N"
    )
    _add_scale(command)

    command = add(
        "plan",
        f"shipped configurations: {configs}\n\nexamples:\n  steer plan paper/qwen2.5-math-7b-steer\n"
        "  steer plan paper/qwen2.5-14b-grpo --gpus 8 --peak-tflops 312 --bandwidth 2039 engine.offload=optimizer\n\n"
        "exit status: 0 where the run fits, 1 where it does not",
        settings=True,
    )
    command.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG key=value",
        help="a YAML file or shipped name (default: all defaults), then settings",
    )
    _add_scale(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything to this JSON file too")
    for name, default, meaning in describe(Machine):
        if name != "on_cpu":
            kind = int if isinstance(default, int) else float
            told = "" if default is None else f" (default: {default:g})"
            command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{meaning}{told}".replace("%", "%%"))

    command = add(
        "evaluate",
        "examples:\n  steer evaluate embedded evaluation.problems=50\n"
        "  steer evaluate embedded --benchmarks countdown\n"
        "  steer evaluate models/qwen2.5-math-1.5b --benchmarks aime24 math500 benchmark.style=qwen-boxed "
        "--out runs/qwen\n\nsettings on benchmarks, with their defaults (model.* and task.* as below):\n"
        + "\n".join(_lines(describe(BenchmarkConfig, "benchmark."))),
        settings=True,
    )
    command.add_argument(
        "model", metavar="MODEL", help="`embedded`, a Hugging Face model folder, or a run folder (its last checkpoint)"
    )
    command.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings, for example evaluation.problems=50"
    )
    command.add_argument(
        "--config", type=Path, help="a run's YAML file or shipped name (default: the run's own, or all defaults)"
    )
    command.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        help="`countdown` or benchmarks that `steer data list` names: keeps every response, goes on after a kill",
    )
    command.add_argument(
        "--out",
        type=Path,
        help="write the result to this JSON file too; with --benchmarks, the folder (default: runs/evaluate/MODEL)",
    )
    command.add_argument("--resume", action="store_true", help="with --benchmarks: go on with the evaluation in --out")
    command.add_argument(
        "--published", metavar="NAME", help="with --benchmarks: set this model's published scores beside the result"
    )

    command.add_argument(
        "--accept-changed", action="store_true", help="with --benchmarks: take data files that are not the manifest's"
    )

    command = add("paired")
    command.add_argument("first", type=Path, metavar="A", help="folder of a finished `steer evaluate --benchmarks`")
    command.add_argument("second", type=Path, metavar="B", help="another one; the difference is A minus B")
    command.add_argument("--grader", metavar="NAME", help="whose verdicts to go by (default: the first of each)")

    command = add(
        "estimate",
        "examples:\n  steer estimate embedded --update sgd:0.001 adamw:1e-4 model.dtype=float64\n"
        "  steer estimate runs/one rollout.prompts=32\n"
        "  steer estimate models/smollm2-135m --with-signal --update sgd:0.001 task.name=maths "
        "task.file=gsm8k.parquet",
        settings=True,
    )
    command.add_argument(
        "model",
        metavar="MODEL",
        help="`embedded`, a Hugging Face model folder, or a run folder (its last checkpoint, with its moments)",
    )
    command.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings, for example rollout.prompts=16 model.dtype=float64"
    )
    command.add_argument(
        "--update",
        nargs="+",
        metavar="NAME:ETA",
        help="optimisers and step sizes, each measured from the same policy (default: sgd:0.001 adamw:1e-4)",
    )
    command.add_argument(
        "--with-signal",
        action="store_true",
        help="keep only groups whose rewards differ, sampling on until there are rollout.prompts of them",
    )
    command.add_argument(
        "--config", type=Path, help="a run's YAML file or shipped name (default: the run's own, or all defaults)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("runs/estimate"), help="folder of the results (default: %(default)s)"
    )

    command = add("report")
    command.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a comparison's folder, or run folders to set side by side (the first is the baseline)",
    )
    command.add_argument(
        "--out", type=Path, help="folder to write report.html and figures/ to (default: the folder itself, or ./report)"
    )

    command = add(
        "show",
        "The page needs no server: open it in a browser. Keys 1 to 4 colour the tokens by lambda, Omega (the\n"
        "estimated entropy change), entropy and probability; pointing at a token tells all of them.\n\n"
        "examples:\n  steer show runs/one\n  steer show runs/one --step 1 --step 20",
    )
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a run, with responses in its rollouts/")
    command.add_argument(
        "--step",
        type=int,
        action="append",
        metavar="N",
        help="the rollout to show, more than once for several (default: the last that is there)",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="the page of one step (default: RUN/rollouts/step_00000N.html)"
    )

    command = add("data")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("list", help="the sets, where each would come from, and the prompt styles")
    _add_folder(action)
    told = "what is broken in the released files, and which problems the sets share"
    action = actions.add_parser("audit", help=told, description=f"Tell {told}.")
    action.add_argument("names", nargs="*", metavar="NAME", help="sets to look at (default: those whose file is there)")
    _add_folder(action)
    action.add_argument(
        "--out", type=Path, default=Path("runs/data"), help="folder of data_audit.md and .json (default: %(default)s)"
    )
    action.add_argument(
        "--accept-changed", action="store_true", help="look at files that are not the manifest's too, and say so"
    )

    add("doctor")
    return parser


def shipped() -> list[str]:
    """The shipped configurations by name; those that others extend begin with _, and overlays are no runs."""
    found = (path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml"))
    return sorted(str(name) for name in found if not name.name.startswith("_") and name.parts[0] != SCALES.name)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    scales = sorted(path.stem for path in SCALES.glob("*.yaml"))
    parser.add_argument(
        "--scale",
        choices=scales,
        help="swap model and sizes alone: smoke runs any configuration in about a minute on a CPU",
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of the parquet files (default: STEER_DATA, else ../shared/data beside the checkout)",
    )
