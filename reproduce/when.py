"""When does controlling entropy matter? Every method against the envelope of learning rates, in several settings.

    python reproduce/when.py plateau                      # every stage of a setting; goes on where it was
    python reproduce/when.py plateau --stages envelope    # these stages alone
    python reproduce/when.py --report                     # train nothing; redraw all from the raw rows that are kept
    python reproduce/when.py --quick                      # a slice of each setting in minutes: shows the machinery

The plan is when.yaml; docs/when.md says why each setting, what decides, and what was found. Stages of a setting:

    envelope   GRPO at every learning rate, tuning seeds, full length. The best rate is the reference.
    screening  every method, strength x rate, the first tuning seed, a shorter run.
    tuning     the best cell of the best methods, tuning seeds, full length.
    test       the reference and the best of those, seeds that chose nothing; then 1,000 fresh problems x 128 samples.
    again      the reference once more on other seeds: its own noise.

Interrupted at any moment, the same command goes on. Raw rows of every run go to reproduce/results/when as they come.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from pipeline.pool import final_jobs
from pipeline.rows import keep_rows
from rich.console import Console
from when_plan import PLAN, STAGES, Experiment, quick, stage_plan
from when_report import write_report
from when_rows import rows_path, whole_stage

from steer_core import SteerError
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import cores
from steer_core.common.errors import INTERRUPTED
from steer_core.common.settings import build, read_yaml
from steer_core.compare.runner import refuse_failed, run_comparison, run_jobs, start_comparison

ROOT = Path(__file__).parent.parent


class Stopped(Exception):
    """The runs were asked to stop."""


def make_base(path: Path, arguments: list[str], console: Console) -> None:
    """The base model of a setting, where it is not there yet."""
    if not (path / "config.json").is_file():
        console.print(f"{path}: making the base model (some minutes)", highlight=False)
        script = [sys.executable, str(Path(__file__).with_name("base_model.py"))]
        subprocess.run([*script, "--out", str(path), "--threads", "1", *arguments], check=True)


def run_stage(
    experiment: Experiment, setting: str, stage: str, folder: Path, out: Path, jobs: int, console: Console
) -> None:
    """A stage from where it was to its end; its raw rows are kept whenever it stops."""
    found = experiment.settings[setting]
    if found.base is not None:
        make_base(Path(found.settings["model"]["path"]), found.base, console)
    earlier = {name: whole_stage(out, setting, name) for name in STAGES[: STAGES.index(stage)]}
    plan, place = stage_plan(experiment, setting, stage, earlier), folder / f"{setting}-{stage}"
    console.print(f"{setting}, {stage}: {len(plan.arms)} arms x {len(plan.seeds)} seeds", highlight=False)
    start_comparison(plan, place, resume=True, add_arms=stage == "screening")
    try:
        finished = run_comparison(plan, place, jobs, console)
        if finished and stage in ("test", "again"):
            planned = final_jobs(experiment.final, plan, place)
            refuse_failed(run_jobs(planned, place, jobs, console), planned)
            finished = all(job.result.exists() for job in planned)
    finally:
        keep_rows(place, rows_path(out, setting, stage))
    if not finished:
        raise Stopped


def main() -> int:
    """Run what is not finished yet, then report; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="settings of the plan (default: all)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="run these alone")
    parser.add_argument(
        "--quick", action="store_true", help="short runs of few arms in runs/when-quick; decides nothing"
    )
    parser.add_argument("--report", action="store_true", help="train nothing; redraw figures and tables")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/when, or -quick)")
    parser.add_argument("--results", type=Path, help="folder of the results (default: reproduce/results/when)")
    parser.add_argument(
        "--jobs", type=at_least(1), default=cores(), help="runs at a time (default: the cores, %(default)s)"
    )
    args = parser.parse_args()
    folder = args.out or ROOT / "runs" / ("when-quick" if args.quick else "when")
    out = args.results or (folder / "results" if args.quick else ROOT / "reproduce" / "results" / "when")
    experiment = build(Experiment, read_yaml(PLAN))
    experiment = quick(experiment) if args.quick else experiment
    for name in args.settings:
        if name not in experiment.settings:
            raise SteerError(f"SETTING: {name!r} is no setting; choose from {', '.join(experiment.settings)}")
    console = Console()
    try:
        for setting in [] if args.report else args.settings or experiment.settings:
            for stage in STAGES:
                if stage in args.stages:
                    run_stage(experiment, setting, stage, folder, out, args.jobs, console)
    except Stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    write_report(experiment, out, console)
    return 0


if __name__ == "__main__":
    end(main)
