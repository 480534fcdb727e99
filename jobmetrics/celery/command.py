"""`celery -A app jobmetrics check`: whether this app records, where, and whether an exporter would see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from jobmetrics import settings
from jobmetrics.celery import signals
from jobmetrics.findings import OK, PROBLEM, Finding, configuration, directory_access, summary
from jobmetrics.registry import INDEX_NAME, Directory


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
    read, wrong = settings.read()
    yield from configuration(wrong.errors, [wrong.unknown_line()] if wrong.unknown else [])
    active_settings = settings.peek() or read
    if not active_settings.enabled:
        yield Finding(PROBLEM, "recording is off", "remove the setting enabled, or set it to true")
        return
    yield from _directory(Directory(active_settings.dir, active_settings.dir_group, active_settings.dir_owner))


def _directory(directory: Directory) -> Iterator[Finding]:
    access, info = directory_access(directory)
    yield access
    if info is None:
        return
    if not Path(directory.file(INDEX_NAME)).is_file():
        yield Finding(PROBLEM, f"no worker has recorded into {directory.path} yet", "start a worker of this app")
        return
    try:
        slots = len(directory.slots())
    except OSError as error:
        yield Finding(PROBLEM, f"{directory.path} cannot be listed: {error.strerror}", "run this as the workers' user")
        return
    yield Finding(OK, f"an exporter run by this user with these settings sees {slots} slots there")


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
    click.echo(summary(problems))
    if problems:
        context.exit(1)
