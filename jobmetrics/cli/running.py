"""`jobmetrics running`: the executions that run on this host now."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from jobmetrics.cli import logs
from jobmetrics.cli.logs import printable
from jobmetrics.cli.options import directory_option, settings_from, warn_of_unknown_variables

if TYPE_CHECKING:
    from jobmetrics.registry import ProcessIdentity
    from jobmetrics.registry.read import RunningExecution

WORKER = "worker"  # role of a process that records the starts of jobs that run in its work-horses
HEADINGS = ("system", "job type", "queue", "job id", "pid", "horse", "age (s)")


class RunningRow(NamedTuple):
    """A running execution.

    job_id: None if it has none. pid: of the process that recorded its start. horse: pid of the work-horse that this
    process has forked for it; None if there is none or it is not found. age_seconds: None if unknown.
    """

    system: str
    job_type: str
    queue_name: str
    job_id: str | None
    pid: int
    horse: int | None
    age_seconds: float | None


@click.command()
@directory_option
@click.option("--job-type", "pattern", metavar="PATTERN", help="Only job types that match, such as 'shop.*'.")
@click.option(
    "--longer-than", type=click.FloatRange(min=0), metavar="SECONDS", help="Only executions that have run for longer."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def running(
    dir: str | None,  # noqa: A002 - the option's name
    pattern: str | None,
    longer_than: float | None,
    as_json: bool,
) -> None:
    """Print the executions that run on this host, the longest first.

    pid is the process that recorded the start. That process runs the job, unless the column horse has the work-horse
    that a worker has forked for it. Pids of workers in a container are those inside the container.
    """
    from jobmetrics.registry import Directory
    from jobmetrics.registry.read import SnapshotReader

    settings = settings_from(dir=dir)
    logs.configure(settings.log_level)
    warn_of_unknown_variables()
    reader = SnapshotReader(Directory(settings.dir, settings.dir_group, settings.dir_owner))
    try:
        found = rows(reader.read().running, time.time())
    finally:
        reader.close()
    shown = select(found, pattern, longer_than)
    if as_json:
        print(json.dumps([row._asdict() for row in shown], indent=2))
    else:
        print("\n".join(table(shown)) if shown else "no such execution is running")


def rows(found: Iterable[RunningExecution], now: float) -> list[RunningRow]:
    """Return the executions, the longest first and those with an unknown start last."""
    made = []
    for each in found:
        age = None if math.isnan(each.start) else max(0.0, now - each.start)
        system, job_type, queue = each.values
        made.append(
            RunningRow(system, job_type, queue, each.job_id or None, each.owner.pid, work_horse(each.owner), age)
        )  # fmt: skip
    return sorted(made, key=lambda row: -math.inf if row.age_seconds is None else row.age_seconds, reverse=True)


def select(found: Iterable[RunningRow], pattern: str | None, longer_than: float | None) -> list[RunningRow]:
    """Return the rows of matching job types that have run for longer than this many seconds."""
    return [
        row
        for row in found
        if (pattern is None or fnmatch.fnmatchcase(row.job_type, pattern))
        and (longer_than is None or (row.age_seconds is not None and row.age_seconds > longer_than))
    ]


def table(shown: Sequence[RunningRow]) -> list[str]:
    """Return the lines of a table with one row for each execution."""
    cells = [HEADINGS, *(tuple(map(printable, _texts(row))) for row in shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _texts(row: RunningRow) -> tuple[str, ...]:
    age = None if row.age_seconds is None else f"{row.age_seconds:.1f}"
    texts = (*row[:3], row.job_id, str(row.pid), None if row.horse is None else str(row.horse), age)
    return tuple("-" if text is None else text or "''" for text in texts)


def work_horse(owner: ProcessIdentity) -> int | None:
    """Return the pid of the work-horse that a worker has forked; None if there is none or it cannot be known."""
    import psutil

    from jobmetrics.registry import pid_namespace

    if owner.role != WORKER or owner.namespace not in (0, pid_namespace()):
        return None
    try:
        children = [child.pid for child in psutil.Process(owner.pid).children()]
        # A work-horse has its own process group, so that it can be killed with its children; a scheduler has not.
        horses = [pid for pid in children if os.getpgid(pid) == pid]
    except (psutil.Error, OSError):
        return None
    return horses[0] if len(horses) == 1 else None
