"""From papers to settings: which paper is which name here, and which settings it has.

    python reproduce/papers.py

Writes docs/papers.md from what the package itself says: the docstrings of methods, advantages, reductions and
estimates, the settings that methods declare, and the configurations in steer_core/configs/paper. A few seconds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from steer_core import ADVANTAGES, ENTROPY_CHANGE, INTERVENTIONS
from steer_core.cli.ending import end
from steer_core.common.files import write_atomically
from steer_core.common.settings import read_extended
from steer_core.formulas.loss import REDUCTIONS, token_coefficients

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "papers.md"
CONFIGS = ROOT / "steer_core" / "configs" / "paper"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
NONE = "–"  # noqa: RUF001
TOP = """# From papers to settings

Which paper is which name here. A method of a paper is one setting, `intervention.name`; its own settings stand beside
it with their defaults, and `steer train --help` says what each does. Advantages and reductions are settings of their
own, so they combine with every method. The page is made from the package's docstrings (`python reproduce/papers.py`),
which name the place in the paper. A dash: the source has no number on arXiv and stands in the words beside it, or the
idea is this project's own.

```bash
steer train intervention.name=kl-cov intervention.coefficient=1 --out runs/kl-cov
steer train intervention.name=none algorithm.advantage=rloo algorithm.reduction=token-mean --out runs/rloo
```
"""


def summary(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def papers(text: str) -> str:
    """Links to the papers that a text names; a dash where it names none."""
    found = dict.fromkeys(ARXIV.findall(text))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in found) or NONE


def cell(text: str) -> str:
    """Text that can stand in a cell of a table."""
    return re.sub(r"(?<!\\)([|*<])", r"\\\1", text)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def settings(kind: type) -> str:
    """The settings that a method declares, `key=default`."""
    names = [field.name for field in fields(kind) if field.name != "name"]
    default = kind()
    return " ".join(f"`{name}={json.dumps(getattr(default, name), default=str)}`" for name in names) or "none"


def methods() -> str:
    """A row a method."""
    rows = []
    for name, kind in INTERVENTIONS.items():
        if name != "none":
            rows.append([papers(summary(kind)), f"`{name}`", cell(summary(kind)), settings(kind)])
    return table(("paper", "`intervention.name`", "what it does", "its settings: `intervention.`"), rows)


def named(setting: str, things: dict[str, str]) -> str:
    """A row a name of a setting, with its paper and what is said of it."""
    rows = [[papers(text), f"`{setting}={name}`", cell(text)] for name, text in things.items()]
    return table(("paper", "setting", "what it is"), rows)


def reductions() -> dict[str, str]:
    """Name to what `token_coefficients` says of it."""
    text = " ".join((inspect.getdoc(token_coefficients) or "").split())
    places = {name: re.search(rf"(?<!-){name}: ", text) for name in REDUCTIONS}
    ends = [*sorted(place.start() for place in places.values() if place), len(text)]
    return {
        name: text[place.end() : next(end for end in ends if end > place.start())].strip()
        for name, place in places.items()
        if place
    }


def configurations() -> str:
    """A row a run of STEER's paper: its name, model, method and clip."""
    rows = []
    for path in sorted(CONFIGS.glob("[!_]*.yaml")):
        found = read_extended(path)
        method, algorithm = found.get("intervention", {}).get("name", "none"), found.get("algorithm", {})
        clip = f"{algorithm.get('clip_low', 0.2)} / {algorithm.get('clip_high', 0.28)}"
        rows.append([f"`paper/{path.stem}`", Path(found["model"]["path"]).name, f"`{method}`", clip])
    return table(("configuration", "model", "`intervention.name`", "clip, low / high"), rows)


def page() -> str:
    """docs/papers.md as text."""
    estimates = {name: summary(form) for name, form in ENTROPY_CHANGE.items()}
    advantages = {name: summary(function) for name, function in ADVANTAGES.items()}
    return "\n".join(
        [
            TOP,
            "## Methods\n",
            methods(),
            "## Advantages\n",
            named("algorithm.advantage", advantages),
            "## Reductions of the loss\n",
            named("algorithm.reduction", reductions()),
            "## Estimates of the entropy change\n",
            "STEER weights by one of them.\n",
            named("intervention.form", estimates),
            "## The runs of STEER's paper\n",
            "`steer train NAME` runs one, `steer plan NAME` says whether it fits ([scale](scale.md)).\n",
            configurations(),
        ]
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="where to write (default: docs/papers.md)")
    write_atomically(parser.parse_args().out, page())


if __name__ == "__main__":
    end(main)
