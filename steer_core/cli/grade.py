"""`steer grade FILE`: kept responses, judged again."""

from __future__ import annotations

import argparse
from pathlib import Path

from steer_core.cli.evaluate import COLUMNS
from steer_core.cli.shared import path_of, wide_console
from steer_core.rewards.base import THINKING

_EXAMPLES = """\
FILE is Parquet, JSON Lines or JSON. Read without further words are:
  responses.parquet of `steer evaluate` (or its folder), a run's rollouts/*.parquet
  verl's generations (prompt, reward_model, responses), its validation dumps (input, output, gts)
  samples of lm-evaluation-harness (doc_id, target, resps), details of lighteval,
    HELM's scenario states
  OpenAI's and vLLM's answers (choices, output, outputs, or messages) beside an answer
  files with a response, or a list of them, and a reference under a usual name
References that are tests of a program are run in a sandbox; others are judged as
mathematics, by the strict grader and as the release does it.

examples:
  steer grade runs/evaluate/embedded
  steer grade samples_gsm8k_2025-01-01.jsonl --out runs/grade/gsm8k
  steer grade mine.jsonl --response model_output --reference doc.answer
  steer grade runs/one/rollouts/step_000010.parquet --benchmark dapo-math-17k
  steer grade batch_output.jsonl --benchmark mine.jsonl    (joined by id or question)"""


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", type=path_of, metavar="FILE", help="responses, or the folder of an evaluation")
    parser.add_argument("--out", type=path_of, help="folder of the verdicts (default: runs/grade/NAME of the file)")
    parser.add_argument("--response", metavar="COLUMN", help="the column of the responses; a.b is b within a")
    parser.add_argument("--reference", metavar="COLUMN", help="the column of the right answer, or of the tests")
    parser.add_argument("--problem", metavar="COLUMN", help="the column that tells problems apart")
    parser.add_argument(
        "--benchmark", metavar="NAME", help="take references from this problem set (or file of one), by id or question"
    )
    parser.add_argument(
        "--sandbox", choices=("bubblewrap", "limits"), default="bubblewrap", help="what programs run in (%(default)s)"
    )
    parser.add_argument(
        "--thinking", choices=THINKING, default="skip", help="skip or read what stands before </think> (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Judge kept responses again, of this or another harness, by every grader of their kind."""
    from steer_core.common.tables import rich_table
    from steer_core.evaluation import tables
    from steer_core.evaluation.foreign import Names
    from steer_core.evaluation.grade import PROBLEMS, grade_file

    title = args.file.name if args.file.is_dir() else args.file.stem
    out = args.out or Path("runs/grade") / title
    names = Names(args.response, args.reference, args.problem)
    differ = grade_file(args.file, out, names, args.benchmark, args.sandbox, args.thinking)
    summary, console = tables.write_summary(out, title, tables.published_scores().iloc[:0]), wide_console(COLUMNS)
    console.print(rich_table(f"{title}, percent", tables.HEAD, tables.lines_of(summary)))
    for grader, count in differ.items():
        console.print(f"{grader}: {count} verdicts differ from those that the file held", highlight=False)
    console.print(f"written: {out}/{tables.RESPONSES}, {PROBLEMS}, summary.json, table.md", highlight=False,
                  soft_wrap=True)  # fmt: skip
    return 0
