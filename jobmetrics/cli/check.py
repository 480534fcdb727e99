"""`jobmetrics check`: what is wrong with this set-up, in words."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import collector_options, reading, settings_to_check, unknown_variables
from jobmetrics.cli.printable import printable
from jobmetrics.findings import PROBLEM, Finding, configuration, summary


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where the exporter serves.  [default: 127.0.0.1:9909]")
@reading
def check(
    dir: str | None,  # noqa: A002 - the option is called so
    listen: str | None,
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Say what is wrong with this set-up, each finding with its remedy.

    Run it as the workers' user, with their environment. Exit code 1 if anything is wrong.
    """
    settings, errors = settings_to_check(
        dir=dir, listen=listen, namespace=namespace, labels=labels, log_level=log_level
    )
    logs.configure("critical")  # what would be logged is what is printed
    options = collector_options(**brokers)
    problems = 0
    for finding in _findings(settings, errors, options):
        problems += finding.state == PROBLEM
        _print(finding)
    print(summary(problems))
    return 1 if problems else 0


def _findings(settings: Any, errors: list[str], options: Any) -> Iterator[Finding]:
    from jobmetrics.exporter import diagnosis
    from jobmetrics.exporter.app import build

    yield from diagnosis.versions()
    yield from configuration(errors, unknown_variables())
    yield from diagnosis.directory(settings)
    app = build(settings, options)
    app.collectors.start()
    try:
        app.collectors.wait(options.timeout)
        yield from diagnosis.brokers(app.collectors.states())
        yield from diagnosis.exposition(app.scrape.collect(), settings)
    finally:
        app.close()
    yield from diagnosis.exporter(settings)


def _print(finding: Finding) -> None:
    """One line; on a terminal that is too narrow what does not fit goes on below, indented."""
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000
    lines = textwrap.wrap(
        printable(str(finding)),
        width,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines))
