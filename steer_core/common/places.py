"""Where the package keeps the files that it ships, and by which file a folder of results is known."""

from pathlib import Path

from steer_core.common.errors import SteerError

PACKAGE = Path(__file__).parents[1]
EMBEDDED = PACKAGE / "models" / "countdown"
"""The Countdown model, `model.path=embedded`."""
CONFIGS = PACKAGE / "configs"
"""Configurations of a run, by name."""
SCALES = CONFIGS / "scales"
"""Overlays that swap a configuration's model and sizes and nothing else."""
PLANS = PACKAGE / "plans"
"""Plans of a comparison, by name."""
CHECKOUT = PACKAGE.parent
"""The repository that the package runs from, where it does."""
RUN, COMPARISON, EVALUATION = "config.yaml", "plan.yaml", "evaluation.json"
"""The file by which each folder of results is known."""
_HOLDS = {RUN: "a run", COMPARISON: "a comparison", EVALUATION: "an evaluation"}


def refuse_others(folder: Path, own: str | None) -> None:
    """Raise SteerError where a folder that --out names holds results of another kind, whose files would be lost.

    own: the file by which the results to come are known; None for those known by none.
    """
    for name, kind in _HOLDS.items():
        if name != own and (folder / name).exists():
            raise SteerError(f"--out: {folder} holds {kind}; name another folder")
