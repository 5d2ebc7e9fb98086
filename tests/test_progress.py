"""Progress: bars where they can move, a line for every tenth elsewhere."""

import io

from rich.console import Console

from steer_core.common.progress import Progress


def shown(terminal: bool, total: int = 40, **options) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Progress(console) as progress:
        for done in range(total + 1):
            progress.show(done, total, "entropy 0.3", line=f"{done} of {total} [things]", name="work", **options)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_for_every_tenth_and_no_bar(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert shown(terminal=False).splitlines() == [f"{4 * tenth} of 40 [things]" for tenth in range(11)]
    assert len(shown(terminal=False, every=True).splitlines()) == 41


def test_a_terminal_has_a_bar_with_its_name_and_status_and_no_lines(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    text = shown(terminal=True)
    for part in ("work", "40/40", "entropy 0.3"):
        assert part in text
    assert "things" not in text


def test_a_terminal_of_continuous_integration_has_lines(monkeypatch):
    monkeypatch.setenv("CI", "1")
    text = shown(terminal=True)
    assert "\r" not in text
    assert "40 of 40 [things]" in text


def test_bars_that_are_not_kept_go_and_may_come_again(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with Progress(Console(file=io.StringIO(), force_terminal=True)) as progress:
        progress.show(0, 2, name="one")
        progress.show(0, None, name="two")
        progress.keep({"two"})
        assert [task.description for task in progress._bars.tasks] == ["two"]
        progress.show(1, 2, name="one")
        assert [(task.description, task.completed) for task in progress._bars.tasks] == [("two", 0), ("one", 1)]
