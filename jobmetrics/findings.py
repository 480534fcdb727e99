"""Findings about a set-up: what `jobmetrics check` and a job system's own check share.

Nothing here reads metrics, so that a worker's environment has every package it needs.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string.
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jobmetrics import settings
from jobmetrics.errors import DirectoryMissing, RegistryError
from jobmetrics.registry import INDEX_NAME, Directory

OK, NOTE, STARTING, PROBLEM = "ok", "note", "starting", "PROBLEM"

_SERVICE_LINK = r"_(SERVICE_(HOST|PORT)|PORT)\b"


class Finding(NamedTuple):
    """One line of `jobmetrics check`.

    state: OK, NOTE (harmless, but good to know), STARTING (a process has just started) or PROBLEM. text: what was
    found. remedy: what to do about it. runbook: the section of docs/runbook.md about it. value: the value in the text,
    in a base unit; None if there is none.
    """

    state: str
    text: str
    remedy: str = ""
    runbook: str = ""
    value: float | None = None

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        runbook = f" (runbook: {self.runbook})" if self.runbook else ""
        return f"{self.state:<7} {self.text.rstrip('.')}{remedy}{runbook}"


def summary(problems: int) -> str:
    """Return the last line of a check."""
    return "nothing is wrong" if not problems else f"{problems} problem{'s' if problems > 1 else ''}"


def configuration(errors: Sequence[str], unknown: Sequence[str]) -> Iterator[Finding]:
    """Report errors of the environment and the configuration file. errors, unknown: one line each."""
    for line in errors:
        yield Finding(
            PROBLEM, line, "correct it; workers ignore the value, and the exporter and other commands do not start"
        )
    for line in unknown:
        remedy = ""
        if re.search(_SERVICE_LINK, line):
            remedy = (
                "Kubernetes sets such variables for a Service; enableServiceLinks: false in the pod spec prevents it"
            )
        yield Finding(NOTE, line, remedy)


def directory_access(directory: Directory) -> tuple[Finding, os.stat_result | None]:
    """Report whether this process may use the registry directory.

    Returns:
        The finding, and the directory's status if it may.
    """
    path = directory.path
    try:
        info = directory.check()
    except DirectoryMissing:
        missing = Finding(
            PROBLEM, f"{path} does not exist: nothing has recorded here",
            "start a worker with jobmetrics enabled, or set JOBMETRICS_DIR to the directory that the workers use",
        )  # fmt: skip
        return missing, None
    except RegistryError as error:
        return Finding(PROBLEM, str(error)), None
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror}"
        return Finding(PROBLEM, text, "run this as the workers' user"), None
    return Finding(OK, f"{path}, mode {info.st_mode & 0o7777:o}, user {info.st_uid}, group {info.st_gid}"), info


def recording() -> Iterator[Finding]:
    """Report whether this process would record, where, and whether an exporter would see it."""
    read, wrong = settings.read()
    yield from configuration(wrong.errors, [wrong.unknown_line()] if wrong.unknown else [])
    active_settings = settings.peek() or read
    if not active_settings.enabled:
        yield Finding(PROBLEM, "recording is off", "remove the setting enabled, or set it to true")
        return
    directory = Directory(active_settings.dir, active_settings.dir_group, active_settings.dir_owner)
    access, info = directory_access(directory)
    yield access
    if info is None:
        return
    if not os.path.isfile(directory.file(INDEX_NAME)):  # noqa: PTH113 - workers import this; pathlib is not free
        yield Finding(PROBLEM, f"no worker has recorded into {directory.path} yet", "start a worker of this app")
        return
    try:
        slots = len(directory.slots())
    except OSError as error:
        yield Finding(PROBLEM, f"{directory.path} cannot be listed: {error.strerror}", "run this as the workers' user")
        return
    yield Finding(OK, f"an exporter run by this user with these settings sees {slots} slots there")
