"""`jobmetrics check`: find what is wrong with a set-up."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import click

from jobmetrics.cli import logs, sources
from jobmetrics.cli.logs import printable
from jobmetrics.cli.options import collector_options, reading, settings_to_check, unknown_variables
from jobmetrics.collector_api import safe_url
from jobmetrics.findings import NOTE, OK, PROBLEM, Finding, configuration, summary
from jobmetrics.settings import Settings


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Address of the exporter.  [default: 127.0.0.1:9909]")
@click.option("--url", metavar="URL", help="Read an exporter's /metrics instead of this host's set-up and directory.")
@click.option(
    "--watch", type=click.FloatRange(1, 3600), metavar="SECONDS",
    help="Read twice, this many seconds apart, and judge failures, retries and losses by what happened between.",
)  # fmt: skip
@reading
def check(
    url: str | None,
    watch: float | None,
    dir: str | None,  # noqa: A002 - the option's name
    listen: str | None,
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Check this set-up, its jobs, queues and workers, and print each finding with its remedy.

    Run it as the workers' user, with the workers' environment. The exit code is 1 if there is a problem.
    Without options for brokers, it takes the readings of queues from the exporter at --listen.
    Counts are of all that was recorded, and troubles that may be over are notes: --watch shows what happens now.
    """
    settings, errors = settings_to_check(
        dir=dir, listen=listen, namespace=namespace, labels=labels, log_level=log_level
    )
    logs.configure("critical")  # the findings cover what would be logged
    if url is not None:
        sources.check_url(url)
    collector_options(**brokers)  # raises before the first finding is printed
    problems = 0
    for finding in _remote(url, watch, settings) if url else _local(settings, errors, brokers, watch):
        problems += finding.state == PROBLEM
        _print(finding)
    print(summary(problems))
    return 1 if problems else 0


def _local(settings: Settings, errors: list[str], brokers: dict[str, Any], watch: float | None) -> Iterator[Finding]:
    from jobmetrics.exporter import diagnosis, local_processes

    starting = local_processes.starting(settings)
    exporter_started = starting.pop(local_processes.EXPORTER, None)
    yield from diagnosis.versions()
    yield from configuration(errors, unknown_variables())
    yield from diagnosis.directory(settings, starting)
    with sources.opened(None, settings, brokers, needs_directory=False) as source:
        yield from diagnosis.brokers(source.states())
        yield from diagnosis.exposition(source.read(), settings)
        yield from diagnosis.exporter(settings, exporter_started)
        yield from _incidents(source, watch, settings, starting)


def _remote(url: str, watch: float | None, settings: Settings) -> Iterator[Finding]:
    from jobmetrics.exporter import diagnosis

    with sources.opened(url, settings, {}) as source:
        yield Finding(OK, f"the exporter at {safe_url(url)} answers")
        yield from diagnosis.exposition(source.read(), settings)
        yield from _incidents(source, watch, settings, {}, remote=True)


def _incidents(
    source: sources.Source, watch: float | None, settings: Settings, starting: dict[str, float], *, remote: bool = False
) -> Iterator[Finding]:
    from jobmetrics.exporter import incidents
    from jobmetrics.exporter.overview import summarize

    now, before = summarize(source.read(), prefix=settings.metric_prefix), None
    if watch is not None:
        time.sleep(watch)
        now, before = summarize(source.read(), prefix=settings.metric_prefix), now
    if source.no_queues:
        yield Finding(NOTE, f"queues are not checked: {source.no_queues}")
    if remote or not source.states():
        yield from incidents.down(now, directory=remote)
    yield from incidents.find(now, before, starting=starting)


def _print(finding: Finding) -> None:
    """Print one line. On a terminal, wrap it and indent the lines that follow."""
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000
    lines = textwrap.wrap(
        printable(str(finding)),
        width,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines))
