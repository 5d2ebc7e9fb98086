r"""Right and wrong answers in twelve everyday forms, made from every ground truth of the real files that a form fits.

    python reproduce/everyday.py            all files, about 8 minutes of one core
    python reproduce/everyday.py --quick    100 ground truths a form

A form writes a ground truth in several ways, all of them right, and other answers in the same ways, all wrong
(everyday_forms.py). Of each, two are drawn for every ground truth, by a fixed seed; ground truths are counted once,
however many problems and files have them. The strict grader judges. Prints and writes results/everyday.md; every
exception is in results/everyday.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from everyday_forms import FORMS
from graders import SHOWN, table, truths_of
from wrong_answers import core

from steer_core.cli.ending import end
from steer_core.common.environment import environment
from steer_core.common.files import write_atomically
from steer_core.problems.sets import data_folder, facts_of, names
from steer_core.rewards.maths import MathsGrader

RESULTS = Path(__file__).parent / "results"
QUICK, LISTED = 100, 60
DRAWN = 2
"""Right and wrong answers that are drawn for a ground truth and a form."""


def real_truths() -> list[str]:
    """Every distinct ground truth of the files that are there."""
    folder = data_folder()
    found: set[str] = set()
    for name in names():
        if facts_of(name).grader == "maths" and folder and (folder / facts_of(name).file).exists():
            found.update(truths_of(name))
    return sorted(found)


def measure_form(name: str, truths: list[str]) -> dict:
    """How many right answers of one form are rejected and how many wrong ones accepted, and which."""
    made = [(truth, kind, response) for truth in truths for kind, response in drawn(name, truth)]
    verdicts = MathsGrader().grade([truth for truth, _, _ in made], [response for _, _, response in made])
    found = {"ground_truths": len(truths), "right": 0, "wrong": 0, "rejected": 0, "accepted": 0}
    exceptions = []
    for (truth, kind, response), verdict in zip(made, verdicts, strict=True):
        found[kind] += 1
        if verdict.correct != (kind == "right"):
            found["rejected" if kind == "right" else "accepted"] += 1
            shown = {"truth": truth[:SHOWN], "response": response[: 2 * SHOWN], "verdict": verdict.status}
            exceptions.append({"form": name, "should be": kind, **shown})
    return {**found, "exceptions": exceptions}


def drawn(name: str, truth: str) -> list[tuple[str, str]]:
    """(right or wrong, response) for some of a form's answers to a ground truth, by a seed of both."""
    answers, draw = FORMS[name](core(truth)), random.Random(f"{name} {truth}")
    both = (("right", answers.right), ("wrong", answers.wrong))
    return [(kind, each) for kind, made in both for each in draw.sample(made, min(DRAWN, len(made)))]


def rates(forms: dict[str, dict]) -> str:
    """The table: for each form and all, right answers that are rejected and wrong ones that are accepted."""
    keys = ("ground_truths", "right", "rejected", "wrong", "accepted")
    whole = {key: sum(form[key] for form in forms.values()) for key in keys}
    rows = []
    for name, form in [*forms.items(), ("all", whole)]:
        shares = [f"{100 * form[bad] / form[of]:.2f} ({form[bad]})" for bad, of in (keys[2:0:-1], keys[4:2:-1])]
        truths, right, wrong = (f"{form[key]:,}" for key in ("ground_truths", "right", "wrong"))
        rows.append([name, truths, right, shares[0], wrong, shares[1]])
    return table(["form", "ground truths", "right answers", "rejected, %", "wrong answers", "accepted, %"], rows)


def report(result: dict) -> str:
    """results/everyday.md."""
    made, exceptions = result["environment"], [each for form in result["forms"].values() for each in form["exceptions"]]
    listed = [[each["form"], each["should be"], _cell(each["truth"]), _cell(each["response"])] for each in exceptions]
    header = ["form", "should be", "ground truth", "response"]
    listing = table(header, listed[:LISTED]) if listed else "There are none.\n"
    more = f"\n{len(listed) - LISTED} more are in everyday.json.\n" if len(listed) > LISTED else ""
    sample = f"{QUICK} ground truths a form. " if result["quick"] else ""
    return (
        f"# Right and wrong answers in twelve everyday forms\n\n`{made['command']}`, {made['date'][:10]}, "
        f"{made['cores']} cores of an {made['processor']}. {sample}Made from every distinct ground truth that a form "
        "fits: of its right and its wrong answers in this form, two each, drawn by a fixed seed.\n\n"
        f"{rates(result['forms'])}\n## The strict grader's exceptions\n\n{listing}{more}"
    )


def _cell(text: str) -> str:
    """Text on one line, as code in a Markdown table."""
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def main() -> None:
    """Judge everything, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} ground truths a form")
    quick = parser.parse_args().quick
    truths = real_truths()
    forms = {}
    for name, form in FORMS.items():
        fitting = [truth for truth in truths if form(core(truth)).right]
        if quick and len(fitting) > QUICK:
            fitting = random.Random(0).sample(fitting, QUICK)
        forms[name] = measure_form(name, fitting)
        print(f"{name}: {len(fitting)} ground truths, {len(forms[name]['exceptions'])} exceptions", flush=True)
    command = {"command": "python reproduce/everyday.py" + " --quick" * quick}
    result = {"environment": environment() | command, "quick": quick, "forms": forms}
    suffix = "_quick" if quick else ""
    write_atomically(RESULTS / f"everyday{suffix}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(RESULTS / f"everyday{suffix}.md", report(result))
    print(report(result), flush=True)


if __name__ == "__main__":
    end(main)
