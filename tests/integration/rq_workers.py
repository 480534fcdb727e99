"""RQ workers on a real Redis with their ledger and directory, and worker classes that fail at special points."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import rq
from redis import Redis
from rq import Queue
from rq.version import VERSION
from rq.worker import HerokuWorker

import jobmetrics.rq
from tests.integration import execution_ledger
from tests.integration.processes import process, rq_worker
from tests.support.readings import active, assert_durations_add_up, counts, until, values

RQ_VERSION = tuple(int(part) for part in VERSION.split(".")[:2])

JOBS = "tests.integration.rq_jobs"
QUEUE = "jobs"

FORKING = "jobmetrics.rq.Worker"
SIMPLE = "jobmetrics.rq.SimpleWorker"
SPAWNING = "jobmetrics.rq.SpawnWorker"
CLASSES = (FORKING, SIMPLE, SPAWNING) if hasattr(jobmetrics.rq, "SpawnWorker") else (FORKING, SIMPLE)
WITH_HORSES = tuple(each for each in CLASSES if each != SIMPLE)


class Heroku(HerokuWorker):
    """RQ's class for Heroku, which signals its work-horse at shutdown; here without delay."""

    imminent_shutdown_delay = 0


class Own(rq.Worker):
    """A user's class that overrides methods."""

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        return super().perform_job(*args, **kwargs)

    def handle_exception(self, job: Any, *exc_info: Any) -> Any:
        return super().handle_exception(job, *exc_info)


class HasEveryName(jobmetrics.rq.Worker):
    """A user's class that has an attribute of any name."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class RaisesForUnknownNames(jobmetrics.rq.Worker):
    """A user's class that raises another error than AttributeError."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class RefusesNewNames(jobmetrics.rq.Worker):
    """A user's class that refuses attributes that RQ does not set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if "jobmetrics" in name:
            raise AttributeError(name)
        super().__setattr__(name, value)


class OwnForks(rq.Worker):
    """A user's class that starts work-horses itself."""

    def fork_work_horse(self, *args: Any, **kwargs: Any) -> None:
        super().fork_work_horse(*args, **kwargs)


jobmetrics.rq.instrument(Heroku)
jobmetrics.rq.instrument(Own)
jobmetrics.rq.instrument(OwnForks)
OWN = tuple(f"{__name__}.{each.__name__}" for each in (Heroku, Own, OwnForks))


class _Impatient:
    """Its clock is a minute ahead once the job has begun, so it kills a job that exceeds its timeout at once."""

    def maintain_heartbeats(self, job: Any, *args: Any, **kwargs: Any) -> None:
        super().maintain_heartbeats(job, *args, **kwargs)  # type: ignore[misc]  # a mixin
        if execution_ledger.read(Path(os.environ["LEDGER"])):
            job.started_at -= timedelta(minutes=1)


class Impatient(_Impatient, jobmetrics.rq.Worker):
    """Impatient, with forked work-horses."""


IMPATIENT = [f"{__name__}.Impatient"]
if hasattr(jobmetrics.rq, "SpawnWorker"):
    IMPATIENT.append(f"{__name__}.ImpatientSpawning")

    class ImpatientSpawning(_Impatient, jobmetrics.rq.SpawnWorker):
        """Impatient, with spawned work-horses."""


def _die(_: int = 0) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _KilledAfterwards:
    """Its work-horses are killed after their job's end was recorded, before they exit."""

    def main_work_horse(self, *args: Any, **kwargs: Any) -> None:
        os._exit = _die  # type: ignore[assignment]  # in the work-horse
        super().main_work_horse(*args, **kwargs)  # type: ignore[misc]  # a mixin


class KilledAfterwards(_KilledAfterwards, jobmetrics.rq.Worker):
    """With forked work-horses."""


class KilledAfterwardsOwnForks(_KilledAfterwards, OwnForks):
    """With work-horses that record themselves."""


KILLED_AFTERWARDS = [f"{__name__}.KilledAfterwards", f"{__name__}.KilledAfterwardsOwnForks"]
if RQ_VERSION >= (3, 0):  # before RQ 3 a spawned work-horse has another class than its worker
    KILLED_AFTERWARDS.append(f"{__name__}.KilledAfterwardsSpawning")

    class KilledAfterwardsSpawning(_KilledAfterwards, jobmetrics.rq.SpawnWorker):
        """With spawned work-horses."""


def after_end() -> Path:
    """The file that a waiting work-horse makes once its job's end is recorded."""
    return Path(os.environ["LEDGER"]).with_name("after the end")


class _Lingers:
    """Its work-horses wait after their job's end was recorded."""

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        super().perform_job(*args, **kwargs)  # type: ignore[misc]  # a mixin
        after_end().touch()
        signal.pause()
        return True


