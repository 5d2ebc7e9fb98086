"""What the strict and the release grader say of right and wrong answers to every problem of the real files.

    python reproduce/graders.py            all files, about 20 minutes of two cores
    python reproduce/graders.py --quick    200 ground truths a file

Every ground truth is written as a boxed answer, which has to be right, and made into ten kinds of wrong answer
(wrong_answers.py), which must not be. For the agreement of the two graders, the truth and its neighbour are also
written behind "Answer:" and without any mark. Equal ground truths of a file are judged once and counted for every
problem that has them. Prints and writes results/graders.md; every exception is in results/graders.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from wrong_answers import KINDS, boxed, core, neighbour, wrong_answer

from steer_core.cli.ending import end
from steer_core.common.environment import environment
from steer_core.common.files import write_atomically
from steer_core.problems.sets import data_folder, facts_of, names, read_release
from steer_core.rewards.answers import final_answer
from steer_core.rewards.base import Verdict
from steer_core.rewards.maths import MathsGrader
from steer_core.rewards.release import ReleaseGrader
from steer_core.rewards.workers import WorkerPool

RESULTS = Path(__file__).parent / "results"
QUICK, THROUGHPUT = 200, 100
SHOWN = 80
"""Characters of a problem's own text that an exception shows."""
FORMS: dict[str, Callable[[str], str]] = {
    "boxed": boxed,
    "Answer:": "We are done.\nAnswer: {}".format,
    "no mark": "We are done, and so it comes to {}".format,
}
GRADERS = (MathsGrader, ReleaseGrader)
Pairs = list[tuple[str, str]]


def truths_of(name: str) -> Counter[str]:
    """How many distinct prompts of a file have each ground truth; one with two in two rows counts for both."""
    rows = {(json.dumps(messages), truth) for messages, truth in read_release(name).rows if truth}
    return Counter(truth for _, truth in sorted(rows))


def responses_to(truths: list[str]) -> dict[str, Pairs]:
    """By what they are: (truth, response) for each ground truth that such a response can be made of."""
    made = {f"right, {form}": [(truth, write(truth)) for truth in truths] for form, write in FORMS.items()}
    for kind in KINDS:
        pairs = [(truth, wrong_answer(kind, truth)) for truth in truths]
        made[f"wrong, {kind}"] = [(truth, response) for truth, response in pairs if response is not None]
    for form in ("Answer:", "no mark"):
        near = [(truth, neighbour(core(truth))) for truth in truths]
        made[f"wrong, off by one, {form}"] = [(truth, FORMS[form](other)) for truth, other in near if other]
    return made


def judged(pairs: Pairs) -> list[list[Verdict]]:
    """The verdicts of each grader on (truth, response) pairs."""
    truths, responses = [truth for truth, _ in pairs], [response for _, response in pairs]
    return [grader().grade(truths, responses) for grader in GRADERS]


def measure_file(name: str, truths: Counter[str]) -> dict:
    """Counts of problems by response kind and verdicts, and the strict grader's exceptions."""
    counts, exceptions, status = {}, [], Counter()
    for kind, pairs in responses_to(list(truths)).items():
        counts[kind] = Counter()
        for (truth, response), strict, release in zip(pairs, *judged(pairs), strict=True):
            counts[kind][f"{strict.correct:d}{release.correct:d}"] += truths[truth]
            status[strict.status] += 1
            expected = kind == "right, boxed" or (kind.startswith("wrong") and "mark" not in kind)
            if expected and strict.correct != kind.startswith("right"):
                reason = reason_of(kind, truth, response, strict)
                shown = {"truth": truth[:SHOWN], "response": response[:SHOWN], "problems": truths[truth]}
                exceptions.append({"file": name, "kind": kind, "verdict": strict.status, "reason": reason, **shown})
    return {
        "problems": truths.total(),
        "ground_truths": len(truths),
        "counts": {kind: dict(sorted(found.items())) for kind, found in counts.items()},
        "strict_statuses": dict(status),
        "exceptions": exceptions,
    }


def reason_of(kind: str, truth: str, response: str, verdict: Verdict) -> str:
    """Why the strict grader calls a right answer wrong, or a wrong one right."""
    if verdict.status in ("timed out", "crashed"):
        return f"judging {verdict.status}: {verdict.detail}"
    if "\\binom" in truth and kind != "right, boxed":
        return "it is right: k and n - k give one binomial coefficient"
    if kind == "right, boxed" and final_answer(response) != truth.strip():
        return "its braces do not pair, so no box can hold it"
    return "not explained"


