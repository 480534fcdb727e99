"""Helpers of the dashboard tests: walk through the shipped JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "dashboards" / "grafana"

Json = dict[str, Any]

DASHBOARDS: dict[str, Json] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}


def panels(dashboard: Json) -> list[Json]:
    """All panels, including those in rows, without the rows."""
    found = [*dashboard["panels"], *(inner for row in dashboard["panels"] for inner in row.get("panels", []))]
    return [panel for panel in found if panel["type"] != "row"]


def every_panel() -> list[Any]:
    """(uid, panel) of each, for parametrize."""
    return [(uid, panel) for uid, dashboard in DASHBOARDS.items() for panel in panels(dashboard)]


def names(cases: list[tuple[str, Json]]) -> list[str]:
    """The pytest ids of the panels."""
    return [f"{uid}-{panel['title']}" for uid, panel in cases]


def values_of(key: str, within: object) -> Iterator[Any]:
    """Each value of a key, at any depth."""
    if isinstance(within, dict):
        for name, value in within.items():
            if name == key:
                yield value
            yield from values_of(key, value)
    elif isinstance(within, list):
        for value in within:
            yield from values_of(key, value)