class _Stopped(_Lingers):
    """The worker obeys a stop command from before the job's end, as RQ's command thread does."""

    _stopped_job_id: str | None

    def wait_for_horse(self) -> Any:
        until(after_end().exists, "the job's end")
        self._stopped_job_id = os.environ["RQ_JOB_ID"]
        self.kill_horse()  # type: ignore[attr-defined]  # a mixin
        return super().wait_for_horse()  # type: ignore[misc]  # as above


class Lingers(_Lingers, jobmetrics.rq.Worker):
    """With forked work-horses."""


class LingersOwnForks(_Lingers, OwnForks):
    """With work-horses that record themselves."""


class Stopped(_Stopped, jobmetrics.rq.Worker):
    """With forked work-horses."""


class StoppedOwnForks(_Stopped, OwnForks):
    """With work-horses that record themselves."""


LINGERING = [f"{__name__}.Lingers", f"{__name__}.LingersOwnForks"]
STOPPED = [f"{__name__}.Stopped", f"{__name__}.StoppedOwnForks"]


class _KilledBeforeItRecords:
    """Its work-horses are killed after RQ has stored their job's end, before jobmetrics has recorded it."""

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        super().perform_job(*args, **kwargs)  # type: ignore[misc]  # a mixin
        _die()
        return True


class KilledBeforeItRecords(_KilledBeforeItRecords, rq.Worker):
    """With forked work-horses."""


class KilledBeforeItRecordsOwnForks(_KilledBeforeItRecords, OwnForks):
    """With work-horses that record themselves."""


class _KilledBefore:
    """Its work-horses are killed before their job starts."""

    def setup_work_horse_signals(self) -> None:
        _die()


class KilledBefore(_KilledBefore, jobmetrics.rq.Worker):
    """With forked work-horses."""


class KilledBeforeOwnForks(_KilledBefore, OwnForks):
    """With work-horses that record themselves."""


jobmetrics.rq.instrument(KilledBeforeItRecords)
jobmetrics.rq.instrument(KilledBeforeItRecordsOwnForks)
KILLED_BEFORE_IT_RECORDS = [f"{__name__}.KilledBeforeItRecords", f"{__name__}.KilledBeforeItRecordsOwnForks"]
KILLED_BEFORE = [f"{__name__}.KilledBefore", f"{__name__}.KilledBeforeOwnForks"]
if RQ_VERSION >= (3, 0):
    KILLED_BEFORE_IT_RECORDS.append(f"{__name__}.KilledBeforeItRecordsSpawning")
    KILLED_BEFORE.append(f"{__name__}.KilledBeforeSpawning")

    class KilledBeforeItRecordsSpawning(_KilledBeforeItRecords, jobmetrics.rq.SpawnWorker):
        """With spawned work-horses."""

    class KilledBeforeSpawning(_KilledBefore, jobmetrics.rq.SpawnWorker):
        """With spawned work-horses."""


class _WritesItsState:
    """Writes, after each job, whether the worker believes that it runs one."""

    def execute_job(self, *args: Any, **kwargs: Any) -> None:
        super().execute_job(*args, **kwargs)  # type: ignore[misc]  # a mixin
        execution_ledger.write("idle" if self.get_current_job_id() is None else "busy")  # type: ignore[attr-defined]  # as above


class WritesItsState(_WritesItsState, jobmetrics.rq.Worker):
    """With forked work-horses."""


WRITING_THEIR_STATE = [f"{__name__}.WritesItsState"]
if hasattr(jobmetrics.rq, "SpawnWorker"):
    WRITING_THEIR_STATE.append(f"{__name__}.WritesItsStateSpawning")

    class WritesItsStateSpawning(_WritesItsState, jobmetrics.rq.SpawnWorker):
        """With spawned work-horses."""


