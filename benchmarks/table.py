"""Prints rows: the budget table of the design, with what was measured."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import NO_BUDGET, Row


def show(rows: Iterable[Row]) -> int:
    """Print a table of the rows; the exit code says whether every budget was kept."""
    table = Table(title="Measured here, medians; ratio = ours / peer")
    for heading in ("what", "ours", "peer", "ratio", "budget", "kept", "spread (ours / peer)"):
        table.add_column(heading, justify="left" if heading in ("what", "kept") else "right")
    missed = 0
    for row in rows:
        missed += not row.kept
        table.add_row(
            row.what,
            f"{row.ours:.4g} {row.unit}",
            f"{row.peer:.4g} {row.unit}",
            f"{row.ratio:.3f}" if row.absolute is None else "",
            _budget(row),
            "" if _budget(row) == "" else "yes" if row.kept else "NO",
            row.spread,
        )
    Console(width=160).print(table)
    return 1 if missed else 0


def _budget(row: Row) -> str:
    if row.absolute is not None:
        return f"{row.absolute:g} {row.unit}"
    return "" if row.budget == NO_BUDGET else f"{row.budget:g}"
