"""How far a piece of work has come: bars on a terminal, lines elsewhere; nothing live where CI is set."""

from __future__ import annotations

import os
from collections.abc import Collection

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


def is_live(console: Console) -> bool:
    """Whether bars can move on this console: it is a terminal, and not one of continuous integration."""
    return console.is_terminal and "CI" not in os.environ


class Progress:
    """Named bars on a terminal; elsewhere a line for every tenth of the work.

    with Progress() as progress:
        for done in range(total + 1):
            progress.show(done, total, "what is done now", line=f"{done} of {total} responses")
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.live, self._tenth = is_live(self.console), -1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        rest = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
        self._bars = Bars(*columns, *rest, console=self.console, disable=not self.live)
        self._names: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(
        self, done: int, total: int | None, status: str = "", line: str = "", name: str = "", every: bool = False
    ) -> None:
        """Move the bar of a name, which begins here where it is new; print `line` where bars cannot be seen.

        total: None where it is unknown. status: stands behind the bar. every: print every line, not one a tenth.
        """
        if name not in self._names:
            self._names[name] = self._bars.add_task(name, total=total, completed=done, status=status)
        self._bars.update(self._names[name], completed=done, total=total, status=status)
        tenth = 10 * done // total if total else 0
        if line and not self.live and (every or tenth > self._tenth):
            self._tenth = tenth
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def keep(self, names: Collection[str]) -> None:
        """Take away every bar but those of these names."""
        for name in [name for name in self._names if name not in names]:
            self._bars.remove_task(self._names.pop(name))
