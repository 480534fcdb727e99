"""RQ's methods of a worker that has work-horses, as events.

The worker speaks only where its work-horse was silent; the recorder asks the journals before it believes it. Where both
share memory, the worker records for both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rq.exceptions import NoSuchJobError
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.utils import current_timestamp
from rq.version import VERSION

from jobmetrics import guard, recorder
from jobmetrics.events import REVOKED, SUCCESS, Job, Started
from jobmetrics.guard import guarded
from jobmetrics.job_context import running
from jobmetrics.registry.write.writer import Writer
from jobmetrics.rq.fork_horse import Forked, SharedPage, before_fork
from jobmetrics.rq.jobs import described, execution_id, named_in, passed_execution, ready_at
from jobmetrics.rq.outcomes import Killed, Method, Performing, report_abandoned, report_ended, report_lost
from jobmetrics.rq.producer import instrument_queue
from jobmetrics.rq.system import SYSTEM


def prepared(worker: Any, record: recorder.Recorder) -> SharedPage:
    """What a worker needs before its first job with this recorder; the page that it shares with its work-horses."""
    known: tuple[Writer, SharedPage] | None = getattr(worker, "_jobmetrics_page", None)
    if known is None or known[0] is not record.writer:
        worker._jobmetrics_page = known = record.writer, SharedPage()
        worker._jobmetrics = worker._jobmetrics_exit = worker._jobmetrics_counted = None
        # else each work-horse's attributes would grow, and move
        record.writer.describe(SYSTEM, "worker")
        for queue in worker.queues:
            instrument_queue(queue)
    return known[1]


# What is done for each job is guarded by hand, where it is called: with a wrapper more pages would be touched.


def _before_fork(worker: Any, job: RQJob, queue: Any) -> Forked | None:
    record = recorder.default()
    page, name = prepared(worker, record), named_in(job.data)
    if name is None:
        return None  # naming it would run what the job brings along: its work-horse may, and records for itself
    return before_fork(page, record, Started(Job(SYSTEM, name, queue.name), execution_id(worker, job), ready_at(job)))


def _after_exit(worker: Any, forked: Forked, job: RQJob, queue: Any) -> None:
    told = forked.record_told()
    if worker.horse_pid:
        return  # this worker ends, and killed its work-horse
    if not told:
        forked.record_gone(job, queue, _is_stopped(worker, job))
    if _has_died(worker, job):
        recorder.default().process_lost(forked.execution.job, str(forked.execution.execution_id))


@guarded("rq lost")
def _after_exit_of_another(worker: Any, job: RQJob, queue: Any, name: str) -> None:
    """Count the death of a work-horse that records for itself, and its job's end where only Redis has it."""
    if worker.horse_pid or not _has_died(worker, job):
        return
    if not report_ended(job, queue, name):
        recorder.default().process_lost(described(job, queue), name)


def _has_died(worker: Any, job: RQJob) -> bool:
    """Whether the job's work-horse died, of no shutdown and no stop command, and is not counted yet.

    The stop command is looked up as it was at the exit: RQ forgets it when it handles the stop.
    """
    seen = worker._jobmetrics_exit
    if seen is None or worker._jobmetrics_counted:
        return False
    (_, status, _), stopped = seen
    if not status or stopped == job.id:
        return False
    # A warm shutdown on Heroku makes a work-horse raise, and exit with a code.
    return os.WIFSIGNALED(status) or worker._shutdown_requested_date is None


def _is_stopped(worker: Any, job: RQJob) -> bool:
    """Whether an operator had the job's work-horse killed, and RQ has not said so yet."""
    return bool(worker._stopped_job_id == job.id)


@guarded("rq end")
def _after_raising(worker: Any, job: RQJob, queue: Any, name: str) -> None:
    if _is_stopped(worker, job):
        report_lost(job, queue, name, None, REVOKED)


