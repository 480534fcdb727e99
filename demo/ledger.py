"""The files of a run: its description, what the producer sent, and what the jobs wrote about themselves.

This module does not use jobmetrics, because jobmetrics' numbers are compared with these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOME_VARIABLE = "DEMO_HOME"
SUCCESS, FAILURE, RETRY = "success", "failure", "retry"
KILLED = {"celery": "WorkerLostError", "rq": "WorkHorseKilled"}
"""The error type of a job after its process was killed, by system."""
DEADLY = "exhaust_memory"
"""The job that kills its process. Its line is written before it runs."""

_FILE = "demo.json"


@dataclass(frozen=True)
class Run:
    """One run of the demo, in a separate directory. redis_url: None if only Celery runs, with messages in files."""

    home: Path
    id: str
    redis_url: str | None
    celery_queue: str
    rq_queue: str

    @property
    def queues(self) -> dict[str, str]:
        """The queue of each system that takes part."""
        return {"celery": self.celery_queue} | ({} if self.redis_url is None else {"rq": self.rq_queue})

    @property
    def sent(self) -> Path:
        """The file of what the producer sent, one line per job."""
        return self.home / "sent.jsonl"

    @property
    def ledger(self) -> Path:
        """The file of what the jobs wrote about themselves, one line per execution."""
        return self.home / "ledger.jsonl"

    @property
    def shop(self) -> Path:
        """The folder of the files that the jobs work on."""
        return self.home / "shop"

    @property
    def celery_ready(self) -> Path:
        """A file that exists when the Celery worker is ready."""
        return self.home / "celery.ready"

    @property
    def rq_worker(self) -> str:
        """The RQ worker's name. It contains the run's id, as all keys of the run do."""
        return f"worker-{self.id}"

    def save(self) -> None:
        """Write it to a file for the run's processes, of mode 0600 because the URL may contain a password."""
        values = {**asdict(self), "home": str(self.home)}
        descriptor = os.open(self.home / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(values, file)

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ) -> Run:
        """Read the run that this process belongs to.

        Raises:
            KeyError: If the process does not belong to a demo.
        """
        home = Path(environment[HOME_VARIABLE])
        values = json.loads((home / _FILE).read_text(encoding="utf-8"))
        return cls(**{**values, "home": home})


@dataclass(frozen=True)
class Sent:
    """One job that the producer handed to a broker."""

    system: str
    job_type: str
    id: str


@dataclass(frozen=True)
class Entry:
    """One execution. error_type: a class name, empty on success."""

    system: str
    job_type: str
    id: str
    outcome: str
    error_type: str

    @property
    def final(self) -> bool:
        """Whether the job was over with this execution."""
        return self.outcome != RETRY


def append(path: Path, record: Sent | Entry) -> None:
    """Append one line in one write: with O_APPEND, lines of several processes do not mix."""
    line = json.dumps(asdict(record)).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if written != len(line):
        raise OSError(f"only {written} of {len(line)} bytes were written to {path}")


@contextmanager
def execution(
    path: Path, system: str, job_type: str, job_id: str, outcome_of: Callable[[BaseException], str]
) -> Iterator[None]:
    """Write one line when the body has ended. outcome_of: FAILURE or RETRY, by the exception that the body raised."""
    outcome, error_type = SUCCESS, ""
    if job_type.rpartition(".")[2] == DEADLY:
        append(path, Entry(system, job_type, job_id, FAILURE, KILLED[system]))
        yield
        return
    try:
        yield
    except BaseException as error:
        outcome, error_type = outcome_of(error), type(error).__name__
        raise
    finally:
        append(path, Entry(system, job_type, job_id, outcome, error_type))


class Ledger:
    """What was sent and what ran, as of the last `update`."""

    def __init__(self, run: Run) -> None:
        self.sent: list[Sent] = []
        self.entries: list[Entry] = []
        self._unfinished: set[tuple[str, str]] = set()
        self._finished: set[tuple[str, str]] = set()
        self._sent_lines, self._ledger_lines = _Lines(run.sent), _Lines(run.ledger)

    def update(self) -> int:
        """Read what was added; returns the number of new lines."""
        before = len(self.sent) + len(self.entries)
        # The ledger first: a job that ends between the two readings is then outstanding, not unknown.
        for line in self._ledger_lines():
            entry = Entry(**line)
            self.entries.append(entry)
            if entry.final:
                self._finished.add((entry.system, entry.id))
        for line in self._sent_lines():
            job = Sent(**line)
            self.sent.append(job)
            self._unfinished.add((job.system, job.id))
        self._unfinished -= self._finished
        return len(self.sent) + len(self.entries) - before

    def outstanding(self, system: str | None = None) -> int:
        """The number of jobs sent without a final outcome, of one system or of all."""
        return sum(system in (None, job[0]) for job in self._unfinished)


class _Lines:
    """Each call yields the complete lines added to a file since the last call."""

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
