"""What evaluations found: summary, tables, published numbers beside it, and pairs of evaluations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.stats import binomtest

from steer_core.common.errors import SteerError, nearest, one_line
from steer_core.common.files import json_text, read_json, write_atomically
from steer_core.common.places import CHECKOUT, EVALUATION
from steer_core.common.tables import markdown_table
from steer_core.evaluation.verdicts import read_verdicts
from steer_core.rewards.base import UNJUDGED
from steer_core.stats.intervals import bootstrap_over_problems
from steer_core.stats.pass_at_k import Decision, average, maj_at_k, paired, pass_at_k

if TYPE_CHECKING:
    from rich.table import Table

    from steer_core.evaluation.held_out import Evaluation

RESPONSES, RECORD = "responses.parquet", EVALUATION
"""In the folder of an evaluation on problem sets: one row a response; its settings and where its problems come from."""
PUBLISHED = CHECKOUT / "reproduce" / "published" / "scores.tsv"
"""The paper's scores; part of a checkout, not of an installed package."""


def evaluation_table(result: Evaluation, title: str, ks: tuple[int, ...]) -> Table:
    """An evaluation on held-out problems for a terminal, pass@k with its interval over problems."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95% interval over problems")
    for k in ks:
        interval = bootstrap_over_problems([pass_at_k(result.correct, result.samples, k)])
        table.add_row(f"pass@{k}", f"{interval.mean:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    table.add_row("policy entropy (nats a token)", f"{result.policy_entropy:.3f}", "")
    table.add_row("response length (tokens)", f"{result.length:.1f}", "")
    table.add_row("truncated", f"{result.truncated:.1%}", "")
    return table


def read_responses(folder: Path) -> pd.DataFrame:
    """The graded responses of a finished evaluation, one row each. Raises SteerError where there are none."""
    path = folder / RESPONSES
    if not path.is_file():
        raise SteerError(f"{folder}: holds no {RESPONSES}; give the folder of a finished `steer evaluate --benchmarks`")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise SteerError(f"{path}: is not read ({one_line(error)}); evaluate again") from error
    absent = {"benchmark", "problem", "sample", "finish_reason", "tokens"} - set(frame.columns)
    if absent:
        raise SteerError(f"{path}: lacks the columns {', '.join(sorted(absent))}; evaluate again with this version")
    if frame.empty:
        raise SteerError(f"{path}: holds no response; evaluate again")
    return frame


def read_record(folder: Path) -> dict[str, Any]:
    """What an evaluation began with (`about`, `environment`, `data`). Raises SteerError for a damaged record."""
    remedy = "evaluate again into another folder"
    record = read_json(folder / RECORD, "evaluation", remedy)
    if not all(isinstance(record.get(part), dict) for part in ("about", "environment")):
        raise SteerError(f"evaluation {folder / RECORD}: is no record of an evaluation; {remedy}")
    return record


def noted(name: str, problems: int, data: dict[str, Any]) -> str:
    """A set's name as every table has it: beside it, what keeps its numbers from being those of the set."""
    notes = {"changed": ["changed data"], "unverified": ["unverified data"]}.get(data.get("state", ""), [])
    if problems < data.get("of", 0):
        notes.append(f"first {problems} of {data['of']}")
    return f"{name} ({', '.join(notes)})" if notes else name


def comparable(one: dict[str, Any]) -> bool:
    """Whether published scores may stand beside a set's: it was evaluated whole, on data not known to be others."""
    return one["data"].get("state") != "changed" and one["problems"] >= one["data"].get("of", 0)


def graders_in(frame: pd.DataFrame) -> list[str]:
    """The names of the graders that judged a benchmark's rows, in their order; the first is the one to go by."""
    found = [column.removesuffix("/status") for column in frame.columns if column.endswith("/status")]
    return [name for name in found if frame[f"{name}/status"].notna().all()]


def right(frame: pd.DataFrame, grader: str) -> pd.Series:
    """How many responses to each problem a grader found right, by problem in order of first appearance."""
    return (frame[f"{grader}/status"] == "right").groupby(frame.problem, sort=False).sum()


