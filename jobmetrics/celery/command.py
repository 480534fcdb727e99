"""`celery -A app jobmetrics check`: whether this app records, where, and whether an exporter would see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from jobmetrics import settings
from jobmetrics.celery import signals as handlers
from jobmetrics.errors import JobmetricsError
from jobmetrics.registry.directory import INDEX_NAME, Directory

Finding = tuple[bool | None, str]  # whether it is well, None for what does no harm

_STATES = {True: "ok", None: "note", False: "WRONG"}
NOT_INSTRUMENTED = (
    'this app is not instrumented: add imports = ("jobmetrics.celery.plugin",) to its configuration, '
    "or call jobmetrics.celery.instrument(app)"
)


def findings(app: Any) -> Iterator[Finding]:
    """What is well and what is not, in words, the most basic first."""
    app.loader.import_default_modules()
    yield (True, "this app is instrumented") if handlers.is_connected() else (False, NOT_INSTRUMENTED)
    read, wrong = settings.read()
    for error in wrong.errors:
        yield False, f"ignored, recording goes on without it: {error}"
    if wrong.unknown:
        yield None, wrong.unknown_line()
    in_force = settings.peek() or read
    if not in_force.enabled:
        yield False, "recording is off: the setting enabled says so"
        return
    yield True, f"it records to {in_force.dir}"
    yield _directory(Directory(in_force.dir, in_force.dir_group, in_force.dir_owner))


def _directory(directory: Directory) -> Finding:
    try:
        directory.check()
        slots = len(directory.slots())
    except (OSError, JobmetricsError) as error:
        return False, f"an exporter with these settings would see nothing: {error}"
    if not Path(directory.file(INDEX_NAME)).is_file():
        return False, f"an exporter would see nothing: no worker has recorded into {directory.path} yet"
    return True, f"an exporter run by this user with these settings would see {slots} slots there"


@click.group(name="jobmetrics", help="Prometheus metrics of this app's workers.")
def command() -> None:
    """The group of our commands below `celery`."""


@command.command(name="check", help="Say whether this app records its jobs, and where.")
@click.pass_context
def check(context: click.Context) -> None:
    """Print what was found; exit 1 if anything is wrong."""
    well = True
    for good, text in findings(context.obj.app):
        click.echo(f"{_STATES[good]}: {text}")
        well = well and good is not False
    if not well:
        context.exit(1)