@guarded("rq execution")
def _named(worker: Any, job: RQJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return execution_id(worker, job, passed_execution(args, kwargs))


@guarded("rq lost")
def _killed(worker: Any, job: RQJob, usage: Any) -> Killed:
    killed = Killed(usage)
    if killed.peak_bytes is not None:
        worker.log.warning(
            "Worker %s: work-horse killed for job %s had used up to %.0f MiB of memory and %.2f s of processor time",
            worker.name, job.id, killed.peak_bytes / 2**20, killed.cpu_seconds,
        )  # fmt: skip
    return killed


def fork_work_horse_of(original: Method) -> Method:
    """The worker records the start of the job whose work-horse it forks."""

    @functools.wraps(original)
    def fork_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        self._jobmetrics_forked = None
        try:
            self._jobmetrics_forked = _before_fork(self, job, queue)
        except Exception as error:  # noqa: BLE001 - noted; the job runs unrecorded
            guard.note("rq start", error)
        return original(self, job, queue, *args, **kwargs)

    return fork_work_horse


def monitor_work_horse_of(original: Method) -> Method:
    """Once the work-horse is gone, the worker records its end.

    A work-horse that shares the worker's memory has its end recorded here, whether or not it reported one. Any other
    one records for itself, and RQ reports all deaths but one: a stopped job whose callback raises, before RQ 3.
    """

    @functools.wraps(original)
    def monitor_work_horse(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        forked: Forked | None = getattr(self, "_jobmetrics_forked", None)
        name = _named(self, job, args, kwargs) if forked is None else None
        self._jobmetrics_exit = self._jobmetrics_counted = None
        try:
            return original(self, job, queue, *args, **kwargs)
        except Exception:
            if name is not None:
                _after_raising(self, job, queue, name)
            raise
        finally:
            if name is not None:
                _after_exit_of_another(self, job, queue, name)
            if forked is not None:
                self._jobmetrics_forked = None
                try:
                    _after_exit(self, forked, job, queue)
                except Exception as error:  # noqa: BLE001 - noted; the worker goes on
                    guard.note("rq end", error)

    return monitor_work_horse


def wait_for_horse_of(original: Method) -> Method:
    """Keep how the work-horse exited: RQ reports a death only where the job has no end in Redis."""

    @functools.wraps(original)
    def wait_for_horse(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        self._jobmetrics_exit = found, getattr(self, "_stopped_job_id", None)
        return found

    return wait_for_horse


def handle_work_horse_killed_of(original: Method) -> Method:
    """What the system told of a killed work-horse is kept for the end that follows."""

    @functools.wraps(original)
    def handle_work_horse_killed(self: Any, job: RQJob, *args: Any, **kwargs: Any) -> Any:
        usage = kwargs.get("rusage", args[2] if len(args) > 2 else None)
        if getattr(self, "_jobmetrics_killed", None) is None:
            self._jobmetrics_killed = _killed(self, job, usage) or Killed(None)
        return original(self, job, *args, **kwargs)

    return handle_work_horse_killed


def handle_job_failure_of(original: Method) -> Method:
    """The worker says how a job ended: what it is to say of its work-horse's."""

    @functools.wraps(original)
    def handle_job_failure(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        quiet = self.is_horse or getattr(self, "_jobmetrics", None) is not None
        if quiet or getattr(self, "_jobmetrics_failing", False):  # the last: a subclass and its base again
            return original(self, job, queue, *args, **kwargs)
        name = _named(self, job, args, kwargs)  # before RQ forgets the execution
        killed, self._jobmetrics_killed = getattr(self, "_jobmetrics_killed", None), None
        self._jobmetrics_failing = True
        try:
            return original(self, job, queue, *args, **kwargs)
        finally:  # also when RQ raises (2.0 does after some retries): the work-horse is gone all the same
            self._jobmetrics_failing = False
            forked: Forked | None = getattr(self, "_jobmetrics_forked", None)
            if forked is not None:
                self._jobmetrics_counted = forked.record_lost(job, queue, killed)
            elif name is not None and is_cleaning():  # it got stuck between queue and start
                report_abandoned(job, queue, name, again=False)
            elif name is not None:
                self._jobmetrics_counted = report_lost(job, queue, name, killed)

    return handle_job_failure


@guarded("rq start")
def _start(worker: Any, job: RQJob, queue: Any, passed: Any) -> Performing | None:
    record = recorder.default()
    record.writer.describe(SYSTEM, "work-horse" if worker.is_horse else "worker")
    execution = record.started(Started(described(job, queue), execution_id(worker, job, passed), ready_at(job)))
    return None if execution is None else Performing(execution)


def perform_job_of(original: Method) -> Method:
    """A job starts here, and ends."""

    @functools.wraps(original)
    def perform_job(self: Any, job: RQJob, queue: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_jobmetrics", None) is not None:  # a subclass and its base are both instrumented
            return original(self, job, queue, *args, **kwargs)
        performing: Performing | None = getattr(self, "_jobmetrics_forked", None)
        if performing is None:
            performing = _start(self, job, queue, passed_execution(args, kwargs))
        self._jobmetrics = performing
        if performing is None:
            return original(self, job, queue, *args, **kwargs)
        performing.begin()
        token = running.set(performing.execution)
        try:
            succeeded = original(self, job, queue, *args, **kwargs)
            try:
                if succeeded and not performing.asked_retry:  # as most do, in few steps: each costs a copied page
                    performing.end(SUCCESS, None)
                else:
                    performing.end(*performing.how(job, bool(succeeded)))
            except Exception as error:  # noqa: BLE001 - nothing of ours raises into the worker
                guard.note("rq end", error)
            return succeeded
        finally:
            running.reset(token)
            self._jobmetrics = None

    return perform_job


def handle_exception_of(original: Method) -> Method:
    """The exception that it failed of."""

    @functools.wraps(original)
    def handle_exception(self: Any, job: RQJob, *exc_info: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None and len(exc_info) > 1:
            performing.error = exc_info[1]
        return original(self, job, *exc_info)

    return handle_exception


def handle_job_retry_of(original: Method) -> Method:
    """It asked to be run again, by what it returned."""

    @functools.wraps(original)
    def handle_job_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        performing = getattr(self, "_jobmetrics", None)
        if performing is not None:
            performing.asked_retry = True
        return original(self, *args, **kwargs)

    return handle_job_retry


# RQ 3 drops entries of jobs that are not started: their execution ended, and only the entry was left behind.
_ONLY_STARTED = int(VERSION.split(".")[0]) >= 3

_is_cleaning: ContextVar[bool] = ContextVar("jobmetrics_rq_cleaning", default=False)
_original: Any = None  # StartedJobRegistry.cleanup, once it is hooked


class _Abandoned:
    """An execution that RQ is about to call abandoned. again: whether the job has retries left."""

    __slots__ = ("again", "execution_id", "job")

    def __init__(self, job: RQJob, execution_id: str, again: bool) -> None:
        self.job = job
        self.execution_id = execution_id
        self.again = again


def hook() -> None:
    """Hook StartedJobRegistry.cleanup, once for the life of the process.

    The hook counts only within `cleaning`. It is never removed: workers in other threads may be inside.
    """
    global _original
    if _original is None:
        _original = StartedJobRegistry.cleanup
        StartedJobRegistry.cleanup = _cleanup  # type: ignore[method-assign]


@contextmanager
def cleaning() -> Iterator[None]:
    """While it lasts, an instrumented worker cleans up here: the abandoned jobs that it finds are counted."""
    token = _is_cleaning.set(True)
    try:
        yield
    finally:
        _is_cleaning.reset(token)


def is_cleaning() -> bool:
    """Whether an instrumented worker cleans up here."""
    return _is_cleaning.get()


def _cleanup(self: Any, timestamp: float | None = None, *args: Any, **kwargs: Any) -> Any:
    if not _is_cleaning.get():
        return _original(self, timestamp, *args, **kwargs)
    score = current_timestamp() if timestamp is None else timestamp
    found = _expired(self, score) or []
    result = _original(self, score, *args, **kwargs)
    for each in found:
        report_abandoned(each.job, None, each.execution_id, each.again)
    return result


@guarded("rq abandoned")
def _expired(registry: Any, score: float) -> list[_Abandoned]:
    """What has expired in the registry; usually nothing, for one question to Redis."""
    found = []
    for member in registry.connection.zrangebyscore(registry.key, 0, score):
        entry = member.decode("utf-8", "replace") if isinstance(member, bytes) else str(member)
        parse = getattr(registry, "parse_job_id", None)  # from 2.0 on an entry is JOB:EXECUTION
        try:
            job = registry.job_class.fetch(
                parse(entry) if parse else entry, connection=registry.connection, serializer=registry.serializer
            )
        except NoSuchJobError:
            continue
        if _ONLY_STARTED and job.get_status(refresh=False) != JobStatus.STARTED:
            continue
        name = entry if entry != job.id else execution_id(None, job)
        found.append(_Abandoned(job, name, bool(job.retries_left and job.retries_left > 0)))
    return found