def samples_of(frame: pd.DataFrame, name: str) -> int:
    """Samples a problem of one benchmark's rows. Raises SteerError where they differ."""
    counts = frame.groupby("problem", sort=False).size()
    if counts.nunique() != 1:
        raise SteerError(f"{name}: has {counts.min()} to {counts.max()} responses a problem; give each as many")
    return int(counts.iloc[0])


def summarise(frame: pd.DataFrame, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """By benchmark, every measure as JSON; errors and intervals are over problems. data: see `noted`, by benchmark."""
    found = {}
    for name, rows in frame.groupby("benchmark", sort=False):
        sizes = rows.groupby("problem", sort=False).size()
        cut, tokens = rows.finish_reason, rows.tokens
        found[name] = {
            "data": (data or {}).get(name, {}),
            "problems": int(rows.problem.nunique()),
            "samples": int(sizes.min()),
            "most_samples": int(sizes.max()),
            "responses": len(rows),
            "truncated": float((cut == "length").mean()) if cut.notna().any() else None,
            "tokens": float(tokens.mean()) if tokens.notna().any() else None,
            "graders": {grader: judged(rows, grader) for grader in graders_in(rows)},
        }
    return found


def judged(rows: pd.DataFrame, grader: str) -> dict[str, Any]:
    """One benchmark by one grader: avg@n with its standard error, pass@k, maj@n, and how often each status came.

    Where problems have different numbers of responses, each counts by its own share of right ones.
    """
    counts, sizes = right(rows, grader), rows.groupby("problem", sort=False).size()
    least = int(sizes.min())
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if k < least] + [least]
    passes = {k: [float(pass_at_k([c], n, k)[0]) for c, n in zip(counts, sizes, strict=True)] for k in ks}
    status = rows[f"{grader}/status"].value_counts().to_dict()
    mean = average(counts, least) if sizes.nunique() == 1 else average(passes[1], 1)
    measures: dict[str, Any] = {
        "avg": asdict(mean),
        "pass": {str(k): asdict(bootstrap_over_problems([values], expanded=True)) for k, values in passes.items()},
        "status": {name: int(count) for name, count in status.items()},
    }
    if rows[f"{grader}/answer"].notna().any() and sizes.max() > 1:
        votes = []
        for _, part in rows.groupby("problem", sort=False):
            answers = [None if pd.isna(answer) else answer for answer in part[f"{grader}/answer"]]
            votes.append(maj_at_k(answers, list(part[f"{grader}/status"] == "right"), len(answers)))
        measures["maj"] = asdict(bootstrap_over_problems([votes], expanded=True))
    return measures


def problem_lines(frame: pd.DataFrame) -> pd.DataFrame:
    """By benchmark, problem and grader: responses, right ones, and the 95% Wilson interval of their share."""
    lines = []
    for (name, problem), rows in frame.groupby(["benchmark", "problem"], sort=False):
        for grader in graders_in(rows):
            count, n = int((rows[f"{grader}/status"] == "right").sum()), len(rows)
            span = binomtest(count, n).proportion_ci(method="wilson")
            lines.append((name, problem, grader, n, count, span.low, span.high))
    return pd.DataFrame(lines, columns=["benchmark", "problem", "grader", "responses", "right", "low", "high"])


def percent(value: dict[str, float], error: bool = False) -> str:
    """`13.8 ± 4.9` of an average with its standard error, `13.8 [4.4, 24.1]` of an interval; in percent.

    Problems that all came out alike tell nothing of how problems spread: no error is shown then.
    """
    if error:
        spread = f" ± {100 * value['error']:.1f}" if value["error"] > 0 else ""
        return f"{100 * value['mean']:.1f}{spread}"
    span = "" if value["low"] != value["low"] else f" [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    return f"{100 * value['mean']:.1f}{span}"


PAIRED_HEAD = ("benchmark", "grader", "problems x samples", "A", "B", "A minus B", "verdict", "same prompts")
HEAD = ("benchmark", "problems x samples", "grader", "avg@n ± SE", "pass@n", "maj@n", "unanswered", "no verdict",
        "truncated", "tokens")  # fmt: skip


