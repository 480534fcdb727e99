"""`jobmetrics check`: find what is wrong with a set-up."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.logs import printable
from jobmetrics.cli.options import collector_options, reading, settings_to_check, unknown_variables
from jobmetrics.findings import PROBLEM, Finding, configuration, summary


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Address of the exporter.  [default: 127.0.0.1:9909]")
@reading
def check(
    dir: str | None,  # noqa: A002 - the option's name
    listen: str | None,
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Check this set-up, and print each finding with its remedy.

    Run it as the workers' user, with the workers' environment. The exit code is 1 if there is a problem.
    """
    settings, errors = settings_to_check(
        dir=dir, listen=listen, namespace=namespace, labels=labels, log_level=log_level
    )
    logs.configure("critical")  # the findings cover what would be logged
    options = collector_options(**brokers)
    problems = 0
    for finding in _findings(settings, errors, options):
        problems += finding.state == PROBLEM
        _print(finding)
    print(summary(problems))
    return 1 if problems else 0


def _findings(settings: Any, errors: list[str], options: Any) -> Iterator[Finding]:
    from jobmetrics.exporter import diagnosis
    from jobmetrics.exporter.app import reading

    yield from diagnosis.versions()
    yield from configuration(errors, unknown_variables())
    yield from diagnosis.directory(settings)
    with reading(settings, options, needs_directory=False) as app:
        yield from diagnosis.brokers(app.collectors.states())
        yield from diagnosis.exposition(app.scrape.collect(), settings)
    yield from diagnosis.exporter(settings)


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
