"""`jobmetrics top`: a live view in the terminal."""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import collector_options, reading, settings_from
from jobmetrics.cli.printable import printable
from jobmetrics.collector_api import safe_url
from jobmetrics.errors import JobmetricsError, SettingsError
from jobmetrics.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from jobmetrics.exporter.overview import Sight

_FETCH_SECONDS = 10.0
_MAX_BYTES = 100 * 2**20
_MOST_ROWS = 500


@click.command()
@click.option("--url", metavar="URL", help="Read an exporter's /metrics instead of the directory.")
@click.option("--once", is_flag=True, help="Print once, after one interval, and end.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="SECONDS",
    help="Time between two readings; rates are of it.",
)  # fmt: skip
@reading
def top(
    url: str | None,
    once: bool,
    interval: float,
    dir: str | None,  # noqa: A002 - the option is called so
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Show what runs now: rates, failures, waits, durations, queues, workers.

    Percentiles are of the last interval, or of everything where nothing ended in it.
    """
    from rich.console import Console
    from rich.live import Live

    from jobmetrics.exporter import overview

    settings = settings_from(dir=dir, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure("critical")  # a line in between would tear the picture; what is down is shown in it
    prefix = f"{settings.namespace}_" if settings.namespace else ""
    with _source(url, settings, brokers) as read:

        def look() -> Sight:
            try:
                return overview.parse(read(), time.monotonic(), prefix)
            except ValueError:
                raise JobmetricsError(f"{safe_url(url or '')} shows no metrics in Prometheus' text format") from None

        console = Console()
        before = look()
        if once:
            time.sleep(interval)
            console.print(_picture(look(), before, url or settings.dir))
            return 0
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal) as live:
            while True:
                time.sleep(interval)
                now = look()
                live.update(_picture(now, before, url or settings.dir, console.height), refresh=True)
                before = now
    return 0


@contextlib.contextmanager
def _source(url: str | None, settings: Settings, brokers: dict[str, Any]) -> Iterator[Callable[[], str]]:
    """What gives an exposition each time it is called."""
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"--url={safe_url(url)!r} is not allowed; it takes http://HOST:PORT/metrics")
        yield lambda: _fetched(url)
        return
    from jobmetrics.exporter.app import build

    options = collector_options(**brokers)
    app = build(settings, options)
    app.directory.require(missing_ok=False)
    app.collectors.start()
    try:
        app.collectors.wait(options.timeout)
        yield lambda: app.text().decode()
    finally:
        app.close()


def _fetched(url: str) -> str:
    """The page at a URL, in which a name and password may stand."""
    from urllib.parse import unquote, urlsplit, urlunsplit

    parts = urlsplit(url)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/metrics", parts.query, ""))
    request = urllib.request.Request(bare)  # noqa: S310 - http or https, checked before
    if parts.username is not None:
        from base64 import b64encode

        word = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + b64encode(word.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=_FETCH_SECONDS) as answer:  # noqa: S310 - as above
            text: str = answer.read(_MAX_BYTES).decode("utf-8", "replace")
            return text
    except urllib.error.HTTPError as error:
        error.close()
        raise JobmetricsError(f"{safe_url(url)} answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise JobmetricsError(f"{safe_url(url)} cannot be read: {reason}") from None


def _picture(now: Sight, before: Sight, source: str, height: int = 0) -> RenderableType:
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
            *(_seconds(value) for value in (*row.wait, *row.duration)),
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
            age = "-" if since is None else _seconds(max(0.0, time.time() - since))
            queues.add_row(Text(printable(f"{system} {queue}")), Text(printable(broker)), f"{depth:.0f}", age)
        parts.append(queues)
    parts.extend(Text(printable(f"cannot be read: {what}"), style="bold red") for what in now.down)
    return Group(*parts)


def _headline(now: Sight, source: str) -> str:
    systems = [
        f"{system}: {count:.0f} workers, {now.capacity.get(system, 0.0):.0f} slots"
        for system, count in sorted(now.workers.items())
    ]
    return "   ".join(["jobmetrics top", *systems, safe_url(source) if "://" in source else source])


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    """A duration in at most five characters."""
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "m"), (360_000, 3600, "h")):
        if value < limit:
            return f"{value / divisor:.1f}{unit}"
    return f"{value / 86400:.0f}d"
