r"""Right and wrong answers in twelve everyday forms, made from every ground truth of the real files that a form fits.

    python reproduce/everyday.py            all files, about 10 minutes of two cores
    python reproduce/everyday.py --quick    100 ground truths a form

A form writes a ground truth in several ways, all of them right, and other answers in the same ways, all wrong
(everyday_forms.py). Ground truths are counted once, however many problems and files have them. Prints and writes
results/everyday.md; every exception is in results/everyday.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from everyday_forms import FORMS
from graders import GRADERS, SHOWN, table, truths_of
from wrong_answers import core

from steer_core.common.environment import environment
from steer_core.common.files import write_atomically
from steer_core.problems.sets import data_folder, facts_of, names

RESULTS = Path(__file__).parent / "results"
QUICK, LISTED = 100, 60


def real_truths() -> list[str]:
    """Every distinct ground truth of the files that are there."""
    folder = data_folder()
    found: set[str] = set()
    for name in names():
        if facts_of(name).grader == "maths" and folder and (folder / facts_of(name).file).exists():
            found.update(truths_of(name))
    return sorted(found)


def measure_form(name: str, truths: list[str]) -> dict:
    """Counts of right and wrong answers in one form by both graders' verdicts, and the strict grader's exceptions."""
    made = [(truth, FORMS[name](core(truth))) for truth in truths]
    pairs = [
        (truth, response, right)
        for truth, answers in made
        for right, responses in ((True, answers.right), (False, answers.wrong))
        for response in responses
    ]
    verdicts = [grader().grade([pair[0] for pair in pairs], [pair[1] for pair in pairs]) for grader in GRADERS]
    counts: dict[str, Counter[str]] = {"right": Counter(), "wrong": Counter()}
    exceptions = []
    for (truth, response, right), strict, release in zip(pairs, *verdicts, strict=True):
        counts["right" if right else "wrong"][f"{strict.correct:d}{release.correct:d}"] += 1
        if strict.correct != right:
            shown = {"truth": truth[:SHOWN], "response": response[: 2 * SHOWN], "verdict": strict.status}
            exceptions.append({"form": name, "should be": "right" if right else "wrong", **shown})
    return {
        "ground_truths": sum(bool(answers.right) for _, answers in made),
        "counts": {kind: dict(sorted(found.items())) for kind, found in counts.items()},
        "exceptions": exceptions,
    }


def rate(counts: dict[str, int], grader: int, called_right: bool) -> str:
    """The % of answers that one grader calls right or not right, with how many there are of them."""
    total, found = sum(counts.values()), sum(n for key, n in counts.items() if (key[grader] == "1") == called_right)
    return f"{100 * found / total:.2f} ({found})" if total else ""


def rates(forms: dict[str, dict]) -> str:
    """The table: for each form, right answers that a grader rejects and wrong ones that it accepts."""
    whole = {"ground_truths": "", "counts": {"right": Counter(), "wrong": Counter()}}
    for form in forms.values():
        for kind, counts in form["counts"].items():
            whole["counts"][kind].update(counts)
    rows = []
    for name, form in [*forms.items(), ("all", whole)]:
        right, wrong = form["counts"]["right"], form["counts"]["wrong"]
        cells = [rate(right, 0, False), rate(wrong, 0, True), rate(right, 1, False), rate(wrong, 1, True)]
        rows.append([name, form["ground_truths"], sum(right.values()), sum(wrong.values()), *cells])
    header = ["form", "ground truths", "right", "wrong", "strict rejects right", "strict accepts wrong"]
    return table([*header, "release rejects right", "release accepts wrong"], rows)


def report(result: dict) -> str:
    """results/everyday.md."""
    made, exceptions = result["environment"], [each for form in result["forms"].values() for each in form["exceptions"]]
    listed = [
        [each["form"], each["should be"], *(f"`{each[key]}`".replace("|", "\\|") for key in ("truth", "response"))]
        for each in [{**each, **{key: " ".join(each[key].split()) for key in ("truth", "response")}} for each in exceptions]
    ]
    listing = table(["form", "should be", "ground truth", "response"], listed[:LISTED]) if listed else "There are none.\n"
    more = f"\n{len(listed) - LISTED} more are in everyday.json.\n" if len(listed) > LISTED else ""
    sample = f"{QUICK} ground truths a form. " if result["quick"] else ""
    return (
        f"# Right and wrong answers in twelve everyday forms\n\n`{made['command']}`, {made['date'][:10]}, "
        f"{made['cores']} cores of an {made['processor']}. {sample}Made from every distinct ground truth that a form "
        "fits. Cells are % of answers, with their number.\n\n"
        f"{rates(result['forms'])}\n## The strict grader's exceptions\n\n{listing}{more}"
    )


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
    print(report(result))


if __name__ == "__main__":
    main()
