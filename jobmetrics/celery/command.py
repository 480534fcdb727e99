"""`celery -A app jobmetrics check`: whether this app records, where, and whether an exporter would see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from jobmetrics.celery import signals
from jobmetrics.integration import OK, PROBLEM, Finding, recording_findings, summary_of_findings


def findings(app: Any) -> Iterator[Finding]:
    """Yield the findings about this app, the most basic first."""
    app.loader.import_default_modules()
    if signals.is_connected():
        yield Finding(OK, "this app is instrumented")
    else:
        yield Finding(
            PROBLEM,
            "this app is not instrumented",
            'add imports = ("jobmetrics.celery.plugin",) to its configuration, '
            "or call jobmetrics.celery.instrument(app)",
        )
    yield from recording_findings()


@click.group(name="jobmetrics", help="Prometheus metrics of this app's workers.")
def command() -> None:
    """The command group `celery jobmetrics`."""


@command.command(name="check", help="Check whether this app records its jobs, and where.")
@click.pass_context
def check(context: click.Context) -> None:
    """Print the findings; exit 1 if there is a problem."""
    problems = 0
    for finding in findings(context.obj.app):
        click.echo(str(finding))
        problems += finding.state == PROBLEM
    click.echo(summary_of_findings(problems))
    if problems:
        context.exit(1)
