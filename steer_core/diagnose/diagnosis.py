"""The diagnosis of one dump: every measure, what the rules find by it, and what to try."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from steer_core.common.files import json_ready
from steer_core.diagnose import advice, findings, measures, methods
from steer_core.diagnose.change import measured
from steer_core.diagnose.seen import Seen
from steer_core.diagnose.states import States
from steer_core.diagnose.which_entropy import identify, logged_mean
from steer_core.runs.dumps import Dump


@dataclass(frozen=True)
class Diagnosis(Seen):
    """All that is seen of a dump, what the rules find by it, and what to try."""

    @property
    def findings(self) -> dict[str, findings.Finding]:
        """What the rules find."""
        return findings.findings(self)

    @property
    def advice(self) -> list[advice.Advice]:
        """What to try."""
        return advice.advice(self, self.findings)

    @property
    def to_decide(self) -> list[str]:
        """What the next dump should hold."""
        return advice.to_decide(self, self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON-ready data; what is not known is null."""
        dump = self.dump
        parts = {
            field.name: _plain(getattr(self, field.name))
            for field in fields(self)
            if field.name not in ("dump", "states", "entropy", "positions")
        }
        told = {name: value for name, value in asdict(self.entropy).items() if name != "factor"}
        about = {"responses": len(dump.responses), "tokens": len(dump), "steps": dump.steps, "left_out": dump.left_out}
        return json_ready(
            {
                "source": dump.source,
                "dump": about | {"columns": sorted({*dump.tokens, *dump.responses} - {"row", "position", "where"})},
                "settings": dump.settings,
                "notes": dump.notes,
                "entropy": told | {"divisor_undone": bool(self.entropy.divisor and self.entropy.factor is not None)},
                **parts,
                "positions": self.positions.reset_index().to_dict("records"),
                "findings": {key: asdict(finding) for key, finding in self.findings.items()},
                "advice": [asdict(one) for one in self.advice],
                "to_decide": self.to_decide,
            }
        )


def diagnose(dump: Dump) -> Diagnosis:
    """The diagnosis of a dump."""
    verdict = identify(dump)
    states = States.of(dump, verdict.factor)
    return Diagnosis(
        dump,
        states,
        verdict,
        logged_mean(dump, verdict),
        measures.course_of(dump, states),
        measures.quadrants_of(states),
        measures.clip_of(dump, states),
        measures.by_position(dump, states),
        measures.movers_of(dump, states),
        measures.truncation_of(dump),
        measures.groups_of(dump),
        measures.gap_of(dump, states),
        measures.drift_of(dump, states),
        measured(dump, states),
        methods.effects(dump, states),
    )


def _plain(value: Any) -> Any:
    """Records within lists and mappings as plain data."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    return value.tolist() if isinstance(value, np.ndarray) else value
