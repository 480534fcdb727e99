"""`jobmetrics top`: a live view in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.logs import printable
from jobmetrics.cli.options import collector_options, reading, settings_from
from jobmetrics.collector_api import safe_url
from jobmetrics.errors import SettingsError
from jobmetrics.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from rich.console import RenderableType

    from jobmetrics.exporter.overview import Overview

_MOST_ROWS = 500


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
    """Show rates, failures, waits, durations, queues and workers.

    Percentiles are for the last interval, or for all recorded jobs if none ended in it.
    """
    from rich.console import Console
    from rich.live import Live

    from jobmetrics.exporter import overview

    settings = settings_from(dir=dir, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure("critical")  # log lines would break the screen; the table shows what is down
    prefix = f"{settings.namespace}_" if settings.namespace else ""
    with _source(url, settings, brokers) as read:

        def look() -> Overview:
            return overview.summarize(read(), time.monotonic(), prefix)

        console = Console()
        before = look()
        if once:
            time.sleep(interval)
            console.print(render(look(), before, url or settings.dir))
            return 0
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal) as live:
            while True:
                time.sleep(interval)
                now = look()
                live.update(render(now, before, url or settings.dir, console.height), refresh=True)
                before = now
    return 0


@contextlib.contextmanager
def _source(url: str | None, settings: Settings, brokers: dict[str, Any]) -> Iterator[Callable[[], Iterable[Metric]]]:
    """Yield a function that reads the metrics from the URL, or from the directory and the brokers without one."""
    if url is not None:
        from jobmetrics.exporter.client import SCHEMES, read_metrics

        if not url.startswith(SCHEMES):
            raise SettingsError(f"--url={safe_url(url)!r} is not allowed; it takes http://HOST:PORT/metrics")
        yield lambda: read_metrics(url)
        return
    from jobmetrics.exporter.app import reading

    with reading(settings, collector_options(**brokers)) as app:
        yield app.scrape.collect


def render(now: Overview, before: Overview, source: str, height: int = 0) -> RenderableType:
    """Render the changes between two readings as tables.

    Args:
        now: The newer reading.
        before: The older reading.
        source: The URL or directory that was read.
        height: Rows of the terminal; 0 for no limit.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from jobmetrics.exporter.overview import rows

    jobs = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
    jobs.add_column("job", ratio=1, overflow="ellipsis", no_wrap=True)
    jobs.add_column("queue", max_width=14, overflow="ellipsis", no_wrap=True)
    for heading in ("per s", "fail", "run", "wait", "p95", "took", "p95"):
        jobs.add_column(heading, justify="right", no_wrap=True)
    found = rows(now, before)
    room = max(3, height - 12 - len(now.depths)) if height else _MOST_ROWS
    for row in found[:room]:
        system, job_type, queue = row.key
        jobs.add_row(
            Text(printable(f"{system} {job_type}")), Text(printable(queue)), _number(row.rate),
            "-" if row.failed is None else f"{row.failed:.0%}", f"{row.active:.0f}",
            *(duration(value) for value in (*row.wait, *row.duration)),
        )  # fmt: skip
    parts: list[RenderableType] = [Text(printable(_headline(now, source)), no_wrap=True, overflow="ellipsis"), jobs]
    if not found:
        parts.append(Text("no job has been recorded yet"))
    if len(found) > room:
        parts.append(Text(f"and {len(found) - room} more"))
    if now.depths:
        queues = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
        queues.add_column("queue", ratio=1, overflow="ellipsis", no_wrap=True)
        queues.add_column("broker", overflow="ellipsis", no_wrap=True)
        queues.add_column("depth", justify="right")
        queues.add_column("oldest", justify="right")
        for (system, broker, queue), depth in sorted(now.depths.items()):
            since = now.oldest.get((system, broker, queue))
            age = "-" if since is None else duration(max(0.0, time.time() - since))
            queues.add_row(Text(printable(f"{system} {queue}")), Text(printable(broker)), f"{depth:.0f}", age)
        parts.append(queues)
    parts.extend(Text(printable(f"cannot be read: {what}"), style="bold red") for what in now.down)
    return Group(*parts)


def _headline(now: Overview, source: str) -> str:
    systems = [
        f"{system}: {count:.0f} workers, {now.capacity.get(system, 0.0):.0f} slots"
        for system, count in sorted(now.workers.items())
    ]
    return "   ".join(["jobmetrics top", *systems, safe_url(source) if "://" in source else source])


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