def throughput(truths: list[str]) -> dict[str, float]:
    """Grades that one worker does in a second of processor time, its start included, on right and wrong boxed answers.

    Processor time, because this machine may do other work.
    """
    pairs = [(truth, boxed(answer)) for truth in truths for answer in (truth, neighbour(truth) or "0")]
    found = {}
    for grader in GRADERS:
        before = _children_seconds()
        with WorkerPool(f"{grader.__module__}:judge", workers=1) as pool:
            grader(pool=pool).grade([truth for truth, _ in pairs], [response for _, response in pairs])
        found[grader.name] = len(pairs) / (_children_seconds() - before)
    return found


def _children_seconds() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def share(counts: dict[str, int], index: int, right: bool) -> str:
    """The share of problems that one grader judges as it should, to be read as 100 only where all are."""
    total = sum(counts.values())
    good = sum(n for verdict, n in counts.items() if (verdict[index] == "1") == right)
    return "" if not total else "100" if good == total else f"{100 * good / total:.2f} ({total - good})"


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def rates(files: dict[str, dict], index: int) -> str:
    """Right answers accepted and wrong ones rejected by one grader: % of problems, and how many are not."""
    kinds = [kind for kind in next(iter(files.values()))["counts"] if kind.startswith("wrong") and kind.count(",") == 1]
    header = ["file", "problems", "ground truths", "right, boxed", *[kind.removeprefix("wrong, ") for kind in kinds]]
    rows = []
    for name, file in files.items():
        cells = [share(file["counts"]["right, boxed"], index, True)]
        cells += [share(file["counts"][kind], index, False) for kind in kinds]
        rows.append([name, f"{file['problems']:,}", f"{file['ground_truths']:,}", *cells])
    return table(header, rows)


def agreement(files: dict[str, dict]) -> str:
    """Over all files, by form or kind: % of problems that both graders call right, only one does, and neither."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for file in files.values():
        for kind, counts in file["counts"].items():
            totals[kind].update(counts)
    rows = []
    for kind, counts in totals.items():
        cells = [f"{100 * counts[verdict] / counts.total():.2f}" for verdict in ("11", "10", "01", "00")]
        rows.append([kind, f"{counts.total():,}", *cells])
    return table(["answers", "responses", "both right", "only strict", "only release", "neither"], rows)


def report(result: dict) -> str:
    """results/graders.md."""
    files = result["files"]
    speed = result["throughput"]
    exceptions = [exception for file in files.values() for exception in file["exceptions"]]
    groups = Counter((e["file"], e["kind"], e["reason"]) for e in exceptions)
    listed = [[*key, count] for key, count in groups.items()]
    made = result["environment"]
    sample = f"{QUICK} ground truths a file. " if result["quick"] else ""
    return (
        f"# The strict and the release grader on the real files\n\n`{made['command']}`, {made['date'][:10]}, "
        f"{made['cores']} cores of an {made['processor']}. {sample}"
        "Cells are % of problems judged as they should be, with the number that are not.\n\n"
        f"## Strict\n\n{rates(files, 0)}\n## Release (evaluation)\n\n{rates(files, 1)}\n"
        f"## Agreement, all files\n\n{agreement(files)}\n"
        f"## The strict grader's exceptions\n\n{_listing(listed)}\n"
        f"## Throughput\n\nIn a second of processor time a worker judges {speed['strict']:.0f} answers by the strict "
        f"grader and {speed['release']:.0f} by the release's (right and wrong, of {THROUGHPUT} ground truths a file; "
        f"{made['processor']}).\n"
    )


def _listing(rows: list[list]) -> str:
    return table(["file", "answers", "reason", "ground truths"], rows) if rows else "There are none.\n"


def main() -> None:
    """Judge everything, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} ground truths a file")
    quick = parser.parse_args().quick
    files, sampled = {}, []
    for name in (name for name in names() if facts_of(name).grader == "maths"):
        folder = data_folder()
        if folder is None or not (folder / facts_of(name).file).exists():
            print(f"{name}: its file is not there")
            continue
        truths = truths_of(name)
        if quick and len(truths) > QUICK:
            truths = Counter({truth: truths[truth] for truth in random.Random(0).sample(sorted(truths), QUICK)})
        sampled += random.Random(0).sample(sorted(truths), min(THROUGHPUT, len(truths)))
        files[name] = measure_file(name, truths)
        print(f"{name}: {len(truths)} ground truths, {len(files[name]['exceptions'])} exceptions", flush=True)
    result = {
        "environment": environment() | {"command": "python reproduce/graders.py" + " --quick" * quick},
        "quick": quick,
        "throughput": throughput(sampled),
        "files": files,
    }
    suffix = "_quick" if quick else ""
    write_atomically(RESULTS / f"graders{suffix}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(RESULTS / f"graders{suffix}.md", report(result))
    print(report(result))


if __name__ == "__main__":
    end(main)
