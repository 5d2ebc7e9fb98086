"""Table 9: the audit's counts of the data sets beside what is known of the paper's."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.arms import HERE
from pipeline.catalogue import Item
from pipeline.page import head
from steer_core.common.files import read_json, write_atomically
from steer_core.common.tables import markdown_table

AUDIT = HERE / "results" / "data_audit.json"
PUBLISHED = HERE / "published" / "data.yaml"


def data_page(name: str, item: Item, out: Path) -> None:
    """Write NAME.md from the kept audit of the data files (`steer data audit` makes it anew)."""
    audit = read_json(AUDIT, "audit", "make it with: steer data audit --out reproduce/results")
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    counted = {one["name"]: one for one in audit["sets"]}
    lines = []
    for known in dict.fromkeys([*counted, *published]):
        one, told = counted.get(known), published.get(known, {})
        own = ["not in the data folder", "", ""]
        if one:
            own = [f"{one['problems']:,}", f"{one['rows']:,}", f"{one['left_out']:,}"]
        lines.append(
            [
                known,
                one["use"] if one else told.get("use", ""),
                *own,
                told.get("problems", "not known"),
                told.get("source", ""),
            ]
        )
    columns = ("set", "used for", "problems", "rows", "left out as unusable", "the paper's count", "its source")
    environment = audit["environment"]
    made = (
        f"Counted by `{environment['command']}`, {environment['date'][:10]}; more in [data_audit.md](../data_audit.md)."
    )
    out.mkdir(parents=True, exist_ok=True)
    parts = [f"# {item.title}", head(name, item, "laptop"), markdown_table(columns, lines), made]
    write_atomically(out / f"{name}.md", "\n\n".join(parts) + "\n")
    print(f"{name}: {out / name}.md")
