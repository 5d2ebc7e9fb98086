"""A run that leaves nothing on disk: what a trainer without a run folder logs to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from steer_core.common import ranks
from steer_core.engines.base import TrainingEngine
from steer_core.interventions.base import Memory
from steer_core.policy.model import Policy
from steer_core.runs.responses import Response


class MemoryRun:
    """Keeps the log lines of a run by the name of their file, as a `RunFolder` does; no responses, no checkpoints."""

    how_to_go_on = "train again"

    def __init__(self) -> None:
        self.logs: dict[str, list[dict[str, Any]]] = {}

    def log(self, rollout_index: int, metrics: dict[str, Any], name: str = "metrics.jsonl") -> None:
        """Keep one line. Of several ranks, the first does it."""
        if ranks.is_main():
            self.logs.setdefault(name, []).append({"step": rollout_index, **metrics})

    def write_rollout(self, rollout_index: int, rows: list[Response]) -> None:
        """Sampled responses are not kept."""

    def write_dump(self, rollout_index: int, rows: Iterable[dict[str, Any]]) -> None:
        """Tokens are not kept."""

    def save_checkpoint(
        self, rollout_index: int, policy: Policy, engine: TrainingEngine, memory: Memory, score: float | None = None
    ) -> None:
        """Nothing is saved."""

    def rewind(self, rollout_index: int) -> None:
        """Nothing is dropped: a run in memory is not gone on with."""

    def read(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a log."""
        return list(self.logs.get(name, ()))
