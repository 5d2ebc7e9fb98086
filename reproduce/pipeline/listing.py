"""The list of all tables and figures: for the terminal, for docs/reproduce.md, and for the README."""

from __future__ import annotations

from pathlib import Path

from pipeline import needs
from pipeline.arms import HERE, RESULTS, ROWS, finished_runs
from pipeline.catalogue import Item, catalogue
from pipeline.measures import judge
from pipeline.rows import read_scores
from steer_core.common.files import write_atomically
from steer_core.common.tables import markdown_table

_BEGIN, _END = "<!-- list -->\n", "<!-- end of list -->\n"
COLUMNS = (
    "name",
    "what",
    "laptop",
    "the paper's claims, at laptop scale",
    "smoke",
    "paper",
    "what the paper's runs need",
)


def listing() -> str:
    """As Markdown: every item, the scales that have run with dates, verdicts, and what the paper's runs need."""
    return markdown_table(COLUMNS, [line(name, item) for name, item in catalogue().items()])


def line(name: str, item: Item) -> list[str]:
    """One item's cells."""
    laptop, verdicts = laptop_state(name, item)
    scores = {scale: scores_state(name, scale) if item.paper else "-" for scale in ("smoke", "paper")}
    need = needs.total(item, "paper") if item.paper else "-"
    return [name, item.title, laptop, verdicts, scores["smoke"], scores["paper"], need]


def laptop_state(name: str, item: Item) -> tuple[str, str]:
    """(what has run of it at scale laptop, its verdicts)."""
    if item.not_here:
        return f"not possible: {item.not_here}", "-"
    if item.kind in ("script", "data"):
        page = item.page or (f"laptop/{name}.md" if item.kind == "data" else None)
        return (f"[made](../reproduce/results/{page})" if page else "made; every cell checked by code"), "-"
    about, rows = finished_runs(RESULTS / ROWS)
    own = [row for row in rows if row["arm"] in item.arms]
    if not own:
        return "not run", "not run"
    dates = sorted({(row.get("environment") or {}).get("date", "")[:10] for row in own} - {""})
    state = (
        f"[{len(own)} of {len(item.arms) * len(about['plan']['seeds'])} runs](../reproduce/results/laptop/{name}.md)"
    )
    runs = {arm: [row for row in own if row["arm"] == arm] for arm in item.arms}
    words = [judge(claim, runs, about["base"]).word for claim in item.claims]
    told = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or "none"
    return f"{state}, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}" if dates else state, told


def scores_state(name: str, scale: str) -> str:
    """What has run at a scale of the paper."""
    rows = read_scores(HERE / "results" / scale / f"{name}.json.xz")
    if not rows:
        return "not run"
    dates = sorted({row["environment"]["date"][:10] for row in rows})
    return f"[{len(rows)} runs](../reproduce/results/{scale}/{name}.md), {dates[-1]}"


def summary() -> str:
    """The README's table: names by what has come of them at scale laptop."""
    about, rows = finished_runs(RESULTS / ROWS)
    groups: dict[str, list[str]] = {"made": [], "runs so far": [], "not run yet": [], "needs GPUs": []}
    for name, item in catalogue().items():
        done = sum(row["arm"] in item.arms for row in rows)
        planned = len(item.arms) * len(about["plan"]["seeds"]) if about else 0
        state = "runs so far" if done else "not run yet"
        if item.not_here:
            state = "needs GPUs"
        elif item.kind in ("script", "data") or (done and done == planned):
            state = "made"
        groups[state].append(f"{name} ({done} of {planned})" if state == "runs so far" else name)
    lines = [[state, ", ".join(names)] for state, names in groups.items() if names]
    return markdown_table(("at scale `laptop`", "tables and figures"), lines)


def with_list(text: str, table: str) -> str:
    """A page with the table between its markers."""
    return f"{text.split(_BEGIN)[0]}{_BEGIN}{table}\n{_END}{text.split(_END)[1]}"


def pages() -> dict[Path, str]:
    """docs/reproduce.md and the README as the list makes them."""
    made = {HERE.parent / "docs" / "reproduce.md": listing(), HERE.parent / "README.md": summary()}
    return {path: with_list(path.read_text(encoding="utf-8"), table) for path, table in made.items()}


def write_pages() -> None:
    """Write both."""
    for path, text in pages().items():
        write_atomically(path, text)
