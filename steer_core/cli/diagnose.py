"""`steer diagnose DUMP`"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from steer_core.cli.evaluate import COLUMNS
from steer_core.cli.shared import at_least, path_of, wide_console

_SETTINGS = {
    "clip_low": (float, "clip range below 1, where the dump does not tell it"),
    "clip_high": (float, "clip range above 1"),
    "dual_clip": (float, "bound on the ratio where the advantage is negative"),
    "max_tokens": (int, "the most tokens that a response may have"),
    "vocabulary": (int, "how many tokens the model knows"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog = (
        "DUMP is Parquet or JSON Lines, a row a response, a number a token (columns logprob and advantage, and\n"
        "any of old_logprob, entropy, mask, reward, step, ...: docs/diagnose.md), a folder of such files, or the\n"
        "folder of a run of ours. TRL and verl write one with two lines, `train.dump_every=1` here.\n\n"
        "examples:\n  steer diagnose dump.jsonl --out runs/diagnosis\n  steer diagnose runs/one"
    )
    parser.add_argument("dump", type=path_of, metavar="DUMP", help="a dump, a folder of them, or a run's folder")
    parser.add_argument("--out", type=path_of, help="folder of the page (default: runs/diagnose/NAME of the dump)")
    for name, (kind, meaning) in _SETTINGS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=at_least(0, kind), metavar="N" if kind is int else "X", help=meaning)


def run(args: argparse.Namespace) -> int:
    """Tell from a dump of anyone's run which entropy it holds, what moves it, and what to try."""
    from steer_core.common.tables import rich_table
    from steer_core.diagnose import words
    from steer_core.diagnose.diagnosis import diagnose
    from steer_core.diagnose.own_runs import read_any
    from steer_core.diagnose.page import NUMBERS, write_page

    dump = read_any(args.dump)
    given = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    seen = diagnose(replace(dump, settings=dump.settings | given))
    page = write_page(seen, args.out or Path("runs/diagnose") / args.dump.resolve().stem)
    console = wide_console(COLUMNS)
    for text in (*words.sentences(seen), *seen.entropy.says, *words.extra_sentences(seen)):
        console.print(text, highlight=False, markup=False)
    console.print(rich_table("What is found", ("rule", "status", "numbers"), words.finding_lines(seen)))
    for number, one in enumerate(seen.advice, 1):
        console.print(f"{number}. {one.what} {one.evidence}", highlight=False, markup=False)
    if seen.to_decide:
        console.print(f"To decide more: {'; '.join(seen.to_decide)}.", highlight=False, markup=False)
    console.print(f"written: {page}, {NUMBERS}", highlight=False, soft_wrap=True)
    return 0
