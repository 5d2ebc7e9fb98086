"""`steer show`: the sampled responses of a rollout as one page, every token coloured by what was computed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError
from steer_core.common.files import write_atomically
from steer_core.common.settings import read_yaml
from steer_core.runs import rollouts
from steer_core.show.page import Heading, render
from steer_core.show.watched import watched_step


def show(run: Path, steps: list[int] | None = None, out: Path | None = None) -> list[Path]:
    """Write the page of each step (default: the last) and return the paths, in the order of the steps.

    A page goes beside its Parquet file unless `out` names one; there it links to the pages of the
    steps before and after it, and those that exist are written again to link back. Raises SteerError
    where the run, a step or its tokens are not there, and where a page cannot be written.
    """
    method = _method(run)
    known = _steps(run)
    chosen = sorted(set(steps or known[-1:]))
    for step in chosen:
        if step not in known:
            raise SteerError(f"--step: {step} is not in {run}; it holds {_ranges(known)}")
    if out is not None and len(chosen) > 1:
        raise SteerError(f"--out: {out} is one page and {len(chosen)} steps are asked for; drop it, or name one --step")
    try:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            _write(run, method, chosen[0], out, {})
            return [out]
        return _write_beside(run, method, chosen)
    except OSError as error:
        told = out or run / "rollouts"
        raise SteerError(f"--out: {told} cannot be written ({error.strerror}); name another file") from error


def _write_beside(run: Path, method: dict[str, Any], chosen: list[int]) -> list[Path]:
    """The pages of these steps in the run's rollouts/, and again those before and after each that exist."""
    pages = sorted({*chosen, *rollouts.steps_in(run, "html")} & set(rollouts.steps_in(run)))
    near = {}
    for i, step in enumerate(pages):
        near[step] = {"previous": pages[i - 1] if i else None, "next": pages[i + 1] if i + 1 < len(pages) else None}
    again = {other for step in chosen for other in near[step].values() if other is not None}
    for step in sorted({*chosen, *again}):
        links = {side: (other, _page(run, other).name) for side, other in near[step].items() if other is not None}
        _write(run, method, step, _page(run, step), links)
    return [_page(run, step) for step in chosen]


def _write(run: Path, method: dict[str, Any], step: int, path: Path, links: dict[str, tuple[int, str]]) -> None:
    name, form = method.get("name", "none"), method.get("form", "paper")
    heading = Heading(str(run), step, name, form, links, watched_step(run, step))
    text = render(rollouts.read(run, step), heading)
    write_atomically(path, text)


def _page(run: Path, step: int) -> Path:
    return rollouts.rollout_path(run, step).with_suffix(".html")


def _method(run: Path) -> dict[str, Any]:
    """The `intervention` section of the run's configuration."""
    if (run / "plan.yaml").is_file() and not (run / "config.yaml").is_file():
        example = next(iter(sorted(run.glob("runs/*/*/config.yaml"))), run / "runs/ARM/seed_0/x").parent
        raise SteerError(f"RUN: {run} is a comparison; give one of its runs, for example {example}")
    if not (run / "config.yaml").is_file():
        raise SteerError(f"RUN: {run} holds no config.yaml; give the folder of a run that was started")
    section = read_yaml(run / "config.yaml").get("intervention", {})
    return section if isinstance(section, dict) else {}


def _steps(run: Path) -> list[int]:
    """The steps whose responses are there. Raises SteerError where there is none, and says why."""
    found = rollouts.steps_in(run)
    if found:
        return found
    older = rollouts.steps_in(run, "jsonl")
    if older:
        raise SteerError(
            f"RUN: {run} keeps its responses as rollouts/step_*.jsonl, as older versions wrote them, without tokens, "
            "lambda or Omega; read those as text, or train again"
        )
    raise SteerError(
        f"RUN: {run} holds no sampled responses; let a rollout finish, with train.logged_responses above 0"
    )


def _ranges(steps: list[int]) -> str:
    """Steps in words: `steps 1 to 4, 8`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"step{'s' if len(steps) > 1 else ''} {told}"
