"""`make bench`: the budget table of the design with what was measured on this machine, in one run."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import celery, operations, rq, scrape, timed
from benchmarks.measuring import Row


def main() -> int:
    """Measure and print; the exit code says whether every budget was kept."""
    table = Table(title="Measured here, medians; ratio = ours / peer")
    for heading in ("what", "ours", "peer", "ratio", "budget", "kept", "spread (ours / peer)"):
        table.add_column(heading, justify="left" if heading in ("what", "kept") else "right")
    rows: list[Row] = [*operations.rows(), *celery.rows(), *rq.rows(), *timed.rows(), *scrape.rows()]
    for row in rows:
        budget = f"{row.absolute:g} {row.unit}" if row.absolute is not None else f"{row.budget:g}"
        table.add_row(
            row.what,
            f"{row.ours:.4g} {row.unit}",
            f"{row.peer:.4g} {row.unit}",
            f"{row.ratio:.3f}" if row.absolute is None else "",
            budget,
            "yes" if row.kept else "NO",
            row.spread,
        )
    Console(width=140).print(table)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