def lines_of(summary: dict[str, Any]) -> list[list[str]]:
    """The main table, one row a benchmark and grader; `no verdict`: see `UNJUDGED`."""
    lines = []
    for name, one in summary.items():
        responses, least, most = one["responses"], one["samples"], one["most_samples"]
        for i, (grader, found) in enumerate(one["graders"].items()):
            status, first = found["status"], i == 0
            failed = sum(status.get(name, 0) for name in UNJUDGED)
            lines.append(
                [
                    noted(name, one["problems"], one["data"]) if first else "",
                    f"{one['problems']} x {least}{f' to {most}' if most > least else ''}" if first else "",
                    grader,
                    percent(found["avg"], error=True),
                    percent(found["pass"][str(one["samples"])]) if one["samples"] > 1 else "",
                    percent(found["maj"]) if "maj" in found else "",
                    f"{100 * status.get('unanswered', 0) / responses:.1f}",
                    f"{100 * failed / responses:.1f}",
                    _known(one["truncated"], 100, 1) if first else "",
                    _known(one["tokens"], 1, 0) if first else "",
                ]
            )
    return lines


def _known(value: float | None, scale: int, digits: int) -> str:
    """A number in a cell; a dash where it is not known, as of responses that another harness kept."""
    return "-" if value is None else f"{scale * value:.{digits}f}"


def published_scores(model: str | None = None) -> pd.DataFrame:
    """The paper's scores (columns table, model, method, benchmark, percent), of one model or of all.

    Empty away from a checkout. Raises SteerError for a model that has none.
    """
    if not PUBLISHED.is_file():
        return pd.DataFrame(columns=["table", "model", "method", "benchmark", "percent"])
    scores = pd.read_csv(PUBLISHED, sep="\t", comment="#")
    if model is None:
        return scores
    if model not in set(scores.model):
        raise SteerError(f"--published: {model!r} has no published scores; {nearest(model, scores.model.unique())}")
    return scores[scores.model == model]


def published_lines(summary: dict[str, Any], title: str, scores: pd.DataFrame) -> list[list[str]]:
    """avg@n by benchmark in percent: a head, the rows of this evaluation, and published ones. Empty where none fits.

    A benchmark of which the data are changed, or only some of the problems, is left out; see `comparable`.
    """
    shared = [name for name, one in summary.items() if name in set(scores.benchmark) and comparable(one)]
    if not shared:
        return []
    titles = [noted(name, summary[name]["problems"], summary[name]["data"]) for name in shared]
    lines = [["model", "method", "source", *titles]]
    for grader in summary[shared[0]]["graders"]:
        cells = [summary[name]["graders"].get(grader) for name in shared]
        told = [percent(found["avg"], error=True) if found else "" for found in cells]
        lines.append([title, f"graded by {grader}", "this evaluation", *told])
    scores = scores[scores.benchmark.isin(shared)]
    for (table, name, method), rows in scores.groupby(["table", "model", "method"], sort=False):
        known = dict(zip(rows.benchmark, rows.percent, strict=True))
        lines.append([name, method, f"paper, {table}", *(f"{known[n]:.1f}" if n in known else "" for n in shared)])
    return lines


def write_summary(folder: Path, title: str, scores: pd.DataFrame) -> dict[str, Any]:
    """Write summary.json and table.md beside the responses of a finished evaluation, and return the summary.

    scores: the published ones to set beside it.
    """
    about = read_record(folder)
    summary = summarise(read_responses(folder), about.get("data"))
    text = f"# {title}\n\nPercent; standard errors and 95% intervals over problems.\n\n"
    text += markdown_table(HEAD, lines_of(summary)) + "\n"
    passes = [
        [noted(name, one["problems"], one["data"]), grader, k, percent(value)]
        for name, one in summary.items()
        for grader, found in one["graders"].items()
        for k, value in found["pass"].items()
    ]
    text += f"\n## pass@k\n\n{markdown_table(('benchmark', 'grader', 'k', 'pass@k'), passes)}\n"
    beside = published_lines(summary, title, scores)
    if beside:
        text += f"\n## Beside the published numbers\n\n{markdown_table(beside[0], beside[1:])}\n"
    env = about["environment"]
    text += f"\n`{env['command']}`, {env['date'][:10]}, {env['cores']} cores of an {env['processor']}.\n"
    try:
        write_atomically(folder / "summary.json", json_text({**about, "benchmarks": summary}, indent=1))
        write_atomically(folder / "table.md", text)
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); make room, then --resume") from error
    return summary


