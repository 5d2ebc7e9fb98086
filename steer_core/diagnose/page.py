"""The page of a diagnosis: diagnosis.html, which holds all that it shows, and diagnosis.json."""

from __future__ import annotations

import base64
from pathlib import Path

from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import json_text, refusal, write_atomically
from steer_core.compare.report.templates import templates
from steer_core.diagnose import words
from steer_core.diagnose.diagnosis import Diagnosis
from steer_core.diagnose.figures import FIGURES, figures

PAGE, NUMBERS = "diagnosis.html", "diagnosis.json"
_TEMPLATES = templates(Path(__file__).parent)


def write_page(seen: Diagnosis, folder: Path) -> Path:
    """Write diagnosis.json and diagnosis.html into a folder; the path of the page.

    Both are written aside and renamed. Raises SteerError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / NUMBERS, json_text(seen.to_dict()))
        write_atomically(folder / PAGE, render(seen))
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({refusal(error)}); name another folder") from error
    return folder / PAGE


def render(seen: Diagnosis) -> str:
    """The page as text: no script, font or link of another place, and whatever a dump holds escaped."""
    drawn = figures(seen)
    return _TEMPLATES.get_template("diagnosis.html.j2").render(
        seen=seen,
        words=words,
        environment=environment(),
        figures=[
            {
                "title": FIGURES[name][0],
                "shows": FIGURES[name][1],
                "uri": "data:image/svg+xml;base64," + base64.b64encode(image).decode(),
            }
            for name, image in drawn.items()
        ],
    )
