"""`jobmetrics top`: a live view in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from jobmetrics.cli import logs, sources
from jobmetrics.cli.logs import printable
from jobmetrics.cli.options import reading, settings_from
from jobmetrics.collector_api import safe_url
from jobmetrics.events import PYTHON
from jobmetrics.findings import PROBLEM

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement
    from rich.table import Table

    from jobmetrics.exporter.overview import JobTypeRow, Key, Overview, QueueState

_MOST_ROWS = 500
_WIDE = 100  # columns


@click.command()
@click.option("--url", metavar="URL", help="Read an exporter's /metrics instead of the directory.")
@click.option("--once", is_flag=True, help="Print once, after one interval, and exit.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="SECONDS",
    help="Time between two readings; rates are for this time.",
)  # fmt: skip
@reading
def top(
    url: str | None,
    once: bool,
    interval: float,
    dir: str | None,  # noqa: A002 - the option's name
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Show what is wrong, and rates, failures, retries, waits, durations, queues, schedules and workers.

    Percentiles are for the last interval, or for all recorded jobs if none ended in it. "oldest" is the time since the
    start of the job type's longest running execution. Failures, retries and losses are judged by the last 15 minutes,
    or by the time since the start of this command. Without options for brokers, queues are those that this host's
    exporter reads. A terminal with fewer than 100 columns shows no medians.
    """
    from rich.console import Console
    from rich.live import Live

    from jobmetrics.exporter.incidents import Past
    from jobmetrics.exporter.overview import summarize

    settings = settings_from(dir=dir, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure("critical")  # log lines would break the screen; the table shows what is down
    with sources.opened(url, settings, brokers) as source:

        def look() -> Overview:
            return summarize(source.read(), prefix=settings.metric_prefix)

        def picture(now: Overview, height: int = 0) -> RenderableType:
            reasons = [f"queues are not shown: {source.no_queues}"] if source.no_queues else []
            return render(now, before, url or settings.dir, height, past=past.before, reasons=reasons)

        console, past = Console(), Past()
        before = look()
        past.add(before)
        if once:
            time.sleep(interval)
            console.print(picture(look()))
            return 0
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal) as live:
            while True:
                time.sleep(interval)
                now = look()
                live.update(picture(now, console.height), refresh=True)
                before = now
                past.add(now)
    return 0


def render(
    now: Overview,
    before: Overview,
    source: str,
    height: int = 0,
    *,
    past: Overview | None = None,
    reasons: Sequence[str] = (),
) -> RenderableType:
    """Render the changes between two readings as tables.

    Args:
        now: The newer reading.
        before: The older reading.
        source: The URL or directory that was read.
        height: Rows of the terminal; 0 for no limit.
        past: The reading by which failures, retries and losses are judged; `before` if None.
        reasons: Why something is not shown.
    """
    from rich.console import Group
    from rich.text import Text

    from jobmetrics.exporter import incidents
    from jobmetrics.exporter.overview import rows

    def line(text: str, style: str = "") -> Text:
        return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")

    problems = [finding for finding in incidents.find(now, past or before) if finding.state == PROBLEM]
    found = rows(now, before)
    queues = sorted(now.queues.items(), key=lambda each: (-(each[1].depth or 0.0), each[0]))
    shown_problems = _room(height, len(problems))
    shown_queues = _room(height, len(queues))
    reasons = [*reasons, *_unknown(now)]
    fixed = 15 + shown_problems + shown_queues + len(reasons) + len(now.down)
    shown = max(3, height - fixed) if height else _MOST_ROWS
    parts: list[RenderableType] = [line(_headline(now, source))]
    parts += [line(f"{each.runbook}: {each.text}", "bold red") for each in problems[:shown_problems]]
    parts += [line("no problem found", "green")] if not problems else []
    parts += [line(text) for text in _more(len(problems) - shown_problems, "problems: jobmetrics check lists them")]
    parts.append(_Jobs(found[:shown]))
    parts += [line("no job has been recorded yet")] if not found else []
    parts += [line(text) for text in _more(len(found) - shown, "job types")]
    if queues:
        parts.append(_queue_table(queues[:shown_queues]))
        parts += [line(text) for text in _more(len(queues) - shown_queues, "queues")]
    parts += [line(schedules) for schedules in _schedules(now)]
    parts += [line(reason, "dim") for reason in reasons]
    parts += [line(f"cannot be read: {what}", "bold red") for what in now.down]
    return Group(*parts)


