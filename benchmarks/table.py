"""The table of the measured rows, and the file from which the README's table is made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import NO_BUDGET, Row

OPEN = 1.5  # a row that misses its budget by up to this factor is open, and its profile is shown


def show(rows: Iterable[Row]) -> int:
    """Print a table of the rows, and the profile of each row that missed its budget.

    Returns:
        The exit code: 0 if every budget was kept or missed by at most half.
    """
    table = Table(title="Medians on this machine; ratio = ours / peer")
    for heading in ("what", "ours", "peer", "ratio", "budget", "kept", "spread (ours / peer)"):
        table.add_column(heading, justify="left" if heading in ("what", "kept") else "right")
    missed = []
    for row in rows:
        if not row.kept:
            missed.append(row)
        table.add_row(
            row.what,
            f"{row.ours:.4g} {row.unit}",
            f"{row.peer:.4g} {row.unit}",
            f"{row.ratio:.3f}" if row.absolute is None else "",
            _budget(row),
            "" if _budget(row) == "" else _kept(row),
            row.spread,
        )
    console = Console(width=160)
    console.print(table)
    for row in missed:
        console.print(f"{_kept(row)}, {row.share:.2f} of its budget: {row.what}")
        if row.profile:
            console.print(f"    {row.profile}")
    return 1 if any(row.share > OPEN for row in missed) else 0


def write(rows: Iterable[Row], file: Path) -> None:
    """Write the rows that have a budget, with date, machine and command, for the README's table."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    content = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}",
        "command": "make bench",
        "rows": [
            {"what": row.what, "measured": _measured(row), "budget": _budget(row), "kept": _kept(row)}
            for row in rows
            if _budget(row)
        ],
    }
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _measured(row: Row) -> str:
    return f"{row.ratio:.3f}" if row.absolute is None else f"{row.ours:.3g} {row.unit}"


def _kept(row: Row) -> str:
    return "yes" if row.kept else "open" if row.share <= OPEN else "NO"


def _budget(row: Row) -> str:
    if row.absolute is not None:
        return f"{row.absolute:g} {row.unit}"
    return "" if row.budget == NO_BUDGET else f"{row.budget:g}"