def paired_evaluations(
    first: Path, second: Path, grader: str | None = None, problem: str | None = None, correct: str | None = None
) -> dict[str, dict[str, Any]]:
    """By benchmark both were given: the first evaluation minus the second in avg@n, paired by problem.

    Each is the folder of an evaluation or anyone's file; problem, correct: the columns of files (see `read_verdicts`).

    Raises SteerError where they share no benchmark, where the problems or answers of a shared one differ, and for a
    grader that did not judge it.
    """
    data = [read_record(folder).get("data", {}) if (folder / RECORD).exists() else {} for folder in (first, second)]
    read = (
        read_responses(path) if path.is_dir() else read_verdicts(path, problem, correct) for path in (first, second)
    )
    frames = [dict(list(frame.groupby("benchmark", sort=False))) for frame in read]
    shared = [name for name in frames[0] if name in frames[1]]
    if not shared:
        raise SteerError(
            f"{second}: shares no benchmark with {first}; evaluate both on the same, or grade by it (--benchmark)"
        )
    found = {}
    for name in shared:
        pair = [frame[name] for frame in frames]
        prompts = [rows.drop_duplicates("problem").set_index("problem").prompt for rows in pair]
        if set(prompts[0].index) != set(prompts[1].index):
            raise SteerError(f"{second}: was given other problems of {name} than {first}; evaluate both on the same")
        answers = [rows.drop_duplicates("problem").set_index("problem").reference for rows in pair]
        if not (answers[0] == answers[1].loc[answers[0].index]).all():
            raise SteerError(
                f"{second}: judges {name} by other answers than {first}; grade both by the same (--benchmark)"
            )
        known = [one for one in graders_in(pair[0]) if one in graders_in(pair[1])]
        if not known:
            both = " and ".join(", ".join(graders_in(rows)) or "nobody" for rows in pair)
            raise SteerError(
                f"--grader: {name} was judged by {both}, none of them in both; grade both by `steer grade`"
            )
        chosen = grader or known[0]
        if chosen not in known:
            raise SteerError(f"--grader: {grader!r} did not judge {name} in both; {nearest(str(grader), known)}")
        counts = [right(rows, chosen) for rows in pair]
        samples = [samples_of(rows, name) for rows in pair]
        decision = paired(counts[0], counts[1].loc[counts[0].index], *samples)
        means = [float((c / n).mean()) for c, n in zip(counts, samples, strict=True)]
        told_of = all((one != "").all() for one in prompts)
        alike = bool((prompts[0] == prompts[1].loc[prompts[0].index]).all()) if told_of else None
        told = next((one[name] for one in data if one.get(name, {}).get("state") == "changed"), data[0].get(name, {}))
        found[name] = {"grader": chosen, "problems": len(counts[0]), "samples": samples, "means": means,
                       "decision": decision, "same_prompts": alike, "data": told}  # fmt: skip
    return found


def paired_lines(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row a benchmark: both means, the difference, and what would decide it."""
    return [
        [noted(name, one["problems"], one["data"]), one["grader"],
         f"{one['problems']} x {' and '.join(map(str, dict.fromkeys(one['samples'])))}",
         *(f"{100 * mean:.1f}" for mean in one["means"]), percent(asdict(one["decision"].difference)),
         verdict(one["decision"]), {True: "yes", False: "NO", None: "not told"}[one["same_prompts"]]]
        for name, one in found.items()
    ]  # fmt: skip


def verdict(decision: Decision) -> str:
    """`higher`, `lower`, or what it would take to decide a difference of this size."""
    if decision.difference.verdict != "undecided":
        return decision.difference.verdict
    problems = f"{decision.problems} problems" if decision.problems else "more problems"
    samples = f"or {decision.samples} samples each" if decision.samples else "no number of samples alone"
    return f"undecided; would take {problems}, {samples}" if decision.difference.mean else "undecided; no difference"
