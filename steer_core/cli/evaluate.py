"""`steer evaluate MODEL key=value ...`: on a task's held-out problems, or on benchmarks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from steer_core.cli.shared import (
    path_of,
    refuse_unnamed_reward,
    take_settings,
    trained,
    wide_console,
    writing,
    yaml_path,
)
from steer_core.common.errors import SteerError
from steer_core.common.places import CONFIGS

_EXAMPLES = """examples:
  steer evaluate embedded evaluation.problems=50
  steer evaluate embedded --benchmarks countdown
  steer evaluate models/qwen2.5-math-1.5b --benchmarks aime24 math500 benchmark.style=qwen-boxed --out runs/qwen
  steer evaluate models/qwen2.5-math-1.5b --benchmarks mine.jsonl benchmark.samples=8 benchmark.style=prompt.txt

A file of your own holds `question` and `answer` (JSON Lines, JSON or Parquet), or `prompt` and `reward_model` as verl's
data files do; an answer may be the tests of a program. prompt.txt is a text with {question} in it."""
COLUMNS = 132
"""What the tables of benchmarks need."""


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "model", metavar="MODEL", help="`embedded`, a Hugging Face model folder, or a run folder (its last checkpoint)"
    )
    take_settings(parser, benchmarks=True)
    parser.add_argument("--config", help="a run's YAML file or shipped name (default: the run's own, or all defaults)")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        help="`countdown`, benchmarks that `steer data list` names, or files of your own (.parquet, .jsonl, .json, "
        ".csv): keeps every response, goes on after a kill",
    )
    parser.add_argument(
        "--out",
        type=path_of,
        help="write the result to this JSON file too; with --benchmarks, the folder (default: runs/evaluate/MODEL)",
    )
    parser.add_argument("--resume", action="store_true", help="with --benchmarks: go on with the evaluation in --out")
    parser.add_argument(
        "--published", metavar="NAME", help="with --benchmarks: set this model's published scores beside the result"
    )
    parser.add_argument(
        "--accept-changed", action="store_true", help="with --benchmarks: take data files that are not the manifest's"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate a model on held-out problems of a task, or on benchmarks."""
    return _on_benchmarks(args) if args.benchmarks else _on_held_out(args)


def _on_held_out(args: argparse.Namespace) -> int:
    for option in ("resume", "published", "accept_changed"):
        if getattr(args, option):
            raise SteerError(f"--{option.replace('_', '-')}: belongs to --benchmarks; name some, or drop it")
    import torch
    from rich.console import Console

    from steer_core.common.files import write_atomically
    from steer_core.common.seeding import derive_seed
    from steer_core.config.config import load_config
    from steer_core.evaluation.held_out import evaluate
    from steer_core.evaluation.tables import evaluation_table
    from steer_core.policy.model import load_policy
    from steer_core.policy.preflight import check_policy
    from steer_core.policy.tokenizer import check_prompt
    from steer_core.problems import make_task
    from steer_core.rollout.samplers import local_sampler

    folder, run = trained(args.model)
    path = yaml_path(args.config, CONFIGS) or (run.path / "config.yaml" if run else None)
    config = load_config(path, args.settings)
    if run and not args.config:
        refuse_unnamed_reward(config.task, args.settings)
    config = run.located(config) if run else config
    torch.set_num_threads(config.train.threads)
    policy = load_policy(**vars(config.model) | {"path": folder})
    check_policy(policy)
    task, settings = make_task(config.task, policy.tokenizer), config.evaluation
    problems = task.problems(settings.split, settings.problems)
    check_prompt(policy.tokenizer, problems[0].prompt)
    seed = derive_seed(config.train.seed, "evaluation")
    result = evaluate(policy, local_sampler(policy), task, problems, settings, seed)
    title = f"{args.model} on {settings.problems} {settings.split} problems of {task.name}"
    Console().print(evaluation_table(result, title, settings.pass_at))
    if args.out:
        row = {**result.to_dict(settings.pass_at), "model": args.model, "seed": config.train.seed}
        with writing("--out", args.out):
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out, json.dumps(row) + "\n")
    return 0


def _on_benchmarks(args: argparse.Namespace) -> int:
    """Every response is kept, and a kill loses none."""
    if args.config:
        raise SteerError("--config: belongs to a task's held-out problems; give benchmark.key=value settings instead")
    from steer_core.common.settings import apply_overrides, build
    from steer_core.config.config import BenchmarksConfig

    folder, _ = trained(args.model)
    config = build(BenchmarksConfig, apply_overrides({"model": {"path": folder}}, args.settings))
    import torch

    from steer_core.common.progress import Progress
    from steer_core.common.tables import rich_table
    from steer_core.evaluation import tables
    from steer_core.evaluation.problem_sets import evaluate_problem_sets

    torch.set_num_threads(config.benchmark.threads)
    title = Path(args.model).name
    out = args.out or Path("runs/evaluate") / title
    scores = tables.published_scores(args.published)
    with Progress() as progress:

        def show(done: int, total: int, what: str) -> None:
            progress.show(done, total, what, line=f"{done} of {total} responses  {what}".rstrip())

        evaluate_problem_sets(args.benchmarks, config, out, args.resume, show, args.accept_changed)
    summary, console = tables.write_summary(out, title, scores), wide_console(COLUMNS)
    console.print(rich_table(f"{title}, percent", tables.HEAD, tables.lines_of(summary)))
    beside = tables.published_lines(summary, title, scores) if args.published else []
    if args.published and not beside:
        console.print("no published score stands beside: none is of these benchmarks, whole and with unchanged data")
    if beside:
        console.print(rich_table("beside the published numbers, percent", beside[0], beside[1:]))
    console.print(f"written: {out}/responses.parquet, summary.json, table.md", highlight=False, soft_wrap=True)
    return 0
