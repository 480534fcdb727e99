"""The jobs' own account of what happened, written by the jobs and shared with no recording code."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SUCCESS, FAILURE, RETRY = "success", "failure", "retry"


@dataclass(frozen=True)
class Sent:
    """One job that the producer handed to a broker."""

    system: str
    job_type: str
    id: str


@dataclass(frozen=True)
class Entry:
    """One execution. `duration` is seconds; `error_type` a class name, empty on success."""

    system: str
    job_type: str
    id: str
    outcome: str
    error_type: str
    duration: float

    @property
    def final(self) -> bool:
        """Whether the job was over with this execution."""
        return self.outcome != RETRY


Classify = Callable[[BaseException], "tuple[str, str]"]
"""From what a job's body raised to (outcome, error type)."""


def append(path: Path, record: Sent | Entry) -> None:
    """Add one line in one write, which O_APPEND keeps whole among many writers."""
    line = json.dumps(asdict(record)).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if written != len(line):
        raise OSError(f"only {written} of {len(line)} bytes were written to {path}")


@contextmanager
def execution(path: Path, system: str, job_type: str, job_id: str, classify: Classify) -> Iterator[None]:
    """Write one line about the body, however it ends."""
    outcome, error_type = SUCCESS, ""
    started = time.perf_counter()
    try:
        yield
    except BaseException as error:
        outcome, error_type = classify(error)
        raise
    finally:
        duration = time.perf_counter() - started
        append(path, Entry(system, job_type, job_id, outcome, error_type, duration))


class _Lines:
    """The whole lines added to a file since the last call; a line half written is left for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)


class Books:
    """What was sent and what ran, read further on each `update`."""

    def __init__(self, sent: Path, ledger: Path) -> None:
        self.sent: list[Sent] = []
        self.entries: list[Entry] = []
        self._unfinished: dict[str, set[str]] = {}
        self._finished: dict[str, set[str]] = {}
        self._sent_lines, self._ledger_lines = _Lines(sent), _Lines(ledger)

    def update(self) -> int:
        """Read what was added; returns the number of new lines."""
        before = len(self.sent) + len(self.entries)
        # The ledger first: a job of this reading is then surely among the sent ones of this or a later one.
        for line in self._ledger_lines():
            entry = Entry(**line)
            self.entries.append(entry)
            if entry.final:
                self._finished.setdefault(entry.system, set()).add(entry.id)
                self._unfinished.setdefault(entry.system, set()).discard(entry.id)
        for line in self._sent_lines():
            sent = Sent(**line)
            self.sent.append(sent)
            if sent.id not in self._finished.setdefault(sent.system, set()):
                self._unfinished.setdefault(sent.system, set()).add(sent.id)
        return len(self.sent) + len(self.entries) - before

    def outstanding(self, system: str | None = None) -> int:
        """Jobs sent that have no final outcome yet, of one system or of all."""
        if system is not None:
            return len(self._unfinished.get(system, ()))
        return sum(len(ids) for ids in self._unfinished.values())