class Workers:
    """A queue, the environment of its workers, their ledger and their directory."""

    def __init__(self, url: str, directory: Path, tmp_path: Path) -> None:
        self.url = url
        self.connection = Redis.from_url(url)
        self.queue = Queue(QUEUE, connection=self.connection)
        self.directory = directory
        self.tmp_path = tmp_path
        self.written = tmp_path / "ledger"
        self.log = tmp_path / "worker.log"
        self.environment = {
            "LEDGER": str(self.written),
            "JOBMETRICS_DIR": str(directory),
            "JOBMETRICS_PROPAGATE_ERRORS": "1",
            # RQ 1.16 warns about its own deprecated functions.
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
        }

    @contextmanager
    def running(self, worker_class: str = FORKING, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that runs until a warm shutdown at the end of the block."""
        log = self.tmp_path / f"worker-{len(list(self.tmp_path.glob('worker-*')))}.log"
        self.log = log
        with rq_worker(self.url, self.environment, log, *options, QUEUE, worker_class=worker_class) as started:
            yield started

    def burst(self, worker_class: str = FORKING, *options: str, seconds: float = 120) -> None:
        """Run a worker until the queue is empty."""
        self.log = self.tmp_path / f"worker-{len(list(self.tmp_path.glob('worker-*')))}.log"
        command = [sys.executable, "-m", "rq.cli", "worker", "--url", self.url, "--worker-class", worker_class]
        with process([*command, "--burst", *options, QUEUE], self.log, **self.environment) as started:
            assert started.wait(seconds) == 0, self.log.read_text(errors="replace")

    @contextmanager
    def pool(
        self, workers: int, worker_class: str = FORKING, *, burst: bool = True
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker pool. burst: it runs until the queue is empty."""
        command = [sys.executable, "-m", "rq.cli", "worker-pool", "--url", self.url, "--num-workers", str(workers)]
        command += ["--worker-class", worker_class, *(["--burst"] if burst else []), QUEUE]
        with process(command, self.tmp_path / "pool.log", **self.environment) as started:
            yield started

    def forget_workers(self) -> None:
        """Let the heartbeats of all started workers expire, and make maintenance due."""
        key = f"rq:wip:{QUEUE}"
        members: Any = self.connection.zrange(key, 0, -1)
        for member in members:
            self.connection.zadd(key, {member: 1.0})
        self.connection.delete(f"rq:clean_registries:{QUEUE}")

    def ended(self) -> dict[tuple[str, str], float]:
        """Ends by job function and status, after a check of the labels that do not vary."""
        found = values(self.directory, "jobs_total")
        assert {(system, queue) for system, _, queue, _ in found} <= {("rq", QUEUE)}
        return {(name.rpartition(".")[2], status): count for (_, name, _, status), count in found.items()}

    def failures(self) -> dict[tuple[str, str], float]:
        """Failures by job function and error type."""
        found = values(self.directory, "jobs_failures_total")
        return {(name.rpartition(".")[2], error): count for (_, name, _, error), count in found.items()}

    def lost(self) -> float:
        """Count of work-horses that died in a job or right after it."""
        return values(self.directory, "jobs_worker_processes_lost_total").get(("rq",), 0.0)

    def unknown(self) -> float:
        """Count of executions with an unknown run time."""
        return sum(values(self.directory, "jobs_duration_unknown_total").values())

    def total(self) -> float:
        """Count of all ends."""
        return sum(self.ended().values())

    def await_ends(self, number: int) -> None:
        """Wait until this number of executions has ended."""
        until(lambda: self.total() >= number, f"{number} ends")

    def await_written(self, number: int = 1) -> None:
        """Wait until this number of executions has started, by the ledger."""
        until(lambda: len(execution_ledger.read(self.written)) >= number, f"{number} lines of the ledger")

    def horse(self, worker: int) -> int:
        """The work-horse of a worker."""
        found: list[int] = []

        def there() -> bool:
            found[:] = [child.pid for child in psutil.Process(worker).children()]
            return bool(found)

        until(there, "a work-horse")
        return found[0]

    def check(
        self,
        ended: Mapping[tuple[str, str], float],
        errors: Mapping[tuple[str, str], float] | None = None,
        *,
        unwritten: int = 0,
        unstarted: int = 0,
    ) -> None:
        """Compare everything the directory shows of these ends with the ledger.

        errors: failures by function and error type. unwritten: executions that ended before their job could write.
        unstarted: those of the unwritten that ended before their work-horse could record a start.
        """
        ends = self.ended()
        assert ends == ended, ends
        written = Counter(execution_ledger.read(self.written))
        by_function: Counter[str] = Counter()
        for (function, _), number in ended.items():
            by_function[function] += int(number)
        if unwritten:
            assert sum(by_function.values()) == sum(written.values()) + unwritten
        else:
            assert by_function == written, written
        # A reading between the two updates of an end has the end and not yet its failure.
        until(lambda: self.failures() == (errors or {}), f"failures {errors}")
        failed = sum(number for (_, status), number in ended.items() if status == "failure")
        assert sum(self.failures().values()) == failed
        retried = sum(number for (_, status), number in ended.items() if status == "retry")
        assert sum(values(self.directory, "jobs_retries_total").values()) == retried
        waits = sum(counts(self.directory, "jobs_queue_wait_seconds").values())
        assert waits == sum(ended.values()) - unstarted, waits
        assert active(self.directory) == {}
        assert_durations_add_up(self.directory)
