"""The demo's tables: the one that moves, and the one at the end. Both fit 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from jobmetrics.demo.rows import Row


def number(value: float | None) -> str:
    """A count, or n/a."""
    return "n/a" if value is None else f"{value:.12g}"


def seconds(value: float | None) -> str:
    """A duration given in seconds, or n/a."""
    if value is None:
        return "n/a"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms"


Columns = Mapping[str, Callable[[Row], str]]

_COUNTS: Columns = {
    "sent": lambda row: number(row.sent),
    "succeeded": lambda row: number(row.succeeded),
    "failed": lambda row: number(row.failed),
    "retried": lambda row: number(row.retried),
}
_DURATIONS: Columns = {
    "p50": lambda row: seconds(row.p50),
    "p95": lambda row: seconds(row.p95),
}


def summary(rows: Sequence[Row]) -> Table:
    """What /metrics says of each job type, at the end."""
    columns = {**_COUNTS, **_DURATIONS, "p95 wait": lambda row: seconds(row.wait_p95)}
    return _by_system("What /metrics says:", rows, columns, {})


def live(rows: Sequence[Row], depths: Mapping[str, float | None], url: str) -> Table:
    """What /metrics says now; the queue's depth stands with the system, which has one queue."""
    columns = {**_COUNTS, "active": lambda row: number(row.active), **_DURATIONS, "queue depth": lambda _: ""}
    shown = {system: number(depth) for system, depth in depths.items()}
    return _by_system(f"{url} (Ctrl-C ends the demo)", rows, columns, shown)


def _by_system(title: str, rows: Sequence[Row], columns: Columns, last: Mapping[str, str]) -> Table:
    """A heading for each system, with its cell of the last column, and its job types by their last name."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("job type", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", max_width=9)
    system = ""
    for row in rows:
        if row.system != system:
            system = row.system
            blanks = [""] * (len(columns) - 1)
            table.add_row(Text(system, style="bold"), *blanks, last.get(system, ""))
        name = Text(f"  {row.job_type.rpartition('.')[2]}")
        table.add_row(name, *(cell(row) for cell in columns.values()))
    return table
