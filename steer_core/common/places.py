"""Where the package keeps the files that it ships."""

from pathlib import Path

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