def _unknown(now: Overview) -> list[str]:
    """Explain the dashes in the tables."""
    types = {key[:2] for key, counts in now.jobs.items() if key[0] != PYTHON and any(counts.durations.values())}
    types -= {key[:2] for key, counts in now.jobs.items() if any(counts.waits.values())}
    queues = sum(bool(queue.depth) and queue.oldest is None for queue in now.queues.values())
    found = [f"wait: unknown for {len(types)} job types; their producers are not instrumented"] if types else []
    if queues:
        found.append(
            f"oldest: unknown for {queues} queues; their broker or producers do not state when jobs were queued"
        )
    return found


def _room(height: int, count: int) -> int:
    """Return how many of these lines are shown."""
    return min(count, max(2, height // 8) if height else _MOST_ROWS)


def _more(count: int, what: str) -> list[str]:
    return [f"and {count} more {what}"] if count > 0 else []


class _Name:
    """A job system and the name of a job type or queue. A long name loses its beginning, which many have in common."""

    def __init__(self, system: str, name: str) -> None:
        self._system = printable(system)
        self._name = printable(name)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.cells import cell_len
        from rich.text import Text

        name, room = self._name, options.max_width - cell_len(self._system) - 1
        if cell_len(name) > room:
            while name and cell_len(name) > room - 1:
                name = name[max(1, (cell_len(name) - room) // 2) :]
            name = f"…{name}"
        yield Text(f"{self._system} {name}", no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        return Measurement(12, max(12, cell_len(self._system) + 1 + cell_len(self._name)))


class _Jobs:
    """The table of job types. Medians need a terminal of 100 columns."""

    def __init__(self, rows: Sequence[JobTypeRow]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        wide = options.max_width >= _WIDE
        jobs = _table()
        jobs.add_column("job", ratio=1, overflow="ellipsis", no_wrap=True)
        jobs.add_column("queue", max_width=20 if wide else 10, overflow="ellipsis", no_wrap=True)
        medians = ("wait", "p95", "took", "p95") if wide else ("wait\np95", "took\np95")
        for heading in ("per s", "fail", "retry", "run", "oldest", *medians):
            jobs.add_column(heading, justify="right", no_wrap=True)
        present = time.time()
        for row in self._rows:
            system, job_type, queue = row.key
            times = (*row.wait, *row.duration) if wide else (row.wait[1], row.duration[1])
            jobs.add_row(
                _Name(system, job_type), Text(printable(queue)), _number(row.rate),
                _share(row.failed), _share(row.retried), f"{row.active:.0f}", _age(row.oldest, present),
                *(duration(value) for value in times),
                style="red" if row.failed else "",
            )  # fmt: skip
        yield jobs


def _queue_table(queues: Sequence[tuple[Key, QueueState]]) -> Table:
    from rich.text import Text

    table = _table()
    table.add_column("queue", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("broker", max_width=20, overflow="ellipsis", no_wrap=True)
    for heading in ("waiting", "oldest", "consumers"):
        table.add_column(heading, justify="right", no_wrap=True)
    present = time.time()
    for (system, broker, name), queue in queues:
        table.add_row(
            _Name(system, name), Text(printable(broker)),
            _whole(queue.depth), _age(queue.oldest, present), _whole(queue.consumers),
        )  # fmt: skip
    return table


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)


def _schedules(now: Overview) -> list[str]:
    """Describe the schedule in one line: the number of entries, and those that are late."""
    from jobmetrics.exporter.incidents import SCHEDULE_LATE

    if not now.due:
        return []
    present = time.time()
    late = sorted((due, entry) for (_, entry), due in now.due.items() if present - due > SCHEDULE_LATE)
    which = ", ".join(f"{entry} {duration(present - due)}" for due, entry in late)
    return [f"schedule entries: {len(now.due)}, {len(late)} late" + (f": {which}" if late else "")]


def _headline(now: Overview, source: str) -> str:
    systems = [
        f"{system}: {count:.0f} workers, {now.capacity.get(system, 0.0):.0f} slots"
        for system, count in sorted(now.workers.items())
    ]
    return "   ".join(["jobmetrics top", *systems, safe_url(source) if "://" in source else source])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _age(since: float | None, present: float) -> str:
    return "-" if since is None else duration(max(0.0, present - since))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def duration(value: float | None) -> str:
    """Format a duration in seconds with at most five characters."""
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "m"), (360_000, 3600, "h")):
        if value < limit:
            return f"{value / divisor:.1f}{unit}"
    return f"{value / 86400:.0f}d"
